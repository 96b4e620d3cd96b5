// Package autoscaling is a fake of EC2 Auto Scaling as far as lecafe uses it.
// It owns groups, their members' lifecycle with real waits at hooks, scaling
// activities and instance refreshes; the instances themselves are EC2's, behind
// Instances. It refuses parameters it does not model.
package autoscaling

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const (
	namespace = "http://autoscaling.amazonaws.com/doc/2011-01-01/"
	account   = wire.Account
)

// instances is what groups ask of EC2; *ec2.Server is one.
type instances interface {
	ResolveTemplate(region string, t ec2.Template) (ec2.Resolved, error)
	CheckLaunch(region string, l ec2.Launch) error
	Launch(region string, l ec2.Launch) (ids []string, err error)
	Terminate(instanceID string)
	InstanceState(instanceID string) (state string, impaired bool, why string)
	SetTargetLifecycleState(instanceID, target string)
	Zone(region, subnetID string) (string, error)
	DefaultSubnet(region, zone string) (string, error)
	Watch(f func(region, instanceID string))
}

// Options are what a Server is made of.
type Options struct {
	Clock     wire.Clock
	Instances instances // *ec2.Server
	Region    string    // of requests that name none; default us-east-1
	Times     Times
}

// Times are how long the group's own reactions take on the clock.
type Times struct {
	Scale       time.Duration // a change of capacity → launches or terminations; default 2 s
	HealthCheck time.Duration // an instance becomes unhealthy → it is replaced; default 10 s
	Retry       time.Duration // a failed launch → the next attempt, doubled up to 15 minutes; default 30 s
}

// Server is the Auto Scaling of every region of the fake cloud.
type Server struct {
	opts    Options
	mu      sync.Mutex
	regions map[string]*region
	members map[string]*member // by instance ID

	watchers []func()
	dirty    bool // the watchers have not been told yet

	queueMu sync.Mutex
	queue   []string // instances whose state has changed
}

type region struct {
	name   string
	groups map[string]*group
	order  []*group
}

// New returns a Server without groups.
func New(o Options) *Server {
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Times.Scale, 2*time.Second)
	def(&o.Times.HealthCheck, 10*time.Second)
	def(&o.Times.Retry, 30*time.Second)
	s := &Server{opts: o, regions: map[string]*region{}, members: map[string]*member{}}
	o.Instances.Watch(s.changed)
	return s
}

// changed notes that EC2 has something new about an instance. EC2 may say so
// in the midst of a call of ours: then whoever holds the lock looks at it
// before giving the lock back.
func (s *Server) changed(_, instanceID string) {
	s.queueMu.Lock()
	s.queue = append(s.queue, instanceID)
	s.queueMu.Unlock()
	if s.mu.TryLock() {
		s.unlock()
	}
}

func (s *Server) lock() { s.mu.Lock() }

func (s *Server) unlock() {
	for {
		for ids := s.takeQueue(); len(ids) > 0; ids = s.takeQueue() {
			touched := map[*group]bool{}
			for _, id := range ids {
				if m := s.members[id]; m != nil {
					touched[m.group] = true
					s.look(m)
				}
			}
			for g := range touched {
				s.refreshTick(g)
			}
		}
		tell := s.moved()
		s.mu.Unlock()
		for _, f := range tell {
			f()
		}
		// What was queued after the last look and found the lock taken is ours.
		s.queueMu.Lock()
		empty := len(s.queue) == 0
		s.queueMu.Unlock()
		if empty || !s.mu.TryLock() {
			return
		}
	}
}

func (s *Server) takeQueue() []string {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}

// later runs f under the lock once d has passed.
func (s *Server) later(d time.Duration, f func()) (stop func() bool) {
	return s.opts.Clock.AfterFunc(d, func() {
		s.lock()
		defer s.unlock()
		f()
	})
}

func (s *Server) now() time.Time { return s.opts.Clock.Now().Truncate(time.Millisecond) }

type call struct {
	s *Server
	r *region
}

type action func(*Server, context.Context, url.Values) (any, error)

// act makes an action of a handler that runs under the lock; what it returns
// must hold no memory that is changed later.
func act[In any](f func(*call, *In) (any, error)) action {
	return func(s *Server, ctx context.Context, form url.Values) (any, error) {
		in := new(In)
		if err := query.Decode(form, in); err != nil {
			return nil, err
		}
		s.lock()
		defer s.unlock()
		return f(&call{s, s.region(wire.RegionFrom(ctx))}, in)
	}
}

func (s *Server) region(name string) *region {
	if name == "" {
		name = s.opts.Region
	}
	r, ok := s.regions[name]
	if !ok {
		r = &region{name: name, groups: map[string]*group{}}
		s.regions[name] = r
	}
	return r
}

var actions = map[string]action{
	"CreateAutoScalingGroup":              act((*call).createGroup),
	"UpdateAutoScalingGroup":              act((*call).updateGroup),
	"DeleteAutoScalingGroup":              act((*call).deleteGroup),
	"DescribeAutoScalingGroups":           act((*call).describeGroups),
	"DescribeAutoScalingInstances":        act((*call).describeInstances),
	"SetDesiredCapacity":                  act((*call).setDesiredCapacity),
	"SetInstanceHealth":                   act((*call).setInstanceHealth),
	"SetInstanceProtection":               act((*call).setInstanceProtection),
	"TerminateInstanceInAutoScalingGroup": act((*call).terminateInstance),
	"DetachInstances":                     act((*call).detachInstances),
	"EnterStandby":                        act((*call).enterStandby),
	"ExitStandby":                         act((*call).exitStandby),
	"SuspendProcesses":                    act((*call).suspendProcesses),
	"ResumeProcesses":                     act((*call).resumeProcesses),
	"DescribeScalingActivities":           act((*call).describeActivities),
	"PutLifecycleHook":                    act((*call).putHook),
	"DeleteLifecycleHook":                 act((*call).deleteHook),
	"DescribeLifecycleHooks":              act((*call).describeHooks),
	"CompleteLifecycleAction":             act((*call).completeAction),
	"RecordLifecycleActionHeartbeat":      act((*call).heartbeat),
	"StartInstanceRefresh":                act((*call).startRefresh),
	"CancelInstanceRefresh":               act((*call).cancelRefresh),
	"RollbackInstanceRefresh":             act((*call).rollbackRefresh),
	"DescribeInstanceRefreshes":           act((*call).describeRefreshes),
	"CreateOrUpdateTags":                  act((*call).createTags),
	"DeleteTags":                          act((*call).deleteTags),
	"DescribeTags":                        act((*call).describeTags),
	"DescribeLifecycleHookTypes":          act(func(*call, *struct{}) (any, error) { return &hookTypesOut{[]string{launching, terminating}}, nil }),
	"DescribeTerminationPolicyTypes":      act(func(*call, *struct{}) (any, error) { return &policyTypesOut{policies}, nil }),
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

// ServeHTTP answers the query protocol. The request has been authenticated;
// its context names the region (package wire).
func (s *Server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if err := req.ParseForm(); err != nil {
		query.QueryError(w, namespace, invalid("%v", err))
		return
	}
	name := req.Form.Get("Action")
	do, ok := actions[name]
	if !ok {
		query.QueryError(w, namespace, query.Unsupported("the Auto Scaling action %s", name))
		return
	}
	out, err := do(s, req.Context(), req.Form)
	if err != nil {
		query.QueryError(w, namespace, query.As(err))
		return
	}
	query.Query(w, name, namespace, out)
}

// invalid is the error for everything that is wrong with a request.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/CommonErrors.html
func invalid(format string, args ...any) *query.Error {
	return query.Errorf("ValidationError", format, args...)
}
