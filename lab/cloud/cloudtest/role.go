package cloudtest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lecafe/lecafe/lab/cloud"
)

// Role returns the configuration of a role that may do what an IAM policy
// document says and nothing else: whoever works with it has its actions and
// resources proved enough. Conditions on the tags of resources are left out,
// as the cloud does not model them.
func (c *Cloud) Role(t testing.TB, name string, document []byte) aws.Config {
	t.Helper()
	var doc struct {
		Version   string
		Statement []struct {
			Sid, Effect      string
			Action, Resource []string
			Condition        map[string]map[string]any `json:",omitempty"`
		}
	}
	if err := json.Unmarshal(document, &doc); err != nil {
		t.Fatal(err)
	}
	for _, s := range doc.Statement {
		for operator, keys := range s.Condition {
			for key := range keys {
				if strings.HasPrefix(key, "ec2:ResourceTag/") {
					delete(keys, key)
				}
			}
			if len(keys) == 0 {
				delete(s.Condition, operator)
			}
		}
	}
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PutRolePolicy(name, name, string(text)); err != nil {
		t.Fatal(err)
	}
	return c.As(c.Vault.Vend(name, "i-00000000000000"+"123", time.Hour))
}

// Permissions are the IAM actions that a role's calls needed, sorted.
func Permissions(calls []cloud.Call, role string) []string {
	var out []string
	for _, call := range calls {
		if call.Caller.Role == role && !call.Presigned {
			out = append(out, call.Permissions...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
