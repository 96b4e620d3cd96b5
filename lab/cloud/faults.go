package cloud

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/policy"
)

// Kind is what an injected fault does.
type Kind int

// Kinds of faults.
const (
	Throttle     Kind = iota + 1 // the service's own throttling error
	Error5xx                     // the service's internal error
	Reset                        // the connection is reset without an answer
	Delay                        // the answer comes Fault.Delay later, by the cloud's clock
	AccessDenied                 // the service's word for a missing permission
	Code                         // Fault.Status, Fault.Code and Fault.Message
)

// Fault is an error to inject. Empty fields match everything; patterns know *
// and ?.
type Fault struct {
	Service  string // s3, sqs, ec2, autoscaling, ssm, sts
	Action   string // pattern: PutObject, Describe*
	Caller   string // pattern on the caller's ARN, user ID or role
	Resource string // pattern on the ARN of what is acted on
	Skip     int    // let so many matching calls pass first
	Times    int    // then fail so many; 0 means all
	Kind     Kind
	Status   int // of Code; default 400
	Code     string
	Message  string
	Delay    time.Duration
	// After lets the service do its work and loses the answer: the client
	// cannot know whether the call was made.
	After bool
}

// Injected is a fault in force.
type Injected struct {
	Fault
	cloud *Cloud
	seen  int // guarded by Cloud.mu
	hits  atomic.Int64
}

// Inject puts a fault in force until it has had its times or is removed. Where
// several match a call, the first injected acts.
func (c *Cloud) Inject(f Fault) *Injected {
	i := &Injected{Fault: f, cloud: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, i)
	return i
}

// Hits returns how many calls the fault has met.
func (i *Injected) Hits() int { return int(i.hits.Load()) }

// Remove ends the fault.
func (i *Injected) Remove() {
	i.cloud.mu.Lock()
	defer i.cloud.mu.Unlock()
	for n, f := range i.cloud.faults {
		if f == i {
			i.cloud.faults = append(i.cloud.faults[:n:n], i.cloud.faults[n+1:]...)
			return
		}
	}
}

// fault returns the fault that this call meets, if any.
func (c *Cloud) fault(q *request) *Injected {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.faults {
		if !i.matches(q) || i.Times > 0 && i.Hits() >= i.Times {
			continue
		}
		if i.seen < i.Skip {
			i.seen++
			continue
		}
		i.hits.Add(1)
		return i
	}
	return nil
}

func (i *Injected) matches(q *request) bool {
	like := func(pattern string, values ...string) bool {
		if pattern == "" {
			return true
		}
		for _, v := range values {
			if policy.Match(pattern, v) {
				return true
			}
		}
		return false
	}
	return like(i.Service, q.service) && like(i.Action, q.action) && like(i.Caller, q.caller.ARN, q.caller.UserID, q.caller.Role) &&
		like(i.Resource, q.resources()...)
}

// throttles and internals are what each service says when it is asked too much
// or has failed.
//
// S3: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
// EC2: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
var (
	throttles = map[protocol]apiError{
		restXML:   {503, "SlowDown", "Please reduce your request rate."},
		ec2Query:  {503, "RequestLimitExceeded", "Request limit exceeded."},
		awsQuery:  {400, "Throttling", "Rate exceeded"},
		awsJSON:   {400, "ThrottlingException", "Rate exceeded"},
		queryJSON: {400, "ThrottlingException", "Rate exceeded"},
	}
	internals = map[protocol]apiError{
		restXML:   {500, "InternalError", "We encountered an internal error. Please try again."},
		ec2Query:  {500, "InternalError", "An internal error has occurred"},
		awsQuery:  {500, "InternalFailure", "We encountered an internal error. Please try again."},
		awsJSON:   {500, "InternalServerError", "An internal error occurred"},
		queryJSON: {500, "InternalFailure", "We encountered an internal error. Please try again."},
	}
)

// apply acts on a call; it reports whether the call has been answered.
func (i *Injected) apply(w *recorder, q *request) bool {
	switch i.Kind {
	case Throttle:
		writeError(w, q.r, q.protocol, throttles[q.protocol])
	case Error5xx:
		writeError(w, q.r, q.protocol, internals[q.protocol])
	case AccessDenied:
		writeError(w, q.r, q.protocol, refusalOf(q.protocol, denied, ""))
	case Code:
		status := i.Status
		if status == 0 {
			status = http.StatusBadRequest
		}
		writeError(w, q.r, q.protocol, apiError{status, i.Code, i.Message})
	case Reset:
		w.beforeReset()
		reset(w)
	case Delay:
		i.wait(q.r.Context())
		return false
	default:
		return false
	}
	return true
}

func (i *Injected) wait(ctx context.Context) {
	due := make(chan struct{})
	stop := i.cloud.clock.AfterFunc(i.Delay, func() { close(due) })
	defer stop()
	select {
	case <-due:
	case <-ctx.Done():
	}
}

// reset ends the connection with a TCP RST where it can.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // no connection to hijack: net/http's way to give up
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
