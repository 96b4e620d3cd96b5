// Package awsconf loads the one aws.Config a program uses. It owns the
// defaults that all of lecafe shares (IMDSv2 only, path-style S3 behind a
// custom endpoint) and refuses to fall back to IMDSv1.
package awsconf

import (
	"context"
	"fmt"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
)

// Options select the account, region and endpoint. Empty fields leave the
// choice to the SDK's own environment variables and shared files.
type Options struct {
	Profile  string
	Region   string
	Endpoint string // base URL of LocalStack, moto or the lab
}

// Load returns the SDK's default configuration with IMDSv1 disabled. Its region
// is empty where neither options, environment nor profile name one, and this is
// no instance.
func Load(ctx context.Context, o Options) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{
		config.WithAPIOptions([]func(*middleware.Stack) error{WholeBodies}),
		config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) {
			o.Client = imds.New(imds.Options{EnableFallback: aws.FalseTernary})
		}),
	}
	if o.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(o.Profile))
	}
	if o.Region != "" {
		opts = append(opts, config.WithRegion(o.Region))
	}
	if o.Endpoint != "" {
		opts = append(opts, config.WithBaseEndpoint(o.Endpoint))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return aws.Config{}, fmt.Errorf("load AWS configuration: %w", err)
	}
	if cfg.Region != "" {
		return cfg, nil
	}
	// The SDK's own look there makes an error of an absent metadata service,
	// which is everywhere but on an instance.
	here, err := imds.New(imds.Options{EnableFallback: aws.FalseTernary}).GetRegion(ctx, nil)
	if err != nil || here.Region == "" {
		return cfg, ctx.Err()
	}
	o.Region = here.Region
	return Load(ctx, o)
}

// S3 returns an S3 client. Behind a custom endpoint buckets are addressed by
// path: emulators have no wildcard DNS.
func S3(cfg aws.Config) *s3.Client {
	return s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.UsePathStyle = cfg.BaseEndpoint != nil || os.Getenv("AWS_ENDPOINT_URL") != "" || os.Getenv("AWS_ENDPOINT_URL_S3") != ""
	})
}
