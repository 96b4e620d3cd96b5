package fleet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/launchtemplate"
	"github.com/lecafe/lecafe/userdata"
)

// TestLabTemplateThatChangesBetweenTwoLooks: a new version sends reports to
// another place. What launches from it is silent here and may be well: the
// cause says so, and nothing is done about it.
func TestLabTemplateThatChangesBetweenTwoLooks(t *testing.T) {
	l := newLabFleet(t, 1)
	w := l.watcher()
	first := pass(t, w).Instances[0].ID
	if err := l.report("app", first, report.Report{Verdict: report.Success, Instance: report.Instance{ID: first}}); err != nil {
		t.Fatal(err)
	}
	if s := pass(t, w); !s.OK {
		t.Fatalf("before the change: %+v", s.Instances)
	}

	payload, err := userdata.Render(userdata.RenderInput{Settings: &settings.Settings{Report: settings.Report{S3: settings.S3Sink{Bucket: "other", Prefix: "q"}}}})
	if err != nil {
		t.Fatal(err)
	}
	api := ec2.NewFromConfig(l.cloud.Config())
	if _, err := launchtemplate.Publish(t.Context(), api, launchtemplate.Spec{Name: "app", Source: "$Default", UserData: payload}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.asg.UpdateAutoScalingGroup(t.Context(), &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: aws.String("app"), DesiredCapacity: aws.Int32(3),
		LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("app"), Version: aws.String("2")}}); err != nil {
		t.Fatal(err)
	}
	l.clock.Advance(5 * time.Minute)
	w.Deadline = time.Minute
	w.Silent = 1 // one is looked into, and both are told of
	r := &fleet.Remedy{OnFailure: fleet.Terminate, Bucket: "b", Prefix: "p", S3: w.Reports.Store(), Regions: w.Regions, Now: l.clock.Now}
	actions := act(t, w, r)
	if did(actions, "nothing") != 2 || len(actions) != 2 || !strings.Contains(actions[0].Reason, "its reports go to another place") {
		t.Errorf("done about them: %+v", actions)
	}
	s := pass(t, w)
	if s.Counts[fleet.Success] != 1 || s.Counts[fleet.Silent] != 2 || find(t, s, first).Verdict != fleet.Success {
		t.Fatalf("after the change: %+v", s.Counts)
	}
	for _, i := range s.Instances {
		if i.ID == first {
			continue
		}
		c := i.Cause
		if c == nil || c.Code != fleet.CodeElsewhere || !strings.Contains(c.Message, "version 2") || !strings.Contains(c.Message, "s3://other/q") || !strings.Contains(c.Fix, "--reports s3://other/q") {
			t.Errorf("%s: %+v", i.ID, c)
		}
		clues, err := w.Explain(t.Context(), &i)
		if err != nil || len(clues) == 0 || clues[0].Code != fleet.CodeElsewhere {
			t.Errorf("explained: %+v, %v", clues, err)
		}
	}
	asked := 0
	for _, c := range l.cloud.Calls() {
		if c.Action == "DescribeLaunchTemplateVersions" && c.Service == "ec2" && !c.Time.Before(l.clock.Now()) {
			asked++
		}
		if c.Action == "TerminateInstances" {
			t.Error("an instance was terminated")
		}
	}
	if asked != 1 {
		t.Errorf("the version was asked for %d times, want once", asked)
	}

	// Where it is watched, it is what it says.
	w = l.watcher()
	w.Deadline = time.Minute
	if w.Reports, err = fleet.NewReports(w.Reports.Store(), "s3://b/p2"); err != nil {
		t.Fatal(err)
	}
	for _, i := range pass(t, w).Instances {
		if elsewhere := i.Cause != nil && i.Cause.Code == fleet.CodeElsewhere; elsewhere != (i.ID != first) {
			t.Errorf("%s of version %s: %+v", i.ID, i.TemplateVersion, i.Cause)
		}
	}
	// And a template that is gone tells nothing and stops nothing.
	if _, err := api.DeleteLaunchTemplate(t.Context(), &ec2.DeleteLaunchTemplateInput{LaunchTemplateName: aws.String("app")}); err != nil {
		t.Fatal(err)
	}
	w = l.watcher()
	w.Deadline = time.Minute
	s = pass(t, w)
	if s.Counts[fleet.Silent] != 2 || !strings.Contains(strings.Join(s.Notes, "\n"), "describe version 2 of launch template") {
		t.Errorf("without the template: %v, notes %q", s.Counts, s.Notes)
	}
}

// Whoever may assume some role can call its session as the victim is called.
// What it sends wakes, because the message is its own; nothing that it says or
// writes is believed.
func TestLabForeignRolesSession(t *testing.T) {
	l := newLabFleet(t, 1)
	w := l.watcher()
	before := pass(t, w)
	victim := before.Instances[0].ID
	if err := l.cloud.PutRolePolicy("other", "all", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:PutObject","sqs:*"],"Resource":"*"}]}`); err != nil {
		t.Fatal(err)
	}
	l.cloud.SQS.CreateQueue("reports", nil)
	foreign := l.cloud.Vault.Vend("other", victim, time.Hour)
	queue := sqs.NewFromConfig(l.cloud.As(foreign))
	url, err := sqs.NewFromConfig(l.cloud.Config()).GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("reports")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := queue.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: url.QueueUrl, MessageBody: aws.String(messageOf(foreign.Caller.UserID, victim, report.NewID()))}); err != nil {
		t.Fatal(err)
	}
	ear := listen(t, &fleet.Waker{API: sqs.NewFromConfig(l.cloud.Config()), Queue: "reports"})
	ear.until(t, "its wake-up", func() bool { return len(ear.senders) == 1 && ear.senders[0] == foreign.Caller.UserID })
	after, err := w.Delta(t.Context(), ear.senders)
	if err != nil || len(fleet.Changes(before, after)) != 0 || after.Instances[0].Verdict != fleet.Pending {
		t.Errorf("after the message alone: %+v, %v", after.Instances[0], err)
	}
	// With a report in its own directory, which it may write.
	if err := l.report("other", victim, report.Report{Verdict: report.Success, Instance: report.Instance{ID: victim}}); err != nil {
		t.Fatal(err)
	}
	after, err = w.Delta(t.Context(), ear.senders)
	if err != nil || after.Instances[0].Verdict != fleet.Pending || len(after.Refused) != 1 || after.Refused[0].Reason != fleet.Forged {
		t.Errorf("after the report: %+v, refused %+v, %v", after.Instances[0], after.Refused, err)
	}
}
