package config_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/lecafe/lecafe/agent/config"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// damaged changes a bit on the way.
func damaged(out *s3.GetObjectOutput) {
	data, _ := io.ReadAll(out.Body)
	data[len(data)/2] ^= 1
	out.Body = io.NopCloser(bytes.NewReader(data))
}

func TestEveryChecksumOfS3IsVerified(t *testing.T) {
	for _, alg := range types.ChecksumAlgorithm("").Values() {
		t.Run(string(alg), func(t *testing.T) {
			b := newBench(t)
			in := &s3.PutObjectInput{Bucket: aws.String("assets"), Key: aws.String("app/config.txt"), Body: strings.NewReader("one")}
			if cloudtest.Sum(in, alg, []byte("one")); *cloudtest.Checksum(in, alg) == nil {
				in.ChecksumAlgorithm = alg
			}
			if _, err := b.api.PutObject(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			b.answer = damaged
			c := b.object()
			err := b.sync(c, true, config.ErrInvalid)
			if err == nil || !strings.Contains(err.Error(), string(alg)) || b.content() != "missing" || c.Cause(err).Code != report.CodeConfigInvalid {
				t.Errorf("%v, file %q", err, b.content())
			}
			// It was the way, not the object: the next try takes it.
			b.answer = nil
			b.sync(c, true, nil)
			if got := c.Status().Checksum; got != string(alg) || b.content() != "one" {
				t.Errorf("verified %q, file %q", got, b.content())
			}
		})
	}
}

func TestObjectWithoutAChecksum(t *testing.T) {
	b := newBench(t)
	b.put("one")
	b.answer = func(out *s3.GetObjectOutput) { out.ChecksumCRC32, out.ChecksumCRC64NVME = nil, nil }
	c := b.object()
	b.sync(c, true, nil)
	if got := c.Status().Checksum; got != "none held by S3" {
		t.Errorf("%q", got)
	}
	// A pin needs none of S3's.
	sum := sha256.Sum256([]byte("one"))
	pin := "SHA256:" + base64.StdEncoding.EncodeToString(sum[:])
	b.sync(b.object(func(o *settings.Object) { o.Checksum = pin }), false, nil)
}

func TestPinnedChecksum(t *testing.T) {
	for name, c := range map[string]struct {
		pin  string
		want error
	}{
		// S3 holds CRC32 alone: what the SDK uploads with.
		"match":              {"CRC32:emyG8Q==", nil},
		"match in lower":     {"crc32:emyG8Q==", nil},
		"mismatch":           {"CRC32:AAAAAA==", config.ErrInvalid},
		"not held, match":    {"SHA1:/gW83NxJKAEngaXxoqd8u1OY4QY=", nil},
		"not held, mismatch": {"SHA1:AAAAAAAAAAAAAAAAAAAAAAAAAAA=", config.ErrInvalid},
		"of parts":           {"SHA256:AAAA-2", config.ErrInvalid},
		"XXHash, mismatch":   {"XXHASH128:AAAAAAAAAAAAAAAAAAAAAA==", config.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.put("one")
			o := b.object(func(o *settings.Object) { o.Checksum = c.pin })
			_, err := o.Sync(t.Context())
			if !errors.Is(err, c.want) || (err == nil) != (b.content() == "one") {
				t.Errorf("%v, file %q", err, b.content())
			}
		})
	}
}

// TestXXHashIsReadAsAWSWritesIt has the checksums that AWS publishes of its own
// clients: of "Memento Mori" from the tests of its C++ SDK, of "hello world"
// from aws-sdk-go-v2 issue 3404.
func TestXXHashIsReadAsAWSWritesIt(t *testing.T) {
	for pin, text := range map[string]string{
		"XXHASH64:gpWjYMLp9XA=":              "Memento Mori",
		"XXHASH64:RatnNLIeaWg=":              "hello world",
		"XXHASH3:9RrF7krhuOI=":               "Memento Mori",
		"xxhash128:AW5DBY+18wW7VuSsFyNFAg==": "Memento Mori",
	} {
		b := newBench(t)
		b.put(text)
		b.sync(b.object(func(o *settings.Object) { o.Checksum = pin }), true, nil)
		b.put("another")
		b.sync(b.object(func(o *settings.Object) { o.Checksum = pin }), true, config.ErrInvalid)
		if b.content() != text {
			t.Errorf("%s: %q", pin, b.content())
		}
	}
}

// TestAPinThatIsSetLater must be met by what is in place too.
func TestAPinThatIsSetLater(t *testing.T) {
	b := newBench(t)
	b.put("one")
	b.sync(b.object(), true, nil)
	b.sync(b.object(func(o *settings.Object) { o.Checksum = "CRC32:AAAAAA==" }), true, config.ErrInvalid)
	if b.content() != "one" {
		t.Errorf("%q", b.content())
	}
	b.sync(b.object(func(o *settings.Object) { o.Checksum = "CRC32:emyG8Q==" }), false, nil)
}

func TestPinnedVersion(t *testing.T) {
	b := newBench(t)
	b.put("one")
	// Without versioning there is none to be pinned.
	c := b.object(func(o *settings.Object) { o.VersionID = "nothing" })
	if _, err := c.Sync(t.Context()); err == nil || b.content() != "missing" {
		t.Errorf("%v, %q", err, b.content())
	}
	if _, err := b.api.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{Bucket: aws.String("assets"), VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}}); err != nil {
		t.Fatal(err)
	}
	put := func(text string) string {
		out, err := b.api.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("assets"), Key: aws.String("app/config.txt"), Body: strings.NewReader(text)})
		if err != nil {
			t.Fatal(err)
		}
		return aws.ToString(out.VersionId)
	}
	two, three := put("two"), put("three")
	c = b.object(func(o *settings.Object) { o.VersionID = two })
	b.sync(c, true, nil)
	put("four")
	b.sync(c, false, nil)
	if b.content() != "two" || c.Status().VersionID != two {
		t.Errorf("%q, %+v", b.content(), c.Status())
	}
	b.sync(b.object(func(o *settings.Object) { o.VersionID = three }), true, nil)
	b.sync(b.object(func(o *settings.Object) { o.VersionID = "nothing" }), false, config.ErrMissing)
	if b.content() != "three" {
		t.Errorf("%q", b.content())
	}
	// What answers with another version than it was asked for is not believed.
	b.answer = func(out *s3.GetObjectOutput) { out.VersionId = &three }
	b.sync(b.object(func(o *settings.Object) { o.VersionID = two }), true, config.ErrInvalid)
	b.answer = nil
	b.sync(b.object(), true, nil)
	if b.content() != "four" {
		t.Errorf("without a pin %q", b.content())
	}
}

// TestUploadsInParts has the lab's S3 hold what it holds of real uploads in
// parts: the checksum of the parts' checksums, or of the whole object.
func TestUploadsInParts(t *testing.T) {
	big := strings.Repeat("espresso", 5<<20/8)
	large := func(o *settings.Object) { o.MaxBytes = 64 << 20 }
	type shape struct {
		parts []string
		asked int // for parts, of a composite checksum
	}
	shapes := map[string]shape{
		"equal parts":   {[]string{big, big, "last"}, 1},
		"unequal parts": {[]string{big + "x", big, "last"}, 3},
		"one part":      {[]string{big}, 1},
	}
	for _, alg := range types.ChecksumAlgorithm("").Values() {
		kinds := []types.ChecksumType{types.ChecksumTypeComposite}
		switch alg {
		case types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c:
			kinds = append(kinds, types.ChecksumTypeFullObject)
		case types.ChecksumAlgorithmCrc64nvme:
			kinds = []types.ChecksumType{types.ChecksumTypeFullObject}
		}
		for _, kind := range kinds {
			shapes := shapes
			if alg != types.ChecksumAlgorithmSha256 && alg != types.ChecksumAlgorithmCrc32 {
				shapes = map[string]shape{"two parts": {[]string{big, "last"}, 1}}
			}
			for name, c := range shapes {
				t.Run(fmt.Sprintf("%s %s %s", alg, kind, name), func(t *testing.T) {
					b := newBench(t)
					var parts [][]byte
					for _, p := range c.parts {
						parts = append(parts, []byte(p))
					}
					up, err := cloudtest.Upload(t.Context(), b.api, "assets", "app/config.txt", alg, kind, parts...)
					if err != nil {
						t.Fatal(err)
					}
					sum := **cloudtest.Checksum(up, alg)
					want, asked := string(alg), 0
					if kind == types.ChecksumTypeComposite {
						want, asked = fmt.Sprintf("%s of %d parts", alg, len(parts)), c.asked
					}
					o := b.object(large)
					b.answer = damaged
					b.sync(o, true, config.ErrInvalid)
					b.answer, b.asked = nil, 0
					b.sync(o, true, nil)
					if got := o.Status().Checksum; got != want || b.asked != asked || b.content() != strings.Join(c.parts, "") {
						t.Errorf("verified %q with %d calls for parts, want %q with %d", got, b.asked, want, asked)
					}
					b.sync(b.object(large, func(o *settings.Object) { o.Checksum = string(alg) + ":" + sum }), false, nil)
					b.sync(b.object(large, func(o *settings.Object) { o.Checksum = string(alg) + ":AAAA" + sum[4:] }), true, config.ErrInvalid)
				})
			}
		}
	}
}

// TestPartsThatAreNotTold is of a store that does not know part numbers: the
// status says that nothing was verified, and a pin on it is not met.
func TestPartsThatAreNotTold(t *testing.T) {
	b := newBench(t)
	up, err := cloudtest.Upload(t.Context(), b.api, "assets", "app/config.txt", types.ChecksumAlgorithmSha256, "", make([]byte, 5<<20), []byte("last"))
	if err != nil {
		t.Fatal(err)
	}
	b.part = func(int) (*s3.GetObjectOutput, error) { return nil, errors.New("not implemented") }
	large := func(o *settings.Object) { o.MaxBytes = 64 << 20 }
	o := b.object(large, func(o *settings.Object) { o.Checksum = "SHA256:" + *up.ChecksumSHA256 })
	b.sync(o, true, config.ErrInvalid)
	o = b.object(large)
	b.sync(o, true, nil)
	if got := o.Status().Checksum; !strings.Contains(got, "not verified") {
		t.Errorf("%q", got)
	}
}

// get is the bench's S3: the fake's, with what a test does to it.
func (b *bench) get(ctx context.Context, in *s3.GetObjectInput, opts ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	b.mu.Lock()
	if in.PartNumber != nil {
		defer b.mu.Unlock()
		b.asked++
		if b.part != nil {
			return b.part(int(*in.PartNumber))
		}
		return b.api.GetObject(ctx, in, opts...)
	}
	if b.onGet != nil {
		b.onGet(*in.Key)
	}
	b.got = append(b.got, *in.Key)
	b.mu.Unlock()
	out, err := b.api.GetObject(ctx, in, opts...)
	if err == nil && b.answer != nil {
		b.answer(out)
	}
	return out, err
}
