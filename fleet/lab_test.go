package fleet_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	labec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/launchtemplate"
	"github.com/lecafe/lecafe/userdata"
)

// labFleet is the project's own cloud with one group.
type labFleet struct {
	*testing.T
	cloud *cloudtest.Cloud
	clock *wire.Manual
	asg   *autoscaling.Client
	image string
}

func newLabFleet(t *testing.T, size int32) *labFleet {
	// Signatures are good for fifteen minutes to either side of the clock, and
	// the SDK signs with the real one.
	clock := wire.NewManual(time.Now().Add(-13 * time.Minute))
	c := cloudtest.New(t, cloud.Options{Clock: clock})
	image, err := c.EC2.AddImage("us-east-1", labec2.ImageSeed{Name: "app"})
	if err != nil {
		t.Fatal(err)
	}
	c.S3.CreateBucket("b", "us-east-1")
	c.EC2.PutInstanceProfile("app-profile", "app")
	if err := c.PutRolePolicy("app", "reports", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::b/p/${aws:userid}/*"}]}`); err != nil {
		t.Fatal(err)
	}
	l := &labFleet{T: t, cloud: c, clock: clock, asg: autoscaling.NewFromConfig(c.Config()), image: image}
	api := ec2.NewFromConfig(c.Config())
	v, err := launchtemplate.Publish(t.Context(), api, launchtemplate.Spec{Name: "app", ImageID: image, InstanceType: "t3.micro", InstanceProfile: "app-profile"})
	if err != nil {
		t.Fatal(err)
	}
	subnets, err := api.DescribeSubnets(t.Context(), &ec2.DescribeSubnetsInput{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.asg.CreateAutoScalingGroup(t.Context(), &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: aws.String("app"), MinSize: aws.Int32(0), MaxSize: aws.Int32(20), DesiredCapacity: &size, VPCZoneIdentifier: subnets.Subnets[0].SubnetId,
		LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateId: &v.TemplateID, Version: aws.String("1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	clock.Advance(5 * time.Minute)
	return l
}

func (l *labFleet) watcher() *fleet.Watcher {
	meter := &fleet.Meter{}
	cfg := meter.Config(l.cloud.Config())
	reports, err := fleet.NewReports(awsconf.S3(cfg), "s3://b/p")
	if err != nil {
		l.Fatal(err)
	}
	return &fleet.Watcher{
		Regions:   []*fleet.Region{{Name: "us-east-1", EC2: ec2.NewFromConfig(cfg), AutoScaling: autoscaling.NewFromConfig(cfg)}},
		Selection: fleet.Selection{Groups: []string{"app"}}, Reports: reports, Meter: meter,
		Options: fleet.Options{Now: l.clock.Now, RoleID: l.cloud.Vault.RoleID("app")},
	}
}

// report puts a report with the credentials that role vends to the session.
func (l *labFleet) report(role, session string, r report.Report) error {
	creds := l.cloud.Vault.Vend(role, session, time.Hour)
	if r.Sender == "" {
		r.Sender = creds.Caller.UserID
	}
	r.ID, r.Kind, r.JudgedAt = report.NewID(), report.KindBootstrap, l.clock.Now()
	b, err := report.Encode(&r)
	if err != nil {
		l.Fatal(err)
	}
	_, err = awsconf.S3(l.cloud.As(creds)).PutObject(l.Context(), &s3.PutObjectInput{
		Bucket: aws.String("b"), Key: aws.String(report.KeyOf("p", &r).String()), Body: bytes.NewReader(b), IfNoneMatch: aws.String("*"),
	})
	return err
}

func TestLabOneOfEach(t *testing.T) {
	l := newLabFleet(t, 5)
	w := l.watcher()
	s := pass(t, w)
	if len(s.Instances) != 5 || s.Counts[fleet.Pending] != 5 || s.Instances[0].LifecycleState != "InService" || s.Instances[0].TemplateVersion != "1" {
		t.Fatalf("at first: %+v", s)
	}
	id := func(n int) string { return s.Instances[n].ID }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.report("app", id(0), report.Report{Verdict: report.Success, Instance: report.Instance{ID: id(0)}}))
	must(l.report("app", id(1), report.Report{Verdict: report.Failure, Instance: report.Instance{ID: id(1)}, Causes: []report.Cause{{Code: report.CodeScriptExit, Stage: report.StageCloudFinal, Line: 4, ExitCode: ptr(3)}}}))
	must(l.report("app", id(2), report.Report{Verdict: report.Degraded, Instance: report.Instance{ID: id(2)}, Causes: []report.Cause{{Code: report.CodeCommandFailed}}}))

	// IAM confines an instance to its own keys; a session of another role that
	// bears the instance's name has other keys, and is not believed.
	if err := l.report("app", id(0), report.Report{Verdict: report.Success, Sender: l.cloud.Vault.RoleID("app") + ":" + id(3), Instance: report.Instance{ID: id(3)}}); err == nil {
		t.Error("an instance could write another's report")
	}
	must(l.cloud.PutRolePolicy("evil", "all", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}`))
	must(l.report("evil", id(3), report.Report{Verdict: report.Success, Instance: report.Instance{ID: id(3)}}))

	for range 4 { // the SDK follows the cloud's clock in small steps
		l.clock.Advance(5 * time.Minute)
		s = pass(t, w)
	}
	for n, want := range []fleet.Verdict{fleet.Success, fleet.Failure, fleet.Degraded, fleet.Silent, fleet.Silent} {
		if got := find(t, s, id(n)); got.Verdict != want {
			t.Errorf("%s: %s, want %s", got.ID, got.Verdict, want)
		}
	}
	if len(s.Refused) != 1 || s.Refused[0].Reason != fleet.Forged || s.Refused[0].InstanceID != id(3) {
		t.Errorf("refused: %+v", s.Refused)
	}
	_, err := w.Explain(t.Context(), ptr(find(t, s, id(4))))
	if err != nil {
		t.Error(err)
	}
}

func TestLabReplacesTheUnhealthy(t *testing.T) {
	l := newLabFleet(t, 2)
	w := l.watcher()
	s := pass(t, w)
	bad := s.Instances[0].ID
	if err := l.report("app", bad, report.Report{Verdict: report.Failure, Instance: report.Instance{ID: bad}, Causes: []report.Cause{exit3}}); err != nil {
		t.Fatal(err)
	}
	r := &fleet.Remedy{OnFailure: fleet.Unhealthy, Bucket: "b", Prefix: "p", S3: w.Reports.Store(), Regions: w.Regions, Now: l.clock.Now}
	if actions := act(t, w, r); did(actions, "unhealthy") != 1 || actions[0].Error != "" || actions[0].InstanceID != bad {
		t.Fatalf("actions %+v", actions)
	}
	l.clock.Advance(5 * time.Minute)
	s = pass(t, w)
	if got := find(t, s, bad); got.State != "terminated" || got.Verdict != fleet.Failure {
		t.Errorf("the failed one: %+v", got)
	}
	if len(s.Instances) != 3 || s.Counts[fleet.Pending] != 2 {
		t.Errorf("after the replacement: %v", s.Counts)
	}
	if actions := act(t, w, r); len(actions) != 0 {
		t.Errorf("again: %+v", actions)
	}
}

func TestLabTerminatedBeforeItsReport(t *testing.T) {
	l := newLabFleet(t, 1)
	w := l.watcher()
	id := pass(t, w).Instances[0].ID
	if _, err := w.Regions[0].EC2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}}); err != nil {
		t.Fatal(err)
	}
	l.clock.Advance(time.Minute)
	got := find(t, pass(t, w), id)
	if got.Verdict != fleet.Terminated || got.Cause == nil || !strings.Contains(strings.ToLower(got.Cause.Message), "user") {
		t.Errorf("%s: %+v", got.Verdict, got.Cause)
	}
}

func TestLabLocatesReportsInUserData(t *testing.T) {
	l := newLabFleet(t, 1)
	w := l.watcher()
	if _, ok, err := w.Regions[0].Locate(t.Context(), w.Selection); ok || err != nil {
		t.Errorf("without user data: %v, %v", ok, err)
	}
	payload, err := userdata.Render(userdata.RenderInput{Settings: &settings.Settings{Report: settings.Report{
		S3: settings.S3Sink{Bucket: "lecafe-reports", Region: "eu-west-1"}, SQS: settings.SQSSink{Queue: "boots"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := launchtemplate.Publish(t.Context(), ec2.NewFromConfig(l.cloud.Config()), launchtemplate.Spec{Name: "app", Source: "$Default", UserData: payload}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.asg.UpdateAutoScalingGroup(t.Context(), &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: aws.String("app"),
		LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("app"), Version: aws.String("2")}}); err != nil {
		t.Fatal(err)
	}
	where, ok, err := w.Regions[0].Locate(t.Context(), w.Selection)
	if want := (fleet.Where{Reports: "s3://lecafe-reports/lecafe-reports", Region: "eu-west-1", Queue: "boots"}); err != nil || !ok || where != want {
		t.Errorf("%+v, %v, %v; want %+v", where, ok, err, want)
	}
}
