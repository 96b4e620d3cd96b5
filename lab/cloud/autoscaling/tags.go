package autoscaling

import (
	"slices"
	"strings"
)

type tag struct {
	Key          string
	Value        string
	Propagate    bool   `q:"PropagateAtLaunch"`
	ResourceID   string `q:"ResourceId"`
	ResourceType string
}

type tagOut struct {
	ResourceID   string `out:"ResourceId"`
	ResourceType string `out:"ResourceType"`
	Key          string `out:"Key"`
	Value        string `out:"Value,keep"`
	Propagate    bool   `out:"PropagateAtLaunch"`
}

// check applies the rules for tags; group is empty where any group may be
// named.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_Tag.html
func (t *tag) check(group string) error {
	switch {
	case t.Key == "" || len(t.Key) > 128:
		return invalid("Tag keys have 1 to 128 characters")
	case len(t.Value) > 256:
		return invalid("Tag values have at most 256 characters")
	case strings.HasPrefix(strings.ToLower(t.Key), "aws:"):
		return invalid("Tag key prefix 'aws:' is reserved: %s", t.Key)
	case t.ResourceType != "" && t.ResourceType != "auto-scaling-group":
		return invalid("Invalid resource type %s. Valid value: auto-scaling-group", t.ResourceType)
	case group != "" && t.ResourceID != "" && t.ResourceID != group:
		return invalid("The tag %s names another group, %s", t.Key, t.ResourceID)
	}
	return nil
}

func ownTags(group string, tags []tag) []tag {
	own := slices.Clone(tags)
	for i := range own {
		own[i].ResourceID, own[i].ResourceType = group, "auto-scaling-group"
	}
	return own
}

func (g *group) tagsOut() []tagOut {
	out := make([]tagOut, len(g.tags))
	for i, t := range g.tags {
		out[i] = tagOut{g.name, "auto-scaling-group", t.Key, t.Value, t.Propagate}
	}
	return out
}

type tagsIn struct {
	Tags []tag
}

// createTags puts tags on groups; running instances do not get them.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_CreateOrUpdateTags.html
func (c *call) createTags(in *tagsIn) (any, error) {
	return c.tag(in, func(g *group, t tag) { g.tags = append(g.tags, t) })
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DeleteTags.html
func (c *call) deleteTags(in *tagsIn) (any, error) { return c.tag(in, func(*group, tag) {}) }

// tag takes the old value of every tag away and lets put do the rest.
func (c *call) tag(in *tagsIn, put func(*group, tag)) (any, error) {
	for _, t := range in.Tags {
		if err := t.check(""); err != nil {
			return nil, err
		}
		if _, err := c.group(t.ResourceID); err != nil {
			return nil, err
		}
	}
	for _, t := range in.Tags {
		g := c.r.groups[t.ResourceID]
		g.tags = slices.DeleteFunc(slices.Clone(g.tags), func(o tag) bool { return o.Key == t.Key })
		put(g, t)
	}
	return nil, nil
}

type describeTagsIn struct {
	Filters    []filter
	MaxRecords *int
	NextToken  string
}

type describeTagsOut struct {
	Tags      []tagOut `out:"Tags>member"`
	NextToken string   `out:"NextToken"`
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeTags.html
func (c *call) describeTags(in *describeTagsIn) (any, error) {
	var rows []tagOut
	for _, g := range c.r.order {
		rows = append(rows, g.tagsOut()...)
	}
	for _, f := range in.Filters {
		var of func(tagOut) string
		switch f.Name {
		case "auto-scaling-group":
			of = func(t tagOut) string { return t.ResourceID }
		case "key":
			of = func(t tagOut) string { return t.Key }
		case "value":
			of = func(t tagOut) string { return t.Value }
		case "propagate-at-launch":
			of = func(t tagOut) string {
				if t.Propagate {
					return "true"
				}
				return "false"
			}
		default:
			return nil, invalid("The filter %s is not supported", f.Name)
		}
		rows = slices.DeleteFunc(rows, func(t tagOut) bool { return !slices.Contains(f.Values, of(t)) })
	}
	page, next, err := pageOf(rows, in.NextToken, in.MaxRecords, 50, 100)
	if err != nil {
		return nil, err
	}
	return &describeTagsOut{page, next}, nil
}
