package launchtemplate

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
)

// MaxUserData is EC2's limit in bytes, before base64.
const MaxUserData = 16 * 1024

// ErrSpec says that what was asked for cannot be a launch template version.
// Every problem is in the message.
var ErrSpec = errors.New("launch template cannot be published")

// ErrNotFound says that the template or the version does not exist.
var ErrNotFound = errors.New("launch template version not found")

// Spec is what a version shall hold. With Source set, zero fields are taken
// over from that version; without, they stay unset in the new one.
type Spec struct {
	Name            string // of the template, or its ID (lt-...) where it exists
	Source          string // "", "$Default", "$Latest" or a number
	ImageID         string
	InstanceType    string
	InstanceProfile string // name or ARN
	SecurityGroups  []string
	UserData        []byte            // raw, at most MaxUserData
	Tags            map[string]string // of instances and volumes, and of the template when it is made
	TagTemplate     map[string]string // further tags of the template itself, when it is made
	NoMetadataTags  bool              // leave instance tags out of IMDS (needed for tag keys with '/' or blanks)
	Default         bool              // make the version the default one
}

// Version is one published version.
type Version struct {
	TemplateID   string `json:"launch_template_id"`
	TemplateName string `json:"launch_template_name"`
	Number       int64  `json:"version"`
	Created      bool   `json:"created"` // false: the latest version already holds this content
	NewTemplate  bool   `json:"new_template"`
	Default      bool   `json:"default"` // whether Number is now the default version
	ImageID      string `json:"image_id"`
}

// API is what Publish calls; *ec2.Client has it.
type API interface {
	CreateLaunchTemplate(context.Context, *ec2.CreateLaunchTemplateInput, ...func(*ec2.Options)) (*ec2.CreateLaunchTemplateOutput, error)
	CreateLaunchTemplateVersion(context.Context, *ec2.CreateLaunchTemplateVersionInput, ...func(*ec2.Options)) (*ec2.CreateLaunchTemplateVersionOutput, error)
	ModifyLaunchTemplate(context.Context, *ec2.ModifyLaunchTemplateInput, ...func(*ec2.Options)) (*ec2.ModifyLaunchTemplateOutput, error)
	describer
}

type describer interface {
	DescribeLaunchTemplateVersions(context.Context, *ec2.DescribeLaunchTemplateVersionsInput, ...func(*ec2.Options)) (*ec2.DescribeLaunchTemplateVersionsOutput, error)
}

// Publish makes the version that s describes, and the template where there is
// none. It is safe to repeat: the same content as the latest version's makes
// no new one, and a repeated call whose first answer was lost finds the first
// call's version through its client token. Errors: ErrSpec, ErrNotFound (the
// Source), else EC2's.
func Publish(ctx context.Context, api API, s Spec) (Version, error) {
	if err := s.Check(); err != nil {
		return Version{}, err
	}
	latest, err := describe(ctx, api, s.Name, "$Latest")
	missing := errors.Is(err, ErrNotFound)
	if err != nil && !missing {
		return Version{}, err
	}
	if missing && strings.HasPrefix(s.Name, "lt-") {
		return Version{}, err
	}
	if missing {
		if s.Source != "" {
			return Version{}, fmt.Errorf("source version %s of launch template %q: %w; publish it once without a source", s.Source, s.Name, ErrNotFound)
		}
		v, err := create(ctx, api, s)
		if apiCode(err) != "InvalidLaunchTemplateName.AlreadyExistsException" {
			return v, err
		}
		// Another publisher was faster: what it made is now the latest version.
		if latest, err = describe(ctx, api, s.Name, "$Latest"); err != nil {
			return Version{}, err
		}
	}

	data, source := &types.RequestLaunchTemplateData{}, ""
	if s.Source != "" {
		src, err := describe(ctx, api, s.Name, s.Source)
		if err != nil {
			return Version{}, err
		}
		if err := convert(src.LaunchTemplateData, data); err != nil {
			return Version{}, err
		}
		source = fmt.Sprint(aws.ToInt64(src.VersionNumber)) // $Default may be another by the time of the call
	}
	s.apply(data)

	v := Version{
		TemplateID: aws.ToString(latest.LaunchTemplateId), TemplateName: aws.ToString(latest.LaunchTemplateName),
		Number: aws.ToInt64(latest.VersionNumber), ImageID: aws.ToString(data.ImageId),
		Default: aws.ToBool(latest.DefaultVersion),
	}
	wanted := &types.ResponseLaunchTemplateData{}
	if err := convert(data, wanted); err != nil {
		return Version{}, err
	}
	if len(Diff(latest.LaunchTemplateData, wanted)) > 0 {
		in := &ec2.CreateLaunchTemplateVersionInput{
			LaunchTemplateId: latest.LaunchTemplateId,
			// The base version is part of the token: going back to an earlier
			// content makes a new latest version rather than finding the old
			// one, while a repeat of this very call finds its own.
			ClientToken:        aws.String(token(data, aws.ToString(latest.LaunchTemplateId), fmt.Sprint(v.Number))),
			LaunchTemplateData: data,
		}
		if source != "" {
			// The data is complete already (moto and LocalStack do not merge);
			// the source carries over what this SDK does not know yet.
			in.SourceVersion = &source
		}
		out, err := api.CreateLaunchTemplateVersion(ctx, in)
		if err != nil {
			return Version{}, fmt.Errorf("create version of launch template %q: %w", s.Name, err)
		}
		v.Number, v.Created, v.Default = aws.ToInt64(out.LaunchTemplateVersion.VersionNumber), true, aws.ToBool(out.LaunchTemplateVersion.DefaultVersion)
	}
	if s.Default && !v.Default {
		if err := SetDefault(ctx, api, v.TemplateID, v.Number); err != nil {
			return v, err
		}
		v.Default = true
	}
	return v, nil
}

// SetDefault makes version the default one of the template (name or ID).
func SetDefault(ctx context.Context, api interface {
	ModifyLaunchTemplate(context.Context, *ec2.ModifyLaunchTemplateInput, ...func(*ec2.Options)) (*ec2.ModifyLaunchTemplateOutput, error)
}, template string, version int64) error {
	in := &ec2.ModifyLaunchTemplateInput{DefaultVersion: aws.String(fmt.Sprint(version))}
	in.LaunchTemplateId, in.LaunchTemplateName = idOrName(template)
	if _, err := api.ModifyLaunchTemplate(ctx, in); err != nil {
		return fmt.Errorf("make version %d the default of launch template %s: %w", version, template, err)
	}
	return nil
}

func create(ctx context.Context, api API, s Spec) (Version, error) {
	data := &types.RequestLaunchTemplateData{}
	s.apply(data)
	own := maps.Clone(s.Tags)
	if own == nil {
		own = map[string]string{}
	}
	maps.Copy(own, s.TagTemplate)
	in := &ec2.CreateLaunchTemplateInput{
		LaunchTemplateName: aws.String(s.Name), LaunchTemplateData: data, ClientToken: aws.String(token(data, s.Name)),
	}
	if len(own) > 0 {
		in.TagSpecifications = []types.TagSpecification{{ResourceType: types.ResourceTypeLaunchTemplate, Tags: tags(own)}}
	}
	out, err := api.CreateLaunchTemplate(ctx, in)
	if err != nil {
		return Version{}, fmt.Errorf("create launch template %q: %w", s.Name, err)
	}
	return Version{
		TemplateID: aws.ToString(out.LaunchTemplate.LaunchTemplateId), TemplateName: s.Name,
		Number: aws.ToInt64(out.LaunchTemplate.LatestVersionNumber), Created: true, NewTemplate: true,
		Default: true, ImageID: s.ImageID, // version 1 is the default from the start
	}, nil
}

var (
	templateName = regexp.MustCompile(`^[a-zA-Z0-9().\-/_]{3,128}$`)
	// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html
	metadataTag = regexp.MustCompile(`^[a-zA-Z0-9+\-=.,_:@]{1,128}$`)
)

// Check finds what is wrong with the specification itself, without a call. The
// error is ErrSpec.
func (s *Spec) Check() error {
	var bad []string
	say := func(format string, a ...any) { bad = append(bad, fmt.Sprintf(format, a...)) }
	if !templateName.MatchString(s.Name) {
		say("name %q: want 3 to 128 letters, digits or ().-/_", s.Name)
	}
	if s.ImageID == "" && s.Source == "" {
		say("no image: give an AMI ID")
	}
	if s.ImageID != "" && !strings.HasPrefix(s.ImageID, "ami-") && !strings.HasPrefix(s.ImageID, "resolve:ssm:") {
		say("image %q: want an AMI ID (ami-...) or resolve:ssm:PARAMETER", s.ImageID)
	}
	if n := len(s.UserData); n > MaxUserData {
		say("user data is %d bytes, EC2 takes at most %d: move the rest into the image, or to S3 with lecafe userdata pack", n, MaxUserData)
	}
	for _, g := range s.SecurityGroups {
		if !strings.HasPrefix(g, "sg-") {
			say("security group %q: want an ID (sg-...)", g)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Tags)) {
		switch {
		case strings.HasPrefix(strings.ToLower(k), "aws:"):
			say("tag %q: the prefix aws: is reserved", k)
		case !s.NoMetadataTags && (!metadataTag.MatchString(k) || k == "." || k == ".." || k == "_index"):
			say("tag %q: with tags in instance metadata a launch fails on this key; rename it, or leave tags out of the metadata (--metadata-tags=false)", k)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrSpec, strings.Join(bad, "; "))
}

// apply sets what s names in data, and always the metadata options.
func (s *Spec) apply(data *types.RequestLaunchTemplateData) {
	if s.ImageID != "" {
		data.ImageId = aws.String(s.ImageID)
	}
	if s.InstanceType != "" {
		data.InstanceType = types.InstanceType(s.InstanceType)
	}
	if s.InstanceProfile != "" {
		data.IamInstanceProfile = &types.LaunchTemplateIamInstanceProfileSpecificationRequest{}
		if strings.HasPrefix(s.InstanceProfile, "arn:") {
			data.IamInstanceProfile.Arn = aws.String(s.InstanceProfile)
		} else {
			data.IamInstanceProfile.Name = aws.String(s.InstanceProfile)
		}
	}
	if len(s.SecurityGroups) > 0 {
		if len(data.NetworkInterfaces) > 0 { // of the source; EC2 refuses groups in both places
			data.NetworkInterfaces[0].Groups = slices.Clone(s.SecurityGroups)
		} else {
			data.SecurityGroupIds = slices.Clone(s.SecurityGroups)
		}
	}
	if len(s.UserData) > 0 {
		data.UserData = aws.String(base64.StdEncoding.EncodeToString(s.UserData))
	}
	if data.MetadataOptions == nil {
		data.MetadataOptions = &types.LaunchTemplateInstanceMetadataOptionsRequest{}
	}
	m := data.MetadataOptions
	m.HttpEndpoint = types.LaunchTemplateInstanceMetadataEndpointStateEnabled
	m.HttpTokens = types.LaunchTemplateHttpTokensStateRequired
	m.HttpPutResponseHopLimit = aws.Int32(1)
	m.InstanceMetadataTags = types.LaunchTemplateInstanceMetadataTagsStateEnabled
	if s.NoMetadataTags {
		m.InstanceMetadataTags = types.LaunchTemplateInstanceMetadataTagsStateDisabled
	}
	if len(s.Tags) > 0 {
		data.TagSpecifications = slices.DeleteFunc(data.TagSpecifications, func(t types.LaunchTemplateTagSpecificationRequest) bool {
			return t.ResourceType == types.ResourceTypeInstance || t.ResourceType == types.ResourceTypeVolume
		})
		for _, rt := range []types.ResourceType{types.ResourceTypeInstance, types.ResourceTypeVolume} {
			data.TagSpecifications = append(data.TagSpecifications, types.LaunchTemplateTagSpecificationRequest{ResourceType: rt, Tags: tags(s.Tags)})
		}
	}
}

func tags(m map[string]string) []types.Tag {
	var t []types.Tag
	for _, k := range slices.Sorted(maps.Keys(m)) {
		t = append(t, types.Tag{Key: aws.String(k), Value: aws.String(m[k])})
	}
	return t
}

// token derives a ClientToken (at most 64 characters) from content.
func token(data *types.RequestLaunchTemplateData, more ...string) string {
	h := sha256.New()
	b, _ := json.Marshal(data) // plain structs: cannot fail
	h.Write(b)
	for _, m := range more {
		fmt.Fprintf(h, "\x00%s", m)
	}
	return "lecafe-" + hex.EncodeToString(h.Sum(nil))[:48]
}

// Describe returns one version of a template (name or ID): "$Latest",
// "$Default" or a number. ErrNotFound where there is none.
func Describe(ctx context.Context, api describer, template, version string) (*types.LaunchTemplateVersion, error) {
	return describe(ctx, api, template, cmp.Or(version, "$Default"))
}

func describe(ctx context.Context, api describer, template, version string) (*types.LaunchTemplateVersion, error) {
	in := &ec2.DescribeLaunchTemplateVersionsInput{Versions: []string{version}}
	in.LaunchTemplateId, in.LaunchTemplateName = idOrName(template)
	out, err := api.DescribeLaunchTemplateVersions(ctx, in)
	switch code := apiCode(err); {
	case strings.HasPrefix(code, "InvalidLaunchTemplate") && strings.Contains(code, "NotFound"):
		return nil, fmt.Errorf("version %s of launch template %q: %w", version, template, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("describe version %s of launch template %q: %w", version, template, err)
	case len(out.LaunchTemplateVersions) == 0 || out.LaunchTemplateVersions[0].LaunchTemplateData == nil:
		return nil, fmt.Errorf("version %s of launch template %q: %w", version, template, ErrNotFound)
	}
	return &out.LaunchTemplateVersions[0], nil
}

func idOrName(template string) (id, name *string) {
	if strings.HasPrefix(template, "lt-") {
		return aws.String(template), nil
	}
	return nil, aws.String(template)
}

func apiCode(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}
