package cloud

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/autoscaling"
	"github.com/lecafe/lecafe/lab/cloud/cloudformation"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/iam"
	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/lab/cloud/s3"
	"github.com/lecafe/lecafe/lab/cloud/sigv4"
	"github.com/lecafe/lecafe/lab/cloud/sqs"
	"github.com/lecafe/lecafe/lab/cloud/ssm"
	"github.com/lecafe/lecafe/lab/cloud/sts"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// Options configure a Cloud. The zero value is a cloud on the real clock in
// us-east-1.
type Options struct {
	Clock  wire.Clock
	Region string       // of set-up made without a request; default us-east-1
	Log    *slog.Logger // refused requests at debug; default none
	// StrictTransport lets policies see whether a request came by TLS
	// (aws:SecureTransport). Without it each counts as if it had: a lab's plain
	// HTTP stands for AWS's endpoints, which clients reach by HTTPS.
	StrictTransport bool

	// What runs EC2's instances, see package ec2; all may be empty.
	Machines ec2.Machines
	IMDS     func(instanceID string, info func() ec2.InstanceInfo) http.Handler
	Ports    []int // loopback ports that instances reach: this cloud's own
	Times    ec2.Times
	Hold     bool // states last as long as Times says, see package ec2
	// How long Auto Scaling's own reactions take.
	ScalingTimes autoscaling.Times
}

// Cloud is the local AWS: an http.Handler of every service.
type Cloud struct {
	Vault *wire.Vault
	EC2   *ec2.Server
	Auto  *autoscaling.Server
	IAM   *iam.Server
	S3    *s3.Server
	SQS   *sqs.Server
	SSM   *ssm.Server
	STS   *sts.Server
	CFN   *cloudformation.Server

	clock    wire.Clock
	region   string
	log      *slog.Logger
	services map[string]service

	strictTransport bool

	mu        sync.Mutex
	faults    []*Injected
	calls     []Call
	implied   []Call
	observers []*func(Call)
	denials   []*denial
}

// service is one AWS service behind the router.
type service struct {
	http.Handler
	protocol protocol
	// needs lists the permissions of a call; nil where none are needed.
	needs func(q *request) []policy.Request
}

// New returns a Cloud with the operator's access key test/test and nothing
// else in it.
func New(o Options) *Cloud {
	if o.Clock == nil {
		o.Clock = wire.Scaled(1)
	}
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cloud{clock: o.Clock, region: o.Region, log: o.Log, Vault: wire.NewVault(o.Clock), strictTransport: o.StrictTransport}
	c.S3 = s3.New(s3.Options{Clock: o.Clock, Region: o.Region, Allowed: c.allowed})
	c.SQS = sqs.New(sqs.Options{Clock: o.Clock, Region: o.Region})
	c.EC2 = ec2.New(ec2.Options{
		Clock: o.Clock, Vault: c.Vault, Machines: o.Machines, Region: o.Region, Ports: o.Ports, Times: o.Times, Hold: o.Hold, IMDS: o.IMDS, Log: o.Log,
	})
	c.SSM = ssm.New(ssm.Options{Clock: o.Clock, ImageExists: c.EC2.ImageExists})
	c.Auto = autoscaling.New(autoscaling.Options{Clock: o.Clock, Instances: c.EC2, Region: o.Region, Times: o.ScalingTimes})
	c.IAM = iam.New(iam.Options{Clock: o.Clock, Vault: c.Vault, Profiles: c.EC2})
	c.STS = sts.New(sts.Options{Vault: c.Vault, Trusts: c.IAM.Trusts})
	c.CFN = cloudformation.New(cloudformation.Options{Clock: o.Clock, Services: map[string]http.Handler{
		"iam": c.IAM, "autoscaling": c.Auto, "ec2": c.EC2, "s3": c.S3, "sqs": c.SQS,
	}})
	c.services = map[string]service{
		"cloudformation": {c.CFN, awsQuery, needsCloudFormation},
		"iam":            {c.IAM, awsQuery, needsIAM},
		"autoscaling":    {c.Auto, awsQuery, c.needsAutoScaling},
		"ec2":            {c.EC2, ec2Query, needsEC2},
		"s3":             {c.S3, restXML, needsS3},
		"sqs":            {c.SQS, queryJSON, needsSQS},
		"ssm":            {c.SSM, awsJSON, needsSSM},
		"sts":            {c.STS, awsQuery, needsSTS},
	}
	return c
}

// Close ends what the services still do in the background: CloudFormation's
// work on its stacks, EC2's on its machines. A listening Endpoint is closed on
// its own, before.
func (c *Cloud) Close() {
	c.CFN.Close()
	c.EC2.Close()
}

// request is one request on its way through the router.
type request struct {
	r        *http.Request
	auth     *sigv4.Auth
	service  string
	protocol protocol
	action   string
	region   string
	body     []byte     // of any service but S3
	form     url.Values // of the query protocol
	caller   wire.Caller
	needs    []policy.Request
}

func (q *request) resources() []string {
	var out []string
	for _, n := range q.needs {
		if n.Resource != "*" {
			out = append(out, n.Resource)
		}
	}
	return out
}

// ServeHTTP implements http.Handler: it authenticates, records, injects
// faults, asks the policies, and lets the service answer.
func (c *Cloud) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := &recorder{ResponseWriter: rw}
	// SDKs correct their clock by it.
	rw.Header().Set("Date", c.clock.Now().Format(http.TimeFormat))
	r = r.WithContext(context.WithValue(r.Context(), secureKey{}, r.TLS != nil))
	q := &request{r: r}
	call := Call{}
	note := sync.OnceFunc(func() {
		call.Time, call.Service, call.Action, call.Region, call.Caller = c.clock.Now(), q.service, q.action, q.region, q.caller
		call.Resources, call.Presigned = q.resources(), q.auth != nil && q.auth.Presigned
		for _, n := range q.needs {
			call.Permissions = append(call.Permissions, n.Action)
		}
		c.record(call)
	})
	defer func() {
		call.Status, call.Code = w.status, w.code()
		if call.Status == 0 {
			call.Status = http.StatusOK // net/http writes it for a handler that wrote nothing
		}
		note()
	}()
	if e, ok := c.open(q); !ok {
		c.log.Debug("refused", "service", q.service, "action", q.action, "code", e.code, "reason", e.message)
		writeError(w, r, q.protocol, e)
		return
	}
	srv := c.services[q.service]
	f := c.fault(q)
	if f != nil {
		call.Injected = true
		w.beforeReset = note // the client must find the call noted
		if !f.After && f.apply(w, q) {
			return
		}
	}
	if why := c.denial(q); why != "" {
		writeError(w, r, q.protocol, refusalOf(q.protocol, denied, why))
		return
	}
	r = r.WithContext(wire.WithRegion(wire.WithCaller(r.Context(), q.caller), q.region))
	if f == nil || !f.After {
		srv.ServeHTTP(w, r)
		return
	}
	// The service does its work and the answer is lost.
	lost := &discard{header: http.Header{}}
	srv.ServeHTTP(lost, r)
	if !f.apply(w, q) { // it was only late
		maps.Copy(w.Header(), lost.header)
		w.WriteHeader(max(lost.status, http.StatusOK))
		_, _ = w.Write(lost.body) // a client that is gone has no use for an error
	}
}

// discard keeps an answer from the client.
type discard struct {
	header http.Header
	status int
	body   []byte
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(b []byte) (int, error) { d.body = append(d.body, b...); return len(b), nil }

// open finds out what the request is and who sent it.
func (c *Cloud) open(q *request) (apiError, bool) {
	a, err := sigv4.Parse(q.r)
	q.protocol = guess(q.r)
	if errors.Is(err, sigv4.ErrAlgorithm) {
		return refusalOf(q.protocol, otherAlgorithm, ""), false
	}
	if err != nil {
		return refusalOf(q.protocol, malformedAuth, err.Error()), false
	}
	if a == nil {
		// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-auth-using-authorization-header.html
		if q.protocol == restXML {
			q.service = "s3"
			q.action = s3.OperationOf(q.r).Name
		}
		return refusalOf(q.protocol, missingToken, ""), false
	}
	q.auth, q.service, q.region = a, a.Service, a.Region
	srv, ok := c.services[q.service]
	if !ok {
		return apiError{400, "UnsupportedOperation", "the service " + q.service + " is not modelled by this fake"}, false
	}
	q.protocol = srv.protocol
	if q.service == "s3" {
		q.action = s3.OperationOf(q.r).Name
	} else if err := q.readAction(); err != nil {
		return refusalOf(q.protocol, malformedAuth, err.Error()), false
	}
	if why, message := c.authenticate(q); why != accepted {
		return refusalOf(q.protocol, why, message), false
	}
	q.needs = srv.needs(q)
	return apiError{}, true
}

// guess names the protocol of a request whose service is not known.
func guess(r *http.Request) protocol {
	switch {
	case r.Header.Get("X-Amz-Target") != "":
		return awsJSON
	case strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") && r.Method == http.MethodPost:
		return awsQuery
	}
	return restXML
}

// readAction reads the action of a JSON or query request.
func (q *request) readAction() error {
	var err error
	if q.body, err = readBody(q.r); err != nil {
		return err
	}
	if target := q.r.Header.Get("X-Amz-Target"); target != "" {
		_, q.action, _ = strings.Cut(target, ".")
		return nil
	}
	q.form = q.r.URL.Query()
	if strings.HasPrefix(q.r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		form, err := url.ParseQuery(string(q.body))
		if err != nil {
			return fmt.Errorf("parse form: %w", err)
		}
		for name, values := range form {
			q.form[name] = append(q.form[name], values...)
		}
	}
	q.action = q.form.Get("Action")
	return nil
}

func requestID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b[:4]) + "-" + hex.EncodeToString(b[4:6]) + "-" + hex.EncodeToString(b[6:8]) + "-" + hex.EncodeToString(b[8:10]) + "-" + hex.EncodeToString(b[10:])
}

// Endpoint is a Cloud that listens.
type Endpoint struct {
	URL  string // http://127.0.0.1:PORT
	Port int

	server *http.Server
	cancel context.CancelFunc
	done   chan struct{}
	unhook func() bool
}

// Start listens on addr, 127.0.0.1:0 for a free port, until ctx ends or Close
// is called.
func (c *Cloud) Start(ctx context.Context, addr string) (*Endpoint, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the cloud's services: %w", err)
	}
	return c.Serve(ctx, ln), nil
}

// Serve is Start on a listener, which it owns from here on.
func (c *Cloud) Serve(ctx context.Context, ln net.Listener) *Endpoint {
	base, cancel := context.WithCancel(ctx)
	e := &Endpoint{URL: "http://" + ln.Addr().String(), cancel: cancel, done: make(chan struct{})}
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok {
		e.Port = tcp.Port
	}
	e.server = &http.Server{
		Handler: c, BaseContext: func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(e.done)
		if err := e.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("serve the cloud", "error", err)
		}
	}()
	e.unhook = context.AfterFunc(ctx, func() { _ = e.server.Close() })
	return e
}

// Close ends waiting requests and the listener. It can be called again.
func (e *Endpoint) Close() {
	e.cancel() // long polls return
	e.unhook()
	_ = e.server.Close()
	<-e.done
}
