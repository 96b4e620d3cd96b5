package fleet_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ssm"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
	labec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/launchtemplate"
	"github.com/lecafe/lecafe/rollout"
)

// newImage is a second image to deploy.
func (l *labFleet) newImage() string {
	id, err := l.cloud.EC2.AddImage("us-east-1", labec2.ImageSeed{Name: "app-2"})
	if err != nil {
		l.Fatal(err)
	}
	return id
}

func (l *labFleet) clients() rollout.Clients {
	return rollout.Clients{EC2: ec2.NewFromConfig(l.cloud.Config()), AutoScaling: l.asg, SSM: ssm.NewFromConfig(l.cloud.Config())}
}

// deploy runs a deploy of spec; agents reports what an instance's agent would.
func (l *labFleet) deploy(spec rollout.Spec, change func(*fleet.Deploy), agents func(fleet.Standing) report.Verdict) (*fleet.Outcome, error) {
	l.Helper()
	c := l.clients()
	r, err := rollout.Prepare(l.Context(), c, spec)
	if err != nil {
		return nil, err
	}
	w := l.watcher()
	told := map[string]bool{}
	d := &fleet.Deploy{Watcher: w, Rollout: r, Clients: c, Interval: time.Millisecond}
	d.Tell = func(p fleet.Progress) {
		for _, ch := range p.Changes {
			v := agents(ch.Standing)
			if told[ch.ID] || v == "" || ch.Verdict != fleet.Pending {
				continue
			}
			told[ch.ID] = true
			rep := report.Report{Verdict: v, Instance: report.Instance{ID: ch.ID}}
			if v != report.Success {
				rep.Causes = []report.Cause{exit3}
			}
			if err := l.report("app", ch.ID, rep); err != nil {
				l.Error(err)
			}
		}
		l.clock.Advance(20 * time.Second)
	}
	if change != nil {
		change(d)
	}
	return d.Run(l.Context())
}

func (l *labFleet) group() types.AutoScalingGroup {
	l.Helper()
	out, err := l.asg.DescribeAutoScalingGroups(l.Context(), &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"app"}})
	if err != nil {
		l.Fatal(err)
	}
	return out.AutoScalingGroups[0]
}

func (l *labFleet) defaultVersion() int64 {
	l.Helper()
	v, err := launchtemplate.Describe(l.Context(), ec2.NewFromConfig(l.cloud.Config()), "app", "$Default")
	if err != nil {
		l.Fatal(err)
	}
	return *v.VersionNumber
}

func always(v report.Verdict) func(fleet.Standing) report.Verdict {
	return func(fleet.Standing) report.Verdict { return v }
}

func TestDeployOfAGoodImage(t *testing.T) {
	l := newLabFleet(t, 4)
	image := l.newImage()
	spec := rollout.Spec{Group: "app", ImageID: image, Parameter: "/app/image"}
	defaults := []int64{}
	out, err := l.deploy(spec, func(d *fleet.Deploy) {
		tell := d.Tell
		d.Tell = func(p fleet.Progress) { defaults = append(defaults, l.defaultVersion()); tell(p) }
	}, always(report.Success))
	if err != nil || !out.OK || out.RolledBack || out.Counts[fleet.Success] != 4 {
		t.Fatalf("%v: %+v", err, out)
	}
	if slices.Contains(defaults, 2) {
		t.Error("the version was the default before it was proved")
	}
	g := l.group()
	if v := aws.ToString(g.LaunchTemplate.Version); v != "2" || l.defaultVersion() != 2 {
		t.Errorf("group on version %s, default %d", v, l.defaultVersion())
	}
	p, err := l.clients().SSM.(*ssm.Client).GetParameter(t.Context(), &ssm.GetParameterInput{Name: aws.String("/app/image")})
	if err != nil || *p.Parameter.Value != image {
		t.Errorf("parameter: %v", err)
	}
	// Running it again finds everything done.
	if out, err = l.deploy(spec, nil, always("")); err != nil || !out.OK || out.Rollout.To != "2" {
		t.Errorf("again: %v, %+v", err, out)
	}
}

func TestDeployOfABadImageStopsAtTheBrake(t *testing.T) {
	l := newLabFleet(t, 8)
	var before []string
	for _, i := range l.group().Instances {
		before = append(before, *i.InstanceId)
	}
	out, err := l.deploy(rollout.Spec{Group: "app", ImageID: l.newImage(), Parameter: "/app/image", MinHealthy: aws.Int32(80), Warmup: aws.Int32(60)}, nil, always(report.Failure))
	if err != nil || out.OK || !out.RolledBack || len(out.Failed) < 3 {
		t.Fatalf("%v: %+v", err, out)
	}
	g := l.group()
	if v := aws.ToString(g.LaunchTemplate.Version); v != "1" || l.defaultVersion() != 1 {
		t.Errorf("group on version %s, default %d", v, l.defaultVersion())
	}
	kept := 0
	for _, i := range g.Instances {
		if slices.Contains(before, *i.InstanceId) {
			kept++
		}
		if v := aws.ToString(i.LaunchTemplate.Version); v != "1" {
			t.Errorf("%s is on version %s", *i.InstanceId, v)
		}
	}
	if kept < 4 {
		t.Errorf("%d of 8 good instances are left", kept)
	}
	if _, err := l.clients().SSM.(*ssm.Client).GetParameter(t.Context(), &ssm.GetParameterInput{Name: aws.String("/app/image")}); err == nil {
		t.Error("the parameter was written")
	}
}

// Without a lifecycle hook the refresh may be through before the reports come.
func TestDeployGoesBackAfterTheRefreshHasEnded(t *testing.T) {
	l := newLabFleet(t, 2)
	out, err := l.deploy(rollout.Spec{Group: "app", ImageID: l.newImage()}, func(d *fleet.Deploy) { d.After = 9; d.Watcher.Deadline = time.Hour }, func(s fleet.Standing) report.Verdict {
		if aws.ToString(l.group().LaunchTemplate.Version) != "2" {
			return "" // still refreshing
		}
		return report.Failure
	})
	// Reports come with changes alone; the instances fall due after an hour.
	if err != nil || out.OK || !out.RolledBack || out.Rollout.Back == "" {
		t.Fatalf("%v: %+v", err, out)
	}
	if v := aws.ToString(l.group().LaunchTemplate.Version); v != "1" {
		t.Errorf("group on version %s", v)
	}
}

func TestDeployGoesBackWhenTimeIsOver(t *testing.T) {
	l := newLabFleet(t, 4)
	out, err := l.deploy(rollout.Spec{Group: "app", ImageID: l.newImage(), BakeTime: 3600}, func(d *fleet.Deploy) {
		d.Timeout = 10 * time.Minute
		d.Watcher.Deadline = 3 * time.Hour
	}, always(""))
	if err != nil || out.OK || !out.RolledBack || out.Refresh.Status != "RollbackSuccessful" {
		t.Fatalf("%v: %+v", err, out)
	}
}

func TestRolloutRefusesWhatCannotGoBack(t *testing.T) {
	l := newLabFleet(t, 2)
	image := l.newImage()
	if _, err := l.asg.UpdateAutoScalingGroup(t.Context(), &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: aws.String("app"),
		LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("app"), Version: aws.String("$Latest")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := rollout.Prepare(t.Context(), l.clients(), rollout.Spec{Group: "app", ImageID: image}); !errors.Is(err, rollout.ErrRefused) {
		t.Errorf("$Latest: %v", err)
	}
	if v, err := launchtemplate.Describe(t.Context(), l.clients().EC2, "app", "$Latest"); err != nil || *v.VersionNumber != 1 {
		t.Errorf("a refused rollout published version %v, %v", v, err)
	}
	r, err := rollout.Prepare(t.Context(), l.clients(), rollout.Spec{Group: "app", ImageID: image, Pin: true})
	if err != nil || r.From != "1" || r.To != "2" || aws.ToString(l.group().LaunchTemplate.Version) != "1" {
		t.Errorf("pinned: %+v, %v, group on %s", r, err, aws.ToString(l.group().LaunchTemplate.Version))
	}
	for _, s := range []rollout.Spec{{Group: "none", ImageID: image}, {Group: "app", ImageID: "resolve:ssm:/x"}, {Group: "app", ImageID: image, Template: "other"}, {ImageID: image}} {
		if _, err := rollout.Prepare(t.Context(), l.clients(), s); !errors.Is(err, rollout.ErrRefused) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	// A refresh to elsewhere is not taken for one's own.
	if _, err := l.asg.StartInstanceRefresh(t.Context(), &autoscaling.StartInstanceRefreshInput{AutoScalingGroupName: aws.String("app")}); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), l.clients()); !errors.Is(err, rollout.ErrBusy) {
		t.Errorf("busy: %v", err)
	}
}
