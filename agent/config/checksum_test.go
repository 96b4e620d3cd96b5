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
)

// damaged changes a bit on the way.
func damaged(out *s3.GetObjectOutput) {
	data, _ := io.ReadAll(out.Body)
	data[len(data)/2] ^= 1
	out.Body = io.NopCloser(bytes.NewReader(data))
}

func TestEveryChecksumOfS3IsVerified(t *testing.T) {
	for _, alg := range types.ChecksumAlgorithmCrc32.Values() {
		switch alg {
		case types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c, types.ChecksumAlgorithmCrc64nvme, types.ChecksumAlgorithmSha1, types.ChecksumAlgorithmSha256:
		default:
			continue // the fake has S3's first five
		}
		t.Run(string(alg), func(t *testing.T) {
			b := newBench(t)
			if _, err := b.api.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("assets"), Key: aws.String("app/config.txt"), Body: strings.NewReader("one"), ChecksumAlgorithm: alg}); err != nil {
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

// TestCompositeChecksums has S3 hold what it holds of an upload in parts: the
// checksum of the parts' checksums. The fake holds none of those, so the test
// answers for it.
func TestCompositeChecksums(t *testing.T) {
	big := strings.Repeat("espresso", 5<<20/8)
	upload := func(b *bench, parts ...string) string {
		b.put(strings.Join(parts, ""))
		h := sha256.New()
		for _, p := range parts {
			one := sha256.Sum256([]byte(p))
			h.Write(one[:])
		}
		sum := fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(h.Sum(nil)), len(parts))
		b.answer = func(out *s3.GetObjectOutput) {
			out.ChecksumCRC32, out.ChecksumSHA256, out.ChecksumType = nil, &sum, types.ChecksumTypeComposite
		}
		return sum
	}
	for name, c := range map[string]struct {
		parts []string
		asked int // for parts
	}{
		"equal parts":   {[]string{big, big, "last"}, 1},
		"unequal parts": {[]string{big + "x", big, "last"}, 3},
		"one part":      {[]string{big}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			sum := upload(b, c.parts...)
			asked := 0
			b.part = func(n int) (*s3.GetObjectOutput, error) {
				asked++
				return &s3.GetObjectOutput{Body: io.NopCloser(strings.NewReader("")), ContentLength: aws.Int64(int64(len(c.parts[n-1])))}, nil
			}
			large := func(o *settings.Object) { o.MaxBytes = 64 << 20 }
			honest := b.answer
			b.answer = func(out *s3.GetObjectOutput) { honest(out); damaged(out) }
			o := b.object(large)
			b.sync(o, true, config.ErrInvalid)
			b.answer, asked = honest, 0
			b.sync(o, true, nil)
			if got := o.Status().Checksum; !strings.HasPrefix(got, "SHA256 of ") || asked != c.asked || b.content() != strings.Join(c.parts, "") {
				t.Errorf("verified %q with %d calls for parts, want %d", got, asked, c.asked)
			}
			b.sync(b.object(large, func(o *settings.Object) { o.Checksum = "SHA256:" + sum }), false, nil)
			b.sync(b.object(large, func(o *settings.Object) { o.Checksum = "SHA256:AAAA-" + sum[len(sum)-1:] }), true, config.ErrInvalid)
		})
	}
	t.Run("parts not told", func(t *testing.T) {
		// A store that does not know part numbers: the status says
		// that nothing was verified, and a pin on it is not met.
		b := newBench(t)
		sum := upload(b, big, "last")
		b.part = func(int) (*s3.GetObjectOutput, error) { return nil, errors.New("not implemented") }
		large := func(o *settings.Object) { o.MaxBytes = 64 << 20 }
		o := b.object(large, func(o *settings.Object) { o.Checksum = "SHA256:" + sum })
		b.sync(o, true, config.ErrInvalid)
		o = b.object(large)
		b.sync(o, true, nil)
		if got := o.Status().Checksum; !strings.Contains(got, "not verified") {
			t.Errorf("%q", got)
		}
	})
}

// get is the bench's S3: the fake's, with what a test does to it.
func (b *bench) get(ctx context.Context, in *s3.GetObjectInput, opts ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	b.mu.Lock()
	if in.PartNumber != nil && b.part != nil {
		defer b.mu.Unlock()
		return b.part(int(*in.PartNumber))
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
