package ec2

import (
	"slices"
	"strconv"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type describeVersionsIn struct {
	dry
	paging
	LaunchTemplateID   string `q:"LaunchTemplateId"`
	LaunchTemplateName string
	Versions           []string `q:"LaunchTemplateVersion"`
	MinVersion         string
	MaxVersion         string
	ResolveAlias       bool
	Filters            []filter `q:"Filter"`
}

type describeVersionsOut struct {
	Versions  []versionOut `out:"launchTemplateVersionSet>item"`
	NextToken string       `out:"nextToken"`
}

// versionRow makes a version filterable as the resources with IDs are.
type versionRow struct {
	meta
	t *template
	v *templateVersion
}

var versionFilters = filters[*versionRow]{
	"create-time":        func(r *versionRow) []string { return one(r.v.created.Format(query.TimeFormat)) },
	"ebs-optimized":      func(r *versionRow) []string { return yes(isTrue(r.v.data.EbsOptimized)) },
	"image-id":           func(r *versionRow) []string { return one(r.v.data.ImageID) },
	"instance-type":      func(r *versionRow) []string { return one(r.v.data.InstanceType) },
	"is-default-version": func(r *versionRow) []string { return yes(r.v.number == r.t.fallback) },
	"http-tokens": func(r *versionRow) []string {
		return metadataField(r, func(m *metadataSpec) string { return m.HTTPTokens })
	},
	"http-endpoint": func(r *versionRow) []string {
		return metadataField(r, func(m *metadataSpec) string { return m.HTTPEndpoint })
	},
	"iam-instance-profile": func(r *versionRow) []string {
		if p := r.v.data.IamInstanceProfile; p != nil {
			return one(p.Arn)
		}
		return nil
	},
}

func metadataField(r *versionRow, f func(*metadataSpec) string) []string {
	if r.v.data.MetadataOptions == nil {
		return nil
	}
	return one(f(r.v.data.MetadataOptions))
}

// describeLaunchTemplateVersions describes versions of one template, newest
// first, or, with $Default or $Latest and no template named, that version of
// every template.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeLaunchTemplateVersions.html
func (c *call) describeLaunchTemplateVersions(in *describeVersionsIn) (any, error) {
	match, err := versionFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	if in.MaxResults != nil && (*in.MaxResults < 1 || *in.MaxResults > 200) {
		return nil, query.Errorf("InvalidParameterValue", "Value ( %d ) for parameter maxResults is invalid. Expecting a value between 1 and 200.", *in.MaxResults)
	}
	var all []*versionRow
	if in.LaunchTemplateID == "" && in.LaunchTemplateName == "" {
		for _, v := range in.Versions {
			if v != "$Default" && v != "$Latest" {
				return nil, query.Errorf("MissingParameter", "Either LaunchTemplateId or LaunchTemplateName must be provided for the version %s", v)
			}
		}
		if len(in.Versions) == 0 {
			return nil, query.Errorf("MissingParameter", "Either a launch template or the version $Default or $Latest must be provided")
		}
		for t := range c.r.templates.all() {
			all = append(all, t.pick(in.Versions)...)
		}
	} else {
		t, err := c.r.template(in.LaunchTemplateID, in.LaunchTemplateName)
		if err != nil {
			return nil, err
		}
		for _, name := range in.Versions {
			if _, err := t.version(name); err != nil {
				return nil, err
			}
		}
		low, high, err := bounds(in.MinVersion, in.MaxVersion)
		if err != nil {
			return nil, err
		}
		for _, row := range t.pick(in.Versions) {
			if row.v.number >= low && row.v.number <= high {
				all = append(all, row)
			}
		}
	}
	all = slices.DeleteFunc(all, func(r *versionRow) bool { return !match(r) })
	from, err := readToken(in.NextToken)
	if err != nil {
		return nil, err
	}
	all = all[min(int(from), len(all)):]
	out := &describeVersionsOut{}
	if in.MaxResults != nil && len(all) > *in.MaxResults {
		all = all[:*in.MaxResults]
		out.NextToken = writeToken(from + uint64(*in.MaxResults))
	}
	for _, r := range all {
		out.Versions = append(out.Versions, r.t.versionOut(r.v))
	}
	return out, nil
}

// pick returns the versions named, or all.
func (t *template) pick(names []string) []*versionRow {
	var rows []*versionRow
	if len(names) == 0 {
		for _, v := range slices.Backward(t.versions) {
			rows = append(rows, &versionRow{t.meta, t, v})
		}
		return rows
	}
	for _, name := range names {
		if v, err := t.version(name); err == nil {
			rows = append(rows, &versionRow{t.meta, t, v})
		}
	}
	return rows
}

func bounds(low, high string) (int64, int64, error) {
	l, h := int64(1), int64(1)<<62
	for _, b := range []struct {
		text string
		to   *int64
	}{{low, &l}, {high, &h}} {
		if b.text == "" {
			continue
		}
		n, err := strconv.ParseInt(b.text, 10, 64)
		if err != nil {
			return 0, 0, query.Errorf("InvalidParameterValue", "%q is not the number of a version", b.text)
		}
		*b.to = n
	}
	return l, h, nil
}
