package autoscaling_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	ec2sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
)

var web = aws.String("web")

func TestDescribeGroups(t *testing.T) {
	l := newLab(t)
	for n := range 7 {
		l.create(0, func(in *sdk.CreateAutoScalingGroupInput) {
			in.AutoScalingGroupName = aws.String(fmt.Sprint("g", n))
			in.Tags = []types.Tag{{Key: aws.String("n"), Value: aws.String(fmt.Sprint(n % 2))}}
		})
	}
	names := func(in *sdk.DescribeAutoScalingGroupsInput) string {
		var out []string
		p := sdk.NewDescribeAutoScalingGroupsPaginator(l.api, in)
		for p.HasMorePages() {
			page, err := p.NextPage(t.Context())
			l.ok(err)
			if in.MaxRecords != nil && len(page.AutoScalingGroups) > int(*in.MaxRecords) {
				t.Fatalf("page of %d", len(page.AutoScalingGroups))
			}
			for _, g := range page.AutoScalingGroups {
				out = append(out, *g.AutoScalingGroupName)
			}
		}
		return strings.Join(out, " ")
	}
	if got := names(&sdk.DescribeAutoScalingGroupsInput{MaxRecords: aws.Int32(3)}); got != "g0 g1 g2 g3 g4 g5 g6" {
		t.Fatalf("groups %s", got)
	}
	if got := names(&sdk.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"g2", "none"}}); got != "g2" {
		t.Fatalf("groups %s", got)
	}
	if got := names(&sdk.DescribeAutoScalingGroupsInput{Filters: []types.Filter{{Name: aws.String("tag:n"), Values: []string{"1"}}}}); got != "g1 g3 g5" {
		t.Fatalf("groups %s", got)
	}
	_, err := l.api.DescribeAutoScalingGroups(t.Context(), &sdk.DescribeAutoScalingGroupsInput{Filters: []types.Filter{{Name: aws.String("colour"), Values: []string{"1"}}}})
	l.code(err, "ValidationError")
	_, err = l.api.DescribeAutoScalingGroups(t.Context(), &sdk.DescribeAutoScalingGroupsInput{MaxRecords: aws.Int32(101)})
	l.code(err, "ValidationError")
	_, err = l.api.DescribeAutoScalingGroups(t.Context(), &sdk.DescribeAutoScalingGroupsInput{NextToken: aws.String("bogus")})
	l.code(err, "InvalidNextToken")
}

func TestTags(t *testing.T) {
	l := newLab(t)
	ids := l.settled(1)
	tag := types.Tag{Key: aws.String("late"), Value: aws.String("1"), PropagateAtLaunch: aws.Bool(true), ResourceId: web, ResourceType: aws.String("auto-scaling-group")}
	_, err := l.api.CreateOrUpdateTags(t.Context(), &sdk.CreateOrUpdateTagsInput{Tags: []types.Tag{tag}})
	l.ok(err)
	out, err := l.api.DescribeTags(t.Context(), &sdk.DescribeTagsInput{Filters: []types.Filter{{Name: aws.String("key"), Values: []string{"late"}}}})
	l.ok(err)
	if len(out.Tags) != 1 || *out.Tags[0].ResourceId != "web" {
		t.Fatalf("tags %+v", out.Tags)
	}
	for _, tag := range l.instance(ids[0]).Tags {
		if *tag.Key == "late" {
			t.Fatal("a running instance got the group's new tag")
		}
	}
	_, err = l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: web, DesiredCapacity: aws.Int32(2)})
	l.ok(err)
	l.clock.Advance(time.Minute)
	both := l.want(types.LifecycleStateInService, 2)
	found := false
	for _, tag := range l.instance(both[1]).Tags {
		found = found || *tag.Key == "late"
	}
	if !found {
		t.Fatal("a new instance has not got the tag")
	}
	_, err = l.api.DeleteTags(t.Context(), &sdk.DeleteTagsInput{Tags: []types.Tag{tag}})
	l.ok(err)
	tag.ResourceId = aws.String("none")
	_, err = l.api.CreateOrUpdateTags(t.Context(), &sdk.CreateOrUpdateTagsInput{Tags: []types.Tag{tag}})
	l.code(err, "ValidationError")
}

func TestLatest(t *testing.T) {
	l := newLab(t)
	l.settled(1, func(in *sdk.CreateAutoScalingGroupInput) { in.LaunchTemplate.Version = aws.String("$Latest") })
	l.version(l.newImage())
	// What runs stays; what is launched from now on has the new version.
	_, err := l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: web, DesiredCapacity: aws.Int32(2)})
	l.ok(err)
	l.clock.Advance(time.Minute)
	if v := l.versions(); v["1"] != 1 || v["2"] != 1 {
		t.Fatalf("in service %v", v)
	}
	if got := *l.group().LaunchTemplate.Version; got != "$Latest" {
		t.Fatalf("the group's version is %s", got)
	}
}

func TestImageThatIsGone(t *testing.T) {
	l := newLab(t)
	l.settled(1)
	out, err := l.ec2.CreateImage(t.Context(), &ec2sdk.CreateImageInput{InstanceId: aws.String(l.want(types.LifecycleStateInService, 1)[0]), Name: aws.String("next")})
	l.ok(err)
	l.clock.Advance(time.Minute)
	l.version(*out.ImageId)
	_, err = l.api.UpdateAutoScalingGroup(t.Context(), &sdk.UpdateAutoScalingGroupInput{AutoScalingGroupName: web, LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: web, Version: aws.String("2")}})
	l.ok(err)
	_, err = l.ec2.DeregisterImage(t.Context(), &ec2sdk.DeregisterImageInput{ImageId: out.ImageId})
	l.ok(err)
	_, err = l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: web, DesiredCapacity: aws.Int32(2)})
	l.ok(err)
	l.clock.Advance(10 * time.Second)
	if a := l.activities()[0]; a.StatusCode != types.ScalingActivityStatusCodeFailed || !strings.Contains(*a.StatusMessage, "does not exist") {
		t.Fatalf("activity %s: %s", a.StatusCode, aws.ToString(a.StatusMessage))
	}
	// Failed launches are tried again ever more slowly.
	l.clock.Advance(time.Hour)
	if n := len(l.activities()); n < 6 || n > 30 {
		t.Fatalf("%d activities in an hour", n)
	}
}

func TestSuspendedProcesses(t *testing.T) {
	l := newLab(t)
	ids := l.settled(1)
	_, err := l.api.SuspendProcesses(t.Context(), &sdk.SuspendProcessesInput{AutoScalingGroupName: web, ScalingProcesses: []string{"ReplaceUnhealthy", "Launch"}})
	l.ok(err)
	_, err = l.api.SetInstanceHealth(t.Context(), &sdk.SetInstanceHealthInput{InstanceId: &ids[0], HealthStatus: aws.String("Unhealthy")})
	l.ok(err)
	_, err = l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: web, DesiredCapacity: aws.Int32(2)})
	l.ok(err)
	l.clock.Advance(time.Minute)
	l.want(types.LifecycleStateInService, 1)
	if len(l.group().SuspendedProcesses) != 2 {
		t.Fatalf("suspended %+v", l.group().SuspendedProcesses)
	}
	_, err = l.api.ResumeProcesses(t.Context(), &sdk.ResumeProcessesInput{AutoScalingGroupName: web, ScalingProcesses: []string{"Launch"}})
	l.ok(err)
	l.clock.Advance(time.Minute)
	l.want(types.LifecycleStateInService, 2)
	_, err = l.api.SuspendProcesses(t.Context(), &sdk.SuspendProcessesInput{AutoScalingGroupName: web, ScalingProcesses: []string{"Sleep"}})
	l.code(err, "ValidationError")
}

func TestDetach(t *testing.T) {
	l := newLab(t)
	ids := l.settled(2)
	_, err := l.api.DetachInstances(t.Context(), &sdk.DetachInstancesInput{AutoScalingGroupName: web, InstanceIds: ids[:1], ShouldDecrementDesiredCapacity: aws.Bool(true)})
	l.ok(err)
	l.clock.Advance(time.Minute)
	if left := l.want(types.LifecycleStateInService, 1); left[0] != ids[1] {
		t.Fatal("the other one was detached")
	}
	if s := l.instance(ids[0]).State.Name; s != "running" {
		t.Fatalf("the detached instance is %s", s)
	}
	_, err = l.api.DetachInstances(t.Context(), &sdk.DetachInstancesInput{AutoScalingGroupName: web, InstanceIds: ids[:1], ShouldDecrementDesiredCapacity: aws.Bool(true)})
	l.code(err, "ValidationError")
	_, err = l.api.UpdateAutoScalingGroup(t.Context(), &sdk.UpdateAutoScalingGroupInput{AutoScalingGroupName: web, MinSize: aws.Int32(1)})
	l.ok(err)
	for _, call := range []func() error{
		func() error {
			_, err := l.api.DetachInstances(t.Context(), &sdk.DetachInstancesInput{AutoScalingGroupName: web, InstanceIds: ids[1:], ShouldDecrementDesiredCapacity: aws.Bool(true)})
			return err
		},
		func() error {
			_, err := l.api.TerminateInstanceInAutoScalingGroup(t.Context(), &sdk.TerminateInstanceInAutoScalingGroupInput{InstanceId: &ids[1], ShouldDecrementDesiredCapacity: aws.Bool(true)})
			return err
		},
	} {
		l.code(call(), "ValidationError") // below the minimum
	}
}

func TestTerminateReplaces(t *testing.T) {
	l := newLab(t)
	ids := l.settled(1)
	_, err := l.api.TerminateInstanceInAutoScalingGroup(t.Context(), &sdk.TerminateInstanceInAutoScalingGroupInput{InstanceId: &ids[0], ShouldDecrementDesiredCapacity: aws.Bool(false)})
	l.ok(err)
	l.clock.Advance(time.Minute)
	if next := l.want(types.LifecycleStateInService, 1); next[0] == ids[0] {
		t.Fatal("the instance is still in service")
	}
	out, err := l.api.DescribeAutoScalingInstances(t.Context(), &sdk.DescribeAutoScalingInstancesInput{InstanceIds: ids})
	l.ok(err)
	if len(out.AutoScalingInstances) != 0 {
		t.Fatalf("a terminated instance is described: %+v", out.AutoScalingInstances)
	}
	_, err = l.api.DescribeAutoScalingInstances(t.Context(), &sdk.DescribeAutoScalingInstancesInput{InstanceIds: make([]string, 51)})
	l.code(err, "ValidationError")
}

func TestSeveralHooks(t *testing.T) {
	l := newLab(t)
	l.create(0)
	l.hook("autoscaling:EC2_INSTANCE_LAUNCHING", "ABANDON")
	put := func(name string, seconds int32) error {
		_, err := l.api.PutLifecycleHook(t.Context(), &sdk.PutLifecycleHookInput{
			AutoScalingGroupName: web, LifecycleHookName: &name, LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_LAUNCHING"), HeartbeatTimeout: &seconds,
		})
		return err
	}
	l.ok(put("second", 600))
	l.code(put("short", 29), "ValidationError")
	l.code(put("long", 7201), "ValidationError")
	hooks, err := l.api.DescribeLifecycleHooks(t.Context(), &sdk.DescribeLifecycleHooksInput{AutoScalingGroupName: web})
	l.ok(err)
	if len(hooks.LifecycleHooks) != 2 || *hooks.LifecycleHooks[1].GlobalTimeout != 60000 || *hooks.LifecycleHooks[1].DefaultResult != "ABANDON" {
		t.Fatalf("hooks %+v", hooks.LifecycleHooks)
	}
	_, err = l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: web, DesiredCapacity: aws.Int32(1)})
	l.ok(err)
	l.clock.Advance(20 * time.Second)
	ids := l.want(types.LifecycleStatePendingWait, 1)
	done := func(hook string) {
		_, err := l.api.CompleteLifecycleAction(t.Context(), &sdk.CompleteLifecycleActionInput{AutoScalingGroupName: web, LifecycleHookName: &hook, InstanceId: &ids[0], LifecycleActionResult: aws.String("CONTINUE")})
		l.ok(err)
	}
	done("boot")
	l.want(types.LifecycleStatePendingWait, 1) // the second is still to come
	done("second")
	l.want(types.LifecycleStateInService, 1)
	// Deleting a hook abandons what waits at it.
	_, err = l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: web, DesiredCapacity: aws.Int32(2)})
	l.ok(err)
	l.clock.Advance(20 * time.Second)
	ids = l.want(types.LifecycleStatePendingWait, 1)
	_, err = l.api.DeleteLifecycleHook(t.Context(), &sdk.DeleteLifecycleHookInput{AutoScalingGroupName: web, LifecycleHookName: aws.String("second")})
	l.ok(err)
	if s := l.instance(ids[0]).State.Name; s != "shutting-down" {
		t.Fatalf("the instance is %s", s)
	}
	_, err = l.api.DeleteLifecycleHook(t.Context(), &sdk.DeleteLifecycleHookInput{AutoScalingGroupName: web, LifecycleHookName: aws.String("second")})
	l.code(err, "ValidationError")
}

func TestHeartbeatsEnd(t *testing.T) {
	l := newLab(t)
	l.create(0)
	l.hook("autoscaling:EC2_INSTANCE_LAUNCHING", "ABANDON")
	_, err := l.api.SetDesiredCapacity(t.Context(), &sdk.SetDesiredCapacityInput{AutoScalingGroupName: web, DesiredCapacity: aws.Int32(1)})
	l.ok(err)
	l.clock.Advance(20 * time.Second)
	ids := l.want(types.LifecycleStatePendingWait, 1)
	beats := 0
	for ; beats < 1000; beats++ { // 100 times the timeout of 300 s, whatever is sent
		l.clock.Advance(200 * time.Second)
		_, err = l.api.RecordLifecycleActionHeartbeat(t.Context(), &sdk.RecordLifecycleActionHeartbeatInput{AutoScalingGroupName: web, LifecycleHookName: aws.String("boot"), InstanceId: &ids[0]})
		if err != nil {
			break
		}
	}
	l.code(err, "ValidationError", "No active Lifecycle Action found")
	if beats < 148 || beats > 150 {
		t.Fatalf("%d heartbeats of 200 s kept it", beats)
	}
}

func TestBakeTimeAndCancel(t *testing.T) {
	l := newLab(t)
	l.settled(1)
	l.version(l.newImage())
	_, err := l.start(to("2"), func(in *sdk.StartInstanceRefreshInput) { in.Preferences.BakeTime = aws.Int32(600) })
	l.ok(err)
	l.clock.Advance(time.Minute)
	if s := l.refresh().Status; s != types.InstanceRefreshStatusBaking {
		t.Fatalf("refresh %s", s)
	}
	_, err = l.api.CancelInstanceRefresh(t.Context(), &sdk.CancelInstanceRefreshInput{AutoScalingGroupName: web})
	l.ok(err)
	l.clock.Advance(time.Hour)
	if s := l.refresh().Status; s != types.InstanceRefreshStatusCancelled {
		t.Fatalf("refresh %s", s)
	}
	if got := *l.group().LaunchTemplate.Version; got != "1" {
		t.Fatalf("the group has version %s after a cancelled refresh", got)
	}
	_, err = l.start(to("2"), func(in *sdk.StartInstanceRefreshInput) {
		in.Preferences.SkipMatching = aws.Bool(true)
		in.Preferences.BakeTime = aws.Int32(60)
	})
	l.ok(err)
	before := l.want(types.LifecycleStateInService, 1)
	l.clock.Advance(10 * time.Minute)
	if s := l.refresh().Status; s != types.InstanceRefreshStatusSuccessful {
		t.Fatalf("refresh %s", s)
	}
	if after := l.want(types.LifecycleStateInService, 1); after[0] != before[0] {
		t.Fatal("a matching instance was replaced")
	}
}

func TestAutoRollback(t *testing.T) {
	l := newLab(t)
	l.settled(2)
	l.hook("autoscaling:EC2_INSTANCE_LAUNCHING", "ABANDON")
	l.version(l.newImage())
	_, err := l.start(to("2"), func(in *sdk.StartInstanceRefreshInput) {
		in.Preferences.AutoRollback, in.Preferences.MinHealthyPercentage = aws.Bool(true), aws.Int32(50)
	})
	l.ok(err)
	for range 200 { // nothing of version 2 ever says CONTINUE; version 1 does
		l.clock.Advance(time.Minute)
		for _, i := range l.group().Instances {
			if i.LifecycleState == types.LifecycleStatePendingWait && *i.LaunchTemplate.Version == "1" {
				_, err := l.api.CompleteLifecycleAction(t.Context(), &sdk.CompleteLifecycleActionInput{AutoScalingGroupName: web, LifecycleHookName: aws.String("boot"), InstanceId: i.InstanceId, LifecycleActionResult: aws.String("CONTINUE")})
				l.ok(err)
			}
		}
	}
	if s := l.refresh().Status; s != types.InstanceRefreshStatusRollbackSuccessful {
		t.Fatalf("refresh %s", s)
	}
	if v := l.versions(); v["1"] != 2 || v["2"] != 0 {
		t.Fatalf("in service %v", v)
	}
}

func TestProtectedInstancesHoldUpARefresh(t *testing.T) {
	l := newLab(t)
	ids := l.settled(1)
	_, err := l.api.SetInstanceProtection(t.Context(), &sdk.SetInstanceProtectionInput{AutoScalingGroupName: web, InstanceIds: ids, ProtectedFromScaleIn: aws.Bool(true)})
	l.ok(err)
	l.version(l.newImage())
	_, err = l.start(to("2"))
	l.ok(err)
	l.clock.Advance(59 * time.Minute)
	if left := l.want(types.LifecycleStateInService, 1); left[0] != ids[0] {
		t.Fatal("a protected instance was replaced")
	}
	l.clock.Advance(2 * time.Minute)
	if s := l.refresh().Status; s != types.InstanceRefreshStatusFailed {
		t.Fatalf("refresh %s", s)
	}
	_, err = l.start(to("2"), func(in *sdk.StartInstanceRefreshInput) {
		in.Preferences.ScaleInProtectedInstances = types.ScaleInProtectedInstancesRefresh
	})
	l.ok(err)
	l.clock.Advance(5 * time.Minute)
	if v := l.versions(); v["2"] != 1 {
		t.Fatalf("in service %v", v)
	}
}
