package cloudformation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// world is where a stack's resources are made: the other services, called as
// their clients call them but without a signature, for the stack's caller.
type world struct {
	ctx      context.Context
	services map[string]http.Handler
	host     string // as the caller reaches the endpoint: queue URLs have it
	region   string
}

type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

var (
	errorCode = regexp.MustCompile(`<Code>([^<]+)</Code>|"__type"\s*:\s*"(?:[^"#]*#)?([^"]+)"`)
	errorText = regexp.MustCompile(`(?s)<Message>(.*?)</Message>|"message"\s*:\s*"([^"]*)"`)
)

func group(re *regexp.Regexp, body string) string {
	if m := re.FindStringSubmatch(body); m != nil {
		return m[1] + m[2]
	}
	return ""
}

func (w *world) send(service, method, path, body string, header http.Header) (string, error) {
	r, err := http.NewRequestWithContext(w.ctx, method, "http://"+w.host+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	r.Header = header
	r.Host = w.host
	a := &answer{header: http.Header{}, status: http.StatusOK}
	w.services[service].ServeHTTP(a, r)
	if a.status < 300 {
		return a.body.String(), nil
	}
	code := group(errorCode, a.body.String())
	if code == "" {
		code = http.StatusText(a.status)
	}
	return "", &query.Error{Status: a.status, Code: code, Message: group(errorText, a.body.String())}
}

func (w *world) query(service, action string, form url.Values) (string, error) {
	form.Set("Action", action)
	return w.send(service, http.MethodPost, "/", form.Encode(), http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
}

func (w *world) s3(method, bucket, subresource, body string) (string, error) {
	path := "/" + bucket
	if subresource != "" {
		path += "?" + subresource
	}
	return w.send("s3", method, path, body, http.Header{})
}

func (w *world) sqs(action string, in any) (map[string]any, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	text, err := w.send("sqs", http.MethodPost, "/", string(b), http.Header{"X-Amz-Target": {"AmazonSQS." + action}, "Content-Type": {"application/x-amz-json-1.0"}})
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&out); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("answer of sqs:%s: %w", action, err)
	}
	return out, nil
}

// hasCode says whether err is one of the services' with a code.
func hasCode(err error, codes ...string) bool {
	e, ok := errors.AsType[*query.Error](err)
	if !ok {
		return false
	}
	for _, c := range codes {
		if e.Code == c {
			return true
		}
	}
	return false
}

// element is the text of the first XML element with a name.
func element(body, name string) string {
	_, rest, ok := strings.Cut(body, "<"+name+">")
	if !ok {
		return ""
	}
	value, _, _ := strings.Cut(rest, "</"+name+">")
	return value
}

// elements are the texts of all XML elements with a name.
func elements(body, name string) []string {
	var out []string
	for {
		_, rest, ok := strings.Cut(body, "<"+name+">")
		if !ok {
			return out
		}
		value, after, _ := strings.Cut(rest, "</"+name+">")
		out, body = append(out, value), after
	}
}

// singular are the request parameters that the EC2 API names otherwise than
// CloudFormation does.
var singular = map[string]string{
	"SecurityGroupIds": "SecurityGroupId", "SecurityGroups": "SecurityGroup", "TagSpecifications": "TagSpecification", "Tags": "Tag",
	"BlockDeviceMappings": "BlockDeviceMapping", "NetworkInterfaces": "NetworkInterface",
}

// flatten writes a value as request parameters: EC2's A.1.B, or with member the
// query protocol's A.member.1.B.
func flatten(form url.Values, name string, v any, member bool) {
	switch v := v.(type) {
	case map[string]any:
		for key, x := range v {
			if s := singular[key]; s != "" && !member {
				key = s
			}
			flatten(form, name+"."+key, x, member)
		}
	case []any:
		for i, x := range v {
			at := name + "." + strconv.Itoa(i+1)
			if member {
				at = name + ".member." + strconv.Itoa(i+1)
			}
			flatten(form, at, x, member)
		}
	default:
		form.Set(name, text(v))
	}
}

// as returns a world for a request's caller and region that outlives it.
func (s *Server) as(ctx context.Context, st *stack) *world {
	out := wire.WithRegion(wire.WithCaller(s.ctx, wire.CallerFrom(ctx)), st.region)
	return &world{ctx: out, services: s.opts.Services, host: st.host, region: st.region}
}
