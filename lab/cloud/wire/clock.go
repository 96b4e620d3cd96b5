// Package wire holds what the fakes of lab/cloud share: the clock that drives
// states, who a request is from, and the credentials vended. It speaks no
// service's protocol.
package wire

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Clock drives everything in the fakes that takes time.
type Clock interface {
	Now() time.Time
	// AfterFunc runs f, in a goroutine of its own, once d has passed; stop
	// prevents it and reports whether it did.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// Scaled returns the real clock with durations divided by factor: at 10, an
// image that takes 40 s is available after 4. Now is real time.
func Scaled(factor float64) Clock { return scaled(factor) }

type scaled float64

func (s scaled) Now() time.Time { return time.Now().UTC() }

func (s scaled) AfterFunc(d time.Duration, f func()) func() bool {
	return time.AfterFunc(time.Duration(float64(d)/float64(s)), f).Stop
}

// Manual is a Clock that a test advances.
type Manual struct {
	mu     sync.Mutex
	now    time.Time
	timers []*timer
}

type timer struct {
	at   time.Time
	f    func()
	done bool
}

// NewManual returns a Manual that stands at start.
func NewManual(start time.Time) *Manual { return &Manual{now: start.UTC()} }

// Now returns the time the test has set.
func (m *Manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// AfterFunc registers f; Advance calls it in its own goroutine, in order.
func (m *Manual) AfterFunc(d time.Duration, f func()) func() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := &timer{at: m.now.Add(d), f: f}
	m.timers = append(m.timers, t)
	return func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		was := !t.done
		t.done = true
		return was
	}
}

// Advance moves the clock by d and runs what falls due, in order of time,
// before it returns.
func (m *Manual) Advance(d time.Duration) {
	m.mu.Lock()
	end := m.now.Add(d)
	for {
		m.timers = slices.DeleteFunc(m.timers, func(t *timer) bool { return t.done })
		slices.SortStableFunc(m.timers, func(a, b *timer) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
		if len(m.timers) == 0 || m.timers[0].at.After(end) {
			break
		}
		t := m.timers[0]
		t.done = true
		if t.at.After(m.now) {
			m.now = t.at
		}
		m.mu.Unlock()
		t.f()
		m.mu.Lock()
	}
	m.now = end
	m.mu.Unlock()
}
