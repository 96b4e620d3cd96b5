package s3

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"net/http"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/zeebo/xxh3"
)

// algorithms are S3's checksums by their name in x-amz-checksum-NAME. XXHash is
// written in its canonical byte order, big-endian, as AWS's own clients write it:
// https://github.com/aws/aws-sdk-go-v2/issues/3404
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
var algorithms = []string{"crc32", "crc32c", "crc64nvme", "md5", "sha1", "sha256", "sha512", "xxhash128", "xxhash3", "xxhash64"}

// The types of a multipart upload's checksum.
const (
	fullObject = "FULL_OBJECT"
	composite  = "COMPOSITE" // the checksum of the parts' checksums
)

// typesOf are the types that an algorithm can have, the default first. Of the
// whole object there is only what can be computed from the parts': the CRCs.
func typesOf(alg string) []string {
	switch alg {
	case "crc64nvme":
		return []string{fullObject}
	case "crc32", "crc32c":
		return []string{composite, fullObject}
	}
	return []string{composite}
}

// Tables are costly to make anew for each small object.
var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	nvme       = crc64.MakeTable(0x9a6c9329ac4bc9b5) // the NVMe polynomial, reflected
)

func newHash(name string) hash.Hash {
	switch name {
	case "crc32":
		return crc32.NewIEEE()
	case "crc32c":
		return crc32.New(castagnoli)
	case "crc64nvme":
		return crc64.New(nvme)
	case "sha1":
		return sha1.New()
	case "sha256":
		return sha256.New()
	case "sha512":
		return sha512.New()
	case "md5":
		return md5.New()
	case "xxhash64":
		return xxhash.New()
	case "xxhash3":
		return xxh3.New()
	case "xxhash128":
		return xxh3.New128()
	}
	return nil
}

func checksum(name string, body []byte) string {
	h := newHash(name)
	h.Write(body)
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// verifyBody checks Content-MD5 and every x-amz-checksum-* the client sent, in
// headers or in the trailer, and returns the checksums: none or one.
func verifyBody(h, trailer http.Header, body []byte) (map[string]string, error) {
	if want, ok := h["Content-Md5"]; ok {
		raw, err := base64.StdEncoding.DecodeString(want[0])
		if err != nil || len(raw) != md5.Size {
			return nil, errInvalidDigest
		}
		if sum := md5.Sum(body); string(raw) != string(sum[:]) {
			return nil, errBadDigest
		}
	}
	sums := map[string]string{}
	given := given(h)
	for name, value := range trailer {
		if alg, ok := strings.CutPrefix(strings.ToLower(name), "x-amz-checksum-"); ok {
			given[alg] = value[0]
		}
	}
	if len(given) > 1 {
		return nil, errInvalidRequest.because("Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
	}
	for _, name := range strings.Split(h.Get("x-amz-trailer"), ",") {
		if alg, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(name)), "x-amz-checksum-"); ok && given[alg] == "" {
			return nil, errInvalidRequest.because("The trailer that x-amz-trailer announces is missing")
		}
	}
	for alg, want := range given {
		if !slices.Contains(algorithms, alg) {
			return nil, errInvalidRequest.because("The algorithm type you specified in x-amz-checksum- header is invalid.")
		}
		if raw, err := base64.StdEncoding.DecodeString(want); err != nil || len(raw) != newHash(alg).Size() {
			return nil, errInvalidRequest.because("Value for x-amz-checksum-" + alg + " header is invalid.")
		}
		if got := checksum(alg, body); got != want {
			return nil, errBadDigest.because("The " + strings.ToUpper(alg) + " you specified did not match the calculated checksum.")
		}
		sums[alg] = want
	}
	return sums, nil
}

// given returns the checksums among the headers.
func given(h http.Header) map[string]string {
	out := map[string]string{}
	for name, values := range h {
		alg, ok := strings.CutPrefix(strings.ToLower(name), "x-amz-checksum-")
		if ok && !slices.Contains([]string{"mode", "algorithm", "type"}, alg) {
			out[alg] = values[0]
		}
	}
	return out
}

func setSums(h http.Header, sums map[string]string, kind string) {
	for alg, sum := range sums {
		h.Set("x-amz-checksum-"+alg, sum)
	}
	if len(sums) > 0 {
		h.Set("x-amz-checksum-type", kind)
	}
}
