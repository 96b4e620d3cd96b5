package bake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/lecafe/lecafe/internal/awsconf"
)

// ec2API is what a bake asks of EC2.
type ec2API interface {
	CopyImage(context.Context, *ec2.CopyImageInput, ...func(*ec2.Options)) (*ec2.CopyImageOutput, error)
	CreateImage(context.Context, *ec2.CreateImageInput, ...func(*ec2.Options)) (*ec2.CreateImageOutput, error)
	CreateLaunchTemplate(context.Context, *ec2.CreateLaunchTemplateInput, ...func(*ec2.Options)) (*ec2.CreateLaunchTemplateOutput, error)
	CreateSecurityGroup(context.Context, *ec2.CreateSecurityGroupInput, ...func(*ec2.Options)) (*ec2.CreateSecurityGroupOutput, error)
	CreateTags(context.Context, *ec2.CreateTagsInput, ...func(*ec2.Options)) (*ec2.CreateTagsOutput, error)
	DeleteLaunchTemplate(context.Context, *ec2.DeleteLaunchTemplateInput, ...func(*ec2.Options)) (*ec2.DeleteLaunchTemplateOutput, error)
	DeleteSecurityGroup(context.Context, *ec2.DeleteSecurityGroupInput, ...func(*ec2.Options)) (*ec2.DeleteSecurityGroupOutput, error)
	DeleteSnapshot(context.Context, *ec2.DeleteSnapshotInput, ...func(*ec2.Options)) (*ec2.DeleteSnapshotOutput, error)
	DeleteTags(context.Context, *ec2.DeleteTagsInput, ...func(*ec2.Options)) (*ec2.DeleteTagsOutput, error)
	DeleteVolume(context.Context, *ec2.DeleteVolumeInput, ...func(*ec2.Options)) (*ec2.DeleteVolumeOutput, error)
	DeregisterImage(context.Context, *ec2.DeregisterImageInput, ...func(*ec2.Options)) (*ec2.DeregisterImageOutput, error)
	DescribeImages(context.Context, *ec2.DescribeImagesInput, ...func(*ec2.Options)) (*ec2.DescribeImagesOutput, error)
	DescribeInstances(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
	DescribeLaunchTemplates(context.Context, *ec2.DescribeLaunchTemplatesInput, ...func(*ec2.Options)) (*ec2.DescribeLaunchTemplatesOutput, error)
	DescribeLaunchTemplateVersions(context.Context, *ec2.DescribeLaunchTemplateVersionsInput, ...func(*ec2.Options)) (*ec2.DescribeLaunchTemplateVersionsOutput, error)
	DescribeSecurityGroups(context.Context, *ec2.DescribeSecurityGroupsInput, ...func(*ec2.Options)) (*ec2.DescribeSecurityGroupsOutput, error)
	DescribeSnapshots(context.Context, *ec2.DescribeSnapshotsInput, ...func(*ec2.Options)) (*ec2.DescribeSnapshotsOutput, error)
	DescribeSubnets(context.Context, *ec2.DescribeSubnetsInput, ...func(*ec2.Options)) (*ec2.DescribeSubnetsOutput, error)
	DescribeVolumes(context.Context, *ec2.DescribeVolumesInput, ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error)
	DisableImageDeregistrationProtection(context.Context, *ec2.DisableImageDeregistrationProtectionInput, ...func(*ec2.Options)) (*ec2.DisableImageDeregistrationProtectionOutput, error)
	EnableImageDeprecation(context.Context, *ec2.EnableImageDeprecationInput, ...func(*ec2.Options)) (*ec2.EnableImageDeprecationOutput, error)
	EnableImageDeregistrationProtection(context.Context, *ec2.EnableImageDeregistrationProtectionInput, ...func(*ec2.Options)) (*ec2.EnableImageDeregistrationProtectionOutput, error)
	GetConsoleOutput(context.Context, *ec2.GetConsoleOutputInput, ...func(*ec2.Options)) (*ec2.GetConsoleOutputOutput, error)
	ModifyImageAttribute(context.Context, *ec2.ModifyImageAttributeInput, ...func(*ec2.Options)) (*ec2.ModifyImageAttributeOutput, error)
	RunInstances(context.Context, *ec2.RunInstancesInput, ...func(*ec2.Options)) (*ec2.RunInstancesOutput, error)
	StopInstances(context.Context, *ec2.StopInstancesInput, ...func(*ec2.Options)) (*ec2.StopInstancesOutput, error)
	TerminateInstances(context.Context, *ec2.TerminateInstancesInput, ...func(*ec2.Options)) (*ec2.TerminateInstancesOutput, error)
}

// s3API is what a bake asks of S3.
type s3API interface {
	DeleteObject(context.Context, *s3.DeleteObjectInput, ...func(*s3.Options)) (*s3.DeleteObjectOutput, error)
	DeleteObjects(context.Context, *s3.DeleteObjectsInput, ...func(*s3.Options)) (*s3.DeleteObjectsOutput, error)
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	ListObjectsV2(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
}

// ssmAPI is what a bake asks of SSM.
type ssmAPI interface {
	GetParameter(context.Context, *ssm.GetParameterInput, ...func(*ssm.Options)) (*ssm.GetParameterOutput, error)
}

// cloud is the clients of one bake.
type cloud struct {
	cfg    aws.Config
	ec2    ec2API
	s3     s3API
	ssm    ssmAPI
	signer *s3.PresignClient
}

// connect makes the clients. The SDK's retries see to throttling, 5xx and
// broken connections: up to 10 attempts with at most 20 s between them. Expired
// credentials are asked for anew for as long as patience says.
func connect(cfg aws.Config, patience time.Duration) cloud {
	cfg = cfg.Copy()
	cfg.Logger = logging.Nop{} // the SDK's own warnings would tear the display
	cache, _ := cfg.Credentials.(*aws.CredentialsCache)
	cfg.Retryer = func() aws.Retryer {
		return &retryer{cache: cache, patience: patience, RetryerV2: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff = 10, 20*time.Second
			// The quota that the SDK shares over calls would end retries of
			// one call because others were throttled before.
			o.RateLimiter = noLimit{}
		})}
	}
	client := awsconf.S3(cfg)
	return cloud{cfg: cfg, ec2: ec2.NewFromConfig(cfg), s3: client, ssm: ssm.NewFromConfig(cfg), signer: presigner(client)}
}

// retryer is the SDK's standard one, but that it waits for the credentials'
// provider when they have expired: each attempt is signed anew.
type retryer struct {
	aws.RetryerV2
	cache    *aws.CredentialsCache
	patience time.Duration

	mu    sync.Mutex
	since time.Time // of the first refusal in a row
}

func (r *retryer) IsErrorRetryable(err error) bool {
	if isCode(err, noCapacity...) {
		return false // a 500 of EC2's, and the next type or subnet is the answer
	}
	if !expired(err) {
		return r.RetryerV2.IsErrorRetryable(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.since.IsZero() || now.Sub(r.since) > 10*r.patience {
		r.since = now
	}
	if r.cache != nil {
		r.cache.Invalidate()
	}
	return now.Sub(r.since) < r.patience
}

func (r *retryer) RetryDelay(attempt int, err error) (time.Duration, error) {
	if expired(err) {
		return r.patience / 8, nil
	}
	return r.RetryerV2.RetryDelay(attempt, err)
}

type noLimit struct{}

func (noLimit) GetToken(context.Context, uint) (func() error, error) {
	return func() error { return nil }, nil
}
func (noLimit) AddTokens(uint) error { return nil }

// in returns an EC2 client for another region, of the same endpoint.
func (c cloud) in(region string) ec2API {
	if region == "" || region == c.cfg.Region {
		return c.ec2
	}
	return ec2.NewFromConfig(connectConfig(c.cfg, region))
}

// staged is the cloud with its S3 client in another region.
func (c cloud) staged(region string) cloud {
	client := awsconf.S3(connectConfig(c.cfg, region))
	c.s3, c.signer = client, presigner(client)
	return c
}

func connectConfig(cfg aws.Config, region string) aws.Config {
	cfg = cfg.Copy()
	cfg.Region = region
	return cfg
}

// code returns the API's error code; empty for other errors.
func code(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}

func isCode(err error, codes ...string) bool {
	c := code(err)
	return c != "" && slices.Contains(codes, c)
}

func status(err error) int {
	var re *smithyhttp.ResponseError
	if errors.As(err, &re) {
		return re.HTTPStatusCode()
	}
	return 0
}

// notImplemented says that an emulator lacks the call: it answers 501, 500
// with NotImplemented, or names an action that it does not know. AWS itself
// never answers so.
func notImplemented(err error) bool {
	return status(err) == http.StatusNotImplemented || isCode(err, "NotImplemented", "NotImplementedError", "InvalidAction", "UnsupportedOperation", "InternalFailure.NotImplemented") ||
		(status(err) == http.StatusInternalServerError && slices.Contains([]string{"NotImplementedError", "UnknownError", ""}, code(err)))
}

// missing says that S3 has no such object. Without s3:ListBucket S3 says
// AccessDenied for a missing key.
func missing(err error) bool {
	return isCode(err, "NoSuchKey", "NotFound", "AccessDenied", "Forbidden")
}

// throttled says that the SDK gave up after its own retries.
func throttled(err error) bool {
	return isCode(err, "RequestLimitExceeded", "Throttling", "ThrottlingException", "SlowDown", "TooManyRequestsException", "RequestThrottled", "EC2ThrottledException")
}

// passing says that an error of a poll is worth another poll.
func passing(err error) bool {
	var ce *aws.RequestCanceledError
	if errors.As(err, &ce) {
		return false
	}
	if isCode(err, noCapacity...) {
		return false // although it is a 500
	}
	if throttled(err) || status(err) >= 500 {
		return true
	}
	var send *smithyhttp.RequestSendError // the connection
	return errors.As(err, &send) || errors.Is(err, io.ErrUnexpectedEOF)
}

// pace is how the waits of a bake poll.
type pace struct {
	poll  time.Duration // at first and while things go well; default 2s
	sleep func(context.Context, time.Duration) error
}

func realSleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// rhythm is how a wait for something slow asks: seldom where an answer is not
// to be expected yet, and the less often the longer it has waited, so that a
// question comes late by a fifteenth of the wait at most. The zero value asks
// at every poll first.
type rhythm struct {
	waited time.Duration // since the last news
	left   time.Duration // as the cloud's own progress says; 0: not known
}

// What every rhythm has, in polls.
const (
	firstPolls   = 5 // 10 s: EC2 hardly boots, stops or ends an instance or makes an image in less
	longestPolls = 8
	waitedShare  = 15
)

func (r *rhythm) gap(poll time.Duration) time.Duration {
	return min(max(poll, r.waited/waitedShare, r.left/2), longestPolls*poll)
}

// news brings the rhythm back to its beginning.
func (r *rhythm) news() { *r = rhythm{} }

// await calls f until it is done or fails for good, in the rhythm r (nil: one
// of its own). What this process has just begun, fresh, it leaves alone for a
// while first.
func (p pace) await(ctx context.Context, fresh bool, r *rhythm, f func() (done bool, err error)) error {
	if r == nil {
		r = &rhythm{}
	}
	if fresh {
		r.waited = firstPolls * p.poll
		if err := p.sleep(ctx, r.waited); err != nil {
			return err
		}
	}
	return p.ask(ctx, func() time.Duration { return r.gap(p.poll) }, func(d time.Duration) { r.waited += d }, f)
}

// until calls f about every poll until it is done or fails for good.
func (p pace) until(ctx context.Context, f func() (done bool, err error)) error {
	return p.ask(ctx, func() time.Duration { return p.poll }, func(time.Duration) {}, f)
}

// ask calls f with at least gap between. Under throttling the interval
// doubles, up to 30 s, and comes back slowly.
func (p pace) ask(ctx context.Context, gap func() time.Duration, waited func(time.Duration), f func() (done bool, err error)) error {
	wait := p.poll
	for {
		done, err := f()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !passing(err):
			return err
		case err != nil:
			wait = min(2*wait, max(30*time.Second, p.poll))
		case done:
			return nil
		default:
			wait = max(wait*3/4, p.poll)
		}
		next := max(wait, gap())
		if err := p.sleep(ctx, next); err != nil {
			return err
		}
		waited(next)
	}
}

// visible repeats f while AWS does not know what was just made: EC2 is
// eventually consistent.
// https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html
func (p pace) visible(ctx context.Context, notFound string, f func() error) error {
	const patience = 2 * time.Minute
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%s for %s after its creation", notFound, patience))
	defer cancel()
	return p.until(ctx, func() (bool, error) {
		err := f()
		if isCode(err, notFound) {
			return false, nil
		}
		return err == nil, err
	})
}
