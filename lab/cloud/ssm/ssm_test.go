package ssm_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/ssm/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
)

func start(t *testing.T) (*cloudtest.Cloud, *ssm.Client) {
	t.Helper()
	c := cloudtest.New(t, cloud.Options{})
	return c, client(c.Config())
}

func client(cfg aws.Config) *ssm.Client {
	cfg.RetryMaxAttempts = 1
	return ssm.NewFromConfig(cfg)
}

func code(t *testing.T, err error, want string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || e.ErrorCode() != want {
		t.Fatalf("error %v, want %s", err, want)
	}
}

func put(t *testing.T, c *ssm.Client, name, value string) int64 {
	t.Helper()
	out, err := c.PutParameter(t.Context(), &ssm.PutParameterInput{Name: &name, Value: &value, Type: types.ParameterTypeString, Overwrite: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	return out.Version
}

func TestVersions(t *testing.T) {
	_, c := start(t)
	name := aws.String("/lecafe/ami")
	in := &ssm.PutParameterInput{Name: name, Value: aws.String("one"), Type: types.ParameterTypeString}
	if _, err := c.PutParameter(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	_, err := c.PutParameter(t.Context(), in)
	code(t, err, "ParameterAlreadyExists")
	in.Overwrite, in.Value, in.Type = aws.Bool(true), aws.String("two"), ""
	if out, err := c.PutParameter(t.Context(), in); err != nil || out.Version != 2 {
		t.Fatalf("%+v %v", out, err)
	}
	for selector, want := range map[string]string{"/lecafe/ami": "two", "/lecafe/ami:1": "one", "/lecafe/ami:2": "two"} {
		out, err := c.GetParameter(t.Context(), &ssm.GetParameterInput{Name: &selector})
		if err != nil || *out.Parameter.Value != want || *out.Parameter.Name != *name {
			t.Errorf("%s: %+v %v", selector, out, err)
		}
	}
	_, err = c.GetParameter(t.Context(), &ssm.GetParameterInput{Name: aws.String("/lecafe/ami:3")})
	code(t, err, "ParameterVersionNotFound")
	_, err = c.GetParameter(t.Context(), &ssm.GetParameterInput{Name: aws.String("/lecafe/nosuch")})
	code(t, err, "ParameterNotFound")
	for i := 3; i <= 102; i++ {
		put(t, c, *name, fmt.Sprint(i))
	}
	_, err = c.GetParameter(t.Context(), &ssm.GetParameterInput{Name: aws.String("/lecafe/ami:2")})
	code(t, err, "ParameterVersionNotFound") // only 100 are kept
}

func TestRefused(t *testing.T) {
	_, c := start(t)
	for name, tt := range map[string]struct {
		in   ssm.PutParameterInput
		code string
	}{
		"no type":               {ssm.PutParameterInput{Name: aws.String("a"), Value: aws.String("x")}, "ValidationException"},
		"unknown type":          {ssm.PutParameterInput{Name: aws.String("a"), Value: aws.String("x"), Type: "Text"}, "ValidationException"},
		"reserved name":         {ssm.PutParameterInput{Name: aws.String("/aws/service/x"), Value: aws.String("x"), Type: "String"}, "AccessDeniedException"},
		"ssm in front":          {ssm.PutParameterInput{Name: aws.String("/ssm/x"), Value: aws.String("x"), Type: "String"}, "ValidationException"},
		"name's characters":     {ssm.PutParameterInput{Name: aws.String("a b"), Value: aws.String("x"), Type: "String"}, "ValidationException"},
		"path without slash":    {ssm.PutParameterInput{Name: aws.String("a/b"), Value: aws.String("x"), Type: "String"}, "ValidationException"},
		"sixteen levels":        {ssm.PutParameterInput{Name: aws.String(strings.Repeat("/a", 16)), Value: aws.String("x"), Type: "String"}, "HierarchyLevelLimitExceededException"},
		"over 4 KB":             {ssm.PutParameterInput{Name: aws.String("a"), Value: aws.String(strings.Repeat("x", 4097)), Type: "String"}, "ValidationException"},
		"no AMI ID":             {ssm.PutParameterInput{Name: aws.String("a"), Value: aws.String("ami-xyz"), Type: "String", DataType: aws.String("aws:ec2:image")}, "ValidationException"},
		"AMI in a SecureString": {ssm.PutParameterInput{Name: aws.String("a"), Value: aws.String("ami-12345678"), Type: "SecureString", DataType: aws.String("aws:ec2:image")}, "ValidationException"},
		"unknown data type":     {ssm.PutParameterInput{Name: aws.String("a"), Value: aws.String("x"), Type: "String", DataType: aws.String("json")}, "ValidationException"},
		"tags on overwrite":     {ssm.PutParameterInput{Name: aws.String("a"), Value: aws.String("x"), Type: "String", Overwrite: aws.Bool(true), Tags: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}, "ValidationException"},
		"a tier not modelled":   {ssm.PutParameterInput{Name: aws.String("a"), Value: aws.String("x"), Type: "String", Tier: "Advanced"}, "UnsupportedOperation"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.PutParameter(t.Context(), &tt.in)
			code(t, err, tt.code)
		})
	}
	out, err := c.DescribeParameters(t.Context(), nil)
	if err != nil || len(out.Parameters) != 0 {
		t.Errorf("%+v %v", out, err)
	}
	_, err = c.DeleteParameter(t.Context(), &ssm.DeleteParameterInput{Name: aws.String("nosuch")})
	code(t, err, "ParameterNotFound")
}

func TestListing(t *testing.T) {
	c, client := start(t)
	c.SSM.Put("us-east-1", "/aws/service/debian/release/12/latest/amd64", "ami-12345678")
	for _, name := range []string{"/lecafe/b", "/lecafe/a", "/lecafe/prod/ami", "/other"} {
		put(t, client, name, "x")
	}
	path := func(in ssm.GetParametersByPathInput) string {
		var names []string
		p := ssm.NewGetParametersByPathPaginator(client, &in)
		for p.HasMorePages() {
			out, err := p.NextPage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range out.Parameters {
				names = append(names, *p.Name)
			}
		}
		return strings.Join(names, " ")
	}
	for _, tt := range []struct {
		in   ssm.GetParametersByPathInput
		want string
	}{
		{ssm.GetParametersByPathInput{Path: aws.String("/lecafe")}, "/lecafe/a /lecafe/b"},
		{ssm.GetParametersByPathInput{Path: aws.String("/lecafe/"), Recursive: aws.Bool(true), MaxResults: aws.Int32(1)}, "/lecafe/a /lecafe/b /lecafe/prod/ami"},
		{ssm.GetParametersByPathInput{Path: aws.String("/aws/service/debian"), Recursive: aws.Bool(true)}, "/aws/service/debian/release/12/latest/amd64"},
	} {
		if got := path(tt.in); got != tt.want {
			t.Errorf("%s: %s, want %s", *tt.in.Path, got, tt.want)
		}
	}
	_, err := client.GetParametersByPath(t.Context(), &ssm.GetParametersByPathInput{Path: aws.String("/"), MaxResults: aws.Int32(11)})
	code(t, err, "ValidationException")
	got, err := client.GetParameters(t.Context(), &ssm.GetParametersInput{Names: []string{"/lecafe/a", "/nosuch"}})
	if err != nil || len(got.Parameters) != 1 || len(got.InvalidParameters) != 1 {
		t.Errorf("%+v %v", got, err)
	}
	_, err = client.GetParameters(t.Context(), &ssm.GetParametersInput{Names: make([]string, 11)})
	code(t, err, "ValidationException")
	out, err := client.DescribeParameters(t.Context(), &ssm.DescribeParametersInput{ParameterFilters: []types.ParameterStringFilter{{Key: aws.String("Name"), Option: aws.String("BeginsWith"), Values: []string{"/lecafe/"}}}})
	if err != nil || len(out.Parameters) != 3 {
		t.Errorf("%+v %v", out, err)
	}
	deleted, err := client.DeleteParameters(t.Context(), &ssm.DeleteParametersInput{Names: []string{"/lecafe/a", "/nosuch"}})
	if err != nil || len(deleted.DeletedParameters) != 1 || len(deleted.InvalidParameters) != 1 {
		t.Errorf("%+v %v", deleted, err)
	}
	// Regions are apart.
	cfg := c.Config()
	cfg.Region = "eu-west-1"
	ireland := ssm.NewFromConfig(cfg)
	_, err = ireland.GetParameter(t.Context(), &ssm.GetParameterInput{Name: aws.String("/lecafe/b")})
	code(t, err, "ParameterNotFound")
}

func TestPermissions(t *testing.T) {
	c, operator := start(t)
	put(t, operator, "/lecafe/app", "x")
	put(t, operator, "/lecafe/secret", "x")
	if err := c.PutRolePolicy("app", "read", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ssm:GetParameter*","Resource":"arn:aws:ssm:us-east-1:*:parameter/lecafe/app"}]}`); err != nil {
		t.Fatal(err)
	}
	instance := client(c.As(c.Vault.Vend("app", "i-1", time.Hour)))
	if _, err := instance.GetParameter(t.Context(), &ssm.GetParameterInput{Name: aws.String("/lecafe/app")}); err != nil {
		t.Error(err)
	}
	_, err := instance.GetParameters(t.Context(), &ssm.GetParametersInput{Names: []string{"/lecafe/app", "/lecafe/secret"}})
	code(t, err, "AccessDeniedException")
}

// The data type aws:ec2:image is checked after the answer.
func TestImageParameters(t *testing.T) {
	c, client := start(t)
	id, err := c.EC2.AddImage("us-east-1", ec2.ImageSeed{Name: "debian-12"})
	if err != nil {
		t.Fatal(err)
	}
	in := &ssm.PutParameterInput{Name: aws.String("/lecafe/ami"), Type: "String", DataType: aws.String("aws:ec2:image"), Value: &id}
	if out, err := client.PutParameter(t.Context(), in); err != nil || out.Version != 1 {
		t.Fatalf("%+v %v", out, err)
	}
	in.Value, in.Overwrite = aws.String("ami-0123456789abcdef0"), aws.Bool(true)
	if out, err := client.PutParameter(t.Context(), in); err != nil || out.Version != 2 {
		t.Fatalf("%+v %v", out, err)
	}
	out, err := client.GetParameter(t.Context(), &ssm.GetParameterInput{Name: in.Name})
	if err != nil || *out.Parameter.Value != id || *out.Parameter.DataType != "aws:ec2:image" {
		t.Errorf("%+v %v", out, err)
	}
}
