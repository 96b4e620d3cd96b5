package cloud_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// code fails the test unless err is an API error with one of the codes.
func code(t *testing.T, err error, want ...string) {
	t.Helper()
	e, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		t.Fatalf("error %v, want the API error %v", err, want)
	}
	for _, w := range want {
		if e.ErrorCode() == w {
			return
		}
	}
	t.Fatalf("error code %s (%v), want %v", e.ErrorCode(), err, want)
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func noRetry(cfg aws.Config) aws.Config {
	cfg.RetryMaxAttempts = 1
	return cfg
}

func TestEveryServiceAnswersBehindOneURL(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	cfg, ctx := c.Config(), t.Context()

	id := must(sts.NewFromConfig(cfg).GetCallerIdentity(ctx, nil))(t)
	if *id.UserId != "AIDALECAFELABOPERATOR" || *id.Account != wire.Account {
		t.Errorf("identity %v", id)
	}

	store := awsconf.S3(cfg)
	must(store.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("lecafe-assets")}))(t)
	must(store.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String("lecafe-assets"), Key: aws.String("app/config.txt"), Body: strings.NewReader("beans=2")}))(t)
	got := must(store.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("lecafe-assets"), Key: aws.String("app/config.txt")}))(t)
	if b, _ := io.ReadAll(got.Body); string(b) != "beans=2" {
		t.Errorf("object %q", b)
	}

	queue := sqs.NewFromConfig(cfg)
	q := must(queue.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("lecafe-orders")}))(t)
	must(queue.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: q.QueueUrl, MessageBody: aws.String("espresso")}))(t)
	in := must(queue.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: q.QueueUrl, MessageSystemAttributeNames: []sqstypes.MessageSystemAttributeName{"All"}}))(t)
	if len(in.Messages) != 1 || *in.Messages[0].Body != "espresso" || in.Messages[0].Attributes["SenderId"] != *id.UserId {
		t.Errorf("messages %+v", in.Messages)
	}

	params := ssm.NewFromConfig(cfg)
	must(params.PutParameter(ctx, &ssm.PutParameterInput{Name: aws.String("/lecafe/ami"), Value: aws.String("ami-12345678"), Type: "String"}))(t)
	p := must(params.GetParameter(ctx, &ssm.GetParameterInput{Name: aws.String("/lecafe/ami")}))(t)
	if *p.Parameter.Value != "ami-12345678" {
		t.Errorf("parameter %v", *p.Parameter.Value)
	}

	var seen []string
	for _, call := range c.Calls() {
		if call.Status != http.StatusOK || call.Code != "" || call.Caller.AccessKeyID != "test" {
			t.Errorf("call %+v", call)
		}
		seen = append(seen, call.Service+":"+call.Action)
	}
	want := "sts:GetCallerIdentity s3:CreateBucket s3:PutObject s3:GetObject sqs:CreateQueue sqs:SendMessage sqs:ReceiveMessage ssm:PutParameter ssm:GetParameter"
	if strings.Join(seen, " ") != want {
		t.Errorf("calls\n%s\nwant\n%s", strings.Join(seen, " "), want)
	}
}
