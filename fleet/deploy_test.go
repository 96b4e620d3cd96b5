package fleet_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/promote"
	"github.com/lecafe/lecafe/fleet"
	labec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/launchtemplate"
)

// newImage is a second image to deploy.
func (l *labFleet) newImage() string {
	id, err := l.cloud.EC2.AddImage("us-east-1", labec2.ImageSeed{Name: "app-2"})
	if err != nil {
		l.Fatal(err)
	}
	return id
}

// deploy runs a promotion that is proved by reports; agents says what an
// instance's agent would report, "" for nothing.
func (l *labFleet) deploy(o promote.Options, change func(*fleet.Proof, *promote.Options), agents func(fleet.Standing) report.Verdict) (*promote.Result, *fleet.Proof, error) {
	l.Helper()
	told := map[string]bool{}
	proof := &fleet.Proof{Watcher: l.watcher()}
	proof.Tell = func(p fleet.Progress) {
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
	}
	o.Config, o.Group, o.LaunchTemplate, o.Poll = l.cloud.Config(), "app", "app", time.Millisecond
	o.Prove = func(ctx context.Context, now promote.Rollout) (bool, error) {
		defer l.clock.Advance(20 * time.Second)
		return proof.Prove(ctx, now)
	}
	// The way back needs time too.
	var back sync.WaitGroup
	done := make(chan struct{})
	defer back.Wait()
	defer close(done)
	o.Report = func(line string) {
		if strings.HasPrefix(line, "rolling the instance refresh back") {
			back.Go(func() {
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-done:
						return
					case <-tick.C:
						l.clock.Advance(20 * time.Second)
					}
				}
			})
		}
	}
	if change != nil {
		change(proof, &o)
	}
	res, err := promote.Run(l.Context(), o)
	return res, proof, err
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
	api := ec2.NewFromConfig(l.cloud.Config())
	v, err := launchtemplate.Describe(l.Context(), api, "app", "$Default")
	if err != nil { // a new client learns the cloud's time from its first answer
		v, err = launchtemplate.Describe(l.Context(), api, "app", "$Default")
	}
	if err != nil {
		l.Fatal(err)
	}
	return *v.VersionNumber
}

func always(v report.Verdict) func(fleet.Standing) report.Verdict {
	return func(fleet.Standing) report.Verdict { return v }
}

// parameter is an SSM parameter's value, "" where there is none.
func (l *labFleet) parameter(name string) string {
	l.Helper()
	api := ssm.NewFromConfig(l.cloud.Config())
	for try := 0; ; try++ {
		out, err := api.GetParameter(l.Context(), &ssm.GetParameterInput{Name: &name})
		var missing *ssmtypes.ParameterNotFound
		switch {
		case err == nil:
			return *out.Parameter.Value
		case errors.As(err, &missing):
			return ""
		case try == 2:
			l.Fatal(err)
		}
	}
}

func TestDeployOfAGoodImage(t *testing.T) {
	l := newLabFleet(t, 4)
	image := l.newImage()
	o := promote.Options{ImageID: image, SSMParameter: "/app/image"}
	early := false
	res, proof, err := l.deploy(o, func(p *fleet.Proof, _ *promote.Options) {
		tell := p.Tell
		p.Tell = func(pr fleet.Progress) {
			early = early || l.defaultVersion() == 2 || l.parameter("/app/image") != ""
			tell(pr)
		}
	}, always(report.Success))
	if err != nil || proof.Counts[fleet.Success] != 4 || res.Version != 2 || res.From != "1" {
		t.Fatalf("%v: %+v, %v", err, res, proof.Counts)
	}
	if early {
		t.Error("the version was the default, or the parameter written, before it was proved")
	}
	if v := aws.ToString(l.group().LaunchTemplate.Version); v != "2" || l.defaultVersion() != 2 || l.parameter("/app/image") != image {
		t.Errorf("group on version %s, default %d, parameter %q", v, l.defaultVersion(), l.parameter("/app/image"))
	}
	// Running it again finds everything done.
	if res, _, err = l.deploy(o, nil, always("")); err != nil || res.Version != 2 || res.RefreshID != "" {
		t.Errorf("again: %v, %+v", err, res)
	}
}

func TestDeployOfABadImageStopsAtTheBrake(t *testing.T) {
	l := newLabFleet(t, 8)
	var before []string
	for _, i := range l.group().Instances {
		before = append(before, *i.InstanceId)
	}
	res, proof, err := l.deploy(promote.Options{ImageID: l.newImage(), SSMParameter: "/app/image", MinHealthy: 80, Warmup: time.Minute}, nil, always(report.Failure))
	if !errors.Is(err, promote.ErrUnproved) || !errors.Is(err, promote.ErrRollback) || len(proof.Failed) != 3 || !strings.Contains(err.Error(), "the brake tripped, 3 failed the same way: script_exit") {
		t.Fatalf("%v: %+v, failed %d", err, res, len(proof.Failed))
	}
	g := l.group()
	if v := aws.ToString(g.LaunchTemplate.Version); v != "1" || l.defaultVersion() != 1 || l.parameter("/app/image") != "" {
		t.Errorf("group on version %s, default %d, parameter %q", v, l.defaultVersion(), l.parameter("/app/image"))
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
}

// Without a lifecycle hook the refresh may be through before the reports come.
func TestDeployGoesBackAfterTheRefreshHasEnded(t *testing.T) {
	l := newLabFleet(t, 2)
	res, _, err := l.deploy(promote.Options{ImageID: l.newImage()}, func(p *fleet.Proof, _ *promote.Options) { p.Watcher.Deadline = 30 * time.Minute }, always(""))
	if !errors.Is(err, promote.ErrUnproved) || !errors.Is(err, promote.ErrRollback) || res.BackID == "" {
		t.Fatalf("%v: %+v", err, res)
	}
	if v := aws.ToString(l.group().LaunchTemplate.Version); v != "1" || l.defaultVersion() != 1 {
		t.Errorf("group on version %s, default %d", v, l.defaultVersion())
	}
}

func TestDeployGoesBackWhenTimeIsOver(t *testing.T) {
	l := newLabFleet(t, 4)
	res, _, err := l.deploy(promote.Options{ImageID: l.newImage(), BakeTime: 40 * time.Hour, Timeout: 500 * time.Millisecond}, func(p *fleet.Proof, _ *promote.Options) {
		p.Watcher.Deadline = 300 * time.Hour
	}, always(""))
	if !errors.Is(err, promote.ErrRollback) || res.BackID != "" {
		t.Fatalf("%v: %+v", err, res)
	}
	if v := aws.ToString(l.group().LaunchTemplate.Version); v != "1" {
		t.Errorf("group on version %s", v)
	}
}

func TestDegradedIsSuccessOnRequest(t *testing.T) {
	for _, accept := range []bool{false, true} {
		l := newLabFleet(t, 2)
		_, _, err := l.deploy(promote.Options{ImageID: l.newImage(), Warmup: time.Minute}, func(p *fleet.Proof, _ *promote.Options) { p.Degraded = accept }, always(report.Degraded))
		if accept && err != nil || !accept && !errors.Is(err, promote.ErrUnproved) {
			t.Errorf("accept %v: %v", accept, err)
		}
	}
}
