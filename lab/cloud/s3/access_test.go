package s3_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

func TestBuckets(t *testing.T) {
	c, store, _ := start(t)
	ctx := t.Context()
	for name, want := range map[string]string{"Upper": "InvalidBucketName", "ab": "InvalidBucketName", "a..b": "InvalidBucketName"} {
		_, err := store.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name})
		code(t, err, 400, want)
	}
	if _, err := store.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(bucket)}); err != nil {
		t.Errorf("again in us-east-1: %v", err)
	}
	cfg := c.Config()
	cfg.Region = "eu-west-1"
	ireland := client(cfg)
	_, err := ireland.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("in-ireland")}, func(o *s3.Options) { o.Region = "eu-west-1" })
	if err == nil { // the SDK fills no constraint in
		t.Fatal("a bucket without constraint outside of us-east-1")
	}
	code(t, err, 400, "IllegalLocationConstraintException")
	constraint := &types.CreateBucketConfiguration{LocationConstraint: "eu-west-1"}
	if _, err := ireland.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("in-ireland"), CreateBucketConfiguration: constraint}); err != nil {
		t.Fatal(err)
	}
	_, err = ireland.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("in-ireland"), CreateBucketConfiguration: constraint})
	code(t, err, 409, "BucketAlreadyOwnedByYou")
	where, err := ireland.GetBucketLocation(ctx, &s3.GetBucketLocationInput{Bucket: aws.String("in-ireland")})
	if err != nil || where.LocationConstraint != "eu-west-1" {
		t.Errorf("%+v %v", where, err)
	}
	where, err = store.GetBucketLocation(ctx, &s3.GetBucketLocationInput{Bucket: aws.String(bucket)})
	if err != nil || where.LocationConstraint != "" {
		t.Errorf("%+v %v", where, err)
	}
	_, err = store.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("in-ireland")})
	code(t, err, 400, "AuthorizationHeaderMalformed")
	head, err := ireland.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("in-ireland")})
	if err != nil || aws.ToString(head.BucketRegion) != "eu-west-1" {
		t.Errorf("%+v %v", head, err)
	}
	_, err = store.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("nosuchbucket")})
	var r *smithyhttp.ResponseError
	if !errors.As(err, &r) || r.HTTPStatusCode() != http.StatusNotFound {
		t.Errorf("error %v", err)
	}
	list, err := store.ListBuckets(ctx, nil)
	if err != nil || len(list.Buckets) != 2 {
		t.Errorf("%+v %v", list, err)
	}
	_, err = store.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: aws.String("nosuchbucket")})
	code(t, err, 404, "NoSuchBucket")
}

func TestMissingKeysWithoutListBucket(t *testing.T) {
	c, operator, _ := start(t)
	put(t, operator, "app/config.txt", "x")
	role := "lecafe-app-role"
	instance := client(c.As(c.Vault.Vend(role, "i-0123456789abcdef0", time.Hour)))
	read := func(key string) error {
		_, _, err := get(t, instance, &s3.GetObjectInput{Key: &key})
		return err
	}
	// A role without a policy may do nothing.
	code(t, read("app/config.txt"), 403, "AccessDenied")
	policy := func(actions string) {
		if err := c.PutRolePolicy(role, "s3", `{"Version":"2012-10-17","Statement":[
			{"Effect":"Allow","Action":["s3:GetObject"],"Resource":"arn:aws:s3:::`+bucket+`/*"},
			{"Effect":"Allow","Action":`+actions+`,"Resource":"arn:aws:s3:::`+bucket+`"}]}`); err != nil {
			t.Fatal(err)
		}
	}
	policy(`"s3:GetBucketLocation"`)
	if err := read("app/config.txt"); err != nil {
		t.Error(err)
	}
	code(t, read("nosuch"), 403, "AccessDenied")
	_, err := instance.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String("nosuch")})
	var r *smithyhttp.ResponseError
	if !errors.As(err, &r) || r.HTTPStatusCode() != 403 {
		t.Errorf("HEAD: %v", err)
	}
	policy(`"s3:ListBucket"`)
	code(t, read("nosuch"), 404, "NoSuchKey")
	_, err = instance.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("x"), Body: strings.NewReader("x")})
	code(t, err, 403, "AccessDenied")
	out, err := instance.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: aws.String(bucket), Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: aws.String("app/config.txt")}}}})
	if err != nil || len(out.Errors) != 1 || *out.Errors[0].Code != "AccessDenied" {
		t.Errorf("%+v %v", out, err)
	}
	if keys := c.S3.Objects(bucket, ""); len(keys) != 1 {
		t.Errorf("keys %v", keys)
	}
}

// IAM's ${aws:userid} confines an instance to its own reports.
func TestInstancesAreConfinedToTheirPrefix(t *testing.T) {
	c, _, _ := start(t)
	const role = "lecafe-app-role"
	if err := c.PutRolePolicy(role, "reports", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::`+bucket+`/reports/${aws:userid}/*"}]}`); err != nil {
		t.Fatal(err)
	}
	instance := client(c.As(c.Vault.Vend(role, "i-1", time.Hour)))
	write := func(id string) error {
		_, err := instance.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("reports/" + c.Vault.RoleID(role) + ":" + id + "/boot.json"), Body: strings.NewReader("{}")})
		return err
	}
	if err := write("i-1"); err != nil {
		t.Error(err)
	}
	code(t, write("i-2"), 403, "AccessDenied")
}

// Over TLS the SDK streams a body in aws-chunks with its checksum in the
// trailer; over plain HTTP it signs the body's hash.
func TestStreamingUploads(t *testing.T) {
	c, _, _ := start(t)
	srv := httptest.NewTLSServer(c)
	defer srv.Close()
	cfg := c.Config()
	cfg.BaseEndpoint = &srv.URL
	mode := &spy{RoundTripper: srv.Client().Transport}
	cfg.HTTPClient = &http.Client{Transport: mode}
	body := strings.Repeat("0123456789", 20_000)
	store := client(cfg)
	if _, err := store.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("k"), Body: strings.NewReader(body), ContentEncoding: aws.String("gzip")}); err != nil {
		t.Fatal(err)
	}
	if mode.payload != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
		t.Errorf("the SDK sent %s", mode.payload)
	}
	got, out, err := get(t, store, &s3.GetObjectInput{Key: aws.String("k"), ChecksumMode: "ENABLED"})
	if err != nil || got != body || aws.ToString(out.ChecksumCRC32) == "" || aws.ToString(out.ContentEncoding) != "gzip" {
		t.Errorf("%d bytes, %+v, %v", len(got), out, err)
	}
	for name, tt := range map[string]struct {
		change func(string) string
		code   string
	}{
		"a changed body":     {func(s string) string { return strings.Replace(s, "0123456789", "0123456780", 1) }, "BadDigest"},
		"another trailer":    {func(s string) string { return strings.Replace(s, "x-amz-checksum-", "x-amz-chequesum", 1) }, "InvalidRequest"},
		"nonsense as a size": {func(s string) string { return "zz" + s[2:] }, "InvalidChunkSizeError"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			cfg.HTTPClient = &http.Client{Transport: rewrite{srv.Client().Transport, tt.change}}
			_, err := client(cfg).PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("bad"), Body: strings.NewReader(body)})
			code(t, err, 400, tt.code)
		})
	}
	plain := c.Config()
	plain.HTTPClient = &http.Client{Transport: rewrite{http.DefaultTransport, func(string) string { return "wrong" }}}
	_, err = client(withoutChecksums(plain)).PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("bad"), Body: strings.NewReader("right")})
	code(t, err, 400, "XAmzContentSHA256Mismatch")
	if keys := c.S3.Objects(bucket, ""); len(keys) != 1 {
		t.Errorf("keys %v", keys)
	}
}

// spy notes how the body was signed.
type spy struct {
	http.RoundTripper
	payload string
}

func (s *spy) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPut {
		s.payload = r.Header.Get("X-Amz-Content-Sha256")
	}
	return s.RoundTripper.RoundTrip(r)
}

// rewrite changes a body on its way; its length is signed and stays.
type rewrite struct {
	http.RoundTripper
	change func(string) string
}

func (w rewrite) RoundTrip(r *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	changed := w.change(string(b))
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(changed)), int64(len(changed))
	return w.RoundTripper.RoundTrip(r)
}
