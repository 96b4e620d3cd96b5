package cloud_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const (
	beans    = "arn:aws:s3:::beans"
	stranger = "111111111111"
)

// doc is a policy of statements.
func doc(statements ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

// bucket is one bucket with an object, and ways to it.
type bucket struct {
	*cloudtest.Cloud
	t *testing.T
}

func newBucket(t *testing.T, o cloud.Options) bucket {
	b := bucket{cloudtest.New(t, o), t}
	b.S3.CreateBucket("beans", "")
	b.S3.Fill("beans", func(yield func(string, []byte) bool) { yield("k", []byte("roast")) })
	return b
}

func (b bucket) policy(statements ...string) error {
	_, err := awsconf.S3(noRetry(b.Config())).PutBucketPolicy(b.t.Context(), &s3.PutBucketPolicyInput{Bucket: aws.String("beans"), Policy: aws.String(doc(statements...))})
	return err
}

func (b bucket) set(statements ...string) {
	b.t.Helper()
	if err := b.policy(statements...); err != nil {
		b.t.Fatal(err)
	}
}

func (b bucket) read(cfg aws.Config) error {
	_, err := awsconf.S3(noRetry(cfg)).GetObject(b.t.Context(), &s3.GetObjectInput{Bucket: aws.String("beans"), Key: aws.String("k")})
	return err
}

func (b bucket) allowed(what string, cfg aws.Config) {
	b.t.Helper()
	if err := b.read(cfg); err != nil {
		b.t.Errorf("%s: %v", what, err)
	}
}

func (b bucket) refused(what string, cfg aws.Config, because string) {
	b.t.Helper()
	err := b.read(cfg)
	if err == nil || !strings.Contains(err.Error(), "AccessDenied") || !strings.Contains(err.Error(), because) {
		b.t.Errorf("%s: %v", what, err)
	}
}

const deny = `{"Effect":"Deny","Principal":"*","Action":"s3:GetObject","Resource":"` + beans + `/*"}`

func allow(principal string) string {
	return `{"Effect":"Allow","Principal":` + principal + `,"Action":"s3:GetObject","Resource":"` + beans + `/*"}`
}

// What a bucket's policy adds to a role's own and takes from it.
func TestBucketPolicies(t *testing.T) {
	b := newBucket(t, cloud.Options{})
	role := b.As(b.Vault.Vend("app", "i-1", time.Hour))
	other := b.As(b.Vault.Vend("other", "i-2", time.Hour))
	foreign := b.As(b.Vault.VendForeign(stranger, time.Hour))
	b.refused("without any policy", role, "no identity-based policy allows")
	b.refused("another account", foreign, "no resource-based policy allows")

	b.set(allow(`{"AWS":"arn:aws:iam::` + wire.Account + `:role/app"}`))
	b.allowed("the bucket names the role", role)
	b.refused("the bucket names another role", other, "no identity-based")
	b.refused("the bucket names another account's namesake", foreign, "no resource-based")

	b.set(allow(`{"AWS":"` + wire.Account + `"}`))
	b.refused("the account is left to say", role, "no identity-based")
	if err := b.PutRolePolicy("app", "read", doc(`{"Effect":"Allow","Action":"s3:GetObject","Resource":"`+beans+`/*"}`)); err != nil {
		t.Fatal(err)
	}
	b.allowed("and it says", role)

	b.set(deny)
	b.refused("what its own policy allows", role, "explicit deny in a resource-based policy")
	b.refused("what an operator may", b.Config(), "explicit deny in a resource-based policy")
	b.set(allow(`"*"`))
	if err := b.PutRolePolicy("app", "not", doc(`{"Effect":"Deny","Action":"s3:*","Resource":"*"}`)); err != nil {
		t.Fatal(err)
	}
	b.refused("what its own policy denies", role, "explicit deny in an identity-based policy")
	b.allowed("everyone", other)

	b.set(allow(`{"AWS":"arn:aws:iam::` + stranger + `:root"}`))
	b.allowed("another account is named", foreign)
	b.set(allow(`"*"`))
	b.allowed("all accounts are", foreign)
	block := &types.PublicAccessBlockConfiguration{RestrictPublicBuckets: aws.Bool(true), BlockPublicPolicy: aws.Bool(true)}
	if _, err := awsconf.S3(b.Config()).PutPublicAccessBlock(t.Context(), &s3.PutPublicAccessBlockInput{Bucket: aws.String("beans"), PublicAccessBlockConfiguration: block}); err != nil {
		t.Fatal(err)
	}
	b.refused("a public policy that is restricted", foreign, "no resource-based")
	b.allowed("and holds within the account", other)
	code(t, b.policy(allow(`"*"`)), "AccessDenied")
	b.set(allow(`{"AWS":"` + stranger + `"}`)) // no public one

	if _, err := awsconf.S3(b.Config()).DeleteBucketPolicy(t.Context(), &s3.DeleteBucketPolicyInput{Bucket: aws.String("beans")}); err != nil {
		t.Fatal(err)
	}
	b.refused("the policy is gone", foreign, "no resource-based")
}

// A service of AWS acts by the bucket's leave alone, and for a resource.
func TestServicesAreAllowedByTheResourceAlone(t *testing.T) {
	b := newBucket(t, cloud.Options{})
	logs := b.As(b.Vault.VendService("logging.s3.amazonaws.com", "arn:aws:s3:::source", time.Hour))
	b.refused("no policy", logs, "no resource-based")
	named := func(source string) string {
		return strings.TrimSuffix(allow(`{"Service":"logging.s3.amazonaws.com"}`), "}") + `,"Condition":{"ArnLike":{"aws:SourceArn":"` + source + `"},"StringEquals":{"aws:SourceAccount":"` + wire.Account + `"}}}`
	}
	b.set(named("arn:aws:s3:::source"))
	b.allowed("named", logs)
	b.refused("another service", b.As(b.Vault.VendService("sns.amazonaws.com", "arn:aws:s3:::source", time.Hour)), "no resource-based")
	b.set(named("arn:aws:s3:::elsewhere"))
	b.refused("another source", logs, "no resource-based")
}

// Each key of many is asked for, and while the store is locked.
func TestDeletesOfManyAskTheBucketsPolicy(t *testing.T) {
	b := newBucket(t, cloud.Options{})
	b.set(strings.ReplaceAll(deny, "s3:GetObject", "s3:DeleteObject"))
	out, err := awsconf.S3(b.Config()).DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: aws.String("beans"), Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: aws.String("k")}}}})
	if err != nil || len(out.Errors) != 1 || *out.Errors[0].Code != "AccessDenied" {
		t.Errorf("%+v %v", out, err)
	}
}

// A lab's plain HTTP stands for HTTPS, unless the transport is what is tested.
func TestSecureTransport(t *testing.T) {
	tlsOnly := strings.TrimSuffix(deny, "}") + `,"Condition":{"Bool":{"aws:SecureTransport":"false"}}}`
	b := newBucket(t, cloud.Options{})
	b.set(tlsOnly)
	b.allowed("a lab", b.Config())
	b = newBucket(t, cloud.Options{StrictTransport: true})
	b.set(tlsOnly)
	b.refused("plain HTTP", b.Config(), "explicit deny in a resource-based policy")
	b.allowed("TLS", b.TLS(t, b.Config()))
}

func TestBucketPoliciesThatAreRefused(t *testing.T) {
	b := newBucket(t, cloud.Options{})
	for name, statement := range map[string]string{
		"of another bucket":   strings.ReplaceAll(deny, beans, "arn:aws:s3:::other"),
		"of a longer name":    strings.ReplaceAll(deny, beans, "arn:aws:s3:::beansandmore"),
		"of another service":  strings.ReplaceAll(deny, "s3:GetObject", "sqs:SendMessage"),
		"for nobody":          strings.ReplaceAll(deny, `"Principal":"*",`, ""),
		"what is not known":   strings.TrimSuffix(deny, "}") + `,"Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}`,
		"a key not known":     strings.TrimSuffix(deny, "}") + `,"Condition":{"StringEquals":{"aws:SourceVpc":"vpc-1"}}}`,
		"no statement at all": `"x"`,
	} {
		t.Run(name, func(t *testing.T) { code(t, b.policy(statement), "MalformedPolicy") })
	}
	b.allowed("after all of them", b.Config())
}

func TestQueuePolicies(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	const arn = "arn:aws:sqs:us-east-1:" + wire.Account + ":orders"
	api := func(cfg aws.Config) *sqs.Client { return sqs.NewFromConfig(noRetry(cfg)) }
	q, err := api(c.Config()).CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("orders"), Attributes: map[string]string{
		"Policy": doc(`{"Effect":"Allow","Principal":{"AWS":"` + stranger + `"},"Action":"SQS:SendMessage","Resource":"` + arn + `"}`),
	}})
	if err != nil {
		t.Fatal(err)
	}
	send := func(cfg aws.Config) error {
		_, err := api(cfg).SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: q.QueueUrl, MessageBody: aws.String("espresso")})
		return err
	}
	set := func(policy string) error {
		_, err := api(c.Config()).SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: q.QueueUrl, Attributes: map[string]string{"Policy": policy}})
		return err
	}
	role, foreign := c.As(c.Vault.Vend("app", "i-1", time.Hour)), c.As(c.Vault.VendForeign(stranger, time.Hour))
	if err := send(foreign); err != nil {
		t.Errorf("named: %v", err)
	}
	_, err = api(foreign).ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q.QueueUrl})
	code(t, err, "AccessDenied", "AccessDeniedException")
	code(t, send(role), "AccessDenied", "AccessDeniedException")
	if err := set(doc(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + wire.Account + `:role/app"},"Action":"sqs:*","Resource":"` + arn + `"}`)); err != nil {
		t.Fatal(err)
	}
	if err := send(role); err != nil {
		t.Errorf("the role is named: %v", err)
	}
	code(t, send(foreign), "AccessDenied", "AccessDeniedException")
	code(t, set(doc(`{"Effect":"Deny","Principal":"*","Action":"sqs:*","Resource":"*","Condition":{"DateLessThan":{"aws:CurrentTime":"2030-01-01T00:00:00Z"}}}`)), "InvalidAttributeValue", "InvalidAttributeValueException")
	if err := set(doc(`{"Effect":"Deny","Principal":"*","Action":"sqs:SendMessage","Resource":"` + arn + `"}`)); err != nil {
		t.Fatal(err)
	}
	code(t, send(c.Config()), "AccessDenied", "AccessDeniedException")
	if err := set(""); err != nil {
		t.Fatal(err)
	}
	if err := send(c.Config()); err != nil {
		t.Errorf("the policy is gone: %v", err)
	}
	code(t, send(role), "AccessDenied", "AccessDeniedException")
}
