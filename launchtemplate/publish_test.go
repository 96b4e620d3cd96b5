package launchtemplate_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/launchtemplate"
)

// fake keeps templates as EC2 does: versions are numbered from 1 and immutable,
// the first is the default, a client token answers the first call's result.
type fake struct {
	templates map[string][]types.LaunchTemplateVersion
	def       map[string]int64
	tokens    map[string]int64
	lose      int // answers to lose after the call was done
	creates   int
}

func newFake() *fake {
	return &fake{templates: map[string][]types.LaunchTemplateVersion{}, def: map[string]int64{}, tokens: map[string]int64{}}
}

func (f *fake) name(id, name *string) string {
	if id != nil {
		return strings.TrimPrefix(*id, "lt-")
	}
	return aws.ToString(name)
}

func (f *fake) add(name string, d *types.RequestLaunchTemplateData) types.LaunchTemplateVersion {
	b, _ := json.Marshal(d)
	r := &types.ResponseLaunchTemplateData{}
	_ = json.Unmarshal(b, r)
	if r.MetadataOptions != nil {
		r.MetadataOptions.State = "pending"
	}
	n := int64(len(f.templates[name]) + 1)
	v := types.LaunchTemplateVersion{LaunchTemplateId: aws.String("lt-" + name), LaunchTemplateName: aws.String(name), VersionNumber: aws.Int64(n), LaunchTemplateData: r}
	f.templates[name] = append(f.templates[name], v)
	f.creates++
	return v
}

func (f *fake) answer() error {
	if f.lose > 0 {
		f.lose--
		return errors.New("connection reset")
	}
	return nil
}

func (f *fake) CreateLaunchTemplate(_ context.Context, in *ec2.CreateLaunchTemplateInput, _ ...func(*ec2.Options)) (*ec2.CreateLaunchTemplateOutput, error) {
	if len(f.templates[*in.LaunchTemplateName]) > 0 {
		return nil, &smithy.GenericAPIError{Code: "InvalidLaunchTemplateName.AlreadyExistsException"}
	}
	f.add(*in.LaunchTemplateName, in.LaunchTemplateData)
	f.def[*in.LaunchTemplateName] = 1
	return &ec2.CreateLaunchTemplateOutput{LaunchTemplate: &types.LaunchTemplate{LaunchTemplateId: aws.String("lt-" + *in.LaunchTemplateName), LatestVersionNumber: aws.Int64(1)}}, f.answer()
}

func (f *fake) CreateLaunchTemplateVersion(_ context.Context, in *ec2.CreateLaunchTemplateVersionInput, _ ...func(*ec2.Options)) (*ec2.CreateLaunchTemplateVersionOutput, error) {
	name := f.name(in.LaunchTemplateId, in.LaunchTemplateName)
	n, ok := f.tokens[*in.ClientToken]
	if !ok {
		n = *f.add(name, in.LaunchTemplateData).VersionNumber
		f.tokens[*in.ClientToken] = n
	}
	v := f.templates[name][n-1]
	v.DefaultVersion = aws.Bool(f.def[name] == n)
	return &ec2.CreateLaunchTemplateVersionOutput{LaunchTemplateVersion: &v}, f.answer()
}

func (f *fake) ModifyLaunchTemplate(_ context.Context, in *ec2.ModifyLaunchTemplateInput, _ ...func(*ec2.Options)) (*ec2.ModifyLaunchTemplateOutput, error) {
	n, err := strconv.ParseInt(*in.DefaultVersion, 10, 64)
	if err != nil {
		return nil, err
	}
	f.def[f.name(in.LaunchTemplateId, in.LaunchTemplateName)] = n
	return &ec2.ModifyLaunchTemplateOutput{}, nil
}

func (f *fake) DescribeLaunchTemplateVersions(_ context.Context, in *ec2.DescribeLaunchTemplateVersionsInput, _ ...func(*ec2.Options)) (*ec2.DescribeLaunchTemplateVersionsOutput, error) {
	name := f.name(in.LaunchTemplateId, in.LaunchTemplateName)
	vs := f.templates[name]
	if len(vs) == 0 {
		return nil, &smithy.GenericAPIError{Code: "InvalidLaunchTemplateName.NotFoundException"}
	}
	n := f.def[name]
	switch w := in.Versions[0]; w {
	case "$Latest":
		n = int64(len(vs))
	case "$Default":
	default:
		n, _ = strconv.ParseInt(w, 10, 64)
	}
	if n < 1 || n > int64(len(vs)) {
		return &ec2.DescribeLaunchTemplateVersionsOutput{}, nil
	}
	v := vs[n-1]
	v.DefaultVersion = aws.Bool(f.def[name] == n)
	return &ec2.DescribeLaunchTemplateVersionsOutput{LaunchTemplateVersions: []types.LaunchTemplateVersion{v}}, nil
}

func publish(t *testing.T, f *fake, s launchtemplate.Spec) launchtemplate.Version {
	t.Helper()
	v, err := launchtemplate.Publish(t.Context(), f, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPublishTwiceMakesOneVersion(t *testing.T) {
	f := newFake()
	s := launchtemplate.Spec{Name: "cafe", ImageID: "ami-1", InstanceType: "t3.micro", InstanceProfile: "cafe", SecurityGroups: []string{"sg-b", "sg-a"},
		UserData: []byte("#!/bin/sh\n"), Tags: map[string]string{"app": "cafe"}}
	v := publish(t, f, s)
	if !v.Created || !v.NewTemplate || v.Number != 1 || !v.Default {
		t.Fatalf("first publish: %+v", v)
	}
	s.SecurityGroups = []string{"sg-a", "sg-b"}
	if v = publish(t, f, s); v.Created || v.Number != 1 || f.creates != 1 {
		t.Errorf("same content: %+v, %d creates", v, f.creates)
	}
	s.ImageID = "ami-2"
	if v = publish(t, f, s); !v.Created || v.Number != 2 || v.Default {
		t.Errorf("new image: %+v", v)
	}
	s.Default = true
	if v = publish(t, f, s); v.Created || !v.Default || f.def["cafe"] != 2 {
		t.Errorf("default on request: %+v, default %d", v, f.def["cafe"])
	}
	s.ImageID = "ami-1"
	if v = publish(t, f, s); !v.Created || v.Number != 3 || f.def["cafe"] != 3 {
		t.Errorf("back to the first content must be the latest version: %+v", v)
	}
}

func TestPublishHardens(t *testing.T) {
	f := newFake()
	publish(t, f, launchtemplate.Spec{Name: "cafe", ImageID: "ami-1", UserData: []byte("#!/bin/sh\n"), Tags: map[string]string{"app": "cafe"}})
	d := f.templates["cafe"][0].LaunchTemplateData
	m := d.MetadataOptions
	if m.HttpTokens != "required" || aws.ToInt32(m.HttpPutResponseHopLimit) != 1 || m.HttpEndpoint != "enabled" || m.InstanceMetadataTags != "enabled" {
		t.Errorf("metadata options: %+v", m)
	}
	if d.KeyName != nil {
		t.Errorf("key pair %q", *d.KeyName)
	}
	if got, _ := base64.StdEncoding.DecodeString(aws.ToString(d.UserData)); string(got) != "#!/bin/sh\n" {
		t.Errorf("user data %q", got)
	}
	var kinds []string
	for _, ts := range d.TagSpecifications {
		kinds = append(kinds, string(ts.ResourceType))
	}
	if slices.Sort(kinds); !slices.Equal(kinds, []string{"instance", "volume"}) {
		t.Errorf("tagged: %v", kinds)
	}
}

func TestPublishFromSource(t *testing.T) {
	f := newFake()
	f.add("cafe", &types.RequestLaunchTemplateData{
		ImageId: aws.String("ami-1"), InstanceType: "t3.micro", EbsOptimized: aws.Bool(true),
		NetworkInterfaces: []types.LaunchTemplateInstanceNetworkInterfaceSpecificationRequest{{DeviceIndex: aws.Int32(0), Groups: []string{"sg-1"}}},
		MetadataOptions:   &types.LaunchTemplateInstanceMetadataOptionsRequest{HttpTokens: "optional"},
	})
	f.def["cafe"] = 1
	v := publish(t, f, launchtemplate.Spec{Name: "lt-cafe", Source: "$Default", ImageID: "ami-2", SecurityGroups: []string{"sg-2"}})
	d := f.templates["cafe"][v.Number-1].LaunchTemplateData
	if *d.ImageId != "ami-2" || d.InstanceType != "t3.micro" || !*d.EbsOptimized || d.NetworkInterfaces[0].Groups[0] != "sg-2" || len(d.SecurityGroupIds) != 0 {
		t.Errorf("merged: %+v", d)
	}
	if d.MetadataOptions.HttpTokens != "required" {
		t.Errorf("a source with IMDSv1 must not carry over")
	}
	if _, err := launchtemplate.Publish(t.Context(), f, launchtemplate.Spec{Name: "cafe", Source: "7", ImageID: "ami-3"}); !errors.Is(err, launchtemplate.ErrNotFound) {
		t.Errorf("missing source: %v", err)
	}
	if _, err := launchtemplate.Publish(t.Context(), f, launchtemplate.Spec{Name: "none", Source: "1", ImageID: "ami-3"}); !errors.Is(err, launchtemplate.ErrNotFound) {
		t.Errorf("missing template: %v", err)
	}
}

func TestLostAnswerIsFoundAgain(t *testing.T) {
	f := newFake()
	publish(t, f, launchtemplate.Spec{Name: "cafe", ImageID: "ami-1"})
	f.lose = 1
	s := launchtemplate.Spec{Name: "cafe", ImageID: "ami-2"}
	if _, err := launchtemplate.Publish(t.Context(), f, s); err == nil {
		t.Fatal("want the lost answer as an error")
	}
	if v := publish(t, f, s); v.Number != 2 || f.creates != 2 {
		t.Errorf("repeat made %+v, %d creates", v, f.creates)
	}
}

func TestSpecProblemsAllAtOnce(t *testing.T) {
	f := newFake()
	_, err := launchtemplate.Publish(t.Context(), f, launchtemplate.Spec{
		Name: "é", ImageID: "debian", UserData: bytes.Repeat([]byte("x"), launchtemplate.MaxUserData+1),
		SecurityGroups: []string{"default"}, Tags: map[string]string{"aws:x": "1", "a/b": "2"},
	})
	if !errors.Is(err, launchtemplate.ErrSpec) || f.creates != 0 {
		t.Fatalf("err %v, creates %d", err, f.creates)
	}
	for _, want := range []string{`name "é"`, `image "debian"`, "16385 bytes", `security group "default"`, `tag "aws:x"`, `tag "a/b"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if _, err := launchtemplate.Publish(t.Context(), f, launchtemplate.Spec{Name: "cafe", ImageID: "ami-1", UserData: bytes.Repeat([]byte("x"), launchtemplate.MaxUserData)}); err != nil {
		t.Errorf("user data at the limit: %v", err)
	}
	if _, err := launchtemplate.Publish(t.Context(), f, launchtemplate.Spec{Name: "cafe", ImageID: "ami-1", NoMetadataTags: true, Tags: map[string]string{"a/b": "2"}}); err != nil {
		t.Errorf("a/b without metadata tags: %v", err)
	}
}

func TestDiff(t *testing.T) {
	a := &types.ResponseLaunchTemplateData{ImageId: aws.String("ami-1"), SecurityGroupIds: []string{"sg-1", "sg-2"}, MetadataOptions: &types.LaunchTemplateInstanceMetadataOptions{State: "applied", HttpTokens: "optional"},
		TagSpecifications: []types.LaunchTemplateTagSpecification{{ResourceType: "instance", Tags: []types.Tag{{Key: aws.String("app"), Value: aws.String("a")}}}}}
	b := &types.ResponseLaunchTemplateData{ImageId: aws.String("ami-2"), SecurityGroupIds: []string{"sg-2", "sg-3"}, MetadataOptions: &types.LaunchTemplateInstanceMetadataOptions{State: "pending", HttpTokens: "required"},
		TagSpecifications: []types.LaunchTemplateTagSpecification{{ResourceType: "instance", Tags: []types.Tag{{Key: aws.String("app"), Value: aws.String("b")}}}}}
	var got []string
	for _, c := range launchtemplate.Diff(a, b) {
		got = append(got, fmt.Sprintf("%s %s→%s", c.Path, c.A, c.B))
	}
	want := []string{"ImageId ami-1→ami-2", "MetadataOptions.HttpTokens optional→required", "SecurityGroupIds[sg-1] sg-1→", "SecurityGroupIds[sg-3] →sg-3", "TagSpecifications[instance][app] a→b"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if d := launchtemplate.Diff(a, a); len(d) != 0 {
		t.Errorf("same: %v", d)
	}
}
