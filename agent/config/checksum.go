package config

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/cespare/xxhash/v2"
	"github.com/zeebo/xxh3"
)

// algorithms make the checksums that S3 may hold of an object, as S3 writes
// them: XXHash in its canonical byte order, big-endian. The SDK sends those and
// does not compute them, https://github.com/aws/aws-sdk-go-v2/issues/3404.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
var algorithms = map[string]func() hash.Hash{
	"CRC32":     func() hash.Hash { return crc32.NewIEEE() },
	"CRC32C":    func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
	"CRC64NVME": func() hash.Hash { return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5)) }, // reflected
	"MD5":       md5.New,
	"SHA1":      sha1.New,
	"SHA256":    sha256.New,
	"SHA512":    sha512.New,
	"XXHASH64":  func() hash.Hash { return xxhash.New() },
	"XXHASH3":   func() hash.Hash { return xxh3.New() },
	"XXHASH128": func() hash.Hash { return xxh3.New128() },
}

// checksum is a checksum as S3 holds it. Of an object that was uploaded in
// parts it may be composite: the checksum of the parts' checksums, and their
// number.
type checksum struct {
	algorithm string
	value     string // base64; a composite one ends in -PARTS
}

func (c checksum) String() string { return c.algorithm + ":" + c.value }

// parts is the number of parts of a composite checksum, 0 of the others.
func (c checksum) parts() int {
	_, n, ok := strings.Cut(c.value, "-") // no letter of base64
	if !ok {
		return 0
	}
	parts, err := strconv.Atoi(n)
	if err != nil || parts < 1 || parts > 10_000 {
		return -1
	}
	return parts
}

func parseChecksum(s string) (checksum, bool) {
	name, value, ok := strings.Cut(s, ":")
	name = strings.ToUpper(name)
	return checksum{name, value}, ok && algorithms[name] != nil && value != ""
}

func sum(algorithm string, data ...[]byte) []byte {
	h := algorithms[algorithm]()
	for _, d := range data {
		h.Write(d)
	}
	return h.Sum(nil)
}

// held are the checksums of an answer.
func held(out *s3.GetObjectOutput) []checksum {
	var cs []checksum
	for _, c := range []struct {
		name  string
		value *string
	}{
		{"CRC64NVME", out.ChecksumCRC64NVME}, {"CRC32", out.ChecksumCRC32}, {"CRC32C", out.ChecksumCRC32C},
		{"SHA1", out.ChecksumSHA1}, {"SHA256", out.ChecksumSHA256}, {"SHA512", out.ChecksumSHA512}, {"MD5", out.ChecksumMD5},
		{"XXHASH64", out.ChecksumXXHASH64}, {"XXHASH3", out.ChecksumXXHASH3}, {"XXHASH128", out.ChecksumXXHASH128},
	} {
		if aws.ToString(c.value) != "" {
			cs = append(cs, checksum{c.name, *c.value})
		}
	}
	return cs
}

// askChecksums makes S3 tell its checksums, and the SDK leave them alone: it
// would skip composite ones without a word and mix the others up with failures
// of the network.
func askChecksums(o *s3.Options) {
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	o.APIOptions = append(o.APIOptions, smithyhttp.AddHeaderValue("X-Amz-Checksum-Mode", "ENABLED"))
}

// errDamaged says that bytes are not those that S3 has a checksum of.
var errDamaged = errors.New("does not match")

// verify checks data against every checksum that S3 holds and against the
// pinned one. It returns what was verified, for people to read. part asks for
// the size of a part of the same object.
func verify(data []byte, cs []checksum, pin string, part func(n int) (int64, error)) (string, error) {
	var verified, not []string
	for _, c := range cs {
		err := check(data, c, part)
		switch {
		case err == nil && c.parts() > 0:
			verified = append(verified, fmt.Sprintf("%s of %d parts", c.algorithm, c.parts()))
		case err == nil:
			verified = append(verified, c.algorithm)
		case errors.Is(err, errDamaged):
			return "", fmt.Errorf("%s: %w", c, err)
		default:
			not = append(not, fmt.Sprintf("%s not verified: %v", c, err))
		}
	}
	if pin != "" {
		if err := pinnedChecksum(data, cs, pin, not); err != nil {
			return "", err
		}
		verified = append(verified, "pinned "+pin)
	}
	switch out := strings.Join(append(verified, not...), ", "); out {
	case "":
		return "none held by S3", nil
	default:
		return out, nil
	}
}

func pinnedChecksum(data []byte, cs []checksum, pin string, not []string) error {
	want, ok := parseChecksum(pin)
	if !ok {
		return fmt.Errorf("the pinned checksum %q is none", pin)
	}
	if want.parts() == 0 {
		if got := base64.StdEncoding.EncodeToString(sum(want.algorithm, data)); got != want.value {
			return fmt.Errorf("its checksum %s:%s is not the pinned %s; upload the right object or correct checksum", want.algorithm, got, want)
		}
		return nil
	}
	for _, c := range cs {
		if c == want {
			if len(not) > 0 {
				return fmt.Errorf("the pinned checksum could not be verified: %s; pin one of the whole object, or sha256", strings.Join(not, ", "))
			}
			return nil
		}
	}
	return fmt.Errorf("S3 does not hold the pinned checksum %s but %v; upload the object with it, or correct checksum", want, cs)
}

// check checks data against one checksum.
func check(data []byte, c checksum, part func(n int) (int64, error)) error {
	n := c.parts()
	if n < 0 {
		return errors.New("it is of no known form")
	}
	if n == 0 {
		return same(sum(c.algorithm, data), c.value)
	}
	if part == nil {
		return errors.New("it is of parts")
	}
	want, _, _ := strings.Cut(c.value, "-")
	size, err := part(1)
	if err != nil {
		return fmt.Errorf("ask for part 1: %w", err)
	}
	// Uploaders cut parts of one size, but for the last: that spares asking for
	// each.
	if size > 0 && (int64(len(data))+size-1)/size == int64(n) {
		var sums []byte
		for off := int64(0); off < int64(len(data)); off += size {
			sums = append(sums, sum(c.algorithm, data[off:min(off+size, int64(len(data)))])...)
		}
		if same(sum(c.algorithm, sums), want) == nil {
			return nil
		}
	}
	var sums []byte
	rest := data
	for i := 1; i <= n; i++ {
		if i > 1 {
			if size, err = part(i); err != nil {
				return fmt.Errorf("ask for part %d: %w", i, err)
			}
		}
		if size < 0 || size > int64(len(rest)) {
			return fmt.Errorf("%w: its parts are longer than its %d bytes", errDamaged, len(data))
		}
		sums = append(sums, sum(c.algorithm, rest[:size])...)
		rest = rest[size:]
	}
	if len(rest) > 0 {
		return fmt.Errorf("%w: its parts are shorter than its %d bytes", errDamaged, len(data))
	}
	return same(sum(c.algorithm, sums), want)
}

func same(got []byte, want string) error {
	if s := base64.StdEncoding.EncodeToString(got); s != want {
		return fmt.Errorf("%w: the bytes that came have %s", errDamaged, s)
	}
	return nil
}

// partSize asks how long a part of the object in is.
func partSize(ctx context.Context, get getObject, in *s3.GetObjectInput, etag string) func(int) (int64, error) {
	return func(n int) (int64, error) {
		p := &s3.GetObjectInput{Bucket: in.Bucket, Key: in.Key, VersionId: in.VersionId, PartNumber: aws.Int32(int32(n))}
		if etag != "" {
			p.IfMatch = &etag
		}
		out, err := get(ctx, p, func(o *s3.Options) {
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		})
		if err != nil {
			return 0, err
		}
		_ = out.Body.Close() // only its length is of interest
		return aws.ToInt64(out.ContentLength), nil
	}
}
