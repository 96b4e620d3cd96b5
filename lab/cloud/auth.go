package cloud

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/s3"
	"github.com/lecafe/lecafe/lab/cloud/sigv4"
)

const (
	// maxSkew is how far a request's time may be from the service's:
	// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html
	maxSkew = 15 * time.Minute
	// maxBody bounds a request body other than S3's.
	maxBody = 16 << 20
)

// refusal is why a request was refused before its service saw it. Each
// protocol has its own word for it, see errors.go.
type refusal int

const (
	accepted refusal = iota
	missingToken
	malformedAuth
	otherAlgorithm
	unknownKey
	wrongToken
	wrongSignature
	expiredToken
	skewed
	expiredURL
	unsignedHeaders
	denied
)

// authenticate verifies a signed request. S3's body is checked as it is read;
// any other is read here.
func (c *Cloud) authenticate(q *request) (refusal, string) {
	a := q.auth
	now := c.clock.Now()
	creds, known := c.Vault.Lookup(a.AccessKeyID)
	switch {
	case !known, creds.SessionToken != "" && a.SessionToken == "":
		return unknownKey, ""
	case creds.SessionToken != a.SessionToken:
		return wrongToken, ""
	}
	if a.Presigned {
		if now.After(a.Time.Add(a.Expires)) {
			return expiredURL, "Request has expired"
		}
		if a.Time.After(now.Add(maxSkew)) {
			return expiredURL, "Request is not yet valid"
		}
	} else if d := now.Sub(a.Time); d > maxSkew || d < -maxSkew {
		return skewed, fmt.Sprintf("Signature expired: %s is more than 15 minutes from %s", a.Time.Format("20060102T150405Z"), now.Format("20060102T150405Z"))
	}
	// A session's end ends what it has signed before, presigned URLs too:
	// https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html
	if !creds.Expiration.IsZero() && !now.Before(creds.Expiration) {
		return expiredToken, ""
	}
	payload, guard, err := c.payload(q, creds.SecretAccessKey)
	if err != nil {
		return malformedAuth, err.Error()
	}
	if err := a.Verify(q.r, creds.SecretAccessKey, payload); err != nil {
		return wrongSignature, ""
	}
	guard()
	if q.service == "s3" {
		if names := a.Unsigned(q.r.Header); len(names) > 0 {
			return unsignedHeaders, "There were headers present in the request which were not signed: " + strings.Join(names, ", ")
		}
	}
	q.caller = creds.Caller
	return accepted, ""
}

// payload returns the payload hash that was signed. Guard, called once the
// signature is verified, arranges that reading the body fails where it is not
// what the hash says.
func (c *Cloud) payload(q *request, secret string) (hash string, guard func(), err error) {
	r := q.r
	if q.service != "s3" {
		sum := sha256.Sum256(q.body)
		return hex.EncodeToString(sum[:]), func() {}, nil
	}
	said := r.Header.Get("X-Amz-Content-Sha256")
	if said == "" && q.auth.Presigned {
		if said = r.URL.Query().Get("X-Amz-Content-Sha256"); said == "" {
			said = sigv4.Unsigned
		}
	}
	switch said {
	case "":
		return "", nil, errors.New("missing required header for this request: x-amz-content-sha256")
	case sigv4.Unsigned:
		return said, func() {}, nil
	case sigv4.Streaming, sigv4.StreamingTrailer, sigv4.StreamingUnsignedTrailer:
		n, err := strconv.ParseInt(r.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64)
		if err != nil || n < 0 {
			return "", nil, errors.New("x-amz-decoded-content-length is missing or not a number")
		}
		return said, func() {
			chunks := q.auth.NewChunks(r.Body, secret, said)
			r.Body, r.Trailer, r.ContentLength = readCloser{chunks, r.Body}, chunks.Trailer, n
		}, nil
	}
	if len(said) != hex.EncodedLen(sha256.Size) {
		return "", nil, errors.New("x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-..., or a valid sha256 value")
	}
	return said, func() { r.Body = readCloser{&hashed{in: r.Body, h: sha256.New(), want: said}, r.Body} }, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// hashed fails at the end of a body whose SHA-256 is not the one signed.
type hashed struct {
	in   io.Reader
	h    hash.Hash
	want string
}

func (b *hashed) Read(p []byte) (int, error) {
	n, err := b.in.Read(p)
	b.h.Write(p[:n])
	if err == io.EOF && hex.EncodeToString(b.h.Sum(nil)) != b.want {
		return n, s3.ErrPayloadHash
	}
	return n, err
}

// readBody reads the body of a request to any service but S3 and leaves it
// readable again.
func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("the body is larger than %d bytes", maxBody)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, nil
}
