package autoscaling_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
)

func (l *lab) start(change ...func(*sdk.StartInstanceRefreshInput)) (string, error) {
	l.Helper()
	in := &sdk.StartInstanceRefreshInput{AutoScalingGroupName: aws.String("web"), Preferences: &types.RefreshPreferences{InstanceWarmup: aws.Int32(0)}}
	for _, f := range change {
		f(in)
	}
	out, err := l.api.StartInstanceRefresh(l.Context(), in)
	if err != nil {
		return "", err
	}
	return *out.InstanceRefreshId, nil
}

func to(version string) func(*sdk.StartInstanceRefreshInput) {
	return func(in *sdk.StartInstanceRefreshInput) {
		in.DesiredConfiguration = &types.DesiredConfiguration{LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("web"), Version: &version}}
	}
}

func (l *lab) refresh() types.InstanceRefresh {
	l.Helper()
	out, err := l.api.DescribeInstanceRefreshes(l.Context(), &sdk.DescribeInstanceRefreshesInput{AutoScalingGroupName: aws.String("web")})
	l.ok(err)
	return out.InstanceRefreshes[0]
}

// versions counts the members that are in service by template version.
func (l *lab) versions() map[string]int {
	l.Helper()
	m := map[string]int{}
	for _, i := range l.group().Instances {
		if i.LifecycleState == types.LifecycleStateInService {
			m[*i.LaunchTemplate.Version]++
		}
	}
	return m
}

func (l *lab) newImage() string {
	l.Helper()
	id, err := l.fake.AddImage(region, ec2.ImageSeed{Name: "next"})
	l.ok(err)
	return id
}

func TestRefresh(t *testing.T) {
	l := newLab(t)
	l.settled(4)
	l.version(l.newImage())
	id, err := l.start(to("2"), func(in *sdk.StartInstanceRefreshInput) { in.Preferences.MinHealthyPercentage = aws.Int32(75) })
	l.ok(err)
	_, err = l.start(to("2"))
	l.code(err, "InstanceRefreshInProgress")
	if r := l.refresh(); *r.InstanceRefreshId != id || r.Status != types.InstanceRefreshStatusPending {
		t.Fatalf("got %s", r.Status)
	}
	lowest := 4
	for range 300 {
		l.clock.Advance(time.Second)
		v := l.versions()
		lowest = min(lowest, v["1"]+v["2"])
		r := l.refresh()
		if r.Status == types.InstanceRefreshStatusSuccessful {
			break
		}
		// Until it has succeeded the group keeps its own template.
		if got := *l.group().LaunchTemplate.Version; got != "1" {
			t.Fatalf("the group has version %s in mid-refresh", got)
		}
	}
	r := l.refresh()
	if r.Status != types.InstanceRefreshStatusSuccessful || *r.PercentageComplete != 100 || *r.InstancesToUpdate != 0 || r.EndTime == nil {
		t.Fatalf("refresh %s %d%%, %d left", r.Status, *r.PercentageComplete, *r.InstancesToUpdate)
	}
	if lowest != 3 {
		t.Fatalf("%d of 4 in service at worst, want 3", lowest)
	}
	if v := l.versions(); v["2"] != 4 {
		t.Fatalf("in service by version: %v", v)
	}
	if got := *l.group().LaunchTemplate.Version; got != "2" {
		t.Fatalf("the group has version %s after the refresh", got)
	}
}

func TestRefreshLaunchesFirst(t *testing.T) {
	l := newLab(t)
	l.settled(2)
	l.version(l.newImage())
	_, err := l.start(to("2"), func(in *sdk.StartInstanceRefreshInput) {
		in.Preferences.MinHealthyPercentage, in.Preferences.MaxHealthyPercentage = aws.Int32(100), aws.Int32(150)
	})
	l.ok(err)
	for range 200 {
		l.clock.Advance(time.Second)
		if v := l.versions(); v["1"]+v["2"] < 2 || len(l.group().Instances) > 4 {
			t.Fatalf("in service %v of %d", v, len(l.group().Instances))
		}
	}
	if r := l.refresh(); r.Status != types.InstanceRefreshStatusSuccessful {
		t.Fatalf("refresh %s", r.Status)
	}
	l.clock.Advance(time.Minute)
	if v := l.versions(); v["2"] != 2 || v["1"] != 0 {
		t.Fatalf("in service %v", v)
	}
}

func TestRefreshRefuses(t *testing.T) {
	l := newLab(t)
	l.settled(1)
	for name, change := range map[string]func(*sdk.StartInstanceRefreshInput){
		"min":       func(in *sdk.StartInstanceRefreshInput) { in.Preferences.MinHealthyPercentage = aws.Int32(101) },
		"max alone": func(in *sdk.StartInstanceRefreshInput) { in.Preferences.MaxHealthyPercentage = aws.Int32(110) },
		"spread": func(in *sdk.StartInstanceRefreshInput) {
			in.Preferences.MinHealthyPercentage, in.Preferences.MaxHealthyPercentage = aws.Int32(50), aws.Int32(200)
		},
		"version":       to("9"),
		"auto rollback": func(in *sdk.StartInstanceRefreshInput) { in.Preferences.AutoRollback = aws.Bool(true) },
	} {
		_, err := l.start(change)
		if err == nil {
			t.Fatalf("%s was taken", name)
		}
		l.code(err, "ValidationError")
	}
	_, err := l.api.CancelInstanceRefresh(t.Context(), &sdk.CancelInstanceRefreshInput{AutoScalingGroupName: aws.String("web")})
	l.code(err, "ActiveInstanceRefreshNotFound")
}

func (l *lab) rollback() error {
	_, err := l.api.RollbackInstanceRefresh(l.Context(), &sdk.RollbackInstanceRefreshInput{AutoScalingGroupName: aws.String("web")})
	return err
}

func TestRollback(t *testing.T) {
	l := newLab(t)
	l.settled(2)
	l.code(l.rollback(), "ActiveInstanceRefreshNotFound")
	l.hook("autoscaling:EC2_INSTANCE_LAUNCHING", "ABANDON") // what the new image never completes
	l.version(l.newImage())
	_, err := l.start(to("2"), func(in *sdk.StartInstanceRefreshInput) { in.Preferences.MinHealthyPercentage = aws.Int32(50) })
	l.ok(err)
	l.clock.Advance(time.Minute)
	bad := l.want(types.LifecycleStatePendingWait, 1)
	l.ok(l.rollback())
	if r := l.refresh(); r.Status != types.InstanceRefreshStatusRollbackInProgress {
		t.Fatalf("refresh %s", r.Status)
	}
	l.code(l.rollback(), "IrreversibleInstanceRefresh")
	l.clock.Advance(30 * time.Second)
	good := l.want(types.LifecycleStatePendingWait, 1)
	if good[0] == bad[0] {
		t.Fatal("the bad instance is still there")
	}
	_, err = l.api.CompleteLifecycleAction(t.Context(), &sdk.CompleteLifecycleActionInput{
		AutoScalingGroupName: aws.String("web"), LifecycleHookName: aws.String("boot"), InstanceId: &good[0], LifecycleActionResult: aws.String("CONTINUE"),
	})
	l.ok(err)
	l.clock.Advance(time.Second)
	if r := l.refresh(); r.Status != types.InstanceRefreshStatusRollbackSuccessful || r.RollbackDetails == nil {
		t.Fatalf("refresh %s", r.Status)
	}
	if v := l.versions(); v["1"] != 2 {
		t.Fatalf("in service %v", v)
	}
	if got := *l.group().LaunchTemplate.Version; got != "1" {
		t.Fatalf("the group has version %s after the rollback", got)
	}
	l.code(l.rollback(), "ActiveInstanceRefreshNotFound")
}

func TestRollbackOfWhatIsNotPinned(t *testing.T) {
	for _, version := range []string{"$Default", "$Latest"} {
		l := newLab(t)
		l.settled(1, func(in *sdk.CreateAutoScalingGroupInput) { in.LaunchTemplate.Version = &version })
		l.version(l.newImage())
		_, err := l.start(to("2"))
		l.ok(err)
		l.code(l.rollback(), "IrreversibleInstanceRefresh", version)
	}
	l := newLab(t)
	l.settled(1)
	_, err := l.start()
	l.ok(err)
	l.code(l.rollback(), "IrreversibleInstanceRefresh", "no desired configuration")
}

func TestRefreshThatGetsNowhere(t *testing.T) {
	l := newLab(t)
	l.settled(1)
	l.hook("autoscaling:EC2_INSTANCE_LAUNCHING", "ABANDON")
	l.version(l.newImage())
	_, err := l.start(to("2"))
	l.ok(err)
	l.clock.Advance(3 * time.Hour)
	r := l.refresh()
	if r.Status != types.InstanceRefreshStatusFailed || !strings.Contains(*r.StatusReason, "progress") {
		t.Fatalf("refresh %s: %s", r.Status, aws.ToString(r.StatusReason))
	}
	if got := *l.group().LaunchTemplate.Version; got != "1" {
		t.Fatalf("the group has version %s", got)
	}
}
