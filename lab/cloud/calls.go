package cloud

import (
	"bytes"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// Call is one request as the cloud saw it.
type Call struct {
	Time      time.Time
	Service   string
	Action    string
	Region    string
	Caller    wire.Caller // zero for an unsigned or refused signature
	Resources []string    // ARNs, where the action has them
	Presigned bool
	Status    int    // 0: the connection was reset
	Code      string // error code, empty on success
	Injected  bool   // a fault answered
	// Permissions are the IAM actions the call needed, ec2:RunInstances.
	Permissions []string
}

// keptCalls bounds what a lab that runs for days remembers.
const keptCalls = 100_000

func (c *Cloud) record(call Call) {
	c.mu.Lock()
	if len(c.calls) >= keptCalls {
		c.calls = slices.Clone(c.calls[keptCalls/2:])
	}
	c.calls = append(c.calls, call)
	observers := slices.Clone(c.observers)
	c.mu.Unlock()
	for _, o := range observers {
		(*o)(call)
	}
}

// Calls returns what was called so far, in order of completion.
func (c *Cloud) Calls() []Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.calls)
}

// OnCall tells f of every call once it is answered, until stop is called. f
// must not block.
func (c *Cloud) OnCall(f func(Call)) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.observers = append(c.observers, &f)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.observers = slices.DeleteFunc(c.observers, func(o *func(Call)) bool { return o == &f })
	}
}

// recorder sees a response's status and the error code in its body.
type recorder struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer // of an error, as far as the code is in it

	beforeReset func()
}

const recorded = 2 << 10

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if w.status >= 300 && w.body.Len() < recorded {
		w.body.Write(b[:min(len(b), recorded-w.body.Len())])
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

var codePattern = regexp.MustCompile(`<Code>([^<]+)</Code>|"__type"\s*:\s*"(?:[^"#]*#)?([^"]+)"`)

func (w *recorder) code() string {
	if m := codePattern.FindSubmatch(w.body.Bytes()); m != nil {
		return string(m[1]) + string(m[2])
	}
	if w.status >= 400 {
		return http.StatusText(w.status) // HEAD has no body
	}
	return ""
}
