package ec2

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// Options are what a Server is made of.
type Options struct {
	Clock    wire.Clock
	Vault    *wire.Vault
	Machines Machines // nil: instances are records that follow the clock alone
	Region   string   // of requests that name none; default us-east-1
	Ports    []int    // loopback ports of the host that every machine reaches at its own loopback
	Times    Times
	// Hold makes states last as long as Times says where Machines runs the
	// instances too: a machine boots when it has been pending for so long, is
	// stopped no sooner, and its image takes its time.
	Hold bool
	// IMDS makes the handler that one machine sees at 169.254.169.254. info
	// answers with the instance as it is at the moment of the call. Nil where
	// there are no machines.
	IMDS func(instanceID string, info func() InstanceInfo) http.Handler
	Log  *slog.Logger
}

// Times are how long states take on the clock; zero fields have the defaults
// of DefaultTimes. Where Machines runs the instances, an instance is running
// when its machine boots and stopped when it is off, whatever Times says,
// unless Hold is set.
type Times struct {
	Pending      time.Duration // RunInstances, StartInstances → running
	Stopping     time.Duration
	ShuttingDown time.Duration
	StatusCheck  time.Duration // running → both status checks passed
	Image        time.Duration // CreateImage, CopyImage → available
	Snapshot     time.Duration // CreateSnapshot → completed
	Forgotten    time.Duration // terminated → no longer described
}

// DefaultTimes are near what a small Linux instance of a current family shows.
// Terminated instances stay visible for about an hour:
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/terminating-instances.html
var DefaultTimes = Times{
	Pending: 15 * time.Second, Stopping: 30 * time.Second, ShuttingDown: 20 * time.Second,
	StatusCheck: 2 * time.Minute, Image: 45 * time.Second, Snapshot: 40 * time.Second, Forgotten: time.Hour,
}

// Server is the EC2 of every region of the fake cloud.
type Server struct {
	opts Options
	log  *slog.Logger

	mu       sync.Mutex
	regions  map[string]*region
	profiles map[string]*profile // instance profiles; IAM is global
	faults   faults
	events   []stateChange
	watchers []func(region, instanceID string)

	ctx    context.Context // of machines' work; ended by Close
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// New returns a Server with a default VPC in every region and no images.
func New(o Options) *Server {
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Times = o.Times.orDefaults()
	s := &Server{opts: o, log: o.Log, regions: map[string]*region{}, profiles: map[string]*profile{}}
	s.faults.init()
	// The work outlives the request that caused it; Close ends it.
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if o.Machines != nil {
		o.Machines.PoweredOff(s.PoweredOff)
	}
	return s
}

// Close ends what the Server still does to machines and waits for it. The
// machines themselves are their driver's to remove.
func (s *Server) Close() {
	s.cancel()
	s.work.Wait()
}

func (t Times) orDefaults() Times {
	d := DefaultTimes
	for _, f := range []struct{ to, from *time.Duration }{
		{&d.Pending, &t.Pending}, {&d.Stopping, &t.Stopping}, {&d.ShuttingDown, &t.ShuttingDown},
		{&d.StatusCheck, &t.StatusCheck}, {&d.Image, &t.Image}, {&d.Snapshot, &t.Snapshot}, {&d.Forgotten, &t.Forgotten},
	} {
		if *f.from > 0 {
			*f.to = *f.from
		}
	}
	return d
}

// lock and unlock bracket every look at the state; unlock tells the watchers
// what changed, outside the lock, so that they may call back.
func (s *Server) lock() { s.mu.Lock() }

func (s *Server) unlock() {
	events, watchers := s.events, s.watchers
	s.events = nil
	s.mu.Unlock()
	for _, e := range events {
		for _, w := range watchers {
			w(e.region, e.instanceID)
		}
	}
}

// later runs f under the lock once d has passed.
func (s *Server) later(d time.Duration, f func()) (stop func() bool) {
	return s.opts.Clock.AfterFunc(d, func() {
		s.lock()
		defer s.unlock()
		f()
	})
}

// call is one request.
type call struct {
	s      *Server
	r      *region
	caller wire.Caller
}

// action serves one EC2 action: form in, answer struct (or nil for "return
// true") out.
type action func(*Server, context.Context, url.Values) (any, error)

// dry is embedded in every request that has DryRun, which is every one.
type dry struct{ DryRun bool }

func (d *dry) dryRun() bool { return d.DryRun }

// act makes an action of a handler that runs under the server's lock. What it
// returns is encoded after the lock is gone, so it must hold no memory that is
// changed later: slices in resources are replaced, never written to.
func act[In any](f func(*call, *In) (any, error)) action {
	return func(s *Server, ctx context.Context, form url.Values) (any, error) {
		in := new(In)
		if err := query.Decode(form, in); err != nil {
			return nil, err
		}
		// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/CommonParameters.html
		if d, ok := any(in).(interface{ dryRun() bool }); ok && d.dryRun() {
			return nil, &query.Error{Status: http.StatusPreconditionFailed, Code: "DryRunOperation", Message: "Request would have succeeded, but DryRun flag is set."}
		}
		s.lock()
		defer s.unlock()
		r, err := s.region(wire.RegionFrom(ctx))
		if err != nil {
			return nil, err
		}
		return f(&call{s: s, r: r, caller: wire.CallerFrom(ctx)}, in)
	}
}

// ServeHTTP answers the EC2 query protocol. The request has been
// authenticated; its context names caller and region (package wire).
func (s *Server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if err := req.ParseForm(); err != nil {
		query.EC2Error(w, query.Errorf("InvalidRequest", "%v", err))
		return
	}
	name := req.Form.Get("Action")
	version := req.Form.Get("Version")
	if version == "" {
		version = "2016-11-15"
	}
	do, ok := actions[name]
	if !ok {
		query.EC2Error(w, query.Unsupported("the EC2 action %s", name))
		return
	}
	out, err := do(s, req.Context(), req.Form)
	if err != nil {
		query.EC2Error(w, query.As(err))
		return
	}
	query.EC2(w, name, version, out)
}

var regionName = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`)

// knownRegions are those DescribeRegions lists; others are made when used.
var knownRegions = []string{"ap-northeast-1", "ap-southeast-1", "ap-southeast-2", "eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1", "us-east-1", "us-east-2", "us-west-1", "us-west-2"}

// region returns the region of that name, made with its default VPC when it is
// first used. The lock is held.
func (s *Server) region(name string) (*region, error) {
	if name == "" {
		name = s.opts.Region
	}
	if r, ok := s.regions[name]; ok {
		return r, nil
	}
	if !regionName.MatchString(name) {
		return nil, query.Errorf("InvalidParameterValue", "%q is not the name of a region", name)
	}
	r := newRegion(name)
	s.regions[name] = r
	s.defaultNetwork(r)
	return r, nil
}

// Actions lists what the Server models, sorted.
func Actions() []string {
	names := make([]string, 0, len(actions))
	for name := range actions {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
