package ec2

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type tag struct {
	Key   string `out:"key"`
	Value string `out:"value,keep"`
}

// tagIn tells an absent value from an empty one.
type tagIn struct {
	Key   string
	Value *string
}

// tagSpec is one TagSpecification of a create call or a launch template.
type tagSpec struct {
	ResourceType string `out:"resourceType"`
	Tags         []tag  `q:"Tag" out:"tagSet>item"`
}

func tagValue(tags []tag, key string) (string, bool) {
	for _, t := range tags {
		if t.Key == key {
			return t.Value, true
		}
	}
	return "", false
}

// mergeTags returns a new slice with over's tags put over base's.
func mergeTags(base, over []tag) []tag {
	out := slices.Clone(base)
	for _, t := range over {
		if i := slices.IndexFunc(out, func(o tag) bool { return o.Key == t.Key }); i >= 0 {
			out[i] = t
		} else {
			out = append(out, t)
		}
	}
	return out
}

// checkTags applies the rules for tags: up to 50, keys of 1–128 characters,
// values of up to 256, the prefix aws: reserved, no key twice.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions
func checkTags(tags []tag) error {
	seen := map[string]bool{}
	for _, t := range tags {
		switch {
		case t.Key == "" || utf8.RuneCountInString(t.Key) > 128:
			return query.Errorf("InvalidParameterValue", "Tag keys have 1 to 128 characters; %q has not", t.Key)
		case utf8.RuneCountInString(t.Value) > 256:
			return query.Errorf("InvalidParameterValue", "Tag values have at most 256 characters; that of %q has more", t.Key)
		case strings.HasPrefix(strings.ToLower(t.Key), "aws:"):
			return query.Errorf("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use: %q", t.Key)
		case seen[t.Key]:
			return query.Errorf("InvalidParameterValue", "Duplicate tag key '%s' specified.", t.Key)
		}
		seen[t.Key] = true
	}
	if len(tags) > 50 {
		return query.Errorf("TagLimitExceeded", "The maximum number of tags of a resource is 50")
	}
	return nil
}

// specified returns the tags that specs have for one kind of resource. A kind
// that the call does not create is refused.
func specified(specs []tagSpec, kind string, kinds ...string) ([]tag, error) {
	var tags []tag
	for _, spec := range specs {
		if spec.ResourceType != kind && !slices.Contains(kinds, spec.ResourceType) {
			return nil, query.Errorf("InvalidParameterValue", "'%s' is not a valid taggable resource type for this operation.", spec.ResourceType)
		}
		if spec.ResourceType == kind {
			tags = append(tags, spec.Tags...)
		}
	}
	if err := checkTags(tags); err != nil {
		return nil, err
	}
	return tags, nil
}

type createTagsIn struct {
	dry
	Resources []string `q:"ResourceId"`
	Tags      []tag    `q:"Tag"`
}

func (c *call) createTags(in *createTagsIn) (any, error) {
	if len(in.Resources) == 0 || len(in.Tags) == 0 {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameters ResourceId and Tag")
	}
	if err := checkTags(in.Tags); err != nil {
		return nil, err
	}
	found := make([]*meta, len(in.Resources))
	for i, id := range in.Resources {
		m, err := c.r.find(id)
		if err != nil {
			return nil, err
		}
		if merged := mergeTags(m.tags, in.Tags); len(merged) > 50 {
			return nil, query.Errorf("TagLimitExceeded", "The maximum number of tags of a resource is 50")
		}
		found[i] = m
	}
	for _, m := range found {
		m.tags = mergeTags(m.tags, in.Tags)
	}
	return nil, nil
}

type deleteTagsIn struct {
	dry
	Resources []string `q:"ResourceId"`
	Tags      []tagIn  `q:"Tag"`
}

// deleteTags removes by key, or by key and value where a value (an empty one
// too) is given; without tags all user-defined ones.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteTags.html
func (c *call) deleteTags(in *deleteTagsIn) (any, error) {
	for _, id := range in.Resources {
		m, err := c.r.find(id)
		if err != nil {
			return nil, err
		}
		m.tags = slices.DeleteFunc(slices.Clone(m.tags), func(t tag) bool {
			if strings.HasPrefix(t.Key, "aws:") {
				return false
			}
			return len(in.Tags) == 0 || slices.ContainsFunc(in.Tags, func(d tagIn) bool {
				return d.Key == t.Key && (d.Value == nil || *d.Value == t.Value)
			})
		})
	}
	return nil, nil
}

type describeTagsIn struct {
	dry
	paging
	Filters []filter `q:"Filter"`
}

type tagDescription struct {
	ResourceID   string `out:"resourceId"`
	ResourceType string `out:"resourceType"`
	Key          string `out:"key"`
	Value        string `out:"value,keep"`
}

type describeTagsOut struct {
	Tags      []tagDescription `out:"tagSet>item"`
	NextToken string           `out:"nextToken"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeTags.html
func (c *call) describeTags(in *describeTagsIn) (any, error) {
	type test func(tagDescription) bool
	var tests []test
	for _, f := range in.Filters {
		match := matcher(f.Values)
		switch {
		case f.Name == "key":
			tests = append(tests, func(t tagDescription) bool { return match(t.Key) })
		case f.Name == "value":
			tests = append(tests, func(t tagDescription) bool { return match(t.Value) })
		case f.Name == "resource-id":
			tests = append(tests, func(t tagDescription) bool { return match(t.ResourceID) })
		case f.Name == "resource-type":
			tests = append(tests, func(t tagDescription) bool { return match(t.ResourceType) })
		case strings.HasPrefix(f.Name, "tag:"):
			key := strings.TrimPrefix(f.Name, "tag:")
			tests = append(tests, func(t tagDescription) bool { return t.Key == key && match(t.Value) })
		default:
			return nil, query.Errorf("InvalidParameterValue", "The filter '%s' is invalid", f.Name)
		}
	}
	if n := in.MaxResults; n != nil && (*n < 5 || *n > 1000) {
		return nil, query.Errorf("InvalidParameterValue", "Value ( %d ) for parameter maxResults is invalid. Expecting a value between 5 and 1000.", *n)
	}
	from, err := readToken(in.NextToken)
	if err != nil {
		return nil, err
	}
	var found []tagDescription
	for kind, m := range c.r.resources() {
		for _, t := range m.tags {
			d := tagDescription{m.id, kind, t.Key, t.Value}
			if !slices.ContainsFunc(tests, func(ok test) bool { return !ok(d) }) {
				found = append(found, d)
			}
		}
	}
	slices.SortFunc(found, func(a, b tagDescription) int {
		return cmp.Or(cmp.Compare(a.ResourceID, b.ResourceID), cmp.Compare(a.Key, b.Key))
	})
	found = found[min(int(from), len(found)):]
	out := &describeTagsOut{Tags: found}
	if in.MaxResults != nil && len(found) > *in.MaxResults {
		out.Tags, out.NextToken = found[:*in.MaxResults], writeToken(from+uint64(*in.MaxResults))
	}
	return out, nil
}
