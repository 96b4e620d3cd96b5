package conformance

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
)

// cli is the AWS CLI, driving one fake cloud.
type cli struct {
	*testing.T
	path string
	url  string
	env  []string
}

func newCLI(t *testing.T, c *cloudtest.Cloud) *cli {
	t.Helper()
	if testing.Short() && os.Getenv("CI") != "true" {
		t.Skip("SKIPPED: -short: the AWS CLI takes a second a call")
	}
	path, err := exec.LookPath("aws")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("the AWS CLI is not installed: apt-get install awscli, or pip install awscli")
		}
		t.Skip("SKIPPED: the AWS CLI is not installed")
	}
	env := append(os.Environ(), c.Env()...)
	// In us-east-1 the CLI of old presigns with Signature Version 2 unless told
	// not to; new buckets refuse that.
	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, []byte("[default]\ns3 =\n  signature_version = s3v4\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &cli{t, path, c.URL, append(env, "AWS_CONFIG_FILE="+config, "AWS_PAGER=", "AWS_RETRY_MODE=standard", "AWS_MAX_ATTEMPTS=1")}
}

func (c *cli) try(args ...string) (stdout, stderr string, err error) {
	// The CLI's version 1 prefers SQS's addresses of old to AWS_ENDPOINT_URL.
	cmd := exec.CommandContext(c.Context(), c.path, append([]string{"--endpoint-url", c.url}, args...)...)
	cmd.Env = c.env
	var out, fail bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fail
	err = cmd.Run()
	return strings.TrimSpace(out.String()), fail.String(), err
}

// run returns what the command printed; --query and text keep it short.
func (c *cli) run(args ...string) string {
	c.Helper()
	out, stderr, err := c.try(args...)
	if err != nil {
		c.Fatalf("aws %s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return out
}

func (c *cli) fails(code string, args ...string) {
	c.Helper()
	out, stderr, err := c.try(args...)
	if err == nil || !strings.Contains(stderr, code) {
		c.Errorf("aws %s: %v %s%s, want %s", strings.Join(args, " "), err, out, stderr, code)
	}
}

func (c *cli) is(want string, args ...string) {
	c.Helper()
	if got := c.run(args...); got != want {
		c.Errorf("aws %s: %q, want %q", strings.Join(args, " "), got, want)
	}
}

func plainGet(t *testing.T, url string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAWSCLIStorageAndQueues(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	aws := newCLI(t, c)
	dir := t.TempDir()
	write := func(name string, size int) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, bytes.Repeat([]byte("b"), size), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	small, big := write("small", 10), write("big", 9<<20)

	aws.run("s3", "mb", "s3://cafe-assets")
	aws.run("s3", "cp", small, "s3://cafe-assets/app/a b+c.txt")
	aws.run("s3", "cp", big, "s3://cafe-assets/app/big") // in parts
	aws.run("s3", "cp", small, "s3://cafe-assets/sums/sha", "--checksum-algorithm", "SHA256")
	if out := aws.run("s3", "ls", "s3://cafe-assets/app/"); !strings.Contains(out, "a b+c.txt") || !strings.Contains(out, "9437184 big") {
		t.Errorf("listing\n%s", out)
	}
	back := filepath.Join(dir, "back")
	aws.run("s3", "cp", "s3://cafe-assets/app/big", back)
	if b, err := os.ReadFile(back); err != nil || !bytes.Equal(b, bytes.Repeat([]byte("b"), 9<<20)) {
		t.Errorf("%d bytes came back, %v", len(b), err)
	}
	url := aws.run("s3", "presign", "s3://cafe-assets/app/a b+c.txt", "--expires-in", "60")
	if a := plainGet(t, url); a != strings.Repeat("b", 10) {
		t.Errorf("presigned GET: %q", a)
	}
	aws.fails("404", "s3api", "head-object", "--bucket", "cafe-assets", "--key", "nosuch")
	aws.fails("NoSuchBucket", "s3", "ls", "s3://cafe-nosuch")
	aws.run("s3", "rm", "--recursive", "s3://cafe-assets/app")
	aws.run("s3", "rb", "--force", "s3://cafe-assets")

	queue := aws.run("sqs", "create-queue", "--queue-name", "cafe-orders", "--query", "QueueUrl", "--output", "text")
	aws.run("sqs", "send-message", "--queue-url", queue, "--message-body", "espresso")
	aws.is("espresso\tAIDALECAFELABOPERATOR", "sqs", "receive-message", "--queue-url", queue, "--attribute-names", "All", "--query", "Messages[0].[Body,Attributes.SenderId]", "--output", "text")
	aws.fails("AWS.SimpleQueueService.NonExistentQueue", "sqs", "get-queue-url", "--queue-name", "cafe-nosuch")
	aws.fails("InvalidMessageContents", "sqs", "send-message", "--queue-url", queue, "--message-body", "bell \x07")

	aws.is("1", "ssm", "put-parameter", "--name", "/cafe/ami", "--type", "String", "--value", "ami-12345678", "--query", "Version", "--output", "text")
	aws.is("ami-12345678", "ssm", "get-parameter", "--name", "/cafe/ami", "--query", "Parameter.Value", "--output", "text")
	aws.fails("ParameterAlreadyExists", "ssm", "put-parameter", "--name", "/cafe/ami", "--type", "String", "--value", "x")
	aws.is("000000000000", "sts", "get-caller-identity", "--query", "Account", "--output", "text")

	aws.env = append(aws.env, "AWS_SECRET_ACCESS_KEY=wrong")
	aws.fails("SignatureDoesNotMatch", "s3", "ls")
	aws.fails("SignatureDoesNotMatch", "sqs", "list-queues")
	aws.fails("InvalidSignatureException", "ssm", "describe-parameters")
	aws.fails("SignatureDoesNotMatch", "sts", "get-caller-identity")
	aws.fails("AuthFailure", "ec2", "describe-instances")
}

func TestAWSCLIInstances(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, fast)
	image, err := c.EC2.AddImage(region, ec2.ImageSeed{Name: "debian-12-amd64-20260101-0", Owner: "136693071363"})
	if err != nil {
		t.Fatal(err)
	}
	aws := newCLI(t, c)
	id := aws.run("ec2", "run-instances", "--image-id", image, "--instance-type", "t3.micro", "--metadata-options", "HttpTokens=required,HttpPutResponseHopLimit=1",
		"--user-data", "#!/bin/true", "--instance-initiated-shutdown-behavior", "terminate",
		"--tag-specifications", "ResourceType=instance,Tags=[{Key=Name,Value=builder}]", "--query", "Instances[0].InstanceId", "--output", "text")
	aws.run("ec2", "wait", "instance-running", "--instance-ids", id)
	aws.is("running\trequired\tbuilder", "ec2", "describe-instances", "--filters", "Name=tag:Name,Values=builder",
		"--query", "Reservations[0].Instances[0].[State.Name,MetadataOptions.HttpTokens,Tags[0].Value]", "--output", "text")
	c.EC2.SetConsole(id, []byte("login:"))
	aws.is("login:", "ec2", "get-console-output", "--instance-id", id, "--query", "Output", "--output", "text")
	made := aws.run("ec2", "create-image", "--instance-id", id, "--name", "cafe-1", "--tag-specifications",
		"ResourceType=image,Tags=[{Key=bake,Value=1}]", "ResourceType=snapshot,Tags=[{Key=bake,Value=1}]", "--query", "ImageId", "--output", "text")
	aws.run("ec2", "wait", "image-available", "--image-ids", made)
	aws.is("cafe-1\t1", "ec2", "describe-images", "--owners", "self", "--query", "Images[0].[Name,Tags[0].Value]", "--output", "text")
	aws.is("completed\t1", "ec2", "describe-snapshots", "--owner-ids", "self", "--filters", "Name=tag:bake,Values=1", "--query", "Snapshots[0].[State,Tags[0].Value]", "--output", "text")
	aws.fails("InvalidAMIName.Duplicate", "ec2", "create-image", "--instance-id", id, "--name", "cafe-1")
	aws.fails("InvalidAMIID.NotFound", "ec2", "run-instances", "--image-id", "ami-0123456789abcdef0")
	aws.run("ec2", "terminate-instances", "--instance-ids", id)
	aws.run("ec2", "wait", "instance-terminated", "--instance-ids", id)

	aws.run("ec2", "create-launch-template", "--launch-template-name", "cafe", "--launch-template-data", `{"ImageId":"`+made+`","InstanceType":"t3.micro"}`)
	aws.run("autoscaling", "create-auto-scaling-group", "--auto-scaling-group-name", "cafe", "--launch-template", "LaunchTemplateName=cafe,Version=$Default",
		"--min-size", "1", "--max-size", "1", "--availability-zones", region+"a")
	(&run{Context: t.Context(), t: t, target: target{name: "lecafe"}}).until("instance in service", func() bool {
		return aws.run("autoscaling", "describe-auto-scaling-groups", "--query", "AutoScalingGroups[0].Instances[0].LifecycleState", "--output", "text") == "InService"
	})
}
