package cloud_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// calls make one call of each protocol.
var calls = map[string]func(context.Context, aws.Config) error{
	"s3": func(ctx context.Context, cfg aws.Config) error {
		_, err := awsconf.S3(cfg).ListBuckets(ctx, nil)
		return err
	},
	"sqs": func(ctx context.Context, cfg aws.Config) error {
		_, err := sqs.NewFromConfig(cfg).ListQueues(ctx, nil)
		return err
	},
	"ssm": func(ctx context.Context, cfg aws.Config) error {
		_, err := ssm.NewFromConfig(cfg).DescribeParameters(ctx, nil)
		return err
	},
	"sts": func(ctx context.Context, cfg aws.Config) error {
		_, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, nil)
		return err
	},
	"ec2": func(ctx context.Context, cfg aws.Config) error { return post(ctx, cfg, "ec2", "DescribeInstances") },
	"autoscaling": func(ctx context.Context, cfg aws.Config) error {
		return post(ctx, cfg, "autoscaling", "DescribeAutoScalingGroups")
	},
}

// post calls a query-protocol action without the service's SDK, which takes
// long to compile.
func post(ctx context.Context, cfg aws.Config, service, action string) error {
	creds, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return err
	}
	body := "Action=" + action + "&Version=2016-11-15"
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, *cfg.BaseEndpoint+"/", strings.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	if err := v4.NewSigner().SignHTTP(ctx, creds, r, sha256Hex(body), service, cfg.Region, time.Now()); err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return queryError(resp)
}

func TestCredentialsAreChecked(t *testing.T) {
	clock := wire.NewManual(time.Now())
	c := cloudtest.New(t, cloud.Options{Clock: clock})
	expired := c.Vault.VendOperator(10 * time.Minute)
	valid := c.Vault.VendOperator(time.Hour)
	clock.Advance(11 * time.Minute) // still within the 15 minutes a signature's time may be off

	otherSecret, otherToken, noToken := valid, valid, valid
	otherSecret.SecretAccessKey += "x"
	otherToken.SessionToken += "x"
	noToken.SessionToken = ""
	for name, tt := range map[string]struct {
		creds wire.Credentials
		want  map[string]string
	}{
		"valid session": {valid, map[string]string{}},
		"unknown access key": {wire.Credentials{AccessKeyID: "AKIAUNKNOWN", SecretAccessKey: "test"}, map[string]string{
			"s3": "InvalidAccessKeyId", "sqs": "InvalidClientTokenId", "ssm": "UnrecognizedClientException", "sts": "InvalidClientTokenId", "autoscaling": "InvalidClientTokenId", "ec2": "AuthFailure"}},
		"wrong secret": {otherSecret, map[string]string{
			"s3": "SignatureDoesNotMatch", "sqs": "SignatureDoesNotMatch", "ssm": "InvalidSignatureException", "sts": "SignatureDoesNotMatch", "autoscaling": "SignatureDoesNotMatch", "ec2": "AuthFailure"}},
		"wrong token": {otherToken, map[string]string{
			"s3": "InvalidToken", "sqs": "InvalidClientTokenId", "ssm": "UnrecognizedClientException", "sts": "InvalidClientTokenId", "autoscaling": "InvalidClientTokenId", "ec2": "AuthFailure"}},
		"no token": {noToken, map[string]string{
			"s3": "InvalidAccessKeyId", "sqs": "InvalidClientTokenId", "ssm": "UnrecognizedClientException", "sts": "InvalidClientTokenId", "autoscaling": "InvalidClientTokenId", "ec2": "AuthFailure"}},
		"expired session": {expired, map[string]string{
			"s3": "ExpiredToken", "sqs": "ExpiredToken", "ssm": "ExpiredTokenException", "sts": "ExpiredToken", "autoscaling": "ExpiredToken", "ec2": "RequestExpired"}},
	} {
		t.Run(name, func(t *testing.T) {
			for service, call := range calls {
				err := call(t.Context(), noRetry(c.As(tt.creds)))
				want := tt.want[service]
				if want == "" {
					if err != nil {
						t.Errorf("%s: %v", service, err)
					}
					continue
				}
				t.Run(service, func(t *testing.T) { code(t, err, want) })
			}
		})
	}
}

// A clock that is off by more than 15 minutes is refused, and the SDK corrects
// itself by the Date of the answer.
func TestSkewedClockIsRefused(t *testing.T) {
	clock := wire.NewManual(time.Now().Add(time.Hour))
	c := cloudtest.New(t, cloud.Options{Clock: clock})
	want := map[string]string{
		"s3": "RequestTimeTooSkewed", "sqs": "SignatureDoesNotMatch", "ssm": "InvalidSignatureException", "sts": "SignatureDoesNotMatch", "autoscaling": "SignatureDoesNotMatch", "ec2": "RequestExpired",
	}
	for service, call := range calls {
		t.Run(service, func(t *testing.T) {
			code(t, call(t.Context(), noRetry(c.Config())), want[service])
			if service == "ec2" || service == "autoscaling" { // called without the SDK
				return
			}
			cfg := c.Config()
			cfg.Retryer = func() aws.Retryer {
				return retry.NewStandard(func(o *retry.StandardOptions) { o.Backoff = retry.BackoffDelayerFunc(noDelay) })
			}
			if err := call(t.Context(), cfg); err != nil {
				t.Errorf("with the SDK's correction: %v", err)
			}
		})
	}
}

func TestUnsignedRequestsAreRefused(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	c.S3.CreateBucket("private", "")
	for name, tt := range map[string]struct {
		method, path string
		header       http.Header
		body         string
		status       int
		code         string
	}{
		"an object":     {method: "GET", path: "/private/key", status: 403, code: "<Code>AccessDenied</Code>"},
		"an upload":     {method: "PUT", path: "/private/key", body: "x", status: 403, code: "<Code>AccessDenied</Code>"},
		"JSON protocol": {method: "POST", path: "/", header: http.Header{"X-Amz-Target": {"AmazonSSM.GetParameter"}}, body: "{}", status: 400, code: "MissingAuthenticationTokenException"},
		"query":         {method: "POST", path: "/", header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, body: "Action=GetCallerIdentity", status: 403, code: "<Code>MissingAuthenticationToken</Code>"},
		"version 2":     {method: "GET", path: "/private/key?AWSAccessKeyId=test&Expires=99999999999&Signature=x", status: 400, code: "<Code>InvalidRequest</Code>"},
		"HEAD":          {method: "HEAD", path: "/private/key", status: 403},
	} {
		t.Run(name, func(t *testing.T) {
			resp := fetch(t, tt.method, c.URL+tt.path, tt.header, tt.body)
			if resp.status != tt.status || !strings.Contains(resp.body, tt.code) {
				t.Errorf("%d %s", resp.status, resp.body)
			}
		})
	}
	if keys := c.S3.Objects("private", ""); len(keys) != 0 {
		t.Errorf("objects %v", keys)
	}
}

type answer struct {
	status int
	body   string
	header http.Header
}

func fetch(t *testing.T, method, url string, header http.Header, body string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		r.Header[name] = values
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
	return answer{resp.StatusCode, string(b), resp.Header}
}

func TestPresignedURLs(t *testing.T) {
	clock := wire.NewManual(time.Now())
	c := cloudtest.New(t, cloud.Options{Clock: clock})
	c.S3.CreateBucket("staging", "")
	session := c.Vault.VendOperator(8 * time.Minute)
	presign := func(creds wire.Credentials, expires time.Duration, put bool) string {
		p := s3.NewPresignClient(awsconf.S3(c.As(creds)), s3.WithPresignExpires(expires))
		if put {
			return must(p.PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("staging"), Key: aws.String("bakes/1/report + plus.json")}))(t).URL
		}
		return must(p.PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("staging"), Key: aws.String("bakes/1/report + plus.json")}))(t).URL
	}
	put, get := presign(session, time.Hour, true), presign(session, time.Hour, false)
	short := presign(wire.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}, time.Minute, false)

	if a := fetch(t, "PUT", put, nil, "report"); a.status != 200 {
		t.Fatalf("PUT %d %s", a.status, a.body)
	}
	for _, u := range []string{get, short} {
		if a := fetch(t, "GET", u, nil, ""); a.status != 200 || a.body != "report" {
			t.Errorf("GET %d %s", a.status, a.body)
		}
	}
	if a := fetch(t, "GET", get, http.Header{"Range": {"bytes=2-3"}}, ""); a.status != 206 || a.body != "po" {
		t.Errorf("range %d %q", a.status, a.body)
	}

	refused := func(name, method, url string, header http.Header, status int, code string) {
		t.Helper()
		if a := fetch(t, method, url, header, ""); a.status != status || !strings.Contains(a.body, "<Code>"+code+"</Code>") {
			t.Errorf("%s: %d %s, want %d %s", name, a.status, a.body, status, code)
		}
	}
	refused("another method", "PUT", get, nil, 403, "SignatureDoesNotMatch")
	refused("another key", "GET", strings.Replace(get, "report", "secret", 1), nil, 403, "SignatureDoesNotMatch")
	refused("a longer life", "GET", strings.Replace(get, "X-Amz-Expires=3600", "X-Amz-Expires=36000", 1), nil, 403, "SignatureDoesNotMatch")
	refused("more than a week", "GET", strings.Replace(get, "X-Amz-Expires=3600", "X-Amz-Expires=604801", 1), nil, 400, "AuthorizationHeaderMalformed")
	refused("a header unsigned", "GET", get, http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}}, 403, "AccessDenied")
	other, _ := url.Parse(get)
	other.Host = strings.Replace(other.Host, "127.0.0.1", "localhost", 1)
	refused("another host", "GET", other.String(), nil, 403, "SignatureDoesNotMatch")

	clock.Advance(2 * time.Minute)
	refused("past X-Amz-Expires", "GET", short, nil, 403, "AccessDenied")
	if a := fetch(t, "GET", short, nil, ""); !strings.Contains(a.body, "Request has expired") {
		t.Errorf("message %s", a.body)
	}
	if a := fetch(t, "GET", get, nil, ""); a.status != 200 {
		t.Errorf("the session lives: %d %s", a.status, a.body)
	}
	clock.Advance(7 * time.Minute)
	refused("past the session", "GET", get, nil, 400, "ExpiredToken")
	refused("past the session", "PUT", put, nil, 400, "ExpiredToken")
}

// A presigned URL is signed for one Host; the server answers under any.
func TestSeveralHosts(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	c.S3.CreateBucket("staging", "")
	for _, host := range []string{"127.0.0.1", "localhost"} {
		cfg := c.Config()
		cfg.BaseEndpoint = aws.String(strings.Replace(c.URL, "127.0.0.1", host, 1))
		for _, style := range []bool{true, false} {
			store := s3.NewFromConfig(cfg, func(o *s3.Options) {
				o.UsePathStyle = style
				o.HTTPClient = &http.Client{Transport: toLoopback(c.Port)}
			})
			must(store.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("staging"), Key: aws.String("a b/c"), Body: bytes.NewReader([]byte(host))}))(t)
			got := must(store.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("staging"), Key: aws.String("a b/c")}))(t)
			if b, _ := io.ReadAll(got.Body); string(b) != host {
				t.Errorf("%s: %q", host, b)
			}
		}
	}
	if keys := c.S3.Objects("staging", ""); len(keys) != 1 || keys[0] != "a b/c" {
		t.Errorf("keys %q", keys)
	}
}

func TestUnmodelledServiceAndAction(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	for _, service := range []string{"dynamodb", "cloudwatch"} {
		code(t, post(t.Context(), c.Config(), service, "ListTables"), "UnsupportedOperation")
	}
	_, err := sqs.NewFromConfig(noRetry(c.Config())).ListMessageMoveTasks(t.Context(), &sqs.ListMessageMoveTasksInput{SourceArn: aws.String("arn:aws:sqs:us-east-1:000000000000:x")})
	code(t, err, "UnsupportedOperation")
	if !strings.Contains(err.Error(), "ListMessageMoveTasks") {
		t.Errorf("the action is not named: %v", err)
	}
	_, err = sts.NewFromConfig(noRetry(c.Config())).GetSessionToken(t.Context(), nil)
	code(t, err, "UnsupportedOperation")
	_, err = ssm.NewFromConfig(noRetry(c.Config())).ListDocuments(t.Context(), nil)
	code(t, err, "UnsupportedOperation")
	_, err = awsconf.S3(noRetry(c.Config())).GetBucketCors(t.Context(), &s3.GetBucketCorsInput{Bucket: aws.String("none")})
	code(t, err, "NoSuchBucket")
	c.S3.CreateBucket("some", "")
	_, err = awsconf.S3(noRetry(c.Config())).GetBucketCors(t.Context(), &s3.GetBucketCorsInput{Bucket: aws.String("some")})
	code(t, err, "NotImplemented")
	if !strings.Contains(err.Error(), "GetBucketCors") {
		t.Errorf("the operation is not named: %v", err)
	}
}

func noDelay(int, error) (time.Duration, error) { return 0, nil }
