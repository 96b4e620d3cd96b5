package orders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/agent/spool"
	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

// Paths and bounds of the service on an instance.
const (
	StateDir = "/var/lib/lecafe-orders"
	Socket   = settings.RuntimeDir + "/orders.sock"

	// DrainBound is how long a stop may go on sending.
	DrainBound = 20 * time.Second
	sealBound  = 30 * time.Second
	// noticeBound is the same when the instance is about to end: a spot notice
	// comes two minutes ahead, of which sealing takes its part.
	noticeBound = time.Minute
	// lockBound is how long another process may have the spool. It is below the
	// unit's TimeoutStartSec=.
	lockBound = 60 * time.Second
)

// Target is where orders go: what the settings and the instance say, found out
// while orders are being taken already.
type Target struct {
	Queue    string
	SealTo   string        // s3://bucket/prefix, or empty
	MaxBytes int64         // of the spool; 0 leaves the service's
	Drain    time.Duration // 0 leaves the service's
	AWS      aws.Config
	// Sender confines sealed objects to the instance's own prefix
	// (ROLEID:instance-id). It is asked for only when there is something to seal.
	Sender func(context.Context) (string, error)
}

// Service is intake, spool and forwarder in one process. Its fields are set
// before Run.
type Service struct {
	Dir      string // of spool and parked orders
	MaxBytes int64  // of the spool, until the target says otherwise
	Log      *slog.Logger
	Listen   []net.Listener
	// Resolve finds out the target. It is called until it succeeds; errors are
	// shown as the state.
	Resolve func(context.Context) (Target, error)
	// Notices returns why the instance is about to end, when it is; nil where
	// nobody can tell. It blocks until then, or until ctx ends.
	Notices func(context.Context) string
	// Stopping says whether the whole system is going down, not the service alone.
	Stopping func(context.Context) bool
	// Ready is called once, when posts are taken durably.
	Ready func()
	// Progress is told the state whenever the parts have proved to be alive:
	// the writer has committed and the forwarder has gone round its loop.
	Progress      func(Status)
	ProgressEvery time.Duration // default 5s
	DrainBound    time.Duration // default DrainBound; until the target says otherwise
	NoticeBound   time.Duration // of the same after a notice where that is shorter, default a minute
	// Extend tells whoever waits for the stop how long it may take.
	Extend      func(time.Duration)
	Concurrency int // of the forwarder
	API         func(aws.Config) queueAPI
	Uploader    func(aws.Config) uploadAPI

	mu      sync.Mutex
	spool   *spool.Spool
	forward *Forwarder
	target  *Target
	problem string // while there is no target
	notice  string
	drain   bool
	parking Parking
}

// Run serves until ctx ends, then stops taking orders, sends what it can within
// the bound and returns. What is left stays in the spool for the next start, or
// is sealed to S3 where the instance is about to end.
func (s *Service) Run(ctx context.Context) error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.DrainBound <= 0 {
		s.DrainBound = DrainBound
	}
	if s.NoticeBound <= 0 {
		s.NoticeBound = noticeBound
	}
	sp, err := s.openSpool(ctx)
	if err != nil {
		return err
	}
	defer sp.Close()
	s.spool, s.parking = sp, Parking{filepath.Join(s.Dir, "parked")}
	if st := sp.Stats(); st.Records > 0 || st.TornTail > 0 {
		s.Log.Info("orders: spool opened", "records", st.Records, "torn_tails", st.TornTail, "aside", st.Aside)
	}

	in := &Intake{Spool: sp, Log: s.Log, Limits: s.limits, Status: s.status}
	srv := in.Server()
	busy := &busy{conns: map[net.Conn]bool{}}
	srv.ConnState = busy.connState
	serveErr := make(chan error, len(s.Listen))
	room := &crowd{}
	for _, l := range s.Listen {
		go func() { serveErr <- srv.Serve(door{l, room}) }()
	}
	var background sync.WaitGroup
	defer background.Wait()
	work, cancel := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by the drain
	defer cancel()
	background.Go(func() { s.progress(work, in) })
	if s.Ready != nil {
		s.Ready()
	}

	notices := make(chan string, 1)
	if s.Notices != nil {
		background.Go(func() {
			if why := s.Notices(work); why != "" {
				notices <- why
			}
		})
	}
	resolved := make(chan Target, 1)
	resolving, stopResolving := context.WithCancel(work)
	defer stopResolving()
	background.Go(func() {
		if t, ok := s.resolve(resolving); ok {
			resolved <- t
		}
	})
	run := &running{}
	for {
		select {
		case t := <-resolved:
			s.setTarget(t)
			run.start(work, s.forward)
		case err := <-run.done():
			return fmt.Errorf("forward orders: %w", err)
		case why := <-notices:
			s.Log.Warn("orders: the instance is about to end, draining", "notice", why)
			s.mu.Lock()
			s.notice = why
			s.mu.Unlock()
			s.mu.Lock()
			bound := min(s.DrainBound, s.NoticeBound)
			s.mu.Unlock()
			// A stop has more to do than this, and asks for the time for it.
			s.drainAndSeal(work, ctx.Done(), run, bound, true)
		case err := <-serveErr:
			return fmt.Errorf("serve orders: %w", err)
		case <-ctx.Done():
			s.mu.Lock()
			s.drain = true
			ending := s.notice != ""
			s.mu.Unlock()
			// Whoever is being answered gets the answer; the socket is
			// systemd's and keeps what comes later for the next start.
			s.closeIntake(work, srv, busy, serveErr)
			stopResolving()
			s.drainAndSeal(work, nil, run, s.DrainBound, ending)
			run.stop()
			return nil
		}
	}
}

// openSpool waits while another process has the spool open: a replay, or the one
// that is about to end. Failing at once, each start a few seconds after the one
// before, would use up the unit's restarts.
func (s *Service) openSpool(ctx context.Context) (*spool.Spool, error) {
	began, said := time.Now(), false
	for {
		sp, err := spool.Open(spool.Options{Dir: filepath.Join(s.Dir, "spool"), MaxBytes: s.MaxBytes, Log: s.Log})
		if !errors.Is(err, spool.ErrLocked) || time.Since(began) > lockBound {
			return sp, err
		}
		if !said {
			said = true
			s.Log.Warn("orders: waiting for the spool", "error", err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// closeIntake answers whoever was let in, and lets nobody else in.
// http.Server.Shutdown would not do: it drops a request whose header it reads
// after the call.
func (s *Service) closeIntake(ctx context.Context, srv *http.Server, busy *busy, serveErr <-chan error) {
	for _, l := range s.Listen {
		l.Close()
	}
	for range s.Listen {
		<-serveErr
	}
	srv.SetKeepAlivesEnabled(false)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	busy.wait(ctx)
	srv.Close()
}

// busy counts the connections that wait for an answer or have not asked yet.
type busy struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
	none  chan struct{} // closed when there is none, where somebody waits
}

func (b *busy) connState(c net.Conn, st http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if st == http.StateNew || st == http.StateActive {
		b.conns[c] = true
		return
	}
	delete(b.conns, c)
	if len(b.conns) == 0 && b.none != nil {
		close(b.none)
		b.none = nil
	}
}

func (b *busy) wait(ctx context.Context) {
	b.mu.Lock()
	if len(b.conns) == 0 {
		b.mu.Unlock()
		return
	}
	none := make(chan struct{})
	b.none = none
	b.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
	}
}

// running is a forwarder that can be stopped and started again.
type running struct {
	f      *Forwarder
	cancel context.CancelFunc
	end    chan error
}

func (r *running) start(ctx context.Context, f *Forwarder) {
	ctx, cancel := context.WithCancel(ctx)
	r.f, r.cancel, r.end = f, cancel, make(chan error, 1)
	end := r.end
	go func() {
		if err := f.Run(ctx); err != nil {
			end <- err
		}
		close(end)
	}()
}

func (r *running) done() <-chan error { return r.end }

// stop waits for the forwarder's end.
func (r *running) stop() {
	if r.end == nil {
		return
	}
	r.cancel()
	for range r.end {
	}
	r.end = nil
}

// drainAndSeal sends what can be sent within the bound. What is left is sealed
// where a place is set and the machine is about to end; if it is sure to end,
// the sealed orders are taken out of the spool. When enough is closed it ends
// before there is anything to seal.
func (s *Service) drainAndSeal(ctx context.Context, enough <-chan struct{}, run *running, drain time.Duration, ending bool) {
	if run.f == nil {
		return
	}
	if s.Extend != nil {
		s.Extend(drain + sealBound + 10*time.Second)
	}
	draining, cancel := context.WithTimeout(ctx, drain)
	go func() {
		select {
		case <-enough: // nil is never
			cancel()
		case <-draining.Done():
		}
	}()
	err := run.f.Drain(draining)
	cancel()
	if err == nil {
		return
	}
	select {
	case <-enough:
		return
	default:
	}
	s.Log.Warn("orders: not all could be sent in time", "error", err)
	if s.target.SealTo == "" || !ending && (s.Stopping == nil || !s.Stopping(ctx)) {
		return
	}
	run.stop()
	bound, cancel := context.WithTimeout(ctx, sealBound)
	defer cancel()
	n, err := s.seal(bound, ending)
	if err != nil {
		s.Log.Error("orders: not sealed, they stay in the spool", "sealed", n, "error", err)
	} else {
		s.Log.Warn("orders: sealed, send them with lecafe orders replay", "to", s.target.SealTo, "orders", n, "kept_in_spool", !ending)
	}
	s.spool.Rewind()
	run.start(ctx, run.f)
}

func (s *Service) setTarget(t Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target, s.problem = &t, ""
	if t.MaxBytes > 0 {
		s.spool.SetMaxBytes(t.MaxBytes)
	}
	if t.Drain > 0 {
		s.DrainBound = t.Drain
	}
	s.forward = &Forwarder{Spool: s.spool, Queue: t.Queue, Parking: s.parking, Log: s.Log, Concurrency: s.Concurrency}
	if s.API != nil {
		s.forward.API = s.API(t.AWS)
	} else {
		s.forward.API = NewClient(t.AWS, s.Concurrency)
	}
	if c, ok := t.AWS.Credentials.(*aws.CredentialsCache); ok {
		s.forward.Invalidate = c.Invalidate
	}
}

// resolve asks for the target until it has it.
func (s *Service) resolve(ctx context.Context) (Target, bool) {
	for n := 0; ; n++ {
		t, err := s.Resolve(ctx)
		if err == nil {
			return t, true
		}
		if ctx.Err() != nil {
			return Target{}, false
		}
		s.mu.Lock()
		if now := instance.Plain(err); s.problem != now {
			s.Log.Warn("orders: taken, but not sent yet", "error", now)
			s.problem = now
		}
		s.mu.Unlock()
		select {
		case <-time.After(backoff(n)):
		case <-ctx.Done():
			return Target{}, false
		}
	}
}

func (s *Service) limits() (int64, bool) {
	s.mu.Lock()
	f := s.forward
	s.mu.Unlock()
	if f == nil {
		return MaxMessage, false
	}
	return f.Limits()
}

func (s *Service) status() Status {
	s.mu.Lock()
	f, st := s.forward, Status{State: "starting", Notice: s.notice}
	drain, problem, target := s.drain || s.notice != "", s.problem, s.target
	s.mu.Unlock()
	if problem != "" {
		st.State, st.Forward.LastError = "waiting_for_queue", problem
	}
	if f != nil {
		st.Forward = f.State()
		st.State = "forwarding"
		if st.Forward.Failing != "" {
			st.State = "failing"
		}
		if c, ok := target.AWS.Credentials.(*aws.CredentialsCache); ok && !st.Forward.LastSent.IsZero() {
			// Cached after a send: this asks nobody.
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if v, err := c.Retrieve(ctx); err == nil && v.CanExpire {
				st.Credentials = v.Expires
			}
		}
	}
	if drain {
		st.State = "draining"
	}
	names, err := s.parking.Names()
	if err == nil {
		st.Parked = len(names)
	}
	return st
}

// progress feeds the watchdog for as long as writer and forwarder move.
func (s *Service) progress(ctx context.Context, in *Intake) {
	every := s.ProgressEvery
	if every <= 0 {
		every = 5 * time.Second
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for s.Progress != nil {
		ping, cancel := context.WithTimeout(ctx, every)
		err := s.spool.Ping(ping)
		cancel()
		s.mu.Lock()
		f := s.forward
		s.mu.Unlock()
		if err == nil && (f == nil || f.Beat().IsZero() || time.Since(f.Beat()) < every+30*time.Second) {
			s.Progress(in.Snapshot())
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// ListenUnix makes the socket where systemd did not. A socket file that an
// earlier process left is replaced.
func ListenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	if err == nil || errors.Is(err, syscall.EAGAIN) { // it is busy
		return nil, fmt.Errorf("listen on %s: another process answers there: stop it first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for orders: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
