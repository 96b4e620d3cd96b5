package orders

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/agent/spool"
)

// Defaults and bounds of the forwarder.
const (
	DefaultConcurrency = 16
	DefaultLinger      = 10 * time.Millisecond
	batchCount         = 10 // SQS takes no more
	batchBytes         = 256 << 10
	heldOrders         = 1024    // in memory at once
	heldBytes          = 6 << 20 // of bodies
	minBackoff         = 100 * time.Millisecond
	maxBackoff         = 20 * time.Second
	sendTimeout        = 60 * time.Second
	attributesEvery    = 15 * time.Minute
)

// Forwarder sends what is in a spool to a queue. Its fields are set before Run.
type Forwarder struct {
	Spool   *spool.Spool
	Queue   string // name or URL
	API     queueAPI
	Parking Parking
	Log     *slog.Logger

	Concurrency int           // default 16
	Linger      time.Duration // how long an order waits for others to share its call, default 10ms
	// Invalidate makes the next call fetch credentials anew; nil where they
	// cannot be.
	Invalidate func()

	mu    sync.Mutex
	state ForwardState
	url   string
	limit int64
	beat  time.Time
	drain bool
	kick  chan struct{} // wakes the loop
	acked chan struct{} // wakes Drain
	once  sync.Once
}

// ForwardState is a snapshot for status and metrics.
type ForwardState struct {
	Queue        string            `json:"queue,omitempty"`
	URL          string            `json:"url,omitempty"`
	FIFO         bool              `json:"fifo,omitempty"`
	MaxMessage   int64             `json:"max_message_bytes,omitempty"`
	Sent         uint64            `json:"sent"`
	Batches      uint64            `json:"batches"`
	Retried      uint64            `json:"retried"` // entries of calls that were answered
	Parked       uint64            `json:"parked"`  // since start
	Errors       map[string]uint64 `json:"errors,omitempty"`
	InFlight     int               `json:"in_flight"` // calls
	Held         int               `json:"held"`      // orders read from the spool and not settled
	Oldest       time.Time         `json:"oldest,omitzero"`
	Failing      string            `json:"failing,omitempty"` // kind of the failure that holds up sending
	FailingSince time.Time         `json:"failing_since,omitzero"`
	LastError    string            `json:"last_error,omitempty"`
	LastErrorAt  time.Time         `json:"last_error_at,omitzero"`
	LastSent     time.Time         `json:"last_sent,omitzero"`
}

func (f *Forwarder) init() {
	f.once.Do(func() {
		f.kick, f.acked = make(chan struct{}, 1), make(chan struct{}, 1)
		f.state.Queue, f.state.Errors = f.Queue, map[string]uint64{}
		f.state.FIFO = strings.HasSuffix(f.Queue, ".fifo")
		f.limit = MaxMessage
		if f.Concurrency <= 0 {
			f.Concurrency = DefaultConcurrency
		}
		if f.Linger <= 0 {
			f.Linger = DefaultLinger
		}
		if f.Log == nil {
			f.Log = slog.New(slog.DiscardHandler)
		}
	})
}

// State returns a snapshot.
func (f *Forwarder) State() ForwardState {
	f.init()
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	s.Errors = map[string]uint64{}
	for k, v := range f.state.Errors {
		s.Errors[k] = v
	}
	s.URL, s.MaxMessage = f.url, f.limit
	return s
}

// Limits returns the queue's largest message in bytes and whether it is FIFO.
func (f *Forwarder) Limits() (int64, bool) {
	f.init()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.limit, f.state.FIFO
}

// Beat is when the loop last went round.
func (f *Forwarder) Beat() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.beat
}

// Drain makes the forwarder send without waiting to fill batches, and returns
// nil when the spool is empty, else when ctx ends.
func (f *Forwarder) Drain(ctx context.Context) error {
	f.init()
	f.mu.Lock()
	f.drain = true
	f.mu.Unlock()
	select {
	case f.kick <- struct{}{}:
	default:
	}
	t := time.NewTicker(100 * time.Millisecond) // damaged records go without a word
	defer t.Stop()
	for {
		if n := f.Spool.Stats().Records; n == 0 {
			return nil
		}
		select {
		case <-f.acked:
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("drain: %d orders are left: %w", f.Spool.Stats().Records, ctx.Err())
		}
	}
}

// Run forwards until ctx ends, and then waits for the calls under way. Only a
// spool that cannot be read ends it with an error.
func (f *Forwarder) Run(ctx context.Context) error {
	f.init()
	l := &loop{f: f, limit: f.Concurrency, results: make(chan outcome, f.Concurrency), work: make(chan call, f.Concurrency), groups: map[string][]*item{}}
	// A call under way is worth its answer, but not for ever.
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stopping := context.AfterFunc(ctx, func() { time.AfterFunc(5*time.Second, cancel) })
	defer stopping()
	// The senders stay: a new goroutine would have to grow its stack for the
	// SDK's depth in every call.
	for range f.Concurrency {
		go l.send(calls)
	}
	defer close(l.work)
	return l.run(ctx, calls)
}

// call is one SendMessageBatch to make.
type call struct {
	url   string
	batch []*item
}

func (l *loop) send(ctx context.Context) {
	for c := range l.work {
		bounded, cancel := context.WithTimeout(ctx, sendTimeout)
		r := send(bounded, l.f.API, c.url, l.f.state.FIFO, c.batch)
		cancel()
		l.results <- r
	}
}

func (f *Forwarder) note(change func(*ForwardState)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
}
