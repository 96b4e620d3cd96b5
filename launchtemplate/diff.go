package launchtemplate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// Change is one field that differs between two versions. Path is AWS's own
// name with dots and indexes, as MetadataOptions.HttpTokens. An empty side is
// unset there. User data is compared as its base64.
type Change struct {
	Path string `json:"path"`
	A    string `json:"a,omitempty"`
	B    string `json:"b,omitempty"`
}

// Diff returns what differs, in order of path. Order in lists of IDs and tags,
// the state EC2 adds to metadata options, and the difference between unset and
// empty do not count.
func Diff(a, b *types.ResponseLaunchTemplateData) []Change {
	fa, fb := flat(a), flat(b)
	all := maps.Clone(fa)
	maps.Copy(all, fb)
	var changes []Change
	for _, p := range slices.Sorted(maps.Keys(all)) {
		if fa[p] != fb[p] {
			changes = append(changes, Change{p, fa[p], fb[p]})
		}
	}
	return changes
}

// flat turns data into path → value, without nulls, empty strings and lists.
func flat(data *types.ResponseLaunchTemplateData) map[string]string {
	out := map[string]string{}
	if data == nil {
		return out
	}
	var tree map[string]any
	if err := convert(data, &tree); err != nil {
		return out
	}
	if m, ok := tree["MetadataOptions"].(map[string]any); ok {
		delete(m, "State")
	}
	walk("", tree, out)
	return out
}

func walk(path string, v any, out map[string]string) {
	switch v := v.(type) {
	case nil:
	case map[string]any:
		for k, e := range v {
			p := k
			if path != "" {
				p = path + "." + k
			}
			walk(p, e, out)
		}
	case []any:
		// Tags and IDs are sets: a key of their own, else the value itself.
		for i, e := range v {
			if t, ok := e.(map[string]any); ok && t["Key"] != nil {
				out[fmt.Sprintf("%s[%v]", path, t["Key"])] = fmt.Sprint(t["Value"])
				continue
			}
			if t, ok := e.(map[string]any); ok && t["ResourceType"] != nil {
				// moto and LocalStack mix the template's own tags in; a
				// version cannot have any.
				if t["ResourceType"] != string(types.ResourceTypeLaunchTemplate) {
					walk(fmt.Sprintf("%s[%v]", path, t["ResourceType"]), t["Tags"], out)
				}
				continue
			}
			if s, ok := e.(string); ok {
				out[fmt.Sprintf("%s[%s]", path, s)] = s
				continue
			}
			walk(fmt.Sprintf("%s[%d]", path, i), e, out)
		}
	default:
		if s := fmt.Sprint(v); s != "" {
			out[path] = s
		}
	}
}

// convert carries fields over by name: EC2's request and response forms of the
// same data differ only in type.
func convert(from, to any) error {
	b, err := json.Marshal(from)
	if err != nil {
		return fmt.Errorf("read launch template data: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("convert launch template data: %w", err)
	}
	return nil
}
