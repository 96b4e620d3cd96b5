package autoscaling_test

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
	sdk "github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	ec2sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/lab/cloud/autoscaling"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const region = "eu-central-1"

type lab struct {
	testing.TB
	fake  *ec2.Server
	clock *wire.Manual
	api   *sdk.Client
	ec2   *ec2sdk.Client
	image string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	clock := wire.NewManual(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	l := &lab{TB: t, clock: clock, fake: ec2.New(ec2.Options{Clock: clock, Vault: wire.NewVault(clock), Region: region})}
	t.Cleanup(l.fake.Close)
	as := autoscaling.New(autoscaling.Options{Clock: clock, Instances: l.fake, Region: region})
	serve := func(h http.Handler) *string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r.WithContext(wire.WithRegion(r.Context(), region)))
		}))
		t.Cleanup(srv.Close)
		return &srv.URL
	}
	keys := credentials.NewStaticCredentialsProvider("test", "test", "")
	l.api = sdk.New(sdk.Options{Region: region, BaseEndpoint: serve(as), Credentials: keys, RetryMaxAttempts: 1, HTTPClient: &http.Client{Transport: wire.WholeBody(http.DefaultTransport)}})
	l.ec2 = ec2sdk.New(ec2sdk.Options{Region: region, BaseEndpoint: serve(l.fake), Credentials: keys, RetryMaxAttempts: 1, HTTPClient: &http.Client{Transport: wire.WholeBody(http.DefaultTransport)}})
	var err error
	l.image, err = l.fake.AddImage(region, ec2.ImageSeed{Name: "debian-12"})
	l.ok(err)
	l.template("web", l.image)
	return l
}

func (l *lab) ok(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) code(err error, want string, words ...string) {
	l.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) {
		l.Fatalf("got error %v, want API error %s", err, want)
	}
	if api.ErrorCode() != want {
		l.Fatalf("got %s (%s), want %s", api.ErrorCode(), api.ErrorMessage(), want)
	}
	for _, w := range words {
		if !strings.Contains(api.ErrorMessage(), w) {
			l.Fatalf("message %q lacks %q", api.ErrorMessage(), w)
		}
	}
}

func (l *lab) template(name, image string) {
	l.Helper()
	_, err := l.ec2.CreateLaunchTemplate(l.Context(), &ec2sdk.CreateLaunchTemplateInput{LaunchTemplateName: &name, LaunchTemplateData: &ec2types.RequestLaunchTemplateData{
		ImageId: &image, InstanceType: ec2types.InstanceTypeT3Micro, UserData: aws.String(base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\n"))),
	}})
	l.ok(err)
}

// version adds a version to the template web.
func (l *lab) version(image string) string {
	l.Helper()
	_, err := l.ec2.CreateLaunchTemplateVersion(l.Context(), &ec2sdk.CreateLaunchTemplateVersionInput{
		LaunchTemplateName: aws.String("web"), SourceVersion: aws.String("1"), LaunchTemplateData: &ec2types.RequestLaunchTemplateData{ImageId: &image},
	})
	l.ok(err)
	return "2"
}

func (l *lab) create(n int32, change ...func(*sdk.CreateAutoScalingGroupInput)) {
	l.Helper()
	in := &sdk.CreateAutoScalingGroupInput{
		AutoScalingGroupName: aws.String("web"), MinSize: aws.Int32(0), MaxSize: aws.Int32(10), DesiredCapacity: &n,
		LaunchTemplate:    &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("web"), Version: aws.String("1")},
		AvailabilityZones: []string{region + "a", region + "b"},
		Tags:              []types.Tag{{Key: aws.String("app"), Value: aws.String("cafe"), PropagateAtLaunch: aws.Bool(true)}, {Key: aws.String("own"), Value: aws.String("x"), PropagateAtLaunch: aws.Bool(false)}},
	}
	for _, f := range change {
		f(in)
	}
	_, err := l.api.CreateAutoScalingGroup(l.Context(), in)
	l.ok(err)
}

func (l *lab) group() types.AutoScalingGroup {
	l.Helper()
	out, err := l.api.DescribeAutoScalingGroups(l.Context(), &sdk.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"web"}})
	l.ok(err)
	if len(out.AutoScalingGroups) != 1 {
		l.Fatalf("got %d groups", len(out.AutoScalingGroups))
	}
	return out.AutoScalingGroups[0]
}

// states counts the members by lifecycle state.
func (l *lab) states() map[types.LifecycleState]int {
	l.Helper()
	m := map[types.LifecycleState]int{}
	for _, i := range l.group().Instances {
		m[i.LifecycleState]++
	}
	return m
}

func (l *lab) want(state types.LifecycleState, n int) []string {
	l.Helper()
	var ids []string
	for _, i := range l.group().Instances {
		if i.LifecycleState == state {
			ids = append(ids, *i.InstanceId)
		}
	}
	if len(ids) != n {
		l.Fatalf("%d instances are %s, want %d: %v", len(ids), state, n, l.states())
	}
	return ids
}

// settled creates a group of n and lets it come into service.
func (l *lab) settled(n int32, change ...func(*sdk.CreateAutoScalingGroupInput)) []string {
	l.Helper()
	l.create(n, change...)
	l.clock.Advance(time.Minute)
	return l.want(types.LifecycleStateInService, int(n))
}

func (l *lab) instance(id string) ec2types.Instance {
	l.Helper()
	out, err := l.ec2.DescribeInstances(l.Context(), &ec2sdk.DescribeInstancesInput{InstanceIds: []string{id}})
	l.ok(err)
	return out.Reservations[0].Instances[0]
}

func (l *lab) activities() []types.Activity {
	l.Helper()
	out, err := l.api.DescribeScalingActivities(l.Context(), &sdk.DescribeScalingActivitiesInput{AutoScalingGroupName: aws.String("web")})
	l.ok(err)
	return out.Activities
}

func (l *lab) hook(transition string, result string) {
	l.Helper()
	_, err := l.api.PutLifecycleHook(l.Context(), &sdk.PutLifecycleHookInput{
		AutoScalingGroupName: aws.String("web"), LifecycleHookName: aws.String("boot"), LifecycleTransition: &transition,
		HeartbeatTimeout: aws.Int32(300), DefaultResult: &result,
	})
	l.ok(err)
}

func TestLaunch(t *testing.T) {
	l := newLab(t)
	l.create(4)
	if n := len(l.group().Instances); n != 0 {
		t.Fatalf("%d instances in the same instant as the group", n)
	}
	l.clock.Advance(2 * time.Second)
	l.want(types.LifecycleStatePending, 4)
	l.clock.Advance(15 * time.Second)
	ids := l.want(types.LifecycleStateInService, 4)
	zones := map[string]int{}
	for _, i := range l.group().Instances {
		zones[*i.AvailabilityZone]++
		if *i.LaunchTemplate.Version != "1" {
			t.Fatalf("launched from version %s", *i.LaunchTemplate.Version)
		}
	}
	if zones[region+"a"] != 2 || zones[region+"b"] != 2 {
		t.Fatalf("zones %v, want two each", zones)
	}
	tags := map[string]string{}
	for _, tag := range l.instance(ids[0]).Tags {
		tags[*tag.Key] = *tag.Value
	}
	if tags["aws:autoscaling:groupName"] != "web" || tags["app"] != "cafe" || tags["aws:ec2launchtemplate:version"] != "1" {
		t.Fatalf("instance tags %v", tags)
	}
	if _, ok := tags["own"]; ok {
		t.Fatal("a tag that is not propagated is on the instance")
	}
	if info, _ := l.fake.Instance(ids[0]); info.TargetLifecycleState != "InService" {
		t.Fatalf("target lifecycle state %q", info.TargetLifecycleState)
	}
	if a := l.activities(); len(a) != 4 || a[0].StatusCode != types.ScalingActivityStatusCodeSuccessful || a[0].EndTime == nil {
		t.Fatalf("activities: %d, first %+v", len(a), a[0])
	}
}

func TestCreateRefuses(t *testing.T) {
	l := newLab(t)
	l.create(0)
	gone := "ami-00000000000000000"
	l.template("broken", gone)
	for name, c := range map[string]struct {
		change func(*sdk.CreateAutoScalingGroupInput)
		code   string
	}{
		"name taken":   {func(*sdk.CreateAutoScalingGroupInput) {}, "AlreadyExists"},
		"bounds":       {func(in *sdk.CreateAutoScalingGroupInput) { in.MinSize = aws.Int32(11) }, "ValidationError"},
		"desired":      {func(in *sdk.CreateAutoScalingGroupInput) { in.DesiredCapacity = aws.Int32(11) }, "ValidationError"},
		"no place":     {func(in *sdk.CreateAutoScalingGroupInput) { in.AvailabilityZones = nil }, "ValidationError"},
		"zone":         {func(in *sdk.CreateAutoScalingGroupInput) { in.AvailabilityZones = []string{"us-east-1a"} }, "ValidationError"},
		"subnet":       {func(in *sdk.CreateAutoScalingGroupInput) { in.VPCZoneIdentifier = aws.String("subnet-0") }, "ValidationError"},
		"template":     {func(in *sdk.CreateAutoScalingGroupInput) { in.LaunchTemplate.LaunchTemplateName = aws.String("none") }, "ValidationError"},
		"version":      {func(in *sdk.CreateAutoScalingGroupInput) { in.LaunchTemplate.Version = aws.String("7") }, "ValidationError"},
		"image":        {func(in *sdk.CreateAutoScalingGroupInput) { in.LaunchTemplate.LaunchTemplateName = aws.String("broken") }, "ValidationError"},
		"not modelled": {func(in *sdk.CreateAutoScalingGroupInput) { in.TargetGroupARNs = []string{"arn"} }, "UnknownParameter"},
		"reserved tag": {func(in *sdk.CreateAutoScalingGroupInput) {
			in.Tags = []types.Tag{{Key: aws.String("aws:x"), Value: aws.String("y")}}
		}, "ValidationError"},
		"hook": {func(in *sdk.CreateAutoScalingGroupInput) {
			in.LifecycleHookSpecificationList = []types.LifecycleHookSpecification{{LifecycleHookName: aws.String("h"), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_LAUNCHING"), HeartbeatTimeout: aws.Int32(29)}}
		}, "ValidationError"},
	} {
		t.Run(name, func(t *testing.T) {
			in := &sdk.CreateAutoScalingGroupInput{
				AutoScalingGroupName: aws.String("other"), MinSize: aws.Int32(0), MaxSize: aws.Int32(10), AvailabilityZones: []string{region + "a"},
				LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("web"), Version: aws.String("1")},
			}
			if name == "name taken" {
				in.AutoScalingGroupName = aws.String("web")
			}
			c.change(in)
			_, err := l.api.CreateAutoScalingGroup(t.Context(), in)
			(&lab{TB: t}).code(err, c.code)
		})
	}
	out, err := l.api.DescribeAutoScalingGroups(t.Context(), &sdk.DescribeAutoScalingGroupsInput{})
	l.ok(err)
	if len(out.AutoScalingGroups) != 1 {
		t.Fatalf("refused groups are there: %d", len(out.AutoScalingGroups))
	}
}

func TestLaunchHook(t *testing.T) {
	l := newLab(t)
	l.create(0)
	l.hook("autoscaling:EC2_INSTANCE_LAUNCHING", "ABANDON")
	_, err := l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: aws.String("web"), DesiredCapacity: aws.Int32(2)})
	l.ok(err)
	l.clock.Advance(10 * time.Second)
	pending := l.want(types.LifecycleStatePending, 2)
	complete := func(id, result string) error {
		_, err := l.api.CompleteLifecycleAction(t.Context(), &sdk.CompleteLifecycleActionInput{
			AutoScalingGroupName: aws.String("web"), LifecycleHookName: aws.String("boot"), InstanceId: &id, LifecycleActionResult: &result,
		})
		return err
	}
	// Too early: the action is not there yet.
	l.code(complete(pending[0], "CONTINUE"), "ValidationError", "No active Lifecycle Action found")
	l.clock.Advance(10 * time.Second)
	ids := l.want(types.LifecycleStatePendingWait, 2)
	l.clock.Advance(4 * time.Minute)
	l.want(types.LifecycleStatePendingWait, 2)
	_, err = l.api.RecordLifecycleActionHeartbeat(t.Context(), &sdk.RecordLifecycleActionHeartbeatInput{
		AutoScalingGroupName: aws.String("web"), LifecycleHookName: aws.String("boot"), InstanceId: &ids[0],
	})
	l.ok(err)
	l.clock.Advance(61 * time.Second) // the second one's heartbeat ends
	if l.instance(ids[1]).State.Name != ec2types.InstanceStateNameShuttingDown {
		t.Fatalf("an abandoned instance is %s", l.instance(ids[1]).State.Name)
	}
	l.ok(complete(ids[0], "CONTINUE"))
	l.want(types.LifecycleStateInService, 1)
	l.code(complete(ids[0], "CONTINUE"), "ValidationError", "No active Lifecycle Action found")
	l.code(complete(ids[0], "PERHAPS"), "ValidationError")
	cancelled := 0
	for _, a := range l.activities() {
		if a.StatusCode == types.ScalingActivityStatusCodeCancelled && strings.Contains(*a.StatusMessage, "Heartbeat Timeout") {
			cancelled++
		}
	}
	if cancelled != 1 {
		t.Fatalf("%d activities say that the heartbeat timed out", cancelled)
	}
	l.clock.Advance(20 * time.Second) // and it is replaced
	next := l.want(types.LifecycleStatePendingWait, 1)
	l.ok(complete(next[0], "ABANDON"))
	l.clock.Advance(time.Minute)
	if again := l.want(types.LifecycleStatePendingWait, 1); again[0] == next[0] {
		t.Fatal("an abandoned instance waits on")
	}
}

func TestTerminateHook(t *testing.T) {
	l := newLab(t)
	ids := l.settled(1)
	l.hook("autoscaling:EC2_INSTANCE_TERMINATING", "CONTINUE")
	_, err := l.api.TerminateInstanceInAutoScalingGroup(t.Context(), &sdk.TerminateInstanceInAutoScalingGroupInput{InstanceId: &ids[0], ShouldDecrementDesiredCapacity: aws.Bool(true)})
	l.ok(err)
	l.want(types.LifecycleStateTerminatingWait, 1)
	if s := l.instance(ids[0]).State.Name; s != ec2types.InstanceStateNameRunning {
		t.Fatalf("the instance is %s while its hook runs", s)
	}
	if info, _ := l.fake.Instance(ids[0]); info.TargetLifecycleState != "Terminated" {
		t.Fatalf("target lifecycle state %q", info.TargetLifecycleState)
	}
	l.clock.Advance(300 * time.Second)
	l.want(types.LifecycleStateTerminatingProceed, 1)
	l.clock.Advance(20 * time.Second)
	if n := len(l.group().Instances); n != 0 {
		t.Fatalf("%d instances left", n)
	}
}

func TestHealth(t *testing.T) {
	l := newLab(t)
	ids := l.settled(2)
	unhealthy := func(id string) error {
		_, err := l.api.SetInstanceHealth(t.Context(), &sdk.SetInstanceHealthInput{InstanceId: &id, HealthStatus: aws.String("Unhealthy")})
		return err
	}
	l.ok(unhealthy(ids[0]))
	l.clock.Advance(10 * time.Second)
	l.want(types.LifecycleStateTerminating, 1)
	l.clock.Advance(30 * time.Second)
	now := l.want(types.LifecycleStateInService, 2)
	for _, id := range now {
		if id == ids[0] {
			t.Fatal("an unhealthy instance is still in service")
		}
	}
	l.code(unhealthy("i-00000000000000000"), "ValidationError")
	_, err := l.api.SetInstanceHealth(t.Context(), &sdk.SetInstanceHealthInput{InstanceId: &now[0], HealthStatus: aws.String("Poorly")})
	l.code(err, "ValidationError")

	// An instance that is stopped behind the group's back is replaced too.
	l.fake.PoweredOff(now[0])
	l.clock.Advance(2 * time.Minute)
	for _, id := range l.want(types.LifecycleStateInService, 2) {
		if id == now[0] {
			t.Fatal("a stopped instance is still in service")
		}
	}
}

func TestHealthInGracePeriod(t *testing.T) {
	l := newLab(t)
	ids := l.settled(1, func(in *sdk.CreateAutoScalingGroupInput) { in.HealthCheckGracePeriod = aws.Int32(600) })
	unhealthy := func(respect bool) {
		_, err := l.api.SetInstanceHealth(t.Context(), &sdk.SetInstanceHealthInput{InstanceId: &ids[0], HealthStatus: aws.String("Unhealthy"), ShouldRespectGracePeriod: &respect})
		l.ok(err)
	}
	unhealthy(true)
	l.fake.Impair(ids[0], true)
	l.clock.Advance(time.Minute)
	if kept := l.want(types.LifecycleStateInService, 1); kept[0] != ids[0] {
		t.Fatal("the grace period was not respected")
	}
	// A failed status check counts once the period has passed.
	l.clock.Advance(20 * time.Minute)
	next := l.want(types.LifecycleStateInService, 1)
	if next[0] == ids[0] {
		t.Fatal("an impaired instance is still in service")
	}
	ids = next
	unhealthy(false)
	l.clock.Advance(time.Minute)
	if now := l.want(types.LifecycleStateInService, 1); now[0] == ids[0] {
		t.Fatal("a call that does not respect the grace period did nothing")
	}
}

func TestPendingThatPowersOff(t *testing.T) {
	l := newLab(t)
	l.create(0)
	l.hook("autoscaling:EC2_INSTANCE_LAUNCHING", "CONTINUE")
	_, err := l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: aws.String("web"), DesiredCapacity: aws.Int32(1)})
	l.ok(err)
	l.clock.Advance(20 * time.Second)
	ids := l.want(types.LifecycleStatePendingWait, 1)
	l.fake.PoweredOff(ids[0])
	l.clock.Advance(3 * time.Minute)
	if next := l.want(types.LifecycleStatePendingWait, 1); next[0] == ids[0] {
		t.Fatal("an instance that is off still waits")
	}
	failed := 0
	for _, a := range l.activities() {
		if a.StatusCode == types.ScalingActivityStatusCodeFailed && strings.Contains(*a.StatusMessage, "Instance initiated shutdown") {
			failed++
		}
	}
	if failed != 1 {
		t.Fatalf("%d failed activities say why", failed)
	}
}

func TestCapacity(t *testing.T) {
	l := newLab(t)
	l.fake.Capacity("t3.micro", region+"a", false)
	l.create(2)
	l.clock.Advance(time.Minute)
	for _, i := range l.group().Instances {
		if *i.AvailabilityZone != region+"b" {
			t.Fatalf("launched in %s, which has no capacity", *i.AvailabilityZone)
		}
	}
	l.want(types.LifecycleStateInService, 2)
	l.fake.Capacity("", "", false)
	_, err := l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: aws.String("web"), DesiredCapacity: aws.Int32(3)})
	l.ok(err)
	l.clock.Advance(10 * time.Second)
	first := l.activities()[0]
	if first.StatusCode != types.ScalingActivityStatusCodeFailed || !strings.Contains(*first.StatusMessage, "do not have sufficient t3.micro capacity") {
		t.Fatalf("got activity %s: %s", first.StatusCode, aws.ToString(first.StatusMessage))
	}
	l.fake.Capacity("", "", true)
	l.clock.Advance(2 * time.Minute)
	l.want(types.LifecycleStateInService, 3)
}

func TestScaleIn(t *testing.T) {
	l := newLab(t)
	ids := l.settled(4)
	_, err := l.api.SetInstanceProtection(t.Context(), &sdk.SetInstanceProtectionInput{AutoScalingGroupName: aws.String("web"), InstanceIds: ids[:1], ProtectedFromScaleIn: aws.Bool(true)})
	l.ok(err)
	_, err = l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: aws.String("web"), DesiredCapacity: aws.Int32(1)})
	l.ok(err)
	l.clock.Advance(time.Minute)
	if left := l.want(types.LifecycleStateInService, 1); left[0] != ids[0] {
		t.Fatal("a protected instance went")
	}
	for _, n := range []int32{-1, 11} {
		_, err = l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: aws.String("web"), DesiredCapacity: &n})
		l.code(err, "ValidationError")
	}
}

func TestStandby(t *testing.T) {
	l := newLab(t)
	ids := l.settled(2)
	_, err := l.api.EnterStandby(t.Context(), &sdk.EnterStandbyInput{AutoScalingGroupName: aws.String("web"), InstanceIds: ids[:1], ShouldDecrementDesiredCapacity: aws.Bool(false)})
	l.ok(err)
	_, err = l.api.EnterStandby(t.Context(), &sdk.EnterStandbyInput{AutoScalingGroupName: aws.String("web"), InstanceIds: ids[:1], ShouldDecrementDesiredCapacity: aws.Bool(false)})
	l.code(err, "ValidationError")
	l.clock.Advance(time.Minute)
	l.want(types.LifecycleStateStandby, 1)
	l.want(types.LifecycleStateInService, 2)
	_, err = l.api.ExitStandby(t.Context(), &sdk.ExitStandbyInput{AutoScalingGroupName: aws.String("web"), InstanceIds: ids[:1]})
	l.ok(err)
	l.clock.Advance(time.Minute)
	l.want(types.LifecycleStateInService, 3)
	if d := *l.group().DesiredCapacity; d != 3 {
		t.Fatalf("desired capacity %d after standby, want 3", d)
	}
}

func TestDelete(t *testing.T) {
	l := newLab(t)
	ids := l.settled(1)
	_, err := l.api.DeleteAutoScalingGroup(t.Context(), &sdk.DeleteAutoScalingGroupInput{AutoScalingGroupName: aws.String("web")})
	l.code(err, "ResourceInUse")
	_, err = l.api.DeleteAutoScalingGroup(t.Context(), &sdk.DeleteAutoScalingGroupInput{AutoScalingGroupName: aws.String("web"), ForceDelete: aws.Bool(true)})
	l.ok(err)
	if s := aws.ToString(l.group().Status); s != "Delete in progress" {
		t.Fatalf("status %q", s)
	}
	l.clock.Advance(30 * time.Second)
	if s := l.instance(ids[0]).State.Name; s != ec2types.InstanceStateNameTerminated {
		t.Fatalf("the instance is %s", s)
	}
	_, err = l.api.DeleteAutoScalingGroup(t.Context(), &sdk.DeleteAutoScalingGroupInput{AutoScalingGroupName: aws.String("web")})
	l.code(err, "ValidationError", "not found")
}

func TestUnsupported(t *testing.T) {
	l := newLab(t)
	_, err := l.api.PutScalingPolicy(t.Context(), &sdk.PutScalingPolicyInput{AutoScalingGroupName: aws.String("web"), PolicyName: aws.String("p")})
	l.code(err, "UnsupportedOperation", "PutScalingPolicy")
}
