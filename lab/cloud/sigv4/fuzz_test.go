package sigv4_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/encoding/httpbinding"

	"github.com/lecafe/lecafe/lab/cloud/sigv4"
)

// What the SDK signs verifies, and what is changed afterwards does not.
func FuzzSDKSignatures(f *testing.F) {
	f.Add("GET", "a b/c+d", "prefix=x&max-keys=2", " v  w ", "s3")
	f.Add("PUT", "é/%2F/..", "list-type=2&prefix=a%20b%2Bc", "", "s3")
	f.Add("POST", "", "Action=X&Version=1", "x", "ec2")
	f.Fuzz(func(t *testing.T, method, path, query, header, service string) {
		r, err := http.NewRequest(method, "http://127.0.0.1:4566/", nil)
		if err != nil || service == "" || strings.ContainsAny(service, "/,= \t\n") || !printable(service+header+method) {
			return
		}
		r.URL.Path, r.URL.RawPath = "/"+path, httpbinding.EscapePath("/"+path, false) // as the SDK's clients escape it
		if strings.Contains(query, ";") {                                             // net/url drops what has one
			return
		}
		r.URL.RawQuery = query
		r.URL.RawQuery = r.URL.Query().Encode()
		r.Header.Set("X-Amz-Meta-Test", header)
		at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
		signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = service == "s3" })
		creds := aws.Credentials{AccessKeyID: "test", SecretAccessKey: "secret", SessionToken: "token"}
		if err := signer.SignHTTP(t.Context(), creds, r, sigv4.EmptyHash, service, "us-east-1", at); err != nil {
			return
		}
		a, err := sigv4.Parse(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Verify(r, "secret", sigv4.EmptyHash); err != nil {
			t.Errorf("%s %s %s: %v", method, r.URL, r.Header, err)
		}
		r.URL.Path, r.URL.RawPath = r.URL.Path+"x", r.URL.RawPath+"x"
		if err := a.Verify(r, "secret", sigv4.EmptyHash); err == nil {
			t.Error("another path verifies")
		}
	})
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// A chunked body ends with io.EOF or an error, and no trailer is taken on
// trust where trailers are signed.
func FuzzChunks(f *testing.F) {
	f.Add("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n", false)
	f.Add("5;chunk-signature=00\r\nhello\r\n0;chunk-signature=00\r\n\r\n", true)
	f.Fuzz(func(t *testing.T, body string, signed bool) {
		mode := sigv4.StreamingUnsignedTrailer
		if signed {
			mode = sigv4.StreamingTrailer
		}
		c := (&sigv4.Auth{}).NewChunks(strings.NewReader(body), "secret", mode)
		got, err := io.ReadAll(c)
		if signed && err == nil {
			t.Errorf("%q verifies", body)
		}
		if len(got) > len(body) {
			t.Errorf("%d bytes out of %d", len(got), len(body))
		}
	})
}
