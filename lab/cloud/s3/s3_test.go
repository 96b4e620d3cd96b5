package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const bucket = "lecafe-assets"

func start(t *testing.T) (*cloudtest.Cloud, *s3.Client, *wire.Manual) {
	t.Helper()
	clock := wire.NewManual(time.Now())
	c := cloudtest.New(t, cloud.Options{Clock: clock})
	c.S3.CreateBucket(bucket, "")
	return c, client(c.Config()), clock
}

func client(cfg aws.Config) *s3.Client {
	cfg.RetryMaxAttempts = 1
	return awsconf.S3(cfg)
}

func put(t *testing.T, c *s3.Client, key, body string) *s3.PutObjectOutput {
	t.Helper()
	out, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: &key, Body: strings.NewReader(body)})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func get(t *testing.T, c *s3.Client, in *s3.GetObjectInput) (string, *s3.GetObjectOutput, error) {
	t.Helper()
	in.Bucket = aws.String(bucket)
	out, err := c.GetObject(t.Context(), in)
	if err != nil {
		return "", nil, err
	}
	defer out.Body.Close()
	b, err := io.ReadAll(out.Body)
	return string(b), out, err
}

// code fails the test unless err is that API error with that HTTP status.
func code(t *testing.T, err error, status int, want string) {
	t.Helper()
	var e smithy.APIError
	var r *smithyhttp.ResponseError
	if !errors.As(err, &e) || !errors.As(err, &r) {
		t.Fatalf("error %v, want %d %s", err, status, want)
	}
	if e.ErrorCode() != want || r.HTTPStatusCode() != status {
		t.Fatalf("error %d %s (%v), want %d %s", r.HTTPStatusCode(), e.ErrorCode(), err, status, want)
	}
}

func TestConditionalReads(t *testing.T) {
	_, c, clock := start(t)
	etag := *put(t, c, "k", "one").ETag
	before, after := clock.Now().Add(-time.Minute), clock.Now().Add(time.Minute)
	for name, tt := range map[string]struct {
		in     s3.GetObjectInput
		status int
		code   string
	}{
		"matches":                       {in: s3.GetObjectInput{IfMatch: &etag}},
		"matches any":                   {in: s3.GetObjectInput{IfMatch: aws.String("*")}},
		"matches another":               {s3.GetObjectInput{IfMatch: aws.String(`"00"`)}, 412, "PreconditionFailed"},
		"none matches":                  {s3.GetObjectInput{IfNoneMatch: &etag}, 304, "NotModified"},
		"none matches another":          {in: s3.GetObjectInput{IfNoneMatch: aws.String(`"00"`)}},
		"modified since":                {in: s3.GetObjectInput{IfModifiedSince: &before}},
		"not modified since":            {s3.GetObjectInput{IfModifiedSince: &after}, 304, "NotModified"},
		"unmodified since":              {in: s3.GetObjectInput{IfUnmodifiedSince: &after}},
		"unmodified since, but is":      {s3.GetObjectInput{IfUnmodifiedSince: &before}, 412, "PreconditionFailed"},
		"match beats unmodified":        {in: s3.GetObjectInput{IfMatch: &etag, IfUnmodifiedSince: &before}},
		"none-match beats modified":     {s3.GetObjectInput{IfNoneMatch: &etag, IfModifiedSince: &before}, 304, "NotModified"},
		"none-match beats not modified": {in: s3.GetObjectInput{IfNoneMatch: aws.String(`"00"`), IfModifiedSince: &after}},
	} {
		t.Run(name, func(t *testing.T) {
			body, _, err := get(t, c, &s3.GetObjectInput{
				Key: aws.String("k"), IfMatch: tt.in.IfMatch, IfNoneMatch: tt.in.IfNoneMatch,
				IfModifiedSince: tt.in.IfModifiedSince, IfUnmodifiedSince: tt.in.IfUnmodifiedSince,
			})
			switch {
			case tt.status == 0:
				if err != nil || body != "one" {
					t.Errorf("%q, %v", body, err)
				}
			case tt.status == 304:
				var r *smithyhttp.ResponseError
				if !errors.As(err, &r) || r.HTTPStatusCode() != 304 || r.Response.Header.Get("ETag") != etag {
					t.Errorf("error %v", err)
				}
			default:
				code(t, err, tt.status, tt.code)
			}
		})
	}
}

func TestConditionalWrites(t *testing.T) {
	_, c, _ := start(t)
	write := func(match, none *string, body string) error {
		_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("k"), Body: strings.NewReader(body), IfMatch: match, IfNoneMatch: none})
		return err
	}
	code(t, write(aws.String(`"00"`), nil, "x"), 404, "NoSuchKey")
	if err := write(nil, aws.String("*"), "one"); err != nil {
		t.Fatal(err)
	}
	code(t, write(nil, aws.String("*"), "two"), 412, "PreconditionFailed")
	code(t, write(aws.String(`"00"`), nil, "two"), 412, "PreconditionFailed")
	code(t, write(nil, aws.String(`"00"`), "two"), 501, "NotImplemented")
	body, out, err := get(t, c, &s3.GetObjectInput{Key: aws.String("k")})
	if err != nil || body != "one" {
		t.Fatalf("%q, %v", body, err)
	}
	if err := write(out.ETag, nil, "two"); err != nil {
		t.Fatal(err)
	}
	_, err = c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: aws.String("k"), IfMatch: out.ETag})
	code(t, err, 412, "PreconditionFailed")
	if body, _, _ := get(t, c, &s3.GetObjectInput{Key: aws.String("k")}); body != "two" {
		t.Errorf("body %q", body)
	}
}

// Of many writers with If-None-Match one wins.
func TestConditionalWriteIsAtomic(t *testing.T) {
	_, c, _ := start(t)
	const writers = 16
	results := make(chan error, writers)
	for i := range writers {
		go func() {
			_, err := c.PutObject(context.WithoutCancel(t.Context()), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("lock"), Body: strings.NewReader(fmt.Sprint(i)), IfNoneMatch: aws.String("*")})
			results <- err
		}()
	}
	won := 0
	for range writers {
		if err := <-results; err == nil {
			won++
		} else {
			code(t, err, 412, "PreconditionFailed")
		}
	}
	if won != 1 {
		t.Errorf("%d writers won", won)
	}
}

func TestChecksums(t *testing.T) {
	c, store, _ := start(t)
	const body = "hello"
	right := map[types.ChecksumAlgorithm]string{
		"CRC32": "NhCmhg==", "CRC32C": "mnG7TA==", "CRC64NVME": "M3eFcAZSQlc=", "SHA1": "qvTGHdzF6KLavt4PO0gs2a6pQ00=", "SHA256": "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
	}
	fields := func(o *s3.PutObjectInput, alg types.ChecksumAlgorithm, sum *string) {
		switch alg {
		case "CRC32":
			o.ChecksumCRC32 = sum
		case "CRC32C":
			o.ChecksumCRC32C = sum
		case "CRC64NVME":
			o.ChecksumCRC64NVME = sum
		case "SHA1":
			o.ChecksumSHA1 = sum
		case "SHA256":
			o.ChecksumSHA256 = sum
		}
	}
	for alg, sum := range right {
		t.Run(string(alg), func(t *testing.T) {
			key := aws.String(string(alg))
			in := &s3.PutObjectInput{Bucket: aws.String(bucket), Key: key, Body: strings.NewReader(body)}
			fields(in, alg, &sum)
			if _, err := store.PutObject(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			_, out, err := get(t, store, &s3.GetObjectInput{Key: key, ChecksumMode: types.ChecksumModeEnabled})
			if err != nil {
				t.Fatal(err)
			}
			got := map[types.ChecksumAlgorithm]*string{"CRC32": out.ChecksumCRC32, "CRC32C": out.ChecksumCRC32C, "CRC64NVME": out.ChecksumCRC64NVME, "SHA1": out.ChecksumSHA1, "SHA256": out.ChecksumSHA256}
			for a, s := range got {
				if a == alg && aws.ToString(s) != sum || a != alg && s != nil {
					t.Errorf("%s: %q", a, aws.ToString(s))
				}
			}
			// https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
			in = &s3.PutObjectInput{Bucket: aws.String(bucket), Key: key, Body: strings.NewReader("hellp")}
			fields(in, alg, &sum)
			_, err = store.PutObject(t.Context(), in)
			code(t, err, 400, "BadDigest")
			in.Body = strings.NewReader(body)
			fields(in, alg, aws.String("AAAA"))
			_, err = store.PutObject(t.Context(), in)
			code(t, err, 400, "InvalidRequest")
		})
	}
	if got, _, _ := get(t, store, &s3.GetObjectInput{Key: aws.String("SHA256")}); got != body {
		t.Errorf("after refused writes: %q", got)
	}

	// The Go SDK always sends a checksum unless told not to; S3 then stores a
	// CRC64NVME of its own, and no SHA-256.
	plain := client(withoutChecksums(c.Config()))
	put(t, plain, "plain", body)
	head, err := store.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String("plain"), ChecksumMode: types.ChecksumModeEnabled})
	if err != nil || aws.ToString(head.ChecksumCRC64NVME) != right["CRC64NVME"] || head.ChecksumSHA256 != nil || head.ChecksumType != "FULL_OBJECT" {
		t.Errorf("%+v %v", head, err)
	}
	head, err = store.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String("plain")})
	if err != nil || head.ChecksumCRC64NVME != nil {
		t.Errorf("unasked checksum %v %v", head.ChecksumCRC64NVME, err)
	}
	_, err = plain.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("md5"), Body: strings.NewReader(body), ContentMD5: aws.String("1B2M2Y8AsgTpgAmY7PhCfg==")})
	code(t, err, 400, "BadDigest")
	_, err = plain.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("md5"), Body: strings.NewReader(body), ContentMD5: aws.String("x")})
	code(t, err, 400, "InvalidDigest")
}

func withoutChecksums(cfg aws.Config) aws.Config {
	cfg.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	return cfg
}

func TestMetadataAndHeaders(t *testing.T) {
	_, c, _ := start(t)
	in := &s3.PutObjectInput{
		Bucket: aws.String(bucket), Key: aws.String("k"), Body: strings.NewReader("x"), ContentType: aws.String("text/plain"),
		CacheControl: aws.String("no-store"), ContentEncoding: aws.String("gzip"), Metadata: map[string]string{"roast": "dark"},
	}
	if _, err := c.PutObject(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	_, out, err := get(t, c, &s3.GetObjectInput{Key: aws.String("k")})
	if err != nil {
		t.Fatal(err)
	}
	if *out.ContentType != "text/plain" || *out.CacheControl != "no-store" || *out.ContentEncoding != "gzip" || out.Metadata["roast"] != "dark" ||
		out.ServerSideEncryption != types.ServerSideEncryptionAes256 || *out.ContentLength != 1 {
		t.Errorf("%+v", out)
	}
	// An overwrite keeps nothing of what was there.
	put(t, c, "k", "y")
	_, out, err = get(t, c, &s3.GetObjectInput{Key: aws.String("k"), ResponseContentType: aws.String("text/html")})
	if err != nil || len(out.Metadata) != 0 || out.CacheControl != nil || *out.ContentType != "text/html" {
		t.Errorf("%+v %v", out, err)
	}
	in.Body = strings.NewReader("x")
	in.Metadata = map[string]string{"long": strings.Repeat("x", 2049)}
	_, err = c.PutObject(t.Context(), in)
	code(t, err, 400, "MetadataTooLarge")
	in.Metadata, in.ACL = nil, types.ObjectCannedACLPublicRead
	_, err = c.PutObject(t.Context(), in)
	code(t, err, 400, "AccessControlListNotSupported")
	in.ACL, in.Key = "", aws.String(strings.Repeat("k", 1025))
	_, err = c.PutObject(t.Context(), in)
	code(t, err, 400, "KeyTooLongError")
	in.Key, in.ExpectedBucketOwner = aws.String("k"), aws.String("111111111111")
	_, err = c.PutObject(t.Context(), in)
	code(t, err, 403, "AccessDenied")
}

func TestRanges(t *testing.T) {
	_, c, _ := start(t)
	put(t, c, "k", "0123456789")
	put(t, c, "empty", "")
	for header, want := range map[string]string{
		"bytes=0-3": "0123", "bytes=7-": "789", "bytes=-2": "89", "bytes=8-100": "89", "bytes=-100": "0123456789",
	} {
		got, out, err := get(t, c, &s3.GetObjectInput{Key: aws.String("k"), Range: &header})
		if err != nil || got != want || !strings.HasSuffix(aws.ToString(out.ContentRange), "/10") {
			t.Errorf("%s: %q %v", header, got, err)
		}
	}
	for _, header := range []string{"bytes=3-1", "lines=1-2", "bytes=0-1,3-4"} { // ignored
		if got, out, err := get(t, c, &s3.GetObjectInput{Key: aws.String("k"), Range: &header}); err != nil || got != "0123456789" || out.ContentRange != nil {
			t.Errorf("%s: %q %v", header, got, err)
		}
	}
	for key, header := range map[string]string{"k": "bytes=10-", "empty": "bytes=0-"} {
		_, _, err := get(t, c, &s3.GetObjectInput{Key: &key, Range: &header})
		code(t, err, 416, "InvalidRange")
	}
}

func TestDeletes(t *testing.T) {
	c, store, _ := start(t)
	for i := range 5 {
		put(t, store, fmt.Sprint("k", i), "x")
	}
	in := &s3.DeleteObjectsInput{Bucket: aws.String(bucket), Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: aws.String("k0")}, {Key: aws.String("k1")}, {Key: aws.String("nosuch")}}}}
	out, err := store.DeleteObjects(t.Context(), in)
	if err != nil || len(out.Deleted) != 3 || len(out.Errors) != 0 {
		t.Fatalf("%+v %v", out, err)
	}
	if keys := c.S3.Objects(bucket, ""); len(keys) != 3 {
		t.Errorf("keys %v", keys)
	}
	in.Delete.Objects = make([]types.ObjectIdentifier, 1001)
	for i := range in.Delete.Objects {
		in.Delete.Objects[i].Key = aws.String(fmt.Sprint(i))
	}
	_, err = store.DeleteObjects(t.Context(), in)
	code(t, err, 400, "MalformedXML")
	// A key that is put again after it was deleted lists once.
	put(t, store, "k0", "again")
	if keys := c.S3.Objects(bucket, ""); strings.Join(keys, " ") != "k0 k2 k3 k4" {
		t.Errorf("keys %v", keys)
	}
	for _, k := range c.S3.Objects(bucket, "") {
		if _, err := store.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: &k}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: aws.String(bucket)}); err != nil {
		t.Errorf("an emptied bucket: %v", err)
	}
}

func TestCopies(t *testing.T) {
	_, c, _ := start(t)
	ctx := t.Context()
	if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("from é"), Body: strings.NewReader("x"), Metadata: map[string]string{"a": "1"}}); err != nil {
		t.Fatal(err)
	}
	source := aws.String(bucket + "/from%20%C3%A9")
	if _, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: aws.String(bucket), Key: aws.String("to"), CopySource: source}); err != nil {
		t.Fatal(err)
	}
	if got, out, err := get(t, c, &s3.GetObjectInput{Key: aws.String("to")}); err != nil || got != "x" || out.Metadata["a"] != "1" {
		t.Errorf("%q %+v %v", got, out, err)
	}
	if _, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: aws.String(bucket), Key: aws.String("to"), CopySource: source, MetadataDirective: "REPLACE", Metadata: map[string]string{"b": "2"}}); err != nil {
		t.Fatal(err)
	}
	if _, out, err := get(t, c, &s3.GetObjectInput{Key: aws.String("to")}); err != nil || out.Metadata["a"] != "" || out.Metadata["b"] != "2" {
		t.Errorf("%+v %v", out, err)
	}
	_, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: aws.String(bucket), Key: aws.String("to"), CopySource: aws.String(bucket + "/to")})
	code(t, err, 400, "InvalidRequest")
	_, err = c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: aws.String(bucket), Key: aws.String("to"), CopySource: aws.String(bucket + "/nosuch")})
	code(t, err, 404, "NoSuchKey")
	_, err = c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: aws.String(bucket), Key: aws.String("to"), CopySource: source, CopySourceIfMatch: aws.String(`"00"`)})
	code(t, err, 412, "PreconditionFailed")
}

func TestMultipartUploads(t *testing.T) {
	_, c, _ := start(t)
	ctx := t.Context()
	create := func() *string {
		up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String(bucket), Key: aws.String("big"), ContentType: aws.String("text/plain")})
		if err != nil {
			t.Fatal(err)
		}
		return up.UploadId
	}
	part := func(id *string, n int32, body []byte) types.CompletedPart {
		t.Helper()
		out, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: aws.String(bucket), Key: aws.String("big"), UploadId: id, PartNumber: &n, Body: bytes.NewReader(body)})
		if err != nil {
			t.Fatal(err)
		}
		return types.CompletedPart{PartNumber: &n, ETag: out.ETag}
	}
	complete := func(id *string, parts ...types.CompletedPart) (*s3.CompleteMultipartUploadOutput, error) {
		return c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: aws.String(bucket), Key: aws.String("big"), UploadId: id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
	}
	id := create()
	first, last := bytes.Repeat([]byte("a"), 5<<20), []byte("end")
	p1, p2 := part(id, 1, first), part(id, 2, last)
	_, err := complete(id, p2, p1)
	code(t, err, 400, "InvalidPartOrder")
	_, err = complete(id, p1, types.CompletedPart{PartNumber: aws.Int32(2), ETag: aws.String(`"00"`)})
	code(t, err, 400, "InvalidPart")
	small := part(id, 3, last)
	_, err = complete(id, p2, small)
	code(t, err, 400, "EntityTooSmall")
	listed, err := c.ListParts(ctx, &s3.ListPartsInput{Bucket: aws.String(bucket), Key: aws.String("big"), UploadId: id})
	if err != nil || len(listed.Parts) != 3 {
		t.Errorf("%+v %v", listed, err)
	}
	out, err := complete(id, p1, p2)
	if err != nil || !strings.HasSuffix(*out.ETag, `-2"`) {
		t.Fatalf("%+v %v", out, err)
	}
	got, object, err := get(t, c, &s3.GetObjectInput{Key: aws.String("big")})
	if err != nil || got != string(first)+"end" || *object.ETag != *out.ETag || *object.ContentType != "text/plain" {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	_, err = complete(id, p1, p2)
	code(t, err, 404, "NoSuchUpload")

	id = create()
	part(id, 1, last)
	uploads, err := c.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: aws.String(bucket)})
	if err != nil || len(uploads.Uploads) != 1 {
		t.Errorf("%+v %v", uploads, err)
	}
	if _, err := c.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: aws.String(bucket), Key: aws.String("big"), UploadId: id}); err != nil {
		t.Fatal(err)
	}
	_, err = c.UploadPart(ctx, &s3.UploadPartInput{Bucket: aws.String(bucket), Key: aws.String("big"), UploadId: id, PartNumber: aws.Int32(1), Body: bytes.NewReader(last)})
	code(t, err, 404, "NoSuchUpload")
}
