package orders

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// patience is how long a body may take to arrive when others wait for the
	// memory it was given. From a process of the same machine 4 MiB take
	// milliseconds.
	patience = 2 * time.Second
	// press is how often that is looked at while somebody waits.
	press = 250 * time.Millisecond
)

// room is memory for bodies. It is given before they arrive, so that no more
// are read than there is memory for, and taken back from those who do not send
// what they have announced while others wait.
type room struct {
	free *semaphore.Weighted

	mu      sync.Mutex
	reading map[*reading]bool
}

// reading is a body on its way.
type reading struct {
	since time.Time
	cut   func()
}

func newRoom(bytes int64) *room {
	return &room{free: semaphore.NewWeighted(bytes), reading: map[*reading]bool{}}
}

// acquire waits for room.
func (m *room) acquire(ctx context.Context, bytes int64) error {
	if m.free.TryAcquire(bytes) {
		return nil
	}
	waiting, done := context.WithCancel(ctx)
	defer done()
	go m.hurry(waiting)
	return m.free.Acquire(ctx, bytes)
}

func (m *room) release(bytes int64) { m.free.Release(bytes) }

// begin notes a body that is about to be read; cut ends the reading. The caller
// calls end when it has been read.
func (m *room) begin(cut func()) (end func()) {
	r := &reading{time.Now(), cut}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reading[r] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.reading, r)
	}
}

// hurry cuts those off who are slow, for as long as somebody waits.
func (m *room) hurry(ctx context.Context) {
	t := time.NewTicker(press)
	defer t.Stop()
	for {
		m.mu.Lock()
		for r := range m.reading {
			if time.Since(r.since) > patience {
				r.cut()
				delete(m.reading, r)
			}
		}
		m.mu.Unlock()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
