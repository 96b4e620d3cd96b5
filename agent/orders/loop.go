package orders

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"
)

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
		timer.Reset(l.nextWake(now, ctx.Err() != nil))
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
				l.ack(r.Seq)
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

// ack tells the spool what is settled, and Drain that there is less of it.
func (l *loop) ack(seqs ...uint64) {
	l.f.Spool.Ack(seqs...)
	select {
	case l.f.acked <- struct{}{}:
	default:
	}
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
	if len(l.held) > 2*(l.count+heldOrders) { // one that is stuck must not keep all that came after it
		l.held = slices.DeleteFunc(l.held, func(it *item) bool { return it.done })
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

// nextWake is how long nothing is due; a loop that stops sends nothing more.
func (l *loop) nextWake(now time.Time, stopping bool) time.Duration {
	d := 5 * time.Second
	if stopping {
		return d
	}
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

func (l *loop) publish() {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.f.beat = time.Now()
	l.f.state.InFlight, l.f.state.Held, l.f.state.Oldest = l.inFlight, l.count, time.Time{}
	if len(l.held) > 0 {
		l.f.state.Oldest = l.held[0].order.Accepted
	}
}
