// Package wire holds what the fakes of lab/cloud share: the clock that drives
// states, who a request is from, and the credentials vended. It speaks no
// service's protocol.
package wire

import (
	"container/heap"
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
	seq    uint64
	timers timers
}

type timer struct {
	at   time.Time
	seq  uint64 // timers of one instant run in the order they were made
	f    func()
	done bool
}

// timers is a heap: a fleet has one or more for every instance.
type timers []*timer

func (t timers) Len() int { return len(t) }
func (t timers) Less(i, j int) bool {
	if c := t[i].at.Compare(t[j].at); c != 0 {
		return c < 0
	}
	return t[i].seq < t[j].seq
}
func (t timers) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)   { *t = append(*t, x.(*timer)) }
func (t *timers) Pop() any {
	old := *t
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	return x
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
	m.seq++
	t := &timer{at: m.now.Add(d), seq: m.seq, f: f}
	heap.Push(&m.timers, t)
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
	for len(m.timers) > 0 && !m.timers[0].at.After(end) {
		t := heap.Pop(&m.timers).(*timer)
		if t.done {
			continue
		}
		t.done = true
		if t.at.After(m.now) {
			m.now = t.at
		}
		m.mu.Unlock()
		t.f()
		m.mu.Lock()
	}
	if end.After(m.now) {
		m.now = end
	}
	m.mu.Unlock()
}
