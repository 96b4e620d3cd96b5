package cloud_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

func TestFaultsSpeakEachProtocol(t *testing.T) {
	for kind, want := range map[cloud.Kind]map[string]string{
		cloud.Throttle:     {"s3": "SlowDown", "sqs": "RequestThrottled", "ssm": "ThrottlingException", "sts": "Throttling", "ec2": "RequestLimitExceeded", "autoscaling": "Throttling"},
		cloud.Error5xx:     {"s3": "InternalError", "sqs": "InternalFailure", "ssm": "InternalServerError", "sts": "InternalFailure", "ec2": "InternalError", "autoscaling": "InternalFailure"},
		cloud.AccessDenied: {"s3": "AccessDenied", "sqs": "AccessDenied", "ssm": "AccessDeniedException", "sts": "AccessDenied", "ec2": "UnauthorizedOperation", "autoscaling": "AccessDenied"},
	} {
		c := cloudtest.New(t, cloud.Options{})
		f := c.Inject(cloud.Fault{Kind: kind})
		for service, call := range calls {
			t.Run(service, func(t *testing.T) { code(t, call(t.Context(), noRetry(c.Config())), want[service]) })
		}
		if f.Hits() != len(calls) {
			t.Errorf("%d hits", f.Hits())
		}
		f.Remove()
		for service, call := range calls {
			if err := call(t.Context(), noRetry(c.Config())); err != nil {
				t.Errorf("%s after the fault: %v", service, err)
			}
		}
		for i, call := range c.Calls() {
			if call.Injected != (i < len(calls)) || call.Injected != (call.Code != "") {
				t.Errorf("call %d: %+v", i, call)
			}
		}
	}
}

func TestFaultsMatch(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	c.S3.CreateBucket("reports", "")
	store := awsconf.S3(noRetry(c.Config()))
	put := func(key string) error {
		_, err := store.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("reports"), Key: &key, Body: strings.NewReader("x")})
		return err
	}
	f := c.Inject(cloud.Fault{Service: "s3", Action: "Put*", Resource: "arn:aws:s3:::reports/a/*", Skip: 1, Times: 2, Kind: cloud.Code, Status: 503, Code: "ServiceUnavailable", Message: "soon"})
	for i, tt := range []struct {
		key  string
		fail bool
	}{{"b/1", false}, {"a/1", false}, {"a/2", true}, {"b/2", false}, {"a/3", true}, {"a/4", false}} {
		err := put(tt.key)
		if tt.fail {
			code(t, err, "ServiceUnavailable")
		} else if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if f.Hits() != 2 {
		t.Errorf("%d hits", f.Hits())
	}

	// One caller's faults are not another's.
	c.Inject(cloud.Fault{Caller: "lecafe-app-role", Kind: cloud.Throttle})
	if err := c.PutRolePolicy("lecafe-app-role", "all", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}`); err != nil {
		t.Fatal(err)
	}
	_, err := awsconf.S3(noRetry(c.As(c.Vault.Vend("lecafe-app-role", "i-1", time.Hour)))).ListBuckets(t.Context(), nil)
	code(t, err, "SlowDown")
	if err := put("c"); err != nil {
		t.Error(err)
	}
}

// A lost answer leaves the work done: what idempotency is for.
func TestAnswersAreLost(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("orders", nil)
	queue := sqs.NewFromConfig(noRetry(c.Config()))
	send := func() error {
		_, err := queue.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: aws.String(c.URL + "/" + wire.Account + "/orders"), MessageBody: aws.String("x")})
		return err
	}
	depth := func() string {
		t.Helper()
		out := must(queue.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: aws.String(c.URL + "/" + wire.Account + "/orders"), AttributeNames: []types.QueueAttributeName{"All"}}))(t)
		return out.Attributes["ApproximateNumberOfMessages"]
	}
	c.Inject(cloud.Fault{Action: "SendMessage", Times: 1, Kind: cloud.Reset})
	var api smithy.APIError
	if err := send(); err == nil || errors.As(err, &api) {
		t.Fatalf("error %v, want a broken connection", err)
	}
	if n := depth(); n != "0" {
		t.Errorf("%s messages after a reset before the work", n)
	}
	c.Inject(cloud.Fault{Action: "SendMessage", Times: 1, Kind: cloud.Reset, After: true})
	if err := send(); err == nil || errors.As(err, &api) {
		t.Fatalf("error %v, want a broken connection", err)
	}
	c.Inject(cloud.Fault{Action: "SendMessage", Times: 1, Kind: cloud.Error5xx, After: true})
	code(t, send(), "InternalFailure")
	if n := depth(); n != "2" {
		t.Errorf("%s messages, want the two whose answers were lost", n)
	}
	var statuses []int
	for _, call := range c.Calls() {
		if call.Action == "SendMessage" {
			statuses = append(statuses, call.Status)
		}
	}
	if len(statuses) != 3 || statuses[0] != 0 || statuses[1] != 0 || statuses[2] != http.StatusInternalServerError {
		t.Errorf("statuses %v", statuses)
	}
}

func TestDelayFollowsTheClock(t *testing.T) {
	clock := wire.NewManual(time.Now())
	c := cloudtest.New(t, cloud.Options{Clock: clock})
	f := c.Inject(cloud.Fault{Service: "sts", Kind: cloud.Delay, Delay: time.Minute})
	done := make(chan error, 1)
	go func() { done <- calls["sts"](t.Context(), noRetry(c.Config())) }()
	for f.Hits() == 0 {
		select {
		case err := <-done:
			t.Fatalf("answered before the delay: %v", err)
		case <-time.After(time.Millisecond): // the hit has no event of its own
		}
	}
	for answered := false; !answered; {
		clock.Advance(10 * time.Second)
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			answered = true
		case <-time.After(time.Millisecond):
		}
	}
}

func TestDenials(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	c.S3.CreateBucket("reports", "")
	store := awsconf.S3(noRetry(c.Config()))
	lift := c.Deny("s3:Put*", "", "arn:aws:s3:::reports/*")
	put := func() error {
		_, err := store.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("reports"), Key: aws.String("k"), Body: strings.NewReader("x")})
		return err
	}
	code(t, put(), "AccessDenied")
	for service, call := range calls {
		if err := call(t.Context(), noRetry(c.Config())); err != nil {
			t.Errorf("%s: %v", service, err)
		}
	}
	lift()
	if err := put(); err != nil {
		t.Error(err)
	}
	// Launching with a profile or tags takes more than the action's own name.
	lift = c.Deny("iam:PassRole", "", "*role/lecafe-app-role")
	defer lift()
	code(t, post(t.Context(), c.Config(), "ec2", "RunInstances&MinCount=1&MaxCount=1&ImageId=ami-1&IamInstanceProfile.Name=lecafe-app-role"), "UnauthorizedOperation")
	if err := c.PutRolePolicy("r", "p", `{"Version":"2012-10-17"`); err == nil {
		t.Error("a broken policy was attached")
	}
}

func TestObservers(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	var seen []string
	stop := c.OnCall(func(call cloud.Call) { seen = append(seen, call.Action) })
	must(0, calls["sts"](t.Context(), c.Config()))(t)
	stop()
	must(0, calls["ec2"](t.Context(), c.Config()))(t)
	if strings.Join(seen, " ") != "GetCallerIdentity" {
		t.Errorf("seen %v", seen)
	}
}
