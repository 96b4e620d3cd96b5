// Package sigv4 verifies AWS Signature Version 4, in headers, in presigned
// URLs and in aws-chunked bodies, from the published description of the
// algorithm rather than from a signer's code, so that a signer's mistake is
// seen. It owns the canonical request; it refuses to know keys, callers or
// what an error looks like on the wire.
//
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	timeFormat = "20060102T150405Z"

	// Payload hashes that are not hashes:
	// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-auth-using-authorization-header.html
	Unsigned                 = "UNSIGNED-PAYLOAD"
	Streaming                = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	StreamingTrailer         = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	StreamingUnsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

	// EmptyHash is the SHA-256 of no bytes.
	EmptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

var (
	// ErrMalformed says that the signature's fields are missing or not well formed.
	ErrMalformed = errors.New("malformed signature")
	// ErrAlgorithm says that the request is signed otherwise than by Signature
	// Version 4.
	ErrAlgorithm = errors.New("not signed with " + algorithm)
	// ErrMismatch says that the signature is not that of the request.
	ErrMismatch = errors.New("signature does not match")
)

// Auth is what a request says about its signature.
type Auth struct {
	AccessKeyID   string
	Date          string // of the scope, YYYYMMDD
	Region        string
	Service       string
	Time          time.Time // X-Amz-Date
	SignedHeaders []string
	Signature     string
	SessionToken  string
	Presigned     bool
	Expires       time.Duration // of a presigned URL
}

// Parse returns the request's Auth, or nil for an unsigned request.
func Parse(r *http.Request) (*Auth, error) {
	q := r.URL.Query()
	header := r.Header.Get("Authorization")
	switch {
	case strings.HasPrefix(header, algorithm):
		return parseHeader(r, header)
	case q.Get("X-Amz-Algorithm") == algorithm:
		return parseQuery(q)
	case header != "", q.Has("X-Amz-Algorithm"), q.Has("AWSAccessKeyId") && q.Has("Signature"):
		return nil, ErrAlgorithm
	}
	return nil, nil
}

func parseHeader(r *http.Request, header string) (*Auth, error) {
	a := &Auth{SessionToken: r.Header.Get("X-Amz-Security-Token")}
	for field := range strings.SplitSeq(strings.TrimPrefix(header, algorithm), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch name {
		case "Credential":
			if err := a.scope(value); err != nil {
				return nil, err
			}
		case "SignedHeaders":
			a.SignedHeaders = strings.Split(value, ";")
		case "Signature":
			a.Signature = value
		}
	}
	date := r.Header.Get("X-Amz-Date")
	if date == "" {
		if t, err := http.ParseTime(r.Header.Get("Date")); err == nil {
			date = t.UTC().Format(timeFormat)
		}
	}
	return a, a.finish(date)
}

func parseQuery(q url.Values) (*Auth, error) {
	a := &Auth{
		Presigned: true, SessionToken: q.Get("X-Amz-Security-Token"), Signature: q.Get("X-Amz-Signature"),
		SignedHeaders: strings.Split(q.Get("X-Amz-SignedHeaders"), ";"),
	}
	if err := a.scope(q.Get("X-Amz-Credential")); err != nil {
		return nil, err
	}
	// At most a week: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
	n, err := strconv.Atoi(q.Get("X-Amz-Expires"))
	if err != nil || n < 0 || n > 7*24*3600 {
		return nil, fmt.Errorf("%w: X-Amz-Expires must be a number of seconds up to a week", ErrMalformed)
	}
	a.Expires = time.Duration(n) * time.Second
	return a, a.finish(q.Get("X-Amz-Date"))
}

func (a *Auth) scope(s string) error {
	p := strings.Split(s, "/")
	if len(p) < 5 || p[len(p)-1] != "aws4_request" {
		return fmt.Errorf("%w: the credential must be KEY/DATE/REGION/SERVICE/aws4_request", ErrMalformed)
	}
	n := len(p)
	a.AccessKeyID, a.Date, a.Region, a.Service = strings.Join(p[:n-4], "/"), p[n-4], p[n-3], p[n-2]
	return nil
}

func (a *Auth) finish(date string) error {
	var err error
	if a.Time, err = time.Parse(timeFormat, date); err != nil {
		return fmt.Errorf("%w: X-Amz-Date %q is not a time", ErrMalformed, date)
	}
	if a.Signature == "" || a.AccessKeyID == "" {
		return fmt.Errorf("%w: Credential or Signature is missing", ErrMalformed)
	}
	if a.Time.Format("20060102") != a.Date {
		return fmt.Errorf("%w: the scope's date is not that of X-Amz-Date", ErrMalformed)
	}
	if !slices.Contains(a.SignedHeaders, "host") {
		return fmt.Errorf("%w: host must be signed", ErrMalformed)
	}
	return nil
}

// Unsigned lists the request's x-amz-* headers that the signature leaves out:
// S3 refuses them.
func (a *Auth) Unsigned(h http.Header) []string {
	var out []string
	for name := range h {
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, "x-amz-") && !slices.Contains(a.SignedHeaders, lower) {
			out = append(out, lower)
		}
	}
	slices.Sort(out)
	return out
}

// Verify compares the signature with the one that secret gives for r and the
// payload hash.
func (a *Auth) Verify(r *http.Request, secret, payloadHash string) error {
	sum := sha256.Sum256([]byte(a.canonical(r, payloadHash)))
	want := a.sign(secret, strings.Join([]string{algorithm, a.Time.Format(timeFormat), a.scopeString(), hex.EncodeToString(sum[:])}, "\n"))
	if !hmac.Equal([]byte(want), []byte(a.Signature)) {
		return ErrMismatch
	}
	return nil
}

func (a *Auth) scopeString() string {
	return a.Date + "/" + a.Region + "/" + a.Service + "/aws4_request"
}

func (a *Auth) sign(secret, toSign string) string {
	key := mac(mac(mac(mac([]byte("AWS4"+secret), a.Date), a.Region), a.Service), "aws4_request")
	return hex.EncodeToString(mac(key, toSign))
}

func mac(key []byte, s string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(s))
	return h.Sum(nil)
}

func (a *Auth) canonical(r *http.Request, payloadHash string) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + a.canonicalPath(r.URL) + "\n" + canonicalQuery(r.URL.RawQuery) + "\n")
	for _, name := range a.SignedHeaders {
		b.WriteString(name + ":" + headerValue(r, name) + "\n")
	}
	b.WriteString("\n" + strings.Join(a.SignedHeaders, ";") + "\n" + payloadHash)
	return b.String()
}

func headerValue(r *http.Request, name string) string {
	switch name {
	case "host": // net/http moves it out of the header
		return r.Host
	case "content-length":
		return strconv.FormatInt(r.ContentLength, 10)
	case "transfer-encoding":
		return strings.Join(r.TransferEncoding, ",")
	}
	values := r.Header.Values(name)
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = strings.Join(strings.Fields(v), " ")
	}
	return strings.Join(out, ",")
}

// canonicalPath encodes each segment once for S3 and twice for everything
// else.
func (a *Auth) canonicalPath(u *url.URL) string {
	path := u.EscapedPath()
	if path == "" {
		return "/"
	}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if plain, err := url.PathUnescape(s); err == nil {
			s = plain
		}
		s = Escape(s)
		if a.Service != "s3" {
			s = Escape(s)
		}
		segments[i] = s
	}
	return strings.Join(segments, "/")
}

func canonicalQuery(raw string) string {
	if raw == "" {
		return ""
	}
	var pairs []string
	for p := range strings.SplitSeq(raw, "&") {
		if p == "" {
			continue
		}
		name, value, _ := strings.Cut(p, "=")
		if name == "X-Amz-Signature" {
			continue
		}
		pairs = append(pairs, reescape(name)+"="+reescape(value))
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func reescape(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		s = plain
	}
	return Escape(s)
}

// Escape percent-encodes everything but RFC 3986's unreserved characters.
func Escape(s string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
	return b.String()
}
