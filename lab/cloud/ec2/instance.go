package ec2

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// state is an instance's, with EC2's code for it:
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceState.html
type state struct {
	Code int    `out:"code"`
	Name string `out:"name"`
}

var (
	pending      = state{0, "pending"}
	running      = state{16, "running"}
	shuttingDown = state{32, "shutting-down"}
	terminated   = state{48, "terminated"}
	stopping     = state{64, "stopping"}
	stopped      = state{80, "stopped"}
)

type reason struct {
	Code    string `out:"code"`
	Message string `out:"message"`
}

type instance struct {
	meta
	region      *region
	reservation string
	index       int // of the launch
	token       string
	data        launchData // as launched: merged, resolved
	image       *image
	state       state
	reason      *reason
	transition  string // "User initiated (...)"
	launched    time.Time
	subnet      *subnet
	address     netip.Addr // invalid once given back
	privateIP   string
	publicIP    string
	mac         string
	eni         *networkInterface
	groups      []groupRef
	devices     []attached
	metadata    metadataOut
	userData    []byte
	profile     *profile
	association string
	shutdown    string // stop or terminate
	keepAPI     bool   // DisableApiTermination
	keepRunning bool   // DisableApiStop
	spot        string // "", one-time or persistent
	checked     bool   // both status checks have passed
	impaired    bool   // a test says that the instance check fails
	monitored   string
	console     []byte
	consoleAt   time.Time

	targetState string // Auto Scaling's target lifecycle state
	credentials wire.Credentials

	gen       int  // of the state: a timer of an older one does nothing
	capturing bool // off for CreateImage: still running to the API
	jobs      []func(context.Context)
	busy      bool
}

type groupRef struct {
	ID   string `out:"groupId"`
	Name string `out:"groupName"`
}

// attached is a volume in its place.
type attached struct {
	device              string
	volume              *volume
	deleteOnTermination bool
}

type metadataOut struct {
	State                   string `out:"state"`
	HTTPTokens              string `out:"httpTokens"`
	HTTPPutResponseHopLimit int    `out:"httpPutResponseHopLimit"`
	HTTPEndpoint            string `out:"httpEndpoint"`
	HTTPProtocolIPv6        string `out:"httpProtocolIpv6"`
	InstanceMetadataTags    string `out:"instanceMetadataTags"`
}

type profile struct {
	id, name, arn, role string
}

type stateChange struct{ region, instanceID string }

// enter puts the instance into a state and tells the watchers.
func (s *Server) enter(i *instance, st state) {
	i.state = st
	i.gen++
	s.events = append(s.events, stateChange{i.region.name, i.id})
}

// Watch calls f after every change of an instance's state, outside of any
// lock. Changes may come together and out of order: f looks at the state.
func (s *Server) Watch(f func(region, instanceID string)) {
	s.lock()
	defer s.unlock()
	s.watchers = append(s.watchers[:len(s.watchers):len(s.watchers)], f)
}

// job queues work on an instance's machine. One instance's jobs run one after
// the other, outside the lock.
func (s *Server) job(i *instance, f func(context.Context)) {
	i.jobs = append(i.jobs, f)
	if i.busy {
		return
	}
	i.busy = true
	s.work.Go(func() {
		for {
			s.lock()
			if len(i.jobs) == 0 || s.ctx.Err() != nil {
				i.busy = false
				s.unlock()
				return
			}
			f := i.jobs[0]
			i.jobs = i.jobs[1:]
			s.unlock()
			f(s.ctx)
		}
	})
}

// boot takes new instances from pending to running.
func (s *Server) boot(batch []*instance) {
	if why := s.faults.takeLaunchFailure(); why != "" {
		first := batch[0]
		s.later(s.opts.Times.Pending, func() { s.launchFailed(first, why) })
		batch = batch[1:]
	}
	if s.opts.Machines == nil {
		s.runAfter(batch, s.opts.Times.Pending)
		return
	}
	for _, i := range batch {
		m := s.machine(i)
		held := s.atLeast(s.opts.Times.Pending)
		s.job(i, func(ctx context.Context) {
			held(ctx)
			err := s.opts.Machines.Launch(ctx, m)
			s.lock()
			defer s.unlock()
			if err != nil {
				s.log.Error("instance does not start", "instance", i.id, "err", err)
				s.launchFailed(i, "Server.InternalError: Internal error on launch")
				return
			}
			s.up(i)
		})
	}
}

// atLeast returns a wait for the end of d, from now on, where states are held;
// elsewhere one that returns at once.
func (s *Server) atLeast(d time.Duration) (wait func(context.Context)) {
	if !s.opts.Hold {
		return func(context.Context) {}
	}
	over := make(chan struct{})
	s.opts.Clock.AfterFunc(d, func() { close(over) })
	return func(ctx context.Context) {
		select {
		case <-over:
		case <-ctx.Done():
		}
	}
}

// runAfter makes instances that still wait for it running after d.
func (s *Server) runAfter(batch []*instance, d time.Duration) {
	gens := make([]int, len(batch))
	for n, i := range batch {
		gens[n] = i.gen
	}
	s.later(d, func() {
		for n, i := range batch {
			if i.gen == gens[n] {
				s.running(i)
			}
		}
		s.check(batch)
	})
}

// up is running after a machine has booted, if nobody has stopped it since.
func (s *Server) up(i *instance) {
	if i.state == pending {
		s.running(i)
		s.check([]*instance{i})
	}
}

func (s *Server) running(i *instance) {
	i.metadata.State = "applied"
	i.checked = false
	s.enter(i, running)
}

// check passes the status checks some time after instances run.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-system-instance-status-check.html
func (s *Server) check(batch []*instance) {
	gens := make([]int, len(batch))
	for n, i := range batch {
		gens[n] = i.gen
	}
	s.later(s.opts.Times.StatusCheck, func() {
		for n, i := range batch {
			if i.gen == gens[n] && i.state == running {
				i.checked = true
			}
		}
	})
}

// launchFailed is what the caller of RunInstances sees when the host cannot
// start the machine: the instance goes from pending to terminated, with a
// reason such as "Client.VolumeLimitExceeded: Volume limit exceeded".
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/troubleshooting-launch.html
func (s *Server) launchFailed(i *instance, why string) {
	if i.state != pending {
		return
	}
	code, _, _ := strings.Cut(why, ":")
	i.reason = &reason{code, why}
	i.transition = why
	s.end(i)
}

// end makes an instance terminated: its address and the volumes that go with
// it are given back, and in an hour it is forgotten.
func (s *Server) end(i *instance) {
	s.enter(i, terminated)
	if i.address.IsValid() {
		i.subnet.give(i.address)
		i.address = netip.Addr{}
	}
	i.publicIP = ""
	i.region.enis.remove(i.eni)
	for _, d := range i.devices {
		if d.deleteOnTermination {
			i.region.volumes.remove(d.volume)
		} else {
			d.volume.attachedTo = nil
		}
	}
	i.devices = nil
	s.later(s.opts.Times.Forgotten, func() {
		i.region.instances.remove(i)
		if i.token != "" {
			delete(i.region.runTokens, i.token)
		}
	})
}

// PoweredOff tells the Server that an instance's operating system has shut
// itself down; what follows is the instance's shutdown behaviour.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_ChangingInstanceInitiatedShutdownBehavior.html
func (s *Server) PoweredOff(instanceID string) {
	s.lock()
	defer s.unlock()
	i := s.anyInstance(instanceID)
	if i == nil || i.capturing || i.state != running && i.state != pending {
		return
	}
	now := s.opts.Clock.Now().Format("2006-01-02 15:04:05 MST")
	if i.shutdown == "terminate" {
		i.reason = &reason{"Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: Instance initiated shutdown"}
		i.transition = fmt.Sprintf("Client initiated shutdown (%s)", now)
		s.terminate(i)
		return
	}
	i.reason = &reason{"Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: Instance initiated shutdown"}
	i.transition = fmt.Sprintf("Client initiated shutdown (%s)", now)
	s.enter(i, stopping)
	if s.opts.Machines != nil { // it is off already
		s.off(i)
		return
	}
	s.offAfter(i, s.opts.Times.Stopping)
}

func (s *Server) offAfter(i *instance, d time.Duration) {
	gen := i.gen
	s.later(d, func() {
		if i.gen == gen {
			s.off(i)
		}
	})
}

func (s *Server) off(i *instance) {
	i.publicIP = "" // https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-instance-addressing.html
	s.enter(i, stopped)
}

// stop takes a running or pending instance to stopped.
func (s *Server) stop(i *instance, force bool) {
	s.enter(i, stopping)
	if s.opts.Machines == nil {
		s.offAfter(i, s.opts.Times.Stopping)
		return
	}
	held := s.atLeast(s.opts.Times.Stopping)
	s.job(i, func(ctx context.Context) {
		err := s.opts.Machines.Stop(ctx, i.id, force)
		held(ctx)
		s.lock()
		defer s.unlock()
		if err != nil {
			s.log.Error("instance does not stop", "instance", i.id, "err", err)
		}
		if err == nil && i.state == stopping {
			s.off(i)
		}
	})
}

// start takes a stopped instance to running.
func (s *Server) start(i *instance) {
	i.reason, i.transition = nil, ""
	i.launched = s.opts.Clock.Now().Truncate(time.Millisecond)
	if i.subnet.public {
		i.publicIP = i.region.publicAddr()
	}
	s.enter(i, pending)
	if s.opts.Machines == nil {
		s.runAfter([]*instance{i}, s.opts.Times.Pending)
		return
	}
	held := s.atLeast(s.opts.Times.Pending)
	s.job(i, func(ctx context.Context) {
		held(ctx)
		err := s.opts.Machines.Start(ctx, i.id)
		s.lock()
		defer s.unlock()
		if err == nil {
			s.up(i)
			return
		}
		s.log.Error("instance does not start again", "instance", i.id, "err", err)
		if i.state == pending {
			i.reason = &reason{"Server.InternalError", "Server.InternalError: Internal error on launch"}
			s.off(i)
		}
	})
}

// terminate takes an instance of any state to terminated.
func (s *Server) terminate(i *instance) {
	s.enter(i, shuttingDown)
	if s.opts.Machines == nil {
		gen := i.gen
		s.later(s.opts.Times.ShuttingDown, func() {
			if i.gen == gen {
				s.end(i)
			}
		})
		return
	}
	held := s.atLeast(s.opts.Times.ShuttingDown)
	s.job(i, func(ctx context.Context) {
		console, cerr := s.opts.Machines.Console(i.id)
		err := s.opts.Machines.Terminate(ctx, i.id)
		held(ctx)
		s.lock()
		defer s.unlock()
		if cerr == nil {
			i.console, i.consoleAt = console, s.opts.Clock.Now()
		}
		if err != nil {
			s.log.Error("instance does not terminate", "instance", i.id, "err", err)
		}
		s.end(i)
	})
}

// anyInstance finds an instance in whatever region, hidden ones too.
func (s *Server) anyInstance(id string) *instance {
	for _, r := range s.regions {
		if i, ok := r.instances.byID[id]; ok {
			return i
		}
	}
	return nil
}

func (s *Server) machine(i *instance) Machine {
	m := Machine{
		InstanceID: i.id, ImageID: i.image.layer, MAC: i.mac, PrivateIP: i.privateIP,
		Gateway: i.subnet.gateway().String(), Ports: s.opts.Ports,
	}
	if s.opts.IMDS != nil {
		m.IMDS = s.opts.IMDS(i.id, func() InstanceInfo { return s.info(i) })
	} else {
		m.IMDS = http.NotFoundHandler()
	}
	return m
}
