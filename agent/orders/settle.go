package orders

import (
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

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
	l.ack(acks...)
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
		s.Failing, s.LastError, s.LastErrorAt = kind, instance.Plain(err), now
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
	l.ack(it.seq)
	l.finish(it)
	l.f.note(func(s *ForwardState) { s.Parked++ })
	return true
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
