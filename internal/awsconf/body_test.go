package awsconf_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/lecafe/lecafe/internal/awsconf"
)

// endpoint fails the first attempt and notes what each one sent.
type endpoint struct {
	bodies []string
	writes bool // a body offered WriteTo
}

func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	_, e.writes = r.Body.(io.WriterTo)
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	e.bodies = append(e.bodies, string(b))
	resp := &http.Response{StatusCode: 503, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("")), Request: r}
	if len(e.bodies) > 1 {
		resp.StatusCode = 200
		resp.Body = io.NopCloser(strings.NewReader(`<GetCallerIdentityResponse><GetCallerIdentityResult><Account>000000000000</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`))
	}
	return resp, nil
}

// A body that offers WriteTo lets the SDK cut off the answer of a fast
// endpoint, about once in a hundred answers over 4 KB.
func TestBodiesOfferNoWriteTo(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
	} {
		t.Setenv(name, value)
	}
	cfg, err := awsconf.Load(t.Context(), awsconf.Options{Endpoint: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	e := &endpoint{}
	cfg.HTTPClient = &http.Client{Transport: e}
	out, err := sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), nil)
	if err != nil || *out.Account != "000000000000" {
		t.Fatalf("%+v %v", out, err)
	}
	if e.writes {
		t.Error("the body offers WriteTo")
	}
	if len(e.bodies) != 2 || e.bodies[0] != e.bodies[1] || !strings.Contains(e.bodies[0], "GetCallerIdentity") {
		t.Errorf("attempts sent %q", e.bodies)
	}
}
