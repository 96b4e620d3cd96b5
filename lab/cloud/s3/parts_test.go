package s3_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// Checksums that AWS publishes of its own clients: of "Memento Mori" from the
// tests of its C++ SDK, of "hello world" from aws-sdk-go-v2 issue 3404.
func TestXXHashIsWrittenAsAWSWritesIt(t *testing.T) {
	_, c, _ := start(t)
	for _, tt := range []struct {
		alg       types.ChecksumAlgorithm
		body, sum string
	}{
		{types.ChecksumAlgorithmXxhash64, "Memento Mori", "gpWjYMLp9XA="},
		{types.ChecksumAlgorithmXxhash64, "hello world", "RatnNLIeaWg="},
		{types.ChecksumAlgorithmXxhash3, "Memento Mori", "9RrF7krhuOI="},
		{types.ChecksumAlgorithmXxhash128, "Memento Mori", "AW5DBY+18wW7VuSsFyNFAg=="},
	} {
		in := &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("k"), Body: strings.NewReader(tt.body)}
		*cloudtest.Checksum(in, tt.alg) = &tt.sum
		if _, err := c.PutObject(t.Context(), in); err != nil {
			t.Errorf("%s of %q: %v", tt.alg, tt.body, err)
		}
		in.Body = strings.NewReader("another")
		_, err := c.PutObject(t.Context(), in)
		code(t, err, 400, "BadDigest")
	}
}

// types of checksums that an algorithm may have in a multipart upload.
var full = []types.ChecksumAlgorithm{types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c, types.ChecksumAlgorithmCrc64nvme}

func TestPartsOfAnObject(t *testing.T) {
	_, c, _ := start(t)
	big := bytes.Repeat([]byte("a"), 5<<20+1)
	for _, alg := range append(types.ChecksumAlgorithm("").Values(), "") {
		for _, kind := range []types.ChecksumType{types.ChecksumTypeComposite, types.ChecksumTypeFullObject, ""} {
			for _, parts := range [][][]byte{{[]byte("end")}, {big, []byte("end")}} {
				n := len(parts)
				t.Run(fmt.Sprintf("%s %s %d", alg, kind, n), func(t *testing.T) {
					done, err := cloudtest.Upload(t.Context(), c, bucket, "k", alg, kind, parts...)
					if kind == types.ChecksumTypeFullObject && !slices.Contains(full, alg) ||
						kind == types.ChecksumTypeComposite && (alg == types.ChecksumAlgorithmCrc64nvme || alg == "") {
						code(t, err, 400, "InvalidRequest")
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					want, held := kind, alg
					if want == "" {
						want = types.ChecksumTypeComposite
					}
					if alg == "" {
						held = types.ChecksumAlgorithmCrc64nvme
					}
					if held == types.ChecksumAlgorithmCrc64nvme {
						want = types.ChecksumTypeFullObject
					}
					_, object, err := get(t, c, &s3.GetObjectInput{Key: aws.String("k"), ChecksumMode: types.ChecksumModeEnabled})
					if err != nil {
						t.Fatal(err)
					}
					sum := aws.ToString(*cloudtest.Checksum(object, held))
					if sum == "" || object.ChecksumType != want || aws.ToString(*cloudtest.Checksum(done, held)) != sum || done.ChecksumType != want || object.PartsCount != nil {
						t.Errorf("held %q %s, told %q %s at completion", sum, object.ChecksumType, aws.ToString(*cloudtest.Checksum(done, held)), done.ChecksumType)
					}
					if composite := strings.HasSuffix(sum, fmt.Sprintf("-%d", n)); composite != (want == types.ChecksumTypeComposite) {
						t.Errorf("%s is %q", want, sum)
					}
					at := 0
					for i, part := range parts {
						number := aws.Int32(int32(i + 1))
						got, out, err := get(t, c, &s3.GetObjectInput{Key: aws.String("k"), PartNumber: number, ChecksumMode: types.ChecksumModeEnabled})
						if err != nil {
							t.Fatal(err)
						}
						span := fmt.Sprintf("bytes %d-%d/%d", at, at+len(part)-1, len(bytes.Join(parts, nil)))
						if got != string(part) || aws.ToString(out.ContentRange) != span || aws.ToInt32(out.PartsCount) != int32(n) || aws.ToString(out.ETag) != aws.ToString(done.ETag) {
							t.Errorf("part %d: %d bytes, %s of %d parts, ETag %s", i+1, len(got), aws.ToString(out.ContentRange), aws.ToInt32(out.PartsCount), aws.ToString(out.ETag))
						}
						at += len(part)
						head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String("k"), PartNumber: number, ChecksumMode: types.ChecksumModeEnabled})
						if err != nil || aws.ToInt64(head.ContentLength) != int64(len(part)) || aws.ToInt32(head.PartsCount) != int32(n) {
							t.Errorf("HEAD of part %d: %+v %v", i+1, head, err)
						}
						// S3 tells a part's checksum unless the object has one of the
						// whole and several parts.
						told := aws.ToString(*cloudtest.Checksum(out, held))
						if (told != "") != (want == types.ChecksumTypeComposite || n == 1) || strings.Contains(told, "-") || aws.ToString(*cloudtest.Checksum(head, held)) != told {
							t.Errorf("checksum of part %d: %q", i+1, told)
						}
					}
				})
			}
		}
	}
	// Of the whole object, whatever the parts: what one PUT of it has.
	parts := [][]byte{big, bytes.Repeat([]byte("b"), 5<<20), []byte("end")}
	whole := bytes.Join(parts, nil)
	for _, alg := range full {
		in := &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("whole"), Body: bytes.NewReader(whole), ChecksumAlgorithm: alg}
		put, err := c.PutObject(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		done, err := cloudtest.Upload(t.Context(), c, bucket, "k", alg, types.ChecksumTypeFullObject, parts...)
		if err != nil || **cloudtest.Checksum(done, alg) != **cloudtest.Checksum(put, alg) {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func TestPartsThatAreNotThere(t *testing.T) {
	_, c, _ := start(t)
	put(t, c, "whole", "0123456789")
	put(t, c, "empty", "")
	big := bytes.Repeat([]byte("a"), 5<<20)
	if _, err := cloudtest.Upload(t.Context(), c, bucket, "two", types.ChecksumAlgorithmSha256, "", big, []byte("end")); err != nil {
		t.Fatal(err)
	}
	part := func(key string, n int32, change ...func(*s3.GetObjectInput)) (string, *s3.GetObjectOutput, error) {
		in := &s3.GetObjectInput{Key: &key, PartNumber: &n}
		for _, f := range change {
			f(in)
		}
		return get(t, c, in)
	}
	// An object that was put whole is its own part 1, and has no count of parts.
	got, out, err := part("whole", 1)
	if err != nil || got != "0123456789" || aws.ToString(out.ContentRange) != "bytes 0-9/10" || out.PartsCount != nil {
		t.Errorf("%q %+v %v", got, out, err)
	}
	if got, _, err := part("empty", 1); err != nil || got != "" {
		t.Errorf("%q %v", got, err)
	}
	for key, n := range map[string]int32{"whole": 2, "two": 3} {
		_, _, err := part(key, n)
		code(t, err, 416, "InvalidPartNumber")
	}
	for _, n := range []int32{0, -1, 10_001} {
		_, _, err := part("two", n)
		code(t, err, 400, "InvalidArgument")
	}
	_, _, err = part("two", 1, func(in *s3.GetObjectInput) { in.Range = aws.String("bytes=0-1") })
	code(t, err, 400, "InvalidRequest")
	_, _, err = part("two", 1, func(in *s3.GetObjectInput) { in.IfMatch = aws.String(`"other"`) })
	code(t, err, 412, "PreconditionFailed")
	// A copy is one object, whatever its source was.
	if _, err := c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: aws.String(bucket), Key: aws.String("copy"), CopySource: aws.String(bucket + "/two")}); err != nil {
		t.Fatal(err)
	}
	if got, out, err := part("copy", 1); err != nil || len(got) != len(big)+3 || out.PartsCount != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// What a composite checksum is made of must come from the client.
func TestCompositeChecksumsAreTheClients(t *testing.T) {
	_, c, _ := start(t)
	ctx := t.Context()
	key, id := aws.String("k"), (*string)(nil)
	create := func(alg types.ChecksumAlgorithm, kind types.ChecksumType) {
		t.Helper()
		up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String(bucket), Key: key, ChecksumAlgorithm: alg, ChecksumType: kind})
		if err != nil {
			t.Fatal(err)
		}
		id = up.UploadId
	}
	part := func(c *s3.Client, alg types.ChecksumAlgorithm) (*s3.UploadPartOutput, error) {
		return c.UploadPart(ctx, &s3.UploadPartInput{Bucket: aws.String(bucket), Key: key, UploadId: id, PartNumber: aws.Int32(1), Body: strings.NewReader("end"), ChecksumAlgorithm: alg})
	}
	complete := func(change func(*s3.CompleteMultipartUploadInput), parts ...types.CompletedPart) error {
		in := &s3.CompleteMultipartUploadInput{Bucket: aws.String(bucket), Key: key, UploadId: id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}}
		if change != nil {
			change(in)
		}
		_, err := c.CompleteMultipartUpload(ctx, in)
		return err
	}
	create(types.ChecksumAlgorithmSha256, "")
	_, err := part(c, types.ChecksumAlgorithmCrc32)
	code(t, err, 400, "InvalidRequest")
	_, err = part(client(withoutChecksums(fixed(c))), "")
	code(t, err, 400, "InvalidRequest")
	out, err := part(c, types.ChecksumAlgorithmSha256)
	if err != nil {
		t.Fatal(err)
	}
	good := types.CompletedPart{PartNumber: aws.Int32(1), ETag: out.ETag, ChecksumSHA256: out.ChecksumSHA256}
	bare, wrong, second := good, good, good
	bare.ChecksumSHA256, wrong.ChecksumSHA256, second.PartNumber = nil, aws.String(base64.StdEncoding.EncodeToString(make([]byte, 32))), aws.Int32(2)
	code(t, complete(nil, bare), 400, "InvalidRequest")
	code(t, complete(nil, wrong), 400, "InvalidPart")
	code(t, complete(nil, second), 400, "InvalidPartOrder")
	code(t, complete(func(in *s3.CompleteMultipartUploadInput) { in.ChecksumType = types.ChecksumTypeFullObject }, good), 400, "InvalidRequest")
	code(t, complete(func(in *s3.CompleteMultipartUploadInput) { in.ChecksumSHA256 = wrong.ChecksumSHA256 }, good), 400, "BadDigest")
	if err := complete(nil, good); err != nil {
		t.Error(err)
	}
	// One of the whole object S3 makes itself.
	create(types.ChecksumAlgorithmCrc32, types.ChecksumTypeFullObject)
	if out, err = part(client(withoutChecksums(fixed(c))), ""); err != nil {
		t.Fatal(err)
	}
	if err := complete(nil, types.CompletedPart{PartNumber: aws.Int32(1), ETag: out.ETag}); err != nil {
		t.Error(err)
	}
	_, err = c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String(bucket), Key: key, ChecksumAlgorithm: "ROT13"})
	code(t, err, 400, "InvalidRequest")
}

// fixed is the configuration that a client was made with.
func fixed(c *s3.Client) aws.Config {
	o := c.Options()
	return aws.Config{Region: o.Region, BaseEndpoint: o.BaseEndpoint, Credentials: o.Credentials}
}
