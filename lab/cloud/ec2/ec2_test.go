package ec2_test

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// lab is a fake on a clock that the test drives, with the SDK's client.
type lab struct {
	testing.TB
	fake  *ec2.Server
	clock *wire.Manual
	vault *wire.Vault
	api   *sdk.Client
	base  string // an x86_64 image of somebody else's
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newLab(t testing.TB, change ...func(*ec2.Options)) *lab {
	t.Helper()
	clock := wire.NewManual(start)
	o := ec2.Options{Clock: clock, Vault: wire.NewVault(clock), Region: "eu-central-1"}
	for _, f := range change {
		f(&o)
	}
	l := &lab{TB: t, fake: ec2.New(o), clock: clock, vault: o.Vault}
	t.Cleanup(l.fake.Close)
	l.api = l.in("eu-central-1")
	var err error
	if l.base, err = l.fake.AddImage("eu-central-1", ec2.ImageSeed{Name: "debian-12-amd64-20260101", Created: start.AddDate(0, -2, 0)}); err != nil {
		t.Fatal(err)
	}
	return l
}

// in returns a client for a region. The router tells regions apart by the
// signature; here each region has a listener.
func (l *lab) in(region string) *sdk.Client {
	l.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := wire.WithCaller(wire.WithRegion(r.Context(), region), wire.Caller{ARN: "arn:aws:iam::000000000000:user/operator"})
		l.fake.ServeHTTP(w, r.WithContext(ctx))
	}))
	l.Cleanup(srv.Close)
	return sdk.New(sdk.Options{
		Region: region, BaseEndpoint: &srv.URL, Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		RetryMaxAttempts: 1, HTTPClient: &http.Client{Transport: wire.WholeBody(http.DefaultTransport)},
	})
}

// code asserts that err is an API error with that code.
func (l *lab) code(err error, want string) {
	l.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) {
		l.Fatalf("got error %v, want API error %s", err, want)
	}
	if api.ErrorCode() != want {
		l.Fatalf("got %s (%s), want %s", api.ErrorCode(), api.ErrorMessage(), want)
	}
}

func must[T any](v T, err error) func(*lab) T {
	return func(l *lab) T {
		l.Helper()
		if err != nil {
			l.Fatal(err)
		}
		return v
	}
}

func (l *lab) ok(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// run launches one instance and returns its ID.
func (l *lab) run(change ...func(*sdk.RunInstancesInput)) string {
	l.Helper()
	in := &sdk.RunInstancesInput{ImageId: &l.base, InstanceType: types.InstanceTypeT3Micro, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)}
	for _, f := range change {
		f(in)
	}
	out := must(l.api.RunInstances(l.Context(), in))(l)
	return *out.Instances[0].InstanceId
}

// running launches one and lets it run.
func (l *lab) running(change ...func(*sdk.RunInstancesInput)) string {
	l.Helper()
	id := l.run(change...)
	l.clock.Advance(time.Minute)
	l.state(id, types.InstanceStateNameRunning)
	return id
}

func (l *lab) instance(id string) types.Instance {
	l.Helper()
	out := must(l.api.DescribeInstances(l.Context(), &sdk.DescribeInstancesInput{InstanceIds: []string{id}}))(l)
	return out.Reservations[0].Instances[0]
}

func (l *lab) state(id string, want types.InstanceStateName) {
	l.Helper()
	if got := l.instance(id).State.Name; got != want {
		l.Fatalf("instance %s is %s, want %s", id, got, want)
	}
}

func (l *lab) image(id string) types.Image {
	l.Helper()
	out := must(l.api.DescribeImages(l.Context(), &sdk.DescribeImagesInput{ImageIds: []string{id}}))(l)
	return out.Images[0]
}

func encoded(s string) *string { return aws.String(base64.StdEncoding.EncodeToString([]byte(s))) }

func TestStates(t *testing.T) {
	l := newLab(t)
	id := l.run()
	l.state(id, types.InstanceStateNamePending)
	l.clock.Advance(14 * time.Second)
	l.state(id, types.InstanceStateNamePending)
	l.clock.Advance(time.Second)
	l.state(id, types.InstanceStateNameRunning)

	stop := must(l.api.StopInstances(t.Context(), &sdk.StopInstancesInput{InstanceIds: []string{id}}))(l)
	if c := stop.StoppingInstances[0]; c.CurrentState.Name != types.InstanceStateNameStopping || c.PreviousState.Name != types.InstanceStateNameRunning {
		t.Fatalf("got %v → %v", c.PreviousState.Name, c.CurrentState.Name)
	}
	_, err := l.api.StartInstances(t.Context(), &sdk.StartInstancesInput{InstanceIds: []string{id}})
	l.code(err, "IncorrectInstanceState")
	l.clock.Advance(30 * time.Second)
	l.state(id, types.InstanceStateNameStopped)
	must(l.api.StartInstances(t.Context(), &sdk.StartInstancesInput{InstanceIds: []string{id}}))(l)
	l.state(id, types.InstanceStateNamePending)
	l.clock.Advance(15 * time.Second)
	l.state(id, types.InstanceStateNameRunning)

	must(l.api.TerminateInstances(t.Context(), &sdk.TerminateInstancesInput{InstanceIds: []string{id}}))(l)
	l.state(id, types.InstanceStateNameShuttingDown)
	l.clock.Advance(20 * time.Second)
	l.state(id, types.InstanceStateNameTerminated)
	_, err = l.api.StopInstances(t.Context(), &sdk.StopInstancesInput{InstanceIds: []string{id}})
	l.code(err, "IncorrectInstanceState")
	l.clock.Advance(time.Hour)
	_, err = l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{InstanceIds: []string{id}})
	l.code(err, "InvalidInstanceID.NotFound")
}

func TestTerminatedWhilePendingNeverRuns(t *testing.T) {
	l := newLab(t)
	id := l.run()
	must(l.api.TerminateInstances(t.Context(), &sdk.TerminateInstancesInput{InstanceIds: []string{id}}))(l)
	l.clock.Advance(16 * time.Second)
	l.state(id, types.InstanceStateNameShuttingDown)
	l.clock.Advance(10 * time.Second)
	l.state(id, types.InstanceStateNameTerminated)
}

func TestRunInstancesRefuses(t *testing.T) {
	l := newLab(t)
	arm := must(l.fake.AddImage("eu-central-1", ec2.ImageSeed{Name: "arm", Architecture: "arm64"}))(l)
	for name, c := range map[string]struct {
		change func(*sdk.RunInstancesInput)
		code   string
	}{
		"unknown image":    {func(in *sdk.RunInstancesInput) { in.ImageId = aws.String("ami-00000000000000000") }, "InvalidAMIID.NotFound"},
		"malformed image":  {func(in *sdk.RunInstancesInput) { in.ImageId = aws.String("debian") }, "InvalidAMIID.Malformed"},
		"no image":         {func(in *sdk.RunInstancesInput) { in.ImageId = nil }, "MissingParameter"},
		"unknown type":     {func(in *sdk.RunInstancesInput) { in.InstanceType = "t9.huge" }, "InvalidParameterValue"},
		"architecture":     {func(in *sdk.RunInstancesInput) { in.ImageId = &arm }, "InvalidParameterValue"},
		"user data size":   {func(in *sdk.RunInstancesInput) { in.UserData = encoded(strings.Repeat("x", 16385)) }, "InvalidParameterValue"},
		"user data coding": {func(in *sdk.RunInstancesInput) { in.UserData = aws.String("#!/bin/sh\n") }, "InvalidParameterValue"},
		"profile": {func(in *sdk.RunInstancesInput) {
			in.IamInstanceProfile = &types.IamInstanceProfileSpecification{Name: aws.String("nobody")}
		}, "InvalidParameterValue"},
		"key":              {func(in *sdk.RunInstancesInput) { in.KeyName = aws.String("nokey") }, "InvalidKeyPair.NotFound"},
		"subnet":           {func(in *sdk.RunInstancesInput) { in.SubnetId = aws.String("subnet-00000000000000000") }, "InvalidSubnetID.NotFound"},
		"security group":   {func(in *sdk.RunInstancesInput) { in.SecurityGroupIds = []string{"sg-00000000000000000"} }, "InvalidGroup.NotFound"},
		"counts":           {func(in *sdk.RunInstancesInput) { in.MinCount = aws.Int32(2) }, "InvalidParameterValue"},
		"tags of an image": {func(in *sdk.RunInstancesInput) { in.TagSpecifications = tagged("image", "a", "b") }, "InvalidParameterValue"},
		"reserved tag":     {func(in *sdk.RunInstancesInput) { in.TagSpecifications = tagged("instance", "aws:x", "b") }, "InvalidParameterValue"},
		"shutdown":         {func(in *sdk.RunInstancesInput) { in.InstanceInitiatedShutdownBehavior = "hibernate" }, "InvalidParameterValue"},
		"hop limit": {func(in *sdk.RunInstancesInput) {
			in.MetadataOptions = &types.InstanceMetadataOptionsRequest{HttpPutResponseHopLimit: aws.Int32(65)}
		}, "InvalidParameterValue"},
		"not modelled": {func(in *sdk.RunInstancesInput) {
			in.LicenseSpecifications = []types.LicenseConfigurationRequest{{LicenseConfigurationArn: aws.String("arn")}}
		}, "UnknownParameter"},
		"dry run": {func(in *sdk.RunInstancesInput) { in.DryRun = aws.Bool(true) }, "DryRunOperation"},
		"unknown template": {func(in *sdk.RunInstancesInput) {
			in.LaunchTemplate = &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("none")}
		}, "InvalidLaunchTemplateName.NotFoundException"},
		"volume too small": {func(in *sdk.RunInstancesInput) { in.BlockDeviceMappings = volumeOf(4) }, "InvalidBlockDeviceMapping"},
	} {
		t.Run(name, func(t *testing.T) {
			in := &sdk.RunInstancesInput{ImageId: &l.base, InstanceType: types.InstanceTypeT3Micro, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)}
			c.change(in)
			_, err := l.api.RunInstances(t.Context(), in)
			(&lab{TB: t}).code(err, c.code)
		})
	}
	out := must(l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{}))(l)
	if len(out.Reservations) != 0 {
		t.Fatalf("refused launches left %d reservations", len(out.Reservations))
	}
}

func tagged(kind types.ResourceType, key, value string) []types.TagSpecification {
	return []types.TagSpecification{{ResourceType: kind, Tags: []types.Tag{{Key: &key, Value: &value}}}}
}

func volumeOf(gib int32) []types.BlockDeviceMapping {
	return []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{VolumeSize: &gib}}}
}

func TestClientToken(t *testing.T) {
	l := newLab(t)
	token := func(in *sdk.RunInstancesInput) { in.ClientToken = aws.String("once") }
	first := l.run(token)
	if again := l.run(token); again != first {
		t.Fatalf("the same token launched %s besides %s", again, first)
	}
	_, err := l.api.RunInstances(t.Context(), &sdk.RunInstancesInput{
		ImageId: &l.base, InstanceType: types.InstanceTypeT3Small, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), ClientToken: aws.String("once"),
	})
	l.code(err, "IdempotentParameterMismatch")
	found := must(l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{
		Filters: []types.Filter{{Name: aws.String("client-token"), Values: []string{"once"}}},
	}))(l)
	if n := len(found.Reservations); n != 1 || *found.Reservations[0].Instances[0].InstanceId != first {
		t.Fatalf("filter client-token found %d reservations", n)
	}
}
