package orders

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

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
		f.kick = make(chan struct{}, 1)
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
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		if n := f.Spool.Stats().Records; n == 0 {
			return nil
		}
		select {
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

// loop is the state of one Run, touched by its goroutine alone.
type loop struct {
	f        *Forwarder
	ready    []*item // may be sent, in order
	retries  []*item // wait until due
	groups   map[string][]*item
	held     []*item // in order of reading, settled ones at the front removed
	count    int     // not settled
	bytes    int64
	inFlight int
	limit    int // calls at once, lowered by throttling
	wins     int // successes since it was last changed
	failures int // whole calls failed in a row
	until    time.Time
	looked   time.Time // at the queue's attributes
	work     chan call
	results  chan outcome
	loggedAt time.Time
}

func (l *loop) run(ctx, calls context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		readable := l.f.Spool.Readable()
		if err := l.fill(); err != nil {
			if ctx.Err() == nil {
				return err
			}
		}
		now := time.Now()
		l.wakeRetries(now)
		if ctx.Err() == nil {
			l.lookUp(calls, now)
			l.dispatch(now)
		} else if l.inFlight == 0 {
			l.publish()
			return nil
		}
		l.publish()
		if l.count >= heldOrders || l.bytes >= heldBytes {
			readable = nil
		}
		timer.Reset(l.nextWake(now))
		done := ctx.Done()
		if ctx.Err() != nil {
			done, readable = nil, nil
		}
		select {
		case r := <-l.results:
			l.settle(r)
			for more := true; more; {
				select {
				case r := <-l.results:
					l.settle(r)
				default:
					more = false
				}
			}
		case <-readable:
		case <-timer.C:
		case <-l.f.kick:
		case <-done:
		}
	}
}

// fill takes orders from the spool while there is room for them.
func (l *loop) fill() error {
	for l.count < heldOrders && l.bytes < heldBytes {
		recs, err := l.f.Spool.TryRead(heldOrders-l.count, int(heldBytes-l.bytes))
		now := time.Now()
		for _, r := range recs {
			o, derr := DecodeRecord(r.Data)
			if derr != nil {
				name := "record-" + strconv.FormatUint(r.Seq, 10)
				if perr := l.f.Parking.Park(name, Parked{ParkedAt: now.UTC(), Queue: l.f.Queue, Code: "Unreadable", Message: derr.Error(), Record: r.Data}); perr != nil {
					l.f.Log.Error("orders: unreadable record stays in the spool", "error", perr)
					continue
				}
				l.f.note(func(s *ForwardState) { s.Parked++ })
				l.f.Spool.Ack(r.Seq)
				continue
			}
			it := &item{seq: r.Seq, order: o, size: o.Size(), since: now}
			l.held = append(l.held, it)
			l.count++
			l.bytes += it.size
			l.enqueue(it)
		}
		if err != nil {
			return err
		}
		if len(recs) == 0 {
			return nil
		}
	}
	return nil
}

// enqueue makes an order ready, on a FIFO queue behind those of its group that
// are not settled.
func (l *loop) enqueue(it *item) {
	if l.f.state.FIFO {
		if waiting, busy := l.groups[it.order.Group]; busy {
			l.groups[it.order.Group] = append(waiting, it)
			return
		}
		l.groups[it.order.Group] = nil
	}
	l.ready = append(l.ready, it)
}

// finish ends an order that was sent or parked.
func (l *loop) finish(it *item) {
	it.done = true
	l.count--
	l.bytes -= it.size
	it.order.Body = ""
	for len(l.held) > 0 && l.held[0].done {
		l.held[0] = nil
		l.held = l.held[1:]
	}
	if l.f.state.FIFO {
		group := it.order.Group
		if waiting := l.groups[group]; len(waiting) > 0 {
			l.ready = append(l.ready, waiting[0])
			l.groups[group] = waiting[1:]
		} else {
			delete(l.groups, group)
		}
	}
}

func (l *loop) wakeRetries(now time.Time) {
	keep := l.retries[:0]
	for _, it := range l.retries {
		if it.due.After(now) {
			keep = append(keep, it)
		} else {
			l.ready = append(l.ready, it)
		}
	}
	clear(l.retries[len(keep):])
	l.retries = keep
}

// dispatch starts the calls that are due.
func (l *loop) dispatch(now time.Time) {
	l.f.mu.Lock()
	url, draining := l.f.url, l.f.drain
	l.f.mu.Unlock()
	if url == "" {
		return
	}
	for len(l.ready) > 0 && l.inFlight < l.limit && !now.Before(l.until) {
		if l.failures > 0 && l.inFlight > 0 {
			return // one call finds out whether it works again
		}
		n, size := 0, int64(0)
		for n < len(l.ready) && n < batchCount && (n == 0 || size+l.ready[n].size <= batchBytes && !l.ready[n].alone && !l.ready[0].alone) {
			size += l.ready[n].size
			n++
		}
		whole := n == batchCount || n < len(l.ready)
		if !whole && !draining && now.Sub(l.ready[0].since) < l.f.Linger && l.failures == 0 {
			return
		}
		batch := append(make([]*item, 0, n), l.ready[:n]...)
		clear(l.ready[:n])
		l.ready = l.ready[n:]
		l.inFlight++
		l.work <- call{url, batch} // has room: inFlight is below the senders' number
	}
	if len(l.ready) == 0 {
		l.ready = nil
	}
}

func (l *loop) nextWake(now time.Time) time.Duration {
	d := 5 * time.Second
	at := func(t time.Time) { d = min(d, max(t.Sub(now), 0)) }
	if len(l.ready) > 0 && l.inFlight < l.limit {
		if now.Before(l.until) {
			at(l.until)
		} else if l.failures == 0 {
			at(l.ready[0].since.Add(l.f.Linger))
		}
	}
	for _, it := range l.retries {
		at(it.due)
	}
	if l.f.url == "" {
		at(l.until)
	}
	return max(d, 100*time.Microsecond)
}

// backoff is full jitter over the upper half.
func backoff(n int) time.Duration {
	d := min(minBackoff<<min(n, 10), maxBackoff)
	return d/2 + rand.N(d/2)
}

// settle takes the outcome of one call.
func (l *loop) settle(r outcome) {
	l.inFlight--
	if r.err != nil {
		l.callFailed(r)
		return
	}
	now := time.Now()
	if l.failures > 0 {
		l.f.Log.Info("orders: sending works again", "queue", l.f.Queue, "failed_calls", l.failures)
	}
	l.failures = 0
	if l.wins++; l.limit < l.f.Concurrency && l.wins >= 2*l.limit {
		l.limit, l.wins = l.limit+1, 0
	}
	acks := make([]uint64, 0, len(r.batch))
	throttled, last, retried := false, "", uint64(0)
	var kinds map[string]uint64
	for i, it := range r.batch {
		e := r.failed[i]
		if e == nil {
			acks = append(acks, it.seq)
			l.finish(it)
			continue
		}
		code := aws.ToString(e.Code)
		kind := kindOfCode(code)
		if e.SenderFault && (kind == KindRefused || kind == KindOther) {
			if l.park(it, code, aws.ToString(e.Message)) {
				continue
			}
			kind = KindRefused
		}
		throttled = throttled || kind == KindThrottled
		if kinds == nil {
			kinds = map[string]uint64{}
		}
		kinds[kind]++
		last = fmt.Sprintf("order refused for now: %s: %s", code, aws.ToString(e.Message))
		it.tries++
		it.due = now.Add(backoff(it.tries))
		l.retries = append(l.retries, it)
		retried++
	}
	l.f.Spool.Ack(acks...)
	if throttled {
		l.limit, l.wins = max(1, l.limit/2), 0
	}
	l.f.note(func(s *ForwardState) {
		s.Failing, s.FailingSince = "", time.Time{}
		s.Sent += uint64(len(acks))
		s.Batches++
		s.Retried += retried
		if len(acks) > 0 {
			s.LastSent = now
		}
		for k, n := range kinds {
			s.Errors[k] += n
		}
		if last != "" {
			s.LastError, s.LastErrorAt = last, now
		}
	})
}

// callFailed takes a call that failed whole: none of its orders was sent, as
// far as is known.
func (l *loop) callFailed(r outcome) {
	kind := kindOf(r.err)
	now := time.Now()
	if kind == KindRefused {
		l.f.note(func(s *ForwardState) { s.Errors[kind]++ })
		if len(r.batch) == 1 {
			code, message := apiError(r.err)
			if l.park(r.batch[0], code, message) {
				return
			}
			it := r.batch[0]
			it.tries++
			it.due = now.Add(backoff(it.tries))
			l.retries = append(l.retries, it)
			return
		}
		// One of them spoils the call: each goes alone from now on.
		for _, it := range r.batch {
			it.alone = true
		}
		l.ready = append(r.batch, l.ready...)
		return
	}
	l.ready = append(r.batch, l.ready...)
	if kind == KindCredentials && l.f.Invalidate != nil {
		l.f.Invalidate()
	}
	if kind == KindThrottled {
		l.limit, l.wins = max(1, l.limit/2), 0
	}
	if kind == KindGone {
		l.f.mu.Lock()
		l.f.url = "" // it may come back under another
		l.f.mu.Unlock()
	}
	l.failed(kind, r.err, now)
}

// failed notes a failure that holds up everything and backs off.
func (l *loop) failed(kind string, err error, now time.Time) {
	if until := now.Add(backoff(l.failures)); until.After(l.until) {
		l.until = until
	}
	l.failures++
	if l.failures == 1 || now.Sub(l.loggedAt) > time.Minute {
		l.loggedAt = now
		l.f.Log.Error("orders: sending fails, orders stay in the spool", "queue", l.f.Queue, "kind", kind, "failed_calls", l.failures, "error", err)
	}
	l.f.note(func(s *ForwardState) {
		s.Errors[kind]++
		if s.Failing == "" {
			s.FailingSince = now
		}
		s.Failing, s.LastError, s.LastErrorAt = kind, err.Error(), now
	})
}

// park puts an order aside for good. Where that fails it is kept and retried:
// a full disk must not lose it.
func (l *loop) park(it *item, code, message string) bool {
	err := l.f.Parking.Park(it.order.ID.String(), Parked{ParkedAt: time.Now().UTC(), Queue: l.f.Queue, Code: code, Message: message, Order: it.order})
	if err != nil {
		l.f.Log.Error("orders: refused order not parked, it stays in the spool", "id", it.order.ID, "code", code, "error", err)
		return false
	}
	l.f.Log.Error("orders: the queue refused an order for good; it is parked", "id", it.order.ID, "code", code, "message", message)
	l.f.Spool.Ack(it.seq)
	l.finish(it)
	l.f.note(func(s *ForwardState) { s.Parked++ })
	return true
}

// lookUp finds the queue's URL and reads its limits, again from time to time.
func (l *loop) lookUp(ctx context.Context, now time.Time) {
	l.f.mu.Lock()
	known := l.f.url != ""
	l.f.mu.Unlock()
	if now.Before(l.until) || known && now.Sub(l.looked) < attributesEvery {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if !known {
		url, err := queueURL(ctx, l.f.API, l.f.Queue)
		if err != nil {
			kind := kindOf(err)
			if kind == KindCredentials && l.f.Invalidate != nil {
				l.f.Invalidate()
			}
			l.failed(kind, err, time.Now())
			return
		}
		l.f.mu.Lock()
		l.f.url = url
		l.f.mu.Unlock()
	}
	l.looked = now
	out, err := l.f.API.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl:       aws.String(l.f.url),
		AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameMaximumMessageSize},
	})
	if err != nil {
		// Sending needs no such permission: without it SQS's own limit holds,
		// and what is too large for the queue is parked.
		l.f.Log.Warn("orders: the queue's MaximumMessageSize is not known", "queue", l.f.Queue, "error", err)
		return
	}
	if n, err := strconv.ParseInt(out.Attributes[string(types.QueueAttributeNameMaximumMessageSize)], 10, 64); err == nil && n > 0 {
		l.f.mu.Lock()
		l.f.limit = min(n, MaxMessage)
		l.f.mu.Unlock()
	}
}

// queueURL returns a queue's URL; a URL is its own.
func queueURL(ctx context.Context, api queueAPI, queue string) (string, error) {
	if strings.Contains(queue, "://") {
		return queue, nil
	}
	out, err := api.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &queue})
	if err != nil {
		return "", fmt.Errorf("get URL of queue %s: %w", queue, err)
	}
	return aws.ToString(out.QueueUrl), nil
}

func (l *loop) publish() {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.f.beat = time.Now()
	l.f.state.InFlight, l.f.state.Held, l.f.state.Oldest = l.inFlight, l.count, time.Time{}
	if len(l.held) > 0 {
		l.f.state.Oldest = l.held[0].order.Accepted
	}
}

func (f *Forwarder) note(change func(*ForwardState)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
}

func apiError(err error) (code, message string) {
	var api interface {
		ErrorCode() string
		ErrorMessage() string
	}
	if errors.As(err, &api) {
		return api.ErrorCode(), api.ErrorMessage()
	}
	return "Unknown", err.Error()
}
