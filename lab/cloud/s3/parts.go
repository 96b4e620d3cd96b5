package s3

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// announce checks which checksum an upload is to have, and tells it.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html
func announce(in, out http.Header) error {
	alg, kind := strings.ToLower(in.Get("x-amz-checksum-algorithm")), in.Get("x-amz-checksum-type")
	switch {
	case alg == "" && kind == "":
		return nil
	case alg == "":
		return errInvalidRequest.because("The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.")
	case !slices.Contains(algorithms, alg):
		return errInvalidRequest.because("Checksum algorithm provided is unsupported.")
	case kind == "":
		kind = typesOf(alg)[0]
	case kind != fullObject && kind != composite:
		return errInvalidRequest.because("Value for x-amz-checksum-type header is invalid.")
	case !slices.Contains(typesOf(alg), kind):
		return errInvalidRequest.because("The " + kind + " checksum type cannot be used with the " + alg + " checksum algorithm.")
	}
	in.Set("x-amz-checksum-type", kind)
	out.Set("x-amz-checksum-algorithm", strings.ToUpper(alg))
	out.Set("x-amz-checksum-type", kind)
	return nil
}

// partAlgorithm returns the algorithm of the parts' checksums. What a client
// sends must be by the one of the upload; a composite checksum is made of what
// clients have sent and so cannot do without.
func (u *upload) partAlgorithm(sent map[string]string) (string, error) {
	if u.sums == "" {
		return "crc64nvme", nil
	}
	if _, ok := sent[u.sums]; ok || len(sent) == 0 && u.sumType == fullObject {
		return u.sums, nil
	}
	have := "null"
	for alg := range sent {
		have = alg
	}
	return "", errInvalidRequest.because("Checksum Type mismatch occurred, expected checksum Type: " + u.sums + ", actual checksum Type: " + have)
}

type completedPart struct {
	PartNumber int
	ETag       string
	Other      []element `xml:",any"` // ChecksumCRC32, ...
}

// sum is the part's checksum as the client remembers it.
func (p completedPart) sum(alg string) string {
	for _, e := range p.Other {
		if strings.EqualFold(e.XMLName.Local, "Checksum"+alg) {
			return e.Value
		}
	}
	return ""
}

// assemble makes the object of the parts that a client names.
func (u *upload) assemble(named []completedPart, uploaded map[int]part) (*version, error) {
	v := &version{key: u.key, header: u.header, sumType: u.sumType}
	alg := u.sums
	if alg == "" {
		alg, v.sumType = "crc64nvme", fullObject
	}
	for i, p := range named {
		if i > 0 && p.PartNumber <= named[i-1].PartNumber || v.sumType == composite && p.PartNumber != i+1 {
			return nil, errInvalidPartOrder
		}
	}
	tags, sums := md5.New(), newHash(alg)
	for i, p := range named {
		have, ok := uploaded[p.PartNumber]
		sum := p.sum(u.sums)
		switch {
		case !ok || strings.Trim(p.ETag, `"`) != have.etag || sum != "" && sum != have.sum:
			return nil, errInvalidPart.with("PartNumber", strconv.Itoa(p.PartNumber))
		case sum == "" && v.sumType == composite:
			return nil, errInvalidRequest.because(fmt.Sprintf("The upload was created using a %s checksum. The complete request must include the checksum for each part. It was missing for part %d in the request.", alg, p.PartNumber))
		case i < len(named)-1 && len(have.body) < minPart:
			return nil, errTooSmall.with("PartNumber", strconv.Itoa(p.PartNumber)).with("MinSizeAllowed", strconv.Itoa(minPart))
		}
		raw, _ := hex.DecodeString(have.etag)
		tags.Write(raw)
		if raw, err := base64.StdEncoding.DecodeString(have.sum); err == nil {
			sums.Write(raw)
		}
		at := len(v.body)
		v.body = append(v.body, have.body...)
		v.parts = append(v.parts, storedPart{number: p.PartNumber, from: at, to: len(v.body), sums: map[string]string{alg: have.sum}})
	}
	v.etag = fmt.Sprintf("%x-%d", tags.Sum(nil), len(named))
	if v.sumType == composite {
		v.sums = map[string]string{alg: fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(sums.Sum(nil)), len(named))}
		return v, nil
	}
	v.sums = map[string]string{alg: checksum(alg, v.body)}
	if len(v.parts) > 1 { // S3 keeps those of the parts to itself
		for i := range v.parts {
			v.parts[i].sums = nil
		}
	}
	return v, nil
}

// storedPart is a part of a stored object.
type storedPart struct {
	number   int
	from, to int
	sums     map[string]string // as far as S3 gives them out
}

// partNumber is the part that a GET or HEAD asks for, 0 for the whole.
func (q request) partNumber() (int, error) {
	if !q.query.Has("partNumber") {
		return 0, nil
	}
	n, err := strconv.Atoi(q.query.Get("partNumber"))
	if err != nil || n < 1 || n > maxParts {
		return 0, errInvalidArgument.because("Part number must be an integer between 1 and 10000, inclusive").
			with("ArgumentName", "partNumber").with("ArgumentValue", q.query.Get("partNumber"))
	}
	if q.Header.Get("Range") != "" {
		return 0, errInvalidRequest.because("Cannot specify both Range header and partNumber query parameter")
	}
	return n, nil
}

// part finds a part; an object that was put whole is its own part 1.
func (v *version) part(n int) (storedPart, error) {
	if len(v.parts) == 0 && n == 1 {
		return storedPart{1, 0, len(v.body), v.sums}, nil
	}
	for _, p := range v.parts {
		if p.number == n {
			return p, nil
		}
	}
	return storedPart{}, errInvalidPartNumber.with("ActualPartCount", strconv.Itoa(max(1, len(v.parts)))).with("PartNumberRequested", strconv.Itoa(n))
}
