package sts_test

import (
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

func client(cfg aws.Config) *sts.Client {
	cfg.RetryMaxAttempts = 1
	return sts.NewFromConfig(cfg)
}

func code(t *testing.T, err error, want string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || e.ErrorCode() != want {
		t.Fatalf("error %v, want %s", err, want)
	}
}

// UserId is ROLEID:instance-id for credentials vended to an instance, and
// needs no permission.
func TestIdentityOfAnInstance(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	creds := c.Vault.Vend("lecafe-app-role", "i-0123456789abcdef0", time.Hour)
	id, err := client(c.As(creds)).GetCallerIdentity(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if *id.UserId != c.Vault.RoleID("lecafe-app-role")+":i-0123456789abcdef0" || *id.Arn != "arn:aws:sts::"+wire.Account+":assumed-role/lecafe-app-role/i-0123456789abcdef0" {
		t.Errorf("%s %s", *id.UserId, *id.Arn)
	}
	other := c.Vault.Vend("lecafe-app-role", "i-1", time.Hour)
	if c.Vault.RoleID("lecafe-app-role")+":i-1" != other.Caller.UserID {
		t.Errorf("another instance of the role: %s", other.Caller.UserID)
	}
}

func TestAssumeRole(t *testing.T) {
	clock := wire.NewManual(time.Now())
	c := cloudtest.New(t, cloud.Options{Clock: clock})
	arn := "arn:aws:iam::" + wire.Account + ":role/team/deploy"
	assume := func(cfg aws.Config, arn, session string, seconds *int32) (*sts.AssumeRoleOutput, error) {
		return client(cfg).AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: &arn, RoleSessionName: &session, DurationSeconds: seconds})
	}
	_, err := assume(c.Config(), arn, "ci", aws.Int32(900))
	code(t, err, "AccessDenied") // there is no such role
	if err := c.PutRolePolicy("deploy", "none", `{"Version":"2012-10-17","Statement":[]}`); err != nil {
		t.Fatal(err)
	}
	out, err := assume(c.Config(), arn, "ci", aws.Int32(900))
	if err != nil {
		t.Fatal(err)
	}
	creds := wire.Credentials{AccessKeyID: *out.Credentials.AccessKeyId, SecretAccessKey: *out.Credentials.SecretAccessKey, SessionToken: *out.Credentials.SessionToken}
	id, err := client(c.As(creds)).GetCallerIdentity(t.Context(), nil)
	if err != nil || *id.Arn != "arn:aws:sts::"+wire.Account+":assumed-role/deploy/ci" || *id.UserId != *out.AssumedRoleUser.AssumedRoleId {
		t.Fatalf("%+v %v", id, err)
	}
	// Whoever may assume a role can name the session after an instance; that
	// makes it no instance.
	if fake, err := assume(c.Config(), arn, "i-0123456789abcdef0", nil); err != nil {
		t.Error(err)
	} else if have, _ := c.Vault.Lookup(*fake.Credentials.AccessKeyId); have.Caller.InstanceID != "" {
		t.Errorf("instance %s", have.Caller.InstanceID)
	}
	_, err = assume(c.As(creds), arn, "chained", nil)
	code(t, err, "AccessDenied")
	if err := c.PutRolePolicy("deploy", "chain", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"`+arn+`"}]}`); err != nil {
		t.Fatal(err)
	}
	_, err = assume(c.As(creds), arn, "chained", aws.Int32(3601))
	code(t, err, "ValidationError")
	for name, tt := range map[string]struct {
		arn, session string
		seconds      int32
	}{
		"ARN":             {"deploy", "ci", 900},
		"another account": {"arn:aws:iam::111111111111:role/deploy", "ci", 900},
		"session name":    {arn, "a b", 900},
		"too short":       {arn, "ci", 899},
		"too long":        {arn, "ci", 43201},
	} {
		_, err := assume(c.Config(), tt.arn, tt.session, &tt.seconds)
		t.Run(name, func(t *testing.T) { code(t, err, "ValidationError") })
	}
	clock.Advance(14 * time.Minute)
	if _, err := client(c.As(creds)).GetCallerIdentity(t.Context(), nil); err != nil {
		t.Error(err)
	}
	// By now the machine's clock is 15 minutes behind: the SDK corrects itself
	// by the first answer and tries again.
	clock.Advance(time.Minute)
	cfg := c.As(creds)
	cfg.Retryer = func() aws.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) {
			o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
		})
	}
	_, err = sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), nil)
	code(t, err, "ExpiredToken")
}
