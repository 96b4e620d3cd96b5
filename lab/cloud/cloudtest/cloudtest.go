// Package cloudtest starts a fake cloud for a test and gives out SDK
// configurations that reach it. It owns nothing else.
package cloudtest

import (
	"net/http/httptest"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go/middleware"

	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// Cloud is a listening fake cloud.
type Cloud struct {
	*cloud.Cloud
	URL  string
	Port int

	region string
}

// New starts a cloud on a free loopback port; it ends with the test.
func New(t testing.TB, o cloud.Options) *Cloud {
	t.Helper()
	c := cloud.New(o)
	e, err := c.Start(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close(); c.Close() })
	region := o.Region
	if region == "" {
		region = "us-east-1"
	}
	return &Cloud{Cloud: c, URL: e.URL, Port: e.Port, region: region}
}

// Config returns the operator's configuration.
func (c *Cloud) Config() aws.Config {
	return c.As(wire.Credentials{AccessKeyID: "test", SecretAccessKey: "test"})
}

// As returns a configuration with other credentials: an instance's, from
// Vault.Vend, or ones that are not known at all.
func (c *Cloud) As(creds wire.Credentials) aws.Config {
	return aws.Config{
		Region: c.region, BaseEndpoint: aws.String(c.URL),
		Credentials: credentials.NewStaticCredentialsProvider(creds.AccessKeyID, creds.SecretAccessKey, creds.SessionToken),
		// What awsconf.Load and the SDK's LoadDefaultConfig set.
		APIOptions:                 []func(*middleware.Stack) error{awsconf.WholeBodies},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
	}
}

// TLS returns a configuration that reaches the cloud by TLS, on an endpoint
// that ends with the test.
func (c *Cloud) TLS(t testing.TB, cfg aws.Config) aws.Config {
	t.Helper()
	srv := httptest.NewTLSServer(c.Cloud)
	t.Cleanup(srv.Close)
	cfg.BaseEndpoint, cfg.HTTPClient = &srv.URL, srv.Client()
	return cfg
}

// Env returns the environment of a program that is to reach the cloud with
// the operator's key, and of nothing else.
func (c *Cloud) Env() []string {
	return []string{
		"AWS_ENDPOINT_URL=" + c.URL, "AWS_REGION=" + c.region, "AWS_DEFAULT_REGION=" + c.region,
		"AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
	}
}
