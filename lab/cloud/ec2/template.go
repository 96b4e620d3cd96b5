package ec2

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type template struct {
	meta
	name     string
	fallback int64 // the default version
	latest   int64
	given    int64              // the highest number ever given: numbers are not used again
	versions []*templateVersion // in order of their numbers
}

type templateVersion struct {
	number      int64
	created     time.Time
	createdBy   string
	description string
	data        launchData
}

// otherToken remembers what a client token of another action than RunInstances
// has made.
type otherToken struct {
	params, id string
	version    int64
}

var (
	templateName     = regexp.MustCompile(`^[a-zA-Z0-9().\-/_]{3,128}$`)
	templateNotFound = notFoundf("InvalidLaunchTemplateId.NotFound", "The specified launch template, with template ID %s, does not exist.")
)

// template finds one by ID or by name, of which exactly one must be given.
func (r *region) template(id, name string) (*template, error) {
	switch {
	case id != "" && name != "":
		return nil, query.Errorf("InvalidParameterCombination", "The parameters LaunchTemplateId and LaunchTemplateName cannot be used together")
	case id != "":
		if err := checkID("lt", "InvalidLaunchTemplateId.Malformed", id); err != nil {
			return nil, err
		}
		if t, ok := r.templates.get(id); ok {
			return t, nil
		}
		return nil, templateNotFound(id)
	case name != "":
		for t := range r.templates.all() {
			if t.name == name {
				return t, nil
			}
		}
		return nil, query.Errorf("InvalidLaunchTemplateName.NotFoundException", "The specified launch template, with template name %s, does not exist.", name)
	}
	return nil, query.Errorf("MissingParameter", "Either LaunchTemplateId or LaunchTemplateName must be provided")
}

// version finds one by number, $Default (also when nothing is said) or
// $Latest.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_LaunchTemplateSpecification.html
func (t *template) version(v string) (*templateVersion, error) {
	var n int64
	switch v {
	case "", "$Default":
		n = t.fallback
	case "$Latest":
		n = t.latest
	default:
		var err error
		if n, err = strconv.ParseInt(v, 10, 64); err != nil || n < 1 {
			return nil, query.Errorf("InvalidLaunchTemplateId.VersionNotFound", "Invalid launch template version: %q. Versions are numbers, $Default or $Latest", v)
		}
	}
	for _, tv := range t.versions {
		if tv.number == n {
			return tv, nil
		}
	}
	return nil, query.Errorf("InvalidLaunchTemplateId.VersionNotFound", "Could not find the specified version %d for the launch template with ID %s.", n, t.id)
}

func (r *region) templateVersion(spec *templateSpec) (*template, *templateVersion, error) {
	t, err := r.template(spec.LaunchTemplateID, spec.LaunchTemplateName)
	if err != nil {
		return nil, nil, err
	}
	v, err := t.version(spec.Version)
	return t, v, err
}

// checkTemplate is the little that is validated when a version is created:
// the image, say, may be missing or not exist.
func (d *launchData) checkTemplate() error {
	if err := d.check(); err != nil {
		return err
	}
	if d.InstanceType != "" && typeOf(d.InstanceType) == nil {
		return query.Errorf("InvalidParameterValue", "Invalid instance type: %s", d.InstanceType)
	}
	if _, err := decodeUserData(d.UserData, "InvalidUserData.Malformed"); err != nil {
		return err
	}
	for _, spec := range d.TagSpecs {
		if err := checkTags(spec.Tags); err != nil {
			return err
		}
	}
	return nil
}

type createTemplateIn struct {
	dry
	LaunchTemplateName string
	VersionDescription string
	Data               *launchData `q:"LaunchTemplateData"`
	TagSpecs           []tagSpec   `q:"TagSpecification"`
	ClientToken        string
}

type templateOut struct {
	ID        string    `out:"launchTemplateId"`
	Name      string    `out:"launchTemplateName"`
	Created   time.Time `out:"createTime"`
	CreatedBy string    `out:"createdBy"`
	Default   int64     `out:"defaultVersionNumber"`
	Latest    int64     `out:"latestVersionNumber"`
	Tags      []tag     `out:"tagSet>item"`
}

type oneTemplateOut struct {
	Template templateOut `out:"launchTemplate"`
}

type versionOut struct {
	ID          string     `out:"launchTemplateId"`
	Name        string     `out:"launchTemplateName"`
	Number      int64      `out:"versionNumber"`
	Description string     `out:"versionDescription"`
	Created     time.Time  `out:"createTime"`
	CreatedBy   string     `out:"createdBy"`
	Default     bool       `out:"defaultVersion"`
	Data        launchData `out:"launchTemplateData"`
}

type oneVersionOut struct {
	Version versionOut `out:"launchTemplateVersion"`
}

func (t *template) out() templateOut {
	return templateOut{t.id, t.name, t.created, t.versions[0].createdBy, t.fallback, t.latest, t.tags}
}

func (t *template) versionOut(v *templateVersion) versionOut {
	return versionOut{t.id, t.name, v.number, v.description, v.created, v.createdBy, v.number == t.fallback, v.data}
}

// token returns what the client token has made before, if anything.
func (r *region) token(action, token string, in any) (made otherToken, key string, err error) {
	if token == "" {
		return otherToken{}, "", nil
	}
	params, err := fingerprint(in)
	if err != nil {
		return otherToken{}, "", err
	}
	key = action + "\x00" + token
	made, ok := r.otherTokens[key]
	if ok && made.params != params {
		return otherToken{}, "", query.Errorf("IdempotentParameterMismatch", "The provided client token '%s' was used for a request with other parameters", token)
	}
	made.params = params
	return made, key, nil
}

// createLaunchTemplate makes version 1, the default.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateLaunchTemplate.html
func (c *call) createLaunchTemplate(in *createTemplateIn) (any, error) {
	made, key, err := c.r.token("CreateLaunchTemplate", in.ClientToken, in)
	if err != nil {
		return nil, err
	}
	if t, ok := c.r.templates.byID[made.id]; ok {
		return &oneTemplateOut{t.out()}, nil
	}
	if !templateName.MatchString(in.LaunchTemplateName) {
		return nil, query.Errorf("InvalidLaunchTemplateName.MalformedException", "A launch template name must be between 3 and 128 characters, and may contain letters, numbers, and the following characters: - ( ) . / _.")
	}
	for t := range c.r.templates.every() {
		if t.name == in.LaunchTemplateName {
			return nil, query.Errorf("InvalidLaunchTemplateName.AlreadyExistsException", "Launch template name already in use.")
		}
	}
	if in.Data == nil {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter LaunchTemplateData")
	}
	if err := in.Data.checkTemplate(); err != nil {
		return nil, err
	}
	tags, err := specified(in.TagSpecs, "launch-template")
	if err != nil {
		return nil, err
	}
	t := &template{meta: c.s.stamp(c.r, newID("lt"), tags), name: in.LaunchTemplateName, fallback: 1, latest: 1, given: 1}
	t.versions = []*templateVersion{{1, t.created, c.caller.ARN, in.VersionDescription, *in.Data}}
	c.r.templates.add(t)
	c.s.reveal(t)
	if key != "" {
		made.id = t.id
		c.r.otherTokens[key] = made
	}
	return &oneTemplateOut{t.out()}, nil
}

type createVersionIn struct {
	dry
	LaunchTemplateID   string `q:"LaunchTemplateId"`
	LaunchTemplateName string
	SourceVersion      string
	VersionDescription string
	Data               *launchData `q:"LaunchTemplateData"`
	ClientToken        string
}

// createLaunchTemplateVersion starts from SourceVersion's parameters where one
// is named, and from nothing otherwise.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateLaunchTemplateVersion.html
func (c *call) createLaunchTemplateVersion(in *createVersionIn) (any, error) {
	made, key, err := c.r.token("CreateLaunchTemplateVersion", in.ClientToken, in)
	if err != nil {
		return nil, err
	}
	t, err := c.r.template(in.LaunchTemplateID, in.LaunchTemplateName)
	if err != nil {
		return nil, err
	}
	if made.version > 0 {
		v, err := t.version(strconv.FormatInt(made.version, 10))
		if err != nil {
			return nil, err
		}
		return &oneVersionOut{t.versionOut(v)}, nil
	}
	if in.Data == nil {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter LaunchTemplateData")
	}
	data := *in.Data
	if in.SourceVersion != "" {
		source, err := t.version(in.SourceVersion)
		if err != nil {
			return nil, err
		}
		data = data.over(source.data)
	}
	if err := data.checkTemplate(); err != nil {
		return nil, err
	}
	if len(t.versions) >= 10000 {
		return nil, query.Errorf("VersionLimitExceeded", "The maximum number of versions of a launch template is 10000")
	}
	t.given++
	t.latest = t.given
	v := &templateVersion{t.latest, c.s.opts.Clock.Now().Truncate(time.Millisecond), c.caller.ARN, in.VersionDescription, data}
	t.versions = append(t.versions, v)
	if key != "" {
		made.id, made.version = t.id, v.number
		c.r.otherTokens[key] = made
	}
	return &oneVersionOut{t.versionOut(v)}, nil
}

type modifyTemplateIn struct {
	dry
	LaunchTemplateID   string `q:"LaunchTemplateId"`
	LaunchTemplateName string
	DefaultVersion     string `q:"SetDefaultVersion"`
	ClientToken        string
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyLaunchTemplate.html
func (c *call) modifyLaunchTemplate(in *modifyTemplateIn) (any, error) {
	t, err := c.r.template(in.LaunchTemplateID, in.LaunchTemplateName)
	if err != nil {
		return nil, err
	}
	if in.DefaultVersion != "" {
		v, err := t.version(in.DefaultVersion)
		if err != nil {
			return nil, err
		}
		t.fallback = v.number
	}
	return &oneTemplateOut{t.out()}, nil
}

type templateIn struct {
	dry
	LaunchTemplateID   string `q:"LaunchTemplateId"`
	LaunchTemplateName string
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteLaunchTemplate.html
func (c *call) deleteLaunchTemplate(in *templateIn) (any, error) {
	t, err := c.r.template(in.LaunchTemplateID, in.LaunchTemplateName)
	if err != nil {
		return nil, err
	}
	c.r.templates.remove(t)
	return &oneTemplateOut{t.out()}, nil
}

type deleteVersionsIn struct {
	dry
	LaunchTemplateID   string `q:"LaunchTemplateId"`
	LaunchTemplateName string
	Versions           []string `q:"LaunchTemplateVersion"`
}

type deletedVersion struct {
	ID     string  `out:"launchTemplateId"`
	Name   string  `out:"launchTemplateName"`
	Number int64   `out:"versionNumber"`
	Err    *reason `out:"responseError"`
}

type deleteVersionsOut struct {
	Deleted []deletedVersion `out:"successfullyDeletedLaunchTemplateVersionSet>item"`
	Failed  []deletedVersion `out:"unsuccessfullyDeletedLaunchTemplateVersionSet>item"`
}

// deleteLaunchTemplateVersions deletes up to 200 versions by number, never the
// default.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteLaunchTemplateVersions.html
func (c *call) deleteLaunchTemplateVersions(in *deleteVersionsIn) (any, error) {
	t, err := c.r.template(in.LaunchTemplateID, in.LaunchTemplateName)
	if err != nil {
		return nil, err
	}
	if len(in.Versions) == 0 || len(in.Versions) > 200 {
		return nil, query.Errorf("InvalidParameterValue", "Between 1 and 200 versions can be deleted in a call")
	}
	out := &deleteVersionsOut{}
	for _, name := range in.Versions {
		n, err := strconv.ParseInt(name, 10, 64)
		if err != nil {
			return nil, query.Errorf("InvalidParameterValue", "Versions to delete are named by number, not %q", name)
		}
		d := deletedVersion{ID: t.id, Name: t.name, Number: n}
		i := slices.IndexFunc(t.versions, func(v *templateVersion) bool { return v.number == n })
		switch {
		case n == t.fallback:
			d.Err = &reason{"operationNotPermitted", fmt.Sprintf("The default version %d of launch template %s cannot be deleted", n, t.id)}
		case i < 0:
			d.Err = &reason{"launchTemplateVersionDoesNotExist", fmt.Sprintf("Version %d of launch template %s does not exist", n, t.id)}
		}
		if d.Err != nil {
			out.Failed = append(out.Failed, d)
			continue
		}
		t.versions = slices.Delete(slices.Clone(t.versions), i, i+1)
		t.latest = t.versions[len(t.versions)-1].number
		out.Deleted = append(out.Deleted, d)
	}
	return out, nil
}

type describeTemplatesIn struct {
	dry
	paging
	IDs     []string `q:"LaunchTemplateId"`
	Names   []string `q:"LaunchTemplateName"`
	Filters []filter `q:"Filter"`
}

type describeTemplatesOut struct {
	Templates []templateOut `out:"launchTemplates>item"`
	NextToken string        `out:"nextToken"`
}

var templateFilters = filters[*template]{
	"launch-template-name": func(t *template) []string { return one(t.name) },
	"create-time":          func(t *template) []string { return one(t.created.Format(query.TimeFormat)) },
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeLaunchTemplates.html
func (c *call) describeLaunchTemplates(in *describeTemplatesIn) (any, error) {
	match, err := templateFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	ids := slices.Clone(in.IDs)
	for _, name := range in.Names {
		t, err := c.r.template("", name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, t.id)
	}
	page, next, err := list(&c.r.templates, ids, in.paging, 1, templateNotFound, match)
	if err != nil {
		return nil, err
	}
	out := &describeTemplatesOut{NextToken: next}
	for _, t := range page {
		out.Templates = append(out.Templates, t.out())
	}
	return out, nil
}
