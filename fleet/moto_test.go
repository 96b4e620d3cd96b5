package fleet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/launchtemplate"
)

// What LocalStack's users have: publish, watch and wake-ups work on moto.
func TestOnMoto(t *testing.T) {
	cfg := cloudtest.Moto(t)
	ctx := t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	store, api, asg, id, queues := awsconf.S3(cfg), ec2.NewFromConfig(cfg), autoscaling.NewFromConfig(cfg), iam.NewFromConfig(cfg), sqs.NewFromConfig(cfg)
	must(store.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("reports-b")}))
	created, err := id.CreateRole(ctx, &iam.CreateRoleInput{RoleName: aws.String("app"), AssumeRolePolicyDocument: aws.String("{}")})
	must(created, err)
	must(id.CreateInstanceProfile(ctx, &iam.CreateInstanceProfileInput{InstanceProfileName: aws.String("app")}))
	must(id.AddRoleToInstanceProfile(ctx, &iam.AddRoleToInstanceProfileInput{InstanceProfileName: aws.String("app"), RoleName: aws.String("app")}))
	images, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"amazon"}})
	must(images, err)

	spec := launchtemplate.Spec{Name: "app", ImageID: *images.Images[0].ImageId, InstanceType: "t3.micro", InstanceProfile: "app", UserData: []byte("#!/bin/sh\n"), Tags: map[string]string{"app": "cafe"}}
	v, err := launchtemplate.Publish(ctx, api, spec)
	must(v, err)
	if v, err = launchtemplate.Publish(ctx, api, spec); err != nil || v.Created || v.Number != 1 {
		t.Errorf("published again: %+v, %v", v, err)
	}
	if v, err = launchtemplate.Publish(ctx, api, launchtemplate.Spec{Name: "app", Source: "$Default", ImageID: *images.Images[1].ImageId}); err != nil || v.Number != 2 {
		t.Fatalf("from a source: %+v, %v", v, err)
	}
	merged, err := launchtemplate.Describe(ctx, api, "app", "2")
	must(merged, err)
	if merged.LaunchTemplateData.InstanceType != "t3.micro" || aws.ToString(merged.LaunchTemplateData.UserData) == "" {
		t.Errorf("moto does not merge a source version, and lecafe did not either: %+v", merged.LaunchTemplateData)
	}

	must(asg.CreateAutoScalingGroup(ctx, &autoscaling.CreateAutoScalingGroupInput{AutoScalingGroupName: aws.String("app"), MinSize: aws.Int32(2), MaxSize: aws.Int32(2),
		AvailabilityZones: []string{"us-east-1a"}, LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("app"), Version: aws.String("1")}}))
	w := newWatcher(t, *cfg.BaseEndpoint, fleet.Selection{Groups: []string{"app"}})
	w.Now = nil
	w.Reports, err = fleet.NewReports(store, "s3://reports-b/p")
	must(w.Reports, err)
	s := pass(t, w)
	if len(s.Instances) != 2 || s.Counts[fleet.Pending] != 2 {
		t.Fatalf("at first: %+v", s)
	}
	put := func(instance string) {
		rep := &report.Report{ID: report.NewID(), Kind: report.KindBootstrap, Verdict: report.Success, Sender: aws.ToString(created.Role.RoleId) + ":" + instance, Instance: report.Instance{ID: instance}, JudgedAt: time.Now()}
		b, err := report.Encode(rep)
		must(b, err)
		must(store.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String("reports-b"), Key: aws.String(report.KeyOf("p", rep).String()), Body: strings.NewReader(string(b)), IfNoneMatch: aws.String("*")}))
	}
	for _, i := range s.Instances {
		put(i.ID)
	}
	if s = pass(t, w); !s.OK {
		t.Errorf("all reported: %v, refused %+v, notes %q", s.Counts, s.Refused, s.Notes)
	}
	w.Deadline = time.Nanosecond
	w.Reports, err = fleet.NewReports(store, "s3://reports-b/elsewhere")
	must(w.Reports, err)
	if s = pass(t, w); s.Counts[fleet.Silent] != 2 {
		t.Errorf("by a deadline that has passed: %v", s.Counts)
	}

	// moto gives every message one SenderId.
	must(queues.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("reports")}))
	strict := listen(t, &fleet.Waker{API: queues, Queue: "reports"})
	lax := listen(t, &fleet.Waker{API: queues, Queue: "reports", NoVerify: true})
	q, err := queues.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String("reports")})
	must(q, err)
	must(queues.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: q.QueueUrl, MessageBody: aws.String(messageOf("AROAAPPAPP:i-0000000000000000a", "i-0000000000000000a", report.NewID()))}))
	lax.until(t, "the sender", func() bool { return len(lax.senders) == 1 })
	strict.until(t, "the refusal", func() bool { return len(strict.refused) == 1 && strict.refused[0].Reason == fleet.Forged })
}
