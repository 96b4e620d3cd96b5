package lab_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/lab"
)

func start(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l, err := lab.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// TestEnv loads the SDK's configuration from the lab's environment alone.
func TestEnv(t *testing.T) {
	l := start(t, lab.Options{Seed: lab.LeCafe()})
	for _, name := range lab.Unset() {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	for _, v := range l.Env() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	q, err := sqs.NewFromConfig(cfg).GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("lecafe-orders")})
	if err != nil || !strings.HasPrefix(aws.ToString(q.QueueUrl), l.URL) {
		t.Errorf("queue: %+v, %v", q, err)
	}
	p, err := ssm.NewFromConfig(cfg).GetParameter(t.Context(), &ssm.GetParameterInput{Name: aws.String("/aws/service/debian/release/12/latest/amd64")})
	if err != nil || aws.ToString(p.Parameter.Value) != l.AMIs["debian-12"] {
		t.Errorf("parameter: %+v, %v; want %s", p, err, l.AMIs["debian-12"])
	}
}

// TestSeedPolicy pins what Le Café's instances may do, and that they may do no
// more.
func TestSeedPolicy(t *testing.T) {
	l := start(t, lab.Options{Seed: lab.LeCafe()})
	c := l.Vault.Vend("lecafe-app-role", "i-0123456789abcdef0", time.Hour)
	api := s3.NewFromConfig(aws.Config{
		Region: lab.Region, BaseEndpoint: aws.String(l.URL),
		Credentials: credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
	}, func(o *s3.Options) { o.UsePathStyle = true })
	out, err := api.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("lecafe-assets"), Key: aws.String("app/config.txt")})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(out.Body); !strings.Contains(string(b), "espresso=") {
		t.Errorf("config %q", b)
	}
	for key, allowed := range map[string]bool{
		"boots/" + c.Caller.UserID + "/1.json":                                       true,
		"boots/" + l.Vault.RoleID("lecafe-app-role") + ":i-00000000000000bad/1.json": false,
		"boots/1.json": false,
	} {
		_, err := api.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("lecafe-reports"), Key: aws.String(key), Body: strings.NewReader("{}")})
		var denied smithy.APIError
		switch {
		case allowed && err != nil:
			t.Errorf("put %s: %v", key, err)
		case !allowed && (!errors.As(err, &denied) || denied.ErrorCode() != "AccessDenied"):
			t.Errorf("put %s: %v, want AccessDenied", key, err)
		}
	}
}

// TestClockSkew has a cloud that finds the caller's clock wrong.
func TestClockSkew(t *testing.T) {
	l := start(t, lab.Options{Seed: lab.LeCafe(), ClockSkew: 24 * time.Hour})
	cfg := aws.Config{
		Region: lab.Region, BaseEndpoint: aws.String(l.URL), Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		RetryMaxAttempts: 1,
	}
	_, err := sqs.NewFromConfig(cfg).ListQueues(t.Context(), nil)
	var refused smithy.APIError
	if !errors.As(err, &refused) {
		t.Errorf("a request a day old was served: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	busy, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, c := range map[string]struct {
		o    lab.Options
		want string
	}{
		"an open address":      {lab.Options{Listen: "0.0.0.0:0"}, "loopback"},
		"a port that is used":  {lab.Options{Listen: busy.Addr().String()}, "in use"},
		"the archive's port":   {lab.Options{Listen: "127.0.0.1:4599"}, "4599"},
		"a made-up driver":     {lab.Options{Driver: "qemu"}, "nspawn"},
		"a policy of nonsense": {lab.Options{Seed: &lab.Seed{Policies: map[string]string{"r": "{"}}}, "policy"},
	} {
		l, err := lab.Start(t.Context(), c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
		if l != nil {
			t.Errorf("%s: a lab although there is an error", name)
		}
	}
}
