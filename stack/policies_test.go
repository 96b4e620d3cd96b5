package stack_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"gopkg.in/yaml.v3"

	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/stack"
)

const (
	appRole  = "lecafe-app-role"
	instance = "i-00000000000000001"
)

// ground is the stack in a cloud that tells TLS from plain HTTP.
type ground struct {
	*cloudtest.Cloud
	t *testing.T
	// Callers by TLS, and an operator without.
	operator, app, otherRole, foreign, service, plain aws.Config
}

func newGround(t *testing.T) *ground {
	c := cloudtest.New(t, cloud.Options{StrictTransport: true})
	as := func(creds wire.Credentials) aws.Config {
		cfg := c.TLS(t, c.As(creds))
		cfg.RetryMaxAttempts = 1
		return cfg
	}
	g := &ground{
		Cloud: c, t: t, operator: as(wire.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}), plain: c.Config(),
		app: as(c.Vault.Vend(appRole, instance, time.Hour)), otherRole: as(c.Vault.Vend("other", instance, time.Hour)),
		foreign: as(c.Vault.VendForeign("111111111111", time.Hour)),
		service: as(c.Vault.VendService("logging.s3.amazonaws.com", "arn:aws:s3:::lecafe-assets", time.Hour)),
	}
	g.plain.RetryMaxAttempts = 1
	s := &stack.Stack{Name: "lecafe", Clients: stack.NewClients(g.operator), Interval: time.Millisecond}
	p, err := s.Plan(t.Context(), stack.Request{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Execute(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.S3.Fill("lecafe-assets", maps.All(map[string][]byte{"app/config.txt": []byte("espresso"), "app/other.txt": []byte("latte")}))
	c.S3.Fill("lecafe-reports", maps.All(map[string][]byte{g.prefix(instance) + "progress/1": nil, g.prefix(instance) + "boot.json": nil, "k": nil}))
	c.S3.Fill("lecafe-staging", maps.All(map[string][]byte{"k": nil}))
	return g
}

// prefix is where an instance writes its reports.
func (g *ground) prefix(instance string) string {
	return "lecafe-reports/" + g.Vault.RoleID(appRole) + ":" + instance + "/"
}

// attempt is one call by somebody.
type attempt func(g *ground, as aws.Config) error

func get(bucket, key string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := awsconf.S3(as).GetObject(g.t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
		return err
	}
}

func put(bucket string, key func(*ground) string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := awsconf.S3(as).PutObject(g.t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(key(g)), Body: strings.NewReader("{}")})
		return err
	}
}

func remove(key string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := awsconf.S3(as).DeleteObject(g.t.Context(), &s3.DeleteObjectInput{Bucket: aws.String("lecafe-reports"), Key: aws.String(g.prefix(instance) + key)})
		return err
	}
}

func list(bucket string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := awsconf.S3(as).ListObjectsV2(g.t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket})
		return err
	}
}

func queueURL(g *ground, name string) *string {
	return aws.String(g.URL + "/" + wire.Account + "/" + name)
}

func send(queue string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := sqs.NewFromConfig(as).SendMessage(g.t.Context(), &sqs.SendMessageInput{QueueUrl: queueURL(g, queue), MessageBody: aws.String("x")})
		return err
	}
}

func receive(queue string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := sqs.NewFromConfig(as).ReceiveMessage(g.t.Context(), &sqs.ReceiveMessageInput{QueueUrl: queueURL(g, queue)})
		return err
	}
}

func findQueue(queue string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := sqs.NewFromConfig(as).GetQueueUrl(g.t.Context(), &sqs.GetQueueUrlInput{QueueName: &queue})
		return err
	}
}

func describeQueue(queue string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := sqs.NewFromConfig(as).GetQueueAttributes(g.t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: queueURL(g, queue)})
		return err
	}
}

// complete is allowed where it is found that there is no such action.
func complete(group string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := autoscaling.NewFromConfig(as).CompleteLifecycleAction(g.t.Context(), &autoscaling.CompleteLifecycleActionInput{
			AutoScalingGroupName: &group, LifecycleHookName: aws.String("lecafe-launch"), InstanceId: aws.String(instance), LifecycleActionResult: aws.String("CONTINUE"),
		})
		if code(err) == "ValidationError" {
			return nil
		}
		return err
	}
}

func heartbeat(group string) attempt {
	return func(g *ground, as aws.Config) error {
		_, err := autoscaling.NewFromConfig(as).RecordLifecycleActionHeartbeat(g.t.Context(), &autoscaling.RecordLifecycleActionHeartbeatInput{
			AutoScalingGroupName: &group, LifecycleHookName: aws.String("lecafe-launch"), InstanceId: aws.String(instance),
		})
		if code(err) == "ValidationError" {
			return nil
		}
		return err
	}
}

func code(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

// Why a call is refused.
const (
	byRole     = "because no identity-based policy allows"
	byResource = "because no resource-based policy allows"
	denied     = "with an explicit deny in a resource-based policy"
)

// walk tries each statement of the template's policies both ways. Empty
// because: the call is allowed.
var walk = []struct {
	statement string
	by        func(*ground) aws.Config
	do        attempt
	because   string
}{
	{"AppRole/ReadConfig", app, get("lecafe-assets", "app/config.txt"), ""},
	{"AppRole/ReadConfig", app, get("lecafe-assets", "app/other.txt"), byRole},
	{"AppRole/ReadConfig", app, get("lecafe-staging", "k"), byRole},
	{"AppRole/TellMissingFromDenied", app, list("lecafe-assets"), ""},
	{"AppRole/TellMissingFromDenied", app, list("lecafe-reports"), byRole},
	{"AppRole/WriteOwnReports", app, put("lecafe-reports", func(g *ground) string { return g.prefix(instance) + "1.json" }), ""},
	{"AppRole/WriteOwnReports", app, put("lecafe-reports", func(g *ground) string { return g.prefix("i-00000000000000002") + "1.json" }), byRole},
	{"AppRole/WriteOwnReports", app, put("lecafe-reports", func(*ground) string { return "k" }), byRole},
	{"AppRole/WriteOwnReports", app, put("lecafe-assets", func(*ground) string { return "app/config.txt" }), byRole},
	{"AppRole/ClearOwnProgress", app, remove("progress/1"), ""},
	{"AppRole/ClearOwnProgress", app, remove("boot.json"), byRole},
	{"AppRole/SendReports", app, send("lecafe-reports"), ""},
	{"AppRole/SendReports", app, findQueue("lecafe-reports"), ""},
	{"AppRole/SendReports", app, receive("lecafe-reports"), byRole},
	{"AppRole/SendOrders", app, send("lecafe-orders"), ""},
	{"AppRole/SendOrders", app, findQueue("lecafe-orders"), ""},
	{"AppRole/SendOrders", app, describeQueue("lecafe-orders"), ""},
	{"AppRole/SendOrders", app, receive("lecafe-orders"), byRole},
	{"AppRole/SendOrders", app, send("lecafe-orders-dlq"), byRole},
	{"AppRole/CompleteLifecycleAction", app, complete("lecafe-app"), ""},
	{"AppRole/CompleteLifecycleAction", app, heartbeat("lecafe-app"), ""},
	{"AppRole/CompleteLifecycleAction", app, complete("another"), "not authorized"},
	{"AppRole/CompleteLifecycleAction", app, heartbeat("another"), "not authorized"},

	{"AssetsPolicy/TheInstancesRead", app, get("lecafe-assets", "app/config.txt"), ""},
	{"AssetsPolicy/TheInstancesRead", otherRole, get("lecafe-assets", "app/config.txt"), byRole},
	{"AssetsPolicy/NobodyOutsideTheAccount", operator, get("lecafe-assets", "app/config.txt"), ""},
	{"AssetsPolicy/NobodyOutsideTheAccount", foreign, get("lecafe-assets", "app/config.txt"), denied},
	{"AssetsPolicy/NobodyOutsideTheAccount", foreign, list("lecafe-assets"), denied},
	{"AssetsPolicy/NobodyOutsideTheAccount", foreign, put("lecafe-assets", func(*ground) string { return "k" }), denied},
	// A service is not denied; to be allowed, it needs a statement of its own.
	{"AssetsPolicy/NobodyOutsideTheAccount", service, get("lecafe-assets", "app/config.txt"), byResource},
	{"AssetsPolicy/TLSOnly", operator, list("lecafe-assets"), ""},
	{"AssetsPolicy/TLSOnly", plain, list("lecafe-assets"), denied},
	{"AssetsPolicy/TLSOnly", plain, get("lecafe-assets", "app/config.txt"), denied},
	{"ReportsPolicy/TLSOnly", operator, get("lecafe-reports", "k"), ""},
	{"ReportsPolicy/TLSOnly", plain, get("lecafe-reports", "k"), denied},
	{"ReportsPolicy/TLSOnly", plain, list("lecafe-reports"), denied},
	{"ReportsPolicy/TLSOnly", foreign, get("lecafe-reports", "k"), byResource},
	{"StagingPolicy/TLSOnly", operator, get("lecafe-staging", "k"), ""},
	{"StagingPolicy/TLSOnly", plain, get("lecafe-staging", "k"), denied},
	{"StagingPolicy/TLSOnly", plain, list("lecafe-staging"), denied},
	{"StagingPolicy/TLSOnly", foreign, get("lecafe-staging", "k"), byResource},
	{"OrdersPolicy/TLSOnly", operator, send("lecafe-orders"), ""},
	{"OrdersPolicy/TLSOnly", plain, send("lecafe-orders"), denied},
	{"OrdersPolicy/TLSOnly", foreign, send("lecafe-orders"), byResource},
	{"OrdersDeadLettersPolicy/TLSOnly", operator, receive("lecafe-orders-dlq"), ""},
	{"OrdersDeadLettersPolicy/TLSOnly", plain, receive("lecafe-orders-dlq"), denied},
	{"OrdersDeadLettersPolicy/TLSOnly", foreign, receive("lecafe-orders-dlq"), byResource},
	{"ReportsWakeUpPolicy/TLSOnly", operator, receive("lecafe-reports"), ""},
	{"ReportsWakeUpPolicy/TLSOnly", plain, receive("lecafe-reports"), denied},
	{"ReportsWakeUpPolicy/TLSOnly", foreign, receive("lecafe-reports"), byResource},
}

func app(g *ground) aws.Config       { return g.app }
func otherRole(g *ground) aws.Config { return g.otherRole }
func operator(g *ground) aws.Config  { return g.operator }
func foreign(g *ground) aws.Config   { return g.foreign }
func service(g *ground) aws.Config   { return g.service }
func plain(g *ground) aws.Config     { return g.plain }

// TestEachStatementHolds makes the stack and tries each statement of its
// policies both ways: what it allows is allowed, what it does not is refused.
func TestEachStatementHolds(t *testing.T) {
	g := newGround(t)
	allowed, refused := map[string]bool{}, map[string]bool{}
	for _, w := range walk {
		err := w.do(g, w.by(g))
		switch {
		case w.because == "":
			allowed[w.statement] = true
			if err != nil {
				t.Errorf("%s: %v", w.statement, err)
			}
		default:
			refused[w.statement] = true
			if !strings.Contains(code(err), "AccessDenied") || !strings.Contains(err.Error(), w.because) {
				t.Errorf("%s: %v, want a refusal %s", w.statement, err, w.because)
			}
		}
	}
	for _, s := range statements(t) {
		if !allowed[s] || !refused[s] {
			t.Errorf("%s is not tried both ways", s)
		}
	}
}

// statements are those of the template's policies: RESOURCE/SID.
func statements(t *testing.T) []string {
	t.Helper()
	_, d := load(t)
	var out []string
	add := func(name string, document *yaml.Node) {
		statements := field(document, "Statement")
		if statements == nil || len(statements.Content) == 0 {
			t.Fatalf("%s has no statements", name)
		}
		for _, s := range statements.Content {
			out = append(out, name+"/"+field(s, "Sid").Value)
		}
	}
	for name, r := range d.Resources {
		switch r.Type {
		case "AWS::IAM::Role":
			for _, p := range field(&r.Properties, "Policies").Content {
				add(name, field(p, "PolicyDocument"))
			}
		case "AWS::S3::BucketPolicy", "AWS::SQS::QueuePolicy":
			add(name, field(&r.Properties, "PolicyDocument"))
		}
	}
	slices.Sort(out)
	return out
}

// The role's statement and the bucket's each let an instance read on its own.
func TestTheConfigIsReadByEitherStatement(t *testing.T) {
	g := newGround(t)
	api := awsconf.S3(g.operator)
	read := get("lecafe-assets", "app/config.txt")
	had, err := api.GetBucketPolicy(t.Context(), &s3.GetBucketPolicyInput{Bucket: aws.String("lecafe-assets")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.DeleteBucketPolicy(t.Context(), &s3.DeleteBucketPolicyInput{Bucket: aws.String("lecafe-assets")}); err != nil {
		t.Fatal(err)
	}
	if err := read(g, g.app); err != nil {
		t.Errorf("by the role alone: %v", err)
	}
	if _, err := api.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: aws.String("lecafe-assets"), Policy: had.Policy}); err != nil {
		t.Fatal(err)
	}
	g.DeleteRolePolicy(appRole, "lecafe-agent")
	if err := read(g, g.app); err != nil {
		t.Errorf("by the bucket alone: %v", err)
	}
	if err := get("lecafe-assets", "app/other.txt")(g, g.app); code(err) != "AccessDenied" {
		t.Errorf("another object: %v", err)
	}
}

// A missing configuration is missing to who may list, and denied to others.
func TestMissingIsToldFromDenied(t *testing.T) {
	g := newGround(t)
	if _, err := awsconf.S3(g.operator).DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String("lecafe-assets"), Key: aws.String("app/config.txt")}); err != nil {
		t.Fatal(err)
	}
	if err := get("lecafe-assets", "app/config.txt")(g, g.app); code(err) != "NoSuchKey" {
		t.Errorf("%v", err)
	}
	if err := get("lecafe-assets", "app/nothing.txt")(g, g.app); code(err) != "AccessDenied" {
		t.Errorf("%v", err)
	}
}

// What else the template says of who may what.
func TestTheGroundIsPrivate(t *testing.T) {
	g := newGround(t)
	for _, bucket := range []string{"lecafe-assets", "lecafe-reports", "lecafe-staging"} {
		api := awsconf.S3(g.operator)
		_, err := api.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &bucket, Policy: aws.String(
			`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::` + bucket + `/*"}]}`)})
		if code(err) != "AccessDenied" {
			t.Errorf("a public policy for %s: %v", bucket, err)
		}
		_, err = api.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("k"), Body: strings.NewReader("x"), ACL: s3types.ObjectCannedACLPublicRead})
		if code(err) != "AccessControlListNotSupported" {
			t.Errorf("a public object in %s: %v", bucket, err)
		}
	}
	// EC2 alone hands the role out.
	_, err := sts.NewFromConfig(g.operator).AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: aws.String("arn:aws:iam::" + wire.Account + ":role/" + appRole), RoleSessionName: aws.String("me")})
	if code(err) != "AccessDenied" {
		t.Errorf("an operator in the role: %v", err)
	}
	// Session Manager: what its agent asks for, and no more.
	for action, want := range map[string]policy.Decision{
		"ssm:UpdateInstanceInformation": policy.Allowed, "ssmmessages:OpenDataChannel": policy.Allowed, "ec2messages:GetMessages": policy.Allowed,
		"ssm:SendCommand": policy.Silent, "ssm:StartSession": policy.Silent, "ssm:PutParameter": policy.Silent,
	} {
		if got := g.IAM.Evaluate(appRole, policy.Request{Action: action, Resource: "*"}); got != want {
			t.Errorf("%s: %v, want %v", action, got, want)
		}
	}
}
