package ec2_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

var small = &types.RequestLaunchTemplateData{InstanceType: types.InstanceTypeT3Small}

func (l *lab) template(name string, change ...func(*types.RequestLaunchTemplateData)) string {
	l.Helper()
	data := &types.RequestLaunchTemplateData{ImageId: &l.base, InstanceType: types.InstanceTypeT3Micro}
	for _, f := range change {
		f(data)
	}
	out := must(l.api.CreateLaunchTemplate(l.Context(), &sdk.CreateLaunchTemplateInput{LaunchTemplateName: &name, LaunchTemplateData: data}))(l)
	return *out.LaunchTemplate.LaunchTemplateId
}

func (l *lab) fromTemplate(id, version string, change ...func(*sdk.RunInstancesInput)) types.Instance {
	l.Helper()
	in := &sdk.RunInstancesInput{MinCount: aws.Int32(1), MaxCount: aws.Int32(1), LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateId: &id}}
	if version != "" {
		in.LaunchTemplate.Version = &version
	}
	for _, f := range change {
		f(in)
	}
	return must(l.api.RunInstances(l.Context(), in))(l).Instances[0]
}

func TestTemplateCarriesEverything(t *testing.T) {
	l := newLab(t)
	l.fake.PutInstanceProfile("app-profile", "app-role")
	group := must(l.api.CreateSecurityGroup(t.Context(), &sdk.CreateSecurityGroupInput{GroupName: aws.String("app"), Description: aws.String("app")}))(l)
	id := l.template("app", func(d *types.RequestLaunchTemplateData) {
		d.UserData = encoded("#!/bin/sh\necho hello\n")
		d.IamInstanceProfile = &types.LaunchTemplateIamInstanceProfileSpecificationRequest{Name: aws.String("app-profile")}
		d.MetadataOptions = &types.LaunchTemplateInstanceMetadataOptionsRequest{HttpTokens: types.LaunchTemplateHttpTokensStateRequired, HttpPutResponseHopLimit: aws.Int32(1)}
		d.SecurityGroupIds = []string{*group.GroupId}
		d.InstanceInitiatedShutdownBehavior = types.ShutdownBehaviorTerminate
		d.TagSpecifications = []types.LaunchTemplateTagSpecificationRequest{{ResourceType: types.ResourceTypeInstance, Tags: []types.Tag{{Key: aws.String("app"), Value: aws.String("cafe")}, {Key: aws.String("env"), Value: aws.String("lab")}}}}
	})
	i := l.fromTemplate(id, "", func(in *sdk.RunInstancesInput) { in.TagSpecifications = tagged("instance", "env", "test") })
	if i.MetadataOptions.HttpTokens != types.HttpTokensStateRequired {
		t.Fatalf("tokens %s", i.MetadataOptions.HttpTokens)
	}
	if i.IamInstanceProfile == nil || !strings.HasSuffix(*i.IamInstanceProfile.Arn, "instance-profile/app-profile") {
		t.Fatalf("profile %+v", i.IamInstanceProfile)
	}
	if *i.SecurityGroups[0].GroupName != "app" {
		t.Fatalf("group %s", *i.SecurityGroups[0].GroupName)
	}
	got := tags(i.Tags)
	if got["app"] != "cafe" || got["env"] != "test" || got["aws:ec2launchtemplate:id"] != id || got["aws:ec2launchtemplate:version"] != "1" {
		t.Fatalf("tags %v", got)
	}
	attr := must(l.api.DescribeInstanceAttribute(t.Context(), &sdk.DescribeInstanceAttributeInput{InstanceId: i.InstanceId, Attribute: types.InstanceAttributeNameUserData}))(l)
	if b, _ := base64.StdEncoding.DecodeString(*attr.UserData.Value); string(b) != "#!/bin/sh\necho hello\n" {
		t.Fatalf("user data %q", b)
	}
	attr = must(l.api.DescribeInstanceAttribute(t.Context(), &sdk.DescribeInstanceAttributeInput{InstanceId: i.InstanceId, Attribute: types.InstanceAttributeNameInstanceInitiatedShutdownBehavior}))(l)
	if *attr.InstanceInitiatedShutdownBehavior.Value != "terminate" {
		t.Fatalf("shutdown behaviour %s", *attr.InstanceInitiatedShutdownBehavior.Value)
	}
	info, _ := l.fake.Instance(*i.InstanceId)
	if info.RoleName != "app-role" || !strings.HasSuffix(info.Credentials.Caller.UserID, ":"+*i.InstanceId) || string(info.UserData) != "#!/bin/sh\necho hello\n" {
		t.Fatalf("info: role %q, user ID %q", info.RoleName, info.Credentials.Caller.UserID)
	}
	// And a request that has a parameter of its own wins.
	if i := l.fromTemplate(id, "", func(in *sdk.RunInstancesInput) { in.InstanceType = types.InstanceTypeT3Small }); i.InstanceType != types.InstanceTypeT3Small {
		t.Fatalf("type %s", i.InstanceType)
	}
}

func TestTemplateVersions(t *testing.T) {
	l := newLab(t)
	id := l.template("app", func(d *types.RequestLaunchTemplateData) { d.UserData = encoded("#!/bin/sh\n") })
	next := func(source *string) *types.LaunchTemplateVersion {
		return must(l.api.CreateLaunchTemplateVersion(t.Context(), &sdk.CreateLaunchTemplateVersionInput{
			LaunchTemplateId: &id, SourceVersion: source, LaunchTemplateData: &types.RequestLaunchTemplateData{InstanceType: types.InstanceTypeT3Small},
		}))(l).LaunchTemplateVersion
	}
	merged := next(aws.String("1"))
	if *merged.VersionNumber != 2 || *merged.DefaultVersion || *merged.LaunchTemplateData.ImageId != l.base || merged.LaunchTemplateData.InstanceType != types.InstanceTypeT3Small || merged.LaunchTemplateData.UserData == nil {
		t.Fatalf("version from source: %+v", merged.LaunchTemplateData)
	}
	if bare := next(nil); bare.LaunchTemplateData.ImageId != nil || bare.LaunchTemplateData.UserData != nil {
		t.Fatalf("version without source: %+v", bare.LaunchTemplateData)
	}
	if i := l.fromTemplate(id, "$Default"); i.InstanceType != types.InstanceTypeT3Micro {
		t.Fatalf("$Default is %s", i.InstanceType)
	}
	if i := l.fromTemplate(id, "2"); i.InstanceType != types.InstanceTypeT3Small {
		t.Fatalf("2 is %s", i.InstanceType)
	}
	// $Latest, version 3, has no image.
	_, err := l.api.RunInstances(t.Context(), &sdk.RunInstancesInput{MinCount: aws.Int32(1), MaxCount: aws.Int32(1), LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateId: &id, Version: aws.String("$Latest")}})
	l.code(err, "MissingParameter")
	must(l.api.ModifyLaunchTemplate(t.Context(), &sdk.ModifyLaunchTemplateInput{LaunchTemplateId: &id, DefaultVersion: aws.String("2")}))(l)
	if i := l.fromTemplate(id, ""); i.InstanceType != types.InstanceTypeT3Small {
		t.Fatalf("the new default is %s", i.InstanceType)
	}
	del := must(l.api.DeleteLaunchTemplateVersions(t.Context(), &sdk.DeleteLaunchTemplateVersionsInput{LaunchTemplateId: &id, Versions: []string{"2", "3", "9"}}))(l)
	if len(del.SuccessfullyDeletedLaunchTemplateVersions) != 1 || len(del.UnsuccessfullyDeletedLaunchTemplateVersions) != 2 {
		t.Fatalf("deleted %d, not %d", len(del.SuccessfullyDeletedLaunchTemplateVersions), len(del.UnsuccessfullyDeletedLaunchTemplateVersions))
	}
	if v := next(nil); *v.VersionNumber != 4 {
		t.Fatalf("next version is %d", *v.VersionNumber)
	}
	all := must(l.api.DescribeLaunchTemplateVersions(t.Context(), &sdk.DescribeLaunchTemplateVersionsInput{LaunchTemplateId: &id, MaxResults: aws.Int32(2)}))(l)
	if len(all.LaunchTemplateVersions) != 2 || all.NextToken == nil {
		t.Fatalf("page of %d, token %v", len(all.LaunchTemplateVersions), all.NextToken)
	}
	rest := must(l.api.DescribeLaunchTemplateVersions(t.Context(), &sdk.DescribeLaunchTemplateVersionsInput{LaunchTemplateId: &id, MaxResults: aws.Int32(2), NextToken: all.NextToken}))(l)
	if len(rest.LaunchTemplateVersions) != 1 || *rest.LaunchTemplateVersions[0].VersionNumber != 1 {
		t.Fatalf("rest of %d", len(rest.LaunchTemplateVersions))
	}
}

func TestTemplateRefuses(t *testing.T) {
	l := newLab(t)
	l.template("app")
	create := func(name string, d *types.RequestLaunchTemplateData) error {
		_, err := l.api.CreateLaunchTemplate(t.Context(), &sdk.CreateLaunchTemplateInput{LaunchTemplateName: &name, LaunchTemplateData: d})
		return err
	}
	l.code(create("app", &types.RequestLaunchTemplateData{}), "InvalidLaunchTemplateName.AlreadyExistsException")
	l.code(create("a b", &types.RequestLaunchTemplateData{}), "InvalidLaunchTemplateName.MalformedException")
	l.code(create("big", &types.RequestLaunchTemplateData{UserData: encoded(strings.Repeat("x", 16385))}), "InvalidUserData.Malformed")
	l.code(create("raw", &types.RequestLaunchTemplateData{UserData: aws.String("#!/bin/sh")}), "InvalidUserData.Malformed")
	l.code(create("odd", &types.RequestLaunchTemplateData{InstanceType: "t9.huge"}), "InvalidParameterValue")
	// An image that does not exist is found out at launch only.
	l.ok(create("late", &types.RequestLaunchTemplateData{ImageId: aws.String("ami-00000000000000000")}))
	_, err := l.api.RunInstances(t.Context(), &sdk.RunInstancesInput{InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1), LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("late")}})
	l.code(err, "InvalidAMIID.NotFound")
	_, err = l.api.CreateLaunchTemplateVersion(t.Context(), &sdk.CreateLaunchTemplateVersionInput{LaunchTemplateName: aws.String("app"), SourceVersion: aws.String("7"), LaunchTemplateData: small})
	l.code(err, "InvalidLaunchTemplateId.VersionNotFound")
	_, err = l.api.ModifyLaunchTemplate(t.Context(), &sdk.ModifyLaunchTemplateInput{LaunchTemplateName: aws.String("app"), DefaultVersion: aws.String("7")})
	l.code(err, "InvalidLaunchTemplateId.VersionNotFound")
	_, err = l.api.DeleteLaunchTemplate(t.Context(), &sdk.DeleteLaunchTemplateInput{LaunchTemplateId: aws.String("lt-00000000000000000")})
	l.code(err, "InvalidLaunchTemplateId.NotFound")
	must(l.api.DeleteLaunchTemplate(t.Context(), &sdk.DeleteLaunchTemplateInput{LaunchTemplateName: aws.String("app")}))(l)
	l.ok(create("app", small))
	l.code(create("empty", &types.RequestLaunchTemplateData{}), "MissingParameter")
}

func TestTemplateToken(t *testing.T) {
	l := newLab(t)
	in := &sdk.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("app"), LaunchTemplateData: small, ClientToken: aws.String("once")}
	a := must(l.api.CreateLaunchTemplate(t.Context(), in))(l)
	b := must(l.api.CreateLaunchTemplate(t.Context(), in))(l)
	if *a.LaunchTemplate.LaunchTemplateId != *b.LaunchTemplate.LaunchTemplateId {
		t.Fatal("the same token made two templates")
	}
	in.LaunchTemplateName = aws.String("other")
	_, err := l.api.CreateLaunchTemplate(t.Context(), in)
	l.code(err, "IdempotentParameterMismatch")
	v := &sdk.CreateLaunchTemplateVersionInput{LaunchTemplateName: aws.String("app"), LaunchTemplateData: small, ClientToken: aws.String("v")}
	must(l.api.CreateLaunchTemplateVersion(t.Context(), v))(l)
	if again := must(l.api.CreateLaunchTemplateVersion(t.Context(), v))(l); *again.LaunchTemplateVersion.VersionNumber != 2 {
		t.Fatalf("the same token made version %d", *again.LaunchTemplateVersion.VersionNumber)
	}
}
