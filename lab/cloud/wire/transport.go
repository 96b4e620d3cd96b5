package wire

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
)

// WholeBody sends each request's headers and body in one write.
//
// The AWS SDK hands net/http a body of a type of its own, so the headers are
// flushed first and the body is probed for more after its last byte; and it
// closes the body as soon as there is an answer. A fake on the loopback
// answers before the probe: net/http takes the closed body for a write error
// and drops the connection while the answer is being read. The SDK then sends
// the request again, which a test that counts calls, or allows one attempt,
// notices.
func WholeBody(rt http.RoundTripper) http.RoundTripper { return wholeBody{rt} }

type wholeBody struct{ http.RoundTripper }

func (w wholeBody) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return w.RoundTripper.RoundTrip(r)
	}
	b, err := io.ReadAll(r.Body)
	if cerr := r.Body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("read request body: %w", err)
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(b))
	r.ContentLength = int64(len(b))
	return w.RoundTripper.RoundTrip(r)
}
