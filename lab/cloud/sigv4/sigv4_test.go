package sigv4_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud/sigv4"
)

// The keys, requests and signatures that AWS publishes:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html
const (
	secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	scope  = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"
)

func published(method, url, signed, signature string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, url, nil)
	r.Header.Set("X-Amz-Date", "20130524T000000Z")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+scope+",SignedHeaders="+signed+",Signature="+signature)
	return r
}

func TestPublishedSignatures(t *testing.T) {
	const host = "http://examplebucket.s3.amazonaws.com"
	put := "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"
	presigned := httptest.NewRequest("GET", host+"/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential="+
		strings.ReplaceAll(scope, "/", "%2F")+"&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"+
		"&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404", nil)
	for name, tt := range map[string]struct {
		r       *http.Request
		payload string
	}{
		"GET with a range": {published("GET", host+"/test.txt", "host;range;x-amz-content-sha256;x-amz-date",
			"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41", "Range", "bytes=0-9", "X-Amz-Content-Sha256", sigv4.EmptyHash), sigv4.EmptyHash},
		"PUT of a key with a dollar": {published("PUT", host+"/test$file.text", "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
			"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd", "Date", "Fri, 24 May 2013 00:00:00 GMT",
			"X-Amz-Storage-Class", "REDUCED_REDUNDANCY", "X-Amz-Content-Sha256", put), put},
		"GET of a subresource": {published("GET", host+"/?lifecycle", "host;x-amz-content-sha256;x-amz-date",
			"fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543", "X-Amz-Content-Sha256", sigv4.EmptyHash), sigv4.EmptyHash},
		"listing": {published("GET", host+"/?max-keys=2&prefix=J", "host;x-amz-content-sha256;x-amz-date",
			"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7", "X-Amz-Content-Sha256", sigv4.EmptyHash), sigv4.EmptyHash},
		"presigned URL": {presigned, sigv4.Unsigned},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := sigv4.Parse(tt.r)
			if err != nil {
				t.Fatal(err)
			}
			if a.AccessKeyID != "AKIAIOSFODNN7EXAMPLE" || a.Region != "us-east-1" || a.Service != "s3" {
				t.Errorf("scope %+v", a)
			}
			if err := a.Verify(tt.r, secret, tt.payload); err != nil {
				t.Error(err)
			}
			if err := a.Verify(tt.r, secret+"x", tt.payload); !errors.Is(err, sigv4.ErrMismatch) {
				t.Errorf("another secret: %v", err)
			}
			tt.r.URL.Path += "x"
			tt.r.URL.RawPath = ""
			if err := a.Verify(tt.r, secret, tt.payload); !errors.Is(err, sigv4.ErrMismatch) {
				t.Errorf("another path: %v", err)
			}
		})
	}
}

func TestPublishedChunks(t *testing.T) {
	chunk := func(n int, signature string) string {
		return fmt.Sprintf("%x;chunk-signature=%s\r\n%s", n, signature, strings.Repeat("a", n))
	}
	body := chunk(65536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648") + "\r\n" +
		chunk(1024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497") + "\r\n" +
		chunk(0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9") + "\r\n"
	open := func(t *testing.T, body string) *sigv4.Chunks {
		r := published("PUT", "http://s3.amazonaws.com/examplebucket/chunkObject.txt",
			"content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class",
			"4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
			"Content-Encoding", "aws-chunked", "X-Amz-Decoded-Content-Length", "66560", "X-Amz-Storage-Class", "REDUCED_REDUNDANCY",
			"X-Amz-Content-Sha256", sigv4.Streaming)
		r.ContentLength = 66824
		a, err := sigv4.Parse(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Verify(r, secret, sigv4.Streaming); err != nil {
			t.Fatal(err)
		}
		return a.NewChunks(strings.NewReader(body), secret, sigv4.Streaming)
	}
	got, err := io.ReadAll(open(t, body))
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte("a"), 66560)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for name, tt := range map[string]struct {
		body string
		want error
	}{
		"a changed byte":       {strings.Replace(body, "aaaa", "aaab", 1), sigv4.ErrMismatch},
		"a changed signature":  {strings.Replace(body, "0055", "0056", 1), sigv4.ErrMismatch},
		"no last chunk":        {body[:strings.LastIndex(body, "0;chunk")], sigv4.ErrChunk},
		"a size that is none":  {"zz;chunk-signature=1\r\n", sigv4.ErrChunk},
		"a body cut short":     {body[:70000-3400], sigv4.ErrChunk},
		"a trailer unasked":    {body[:len(body)-2] + "\r\nx-amz-checksum-crc32:AAAA\r\n\r\n", sigv4.ErrChunk},
		"an enormous chunk":    {"ffffffff;chunk-signature=1\r\n", sigv4.ErrChunk},
		"no line end in there": {strings.Replace(body, "a\r\n", "axx", 1), sigv4.ErrChunk},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := io.Copy(io.Discard, open(t, tt.body))
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestTrailers(t *testing.T) {
	a := &sigv4.Auth{}
	c := a.NewChunks(strings.NewReader("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"), "", sigv4.StreamingUnsignedTrailer)
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "hello" || c.Trailer.Get("x-amz-checksum-crc32") != "NhCmhg==" {
		t.Errorf("%q %v %v", got, c.Trailer, err)
	}
	// A signed trailer without its signature is refused.
	c = a.NewChunks(strings.NewReader("0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"), "", sigv4.StreamingTrailer)
	if _, err := io.ReadAll(c); !errors.Is(err, sigv4.ErrMismatch) {
		t.Errorf("error %v", err)
	}
}

func TestMalformedAuthorization(t *testing.T) {
	good := "AWS4-HMAC-SHA256 Credential=" + scope + ", SignedHeaders=host;x-amz-date, Signature=00"
	for name, tt := range map[string]struct{ header, date string }{
		"short scope":   {strings.Replace(good, "/us-east-1", "", 1), "20130524T000000Z"},
		"no signature":  {strings.Replace(good, "Signature=00", "", 1), "20130524T000000Z"},
		"no date":       {good, ""},
		"scope's date":  {good, "20130525T000000Z"},
		"host unsigned": {strings.Replace(good, "host;", "", 1), "20130524T000000Z"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "http://s3.amazonaws.com/", nil)
			r.Header.Set("Authorization", tt.header)
			r.Header.Set("X-Amz-Date", tt.date)
			if _, err := sigv4.Parse(r); !errors.Is(err, sigv4.ErrMalformed) {
				t.Errorf("error %v", err)
			}
		})
	}
	for _, r := range []*http.Request{
		httptest.NewRequest("GET", "/k?AWSAccessKeyId=test&Signature=x&Expires=1", nil), httptest.NewRequest("GET", "/k?X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256", nil),
	} {
		if _, err := sigv4.Parse(r); !errors.Is(err, sigv4.ErrAlgorithm) {
			t.Errorf("%s: %v", r.URL, err)
		}
	}
	if a, err := sigv4.Parse(httptest.NewRequest("GET", "/", nil)); a != nil || err != nil {
		t.Errorf("unsigned: %v, %v", a, err)
	}
}
