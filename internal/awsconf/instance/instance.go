// Package instance makes the aws.Config of a program that runs on an instance
// with the instance's role: IMDSv2 and nothing else gives credentials, and one
// metadata client is shared so that its token is fetched once. It knows no
// profiles, environment variables or sign-in, and is small for it.
package instance

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
)

// Options say how AWS is reached. Empty fields are the defaults.
type Options struct {
	Region   string
	Endpoint string // base URL of LocalStack, moto or the lab
	CABundle string // PEM file, taken beside the system's
	Proxy    string // never used for IMDS
}

// IMDS returns a metadata client that speaks IMDSv2 only. endpoint is empty on
// an instance; tests name their own.
func IMDS(endpoint string) *imds.Client {
	return imds.New(imds.Options{
		Endpoint:       endpoint,
		EnableFallback: aws.FalseTernary,
		// Link-local and close: no proxy, and no long wait for what is not there.
		HTTPClient: &http.Client{
			Timeout:   5 * time.Second,
			Transport: &http.Transport{DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, MaxIdleConns: 2, IdleConnTimeout: time.Minute},
		},
	})
}

// Skew remembers how far AWS's clock is from this machine's, as its answers
// say. The zero value is ready.
type Skew struct{ d atomic.Int64 }

// Get returns AWS's time minus this machine's, 0 before the first answer.
func (s *Skew) Get() time.Duration { return time.Duration(s.d.Load()) }

type skewClient struct {
	next aws.HTTPClient
	skew *Skew
}

func (c skewClient) Do(r *http.Request) (*http.Response, error) {
	resp, err := c.next.Do(r)
	if err == nil {
		if at, perr := http.ParseTime(resp.Header.Get("Date")); perr == nil {
			c.skew.d.Store(int64(time.Until(at)))
		}
	}
	return resp, err
}

// Config returns a configuration whose credentials come from meta. They are
// renewed before they expire, and once AWS has refused them. skew may be nil.
func Config(o Options, meta *imds.Client, skew *Skew) (aws.Config, error) {
	client := awshttp.NewBuildableClient().WithDialerOptions(func(d *net.Dialer) { d.Timeout = 5 * time.Second })
	if o.CABundle != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pem, err := os.ReadFile(o.CABundle)
		if err != nil {
			return aws.Config{}, fmt.Errorf("read CA bundle: %w; correct aws.ca_bundle", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return aws.Config{}, fmt.Errorf("read CA bundle %s: no certificate in it; correct aws.ca_bundle", o.CABundle)
		}
		client = client.WithTransportOptions(func(t *http.Transport) {
			t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		})
	}
	if o.Proxy != "" {
		u, err := url.Parse(o.Proxy)
		if err != nil {
			return aws.Config{}, errors.New("aws.proxy is no URL; write it as http://host:port")
		}
		client = client.WithTransportOptions(func(t *http.Transport) { t.Proxy = http.ProxyURL(u) })
	}
	cache := aws.NewCredentialsCache(ec2rolecreds.New(func(e *ec2rolecreds.Options) { e.Client = meta }), func(c *aws.CredentialsCacheOptions) {
		// New credentials are there at least five minutes before the old ones
		// expire; the jitter keeps a fleet from asking at once.
		c.ExpiryWindow = 5 * time.Minute
		c.ExpiryWindowJitterFrac = 0.5
	})
	cfg := aws.Config{
		Region: o.Region, Credentials: cache, HTTPClient: client,
		APIOptions: []func(*middleware.Stack) error{forget(cache)},
	}
	if skew != nil {
		cfg.HTTPClient = skewClient{client, skew}
	}
	if o.Endpoint != "" {
		cfg.BaseEndpoint = aws.String(o.Endpoint)
	}
	return cfg, nil
}

// S3 returns an S3 client; behind a custom endpoint buckets are addressed by
// path. region, where not empty, is the bucket's.
func S3(cfg aws.Config, region string) *s3.Client {
	return s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.UsePathStyle = cfg.BaseEndpoint != nil
		if region != "" {
			o.Region = region
		}
	})
}
