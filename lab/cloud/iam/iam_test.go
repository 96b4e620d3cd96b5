package iam_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const (
	trustEC2 = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}`
	trustAll = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam::000000000000:root"]},"Action":"sts:AssumeRole"}]}`
	readSSM  = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ssm:Describe*","Resource":"*"}]}`
)

func start(t *testing.T) (*cloudtest.Cloud, *sdk.Client) {
	t.Helper()
	c := cloudtest.New(t, cloud.Options{})
	cfg := c.Config()
	cfg.RetryMaxAttempts = 1
	return c, sdk.NewFromConfig(cfg)
}

func code(t *testing.T, err error, want string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || e.ErrorCode() != want {
		t.Fatalf("error %v, want %s", err, want)
	}
}

func ok[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestProfilesAndRoles(t *testing.T) {
	c, api := start(t)
	ctx, role, profile := t.Context(), aws.String("cafe-role"), aws.String("cafe-profile")
	made := ok(api.CreateRole(ctx, &sdk.CreateRoleInput{RoleName: role, AssumeRolePolicyDocument: aws.String(trustEC2)}))(t)
	if *made.Role.RoleId != c.Vault.RoleID("cafe-role") || !strings.HasPrefix(*made.Role.RoleId, "AROA") {
		t.Errorf("role ID %s", *made.Role.RoleId)
	}
	_, err := api.CreateRole(ctx, &sdk.CreateRoleInput{RoleName: role, AssumeRolePolicyDocument: aws.String(trustEC2)})
	code(t, err, "EntityAlreadyExists")
	_, err = api.CreateRole(ctx, &sdk.CreateRoleInput{RoleName: aws.String("x"), AssumeRolePolicyDocument: aws.String("{")})
	code(t, err, "MalformedPolicyDocument")
	_, err = api.CreateRole(ctx, &sdk.CreateRoleInput{RoleName: aws.String("x"), AssumeRolePolicyDocument: aws.String(trustEC2), Path: aws.String("/team/")})
	code(t, err, "UnsupportedOperation")
	ok(api.CreateInstanceProfile(ctx, &sdk.CreateInstanceProfileInput{InstanceProfileName: profile}))(t)
	_, err = api.AddRoleToInstanceProfile(ctx, &sdk.AddRoleToInstanceProfileInput{InstanceProfileName: profile, RoleName: aws.String("nosuch")})
	code(t, err, "NoSuchEntity")
	ok(api.AddRoleToInstanceProfile(ctx, &sdk.AddRoleToInstanceProfileInput{InstanceProfileName: profile, RoleName: role}))(t)
	_, err = api.AddRoleToInstanceProfile(ctx, &sdk.AddRoleToInstanceProfileInput{InstanceProfileName: profile, RoleName: role})
	code(t, err, "LimitExceeded")
	got := ok(api.GetInstanceProfile(ctx, &sdk.GetInstanceProfileInput{InstanceProfileName: profile}))(t).InstanceProfile
	if len(got.Roles) != 1 || *got.Roles[0].RoleId != c.Vault.RoleID("cafe-role") || *got.Arn != "arn:aws:iam::"+wire.Account+":instance-profile/cafe-profile" {
		t.Errorf("%+v", got)
	}
	_, err = api.GetInstanceProfile(ctx, &sdk.GetInstanceProfileInput{InstanceProfileName: aws.String("nosuch")})
	code(t, err, "NoSuchEntity")
	_, err = api.DeleteRole(ctx, &sdk.DeleteRoleInput{RoleName: role})
	code(t, err, "DeleteConflict")
	_, err = api.DeleteInstanceProfile(ctx, &sdk.DeleteInstanceProfileInput{InstanceProfileName: profile})
	code(t, err, "DeleteConflict")

	// What EC2 knows, IAM knows.
	c.EC2.PutInstanceProfile("seeded", "seeded-role")
	if list := ok(api.ListInstanceProfiles(ctx, nil))(t).InstanceProfiles; len(list) != 2 || *list[1].Roles[0].RoleName != "seeded-role" {
		t.Errorf("%+v", list)
	}
	ok(api.GetRole(ctx, &sdk.GetRoleInput{RoleName: aws.String("seeded-role")}))(t)

	ok(api.RemoveRoleFromInstanceProfile(ctx, &sdk.RemoveRoleFromInstanceProfileInput{InstanceProfileName: profile, RoleName: role}))(t)
	ok(api.DeleteInstanceProfile(ctx, &sdk.DeleteInstanceProfileInput{InstanceProfileName: profile}))(t)
	ok(api.DeleteRole(ctx, &sdk.DeleteRoleInput{RoleName: role}))(t)
	_, err = api.GetRole(ctx, &sdk.GetRoleInput{RoleName: role})
	code(t, err, "NoSuchEntity")
	_, err = api.ListUsers(ctx, nil)
	code(t, err, "UnsupportedOperation")
}

// Policies made through the API decide what an instance may do.
func TestPoliciesDecide(t *testing.T) {
	c, api := start(t)
	ctx, role := t.Context(), aws.String("cafe-role")
	ok(api.CreateRole(ctx, &sdk.CreateRoleInput{RoleName: role, AssumeRolePolicyDocument: aws.String(trustEC2)}))(t)
	cfg := c.As(c.Vault.Vend("cafe-role", "i-1", time.Hour))
	cfg.RetryMaxAttempts = 1
	try := func() error {
		_, err := ssm.NewFromConfig(cfg).DescribeParameters(ctx, nil)
		return err
	}
	code(t, try(), "AccessDeniedException")
	_, err := api.PutRolePolicy(ctx, &sdk.PutRolePolicyInput{RoleName: role, PolicyName: aws.String("read"), PolicyDocument: aws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Maybe"}]}`)})
	code(t, err, "MalformedPolicyDocument")
	ok(api.PutRolePolicy(ctx, &sdk.PutRolePolicyInput{RoleName: role, PolicyName: aws.String("read"), PolicyDocument: aws.String(readSSM)}))(t)
	if err := try(); err != nil {
		t.Error(err)
	}
	doc := *ok(api.GetRolePolicy(ctx, &sdk.GetRolePolicyInput{RoleName: role, PolicyName: aws.String("read")}))(t).PolicyDocument
	if text, err := url.PathUnescape(doc); err != nil || text != readSSM || doc == readSSM {
		t.Errorf("document %s", doc)
	}
	if names := ok(api.ListRolePolicies(ctx, &sdk.ListRolePoliciesInput{RoleName: role}))(t).PolicyNames; len(names) != 1 || names[0] != "read" {
		t.Errorf("policies %v", names)
	}
	_, err = api.DeleteRole(ctx, &sdk.DeleteRoleInput{RoleName: role})
	code(t, err, "DeleteConflict")

	// An attached policy's deny wins over the inline allow.
	arn := ok(api.CreatePolicy(ctx, &sdk.CreatePolicyInput{PolicyName: aws.String("no"), PolicyDocument: aws.String(strings.Replace(readSSM, "Allow", "Deny", 1))}))(t).Policy.Arn
	ok(api.AttachRolePolicy(ctx, &sdk.AttachRolePolicyInput{RoleName: role, PolicyArn: arn}))(t)
	code(t, try(), "AccessDeniedException")
	if list := ok(api.ListAttachedRolePolicies(ctx, &sdk.ListAttachedRolePoliciesInput{RoleName: role}))(t).AttachedPolicies; len(list) != 1 || *list[0].PolicyArn != *arn {
		t.Errorf("%+v", list)
	}
	have := ok(api.GetPolicy(ctx, &sdk.GetPolicyInput{PolicyArn: arn}))(t).Policy
	version := ok(api.GetPolicyVersion(ctx, &sdk.GetPolicyVersionInput{PolicyArn: arn, VersionId: have.DefaultVersionId}))(t).PolicyVersion
	if text, _ := url.PathUnescape(*version.Document); !strings.Contains(text, "Deny") || *have.AttachmentCount != 1 {
		t.Errorf("%s, %d attachments", text, *have.AttachmentCount)
	}
	_, err = api.DeletePolicy(ctx, &sdk.DeletePolicyInput{PolicyArn: arn})
	code(t, err, "DeleteConflict")
	ok(api.DetachRolePolicy(ctx, &sdk.DetachRolePolicyInput{RoleName: role, PolicyArn: arn}))(t)
	if err := try(); err != nil {
		t.Error(err)
	}
	_, err = api.AttachRolePolicy(ctx, &sdk.AttachRolePolicyInput{RoleName: role, PolicyArn: aws.String("arn:aws:iam::aws:policy/ReadOnlyAccess")})
	code(t, err, "NoSuchEntity")
}

func TestTrust(t *testing.T) {
	c, api := start(t)
	ctx, role := t.Context(), aws.String("deploy")
	ok(api.CreateRole(ctx, &sdk.CreateRoleInput{RoleName: role, AssumeRolePolicyDocument: aws.String(trustEC2)}))(t)
	assume := func() error {
		_, err := sts.NewFromConfig(c.Config()).AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: aws.String("arn:aws:iam::" + wire.Account + ":role/deploy"), RoleSessionName: aws.String("ci")})
		return err
	}
	code(t, assume(), "AccessDenied") // trusts EC2 alone
	for trust, allowed := range map[string]bool{
		trustAll: true,
		strings.Replace(trustAll, "Allow", "Deny", 1):                                                                     false,
		strings.Replace(trustAll, "000000000000", "111111111111", 1):                                                      false,
		strings.Replace(trustAll, `"Action"`, `"Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"}},"Action"`, 1):   false,
		strings.Replace(trustAll, "[\"arn:aws:iam::000000000000:root\"]", `"arn:aws:iam::000000000000:user/operator"`, 1): true,
	} {
		ok(api.UpdateAssumeRolePolicy(ctx, &sdk.UpdateAssumeRolePolicyInput{RoleName: role, PolicyDocument: &trust}))(t)
		if err := assume(); (err == nil) != allowed {
			t.Errorf("%s: %v", trust, err)
		}
	}
}
