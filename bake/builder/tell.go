package builder

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
)

// teller sends progress: at once when a step begins, at most every two
// seconds while one writes, and every 15 seconds as a sign of life. Progress
// is only for people; what cannot be sent is dropped.
type teller struct {
	b    *Builder
	mu   sync.Mutex
	now  manifest.Progress
	tail ring
	poke chan struct{}
	done context.CancelFunc
	wg   sync.WaitGroup
}

const (
	tellEvery = 2 * time.Second
	tellAlive = 15 * time.Second
	tellLines = 8
)

func newTeller(ctx context.Context, b *Builder) *teller {
	ctx, cancel := context.WithCancel(ctx)
	t := &teller{b: b, poke: make(chan struct{}, 1), done: cancel, tail: ring{max: tellLines}}
	t.now = manifest.Progress{BakeID: b.state.BakeID, InstanceID: b.state.InstanceID, Steps: len(b.plan.Steps), Phase: "provision"}
	t.wg.Go(func() { t.run(ctx) })
	return t
}

func (t *teller) stop() { t.done(); t.wg.Wait() }

func (t *teller) step(number int, name string) {
	t.set(func(p *manifest.Progress) { p.Step, p.Name, p.Phase = number, name, "provision" })
}

func (t *teller) phase(phase, name string) {
	t.set(func(p *manifest.Progress) { p.Phase, p.Name = phase, name })
}

func (t *teller) set(f func(*manifest.Progress)) {
	t.mu.Lock()
	f(&t.now)
	t.tail.lines = nil
	t.mu.Unlock()
	t.b.Log.Info("progress", "phase", t.now.Phase, "step", t.now.Step, "name", t.now.Name)
	t.changed()
}

func (t *teller) line(s string) {
	t.mu.Lock()
	t.tail.add(s)
	t.mu.Unlock()
	t.changed()
}

func (t *teller) changed() {
	select {
	case t.poke <- struct{}{}:
	default:
	}
}

func (t *teller) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.poke:
		case <-time.After(tellAlive):
		}
		t.mu.Lock()
		t.now.Serial++
		t.now.At = time.Now().UTC()
		t.now.Tail = report.RedactLines(t.tail.lines)
		data, err := json.Marshal(t.now)
		t.mu.Unlock()
		if err == nil {
			err = t.b.putOnce(ctx, func(m *manifest.Manifest) string { return m.Progress }, data)
		}
		if err != nil && ctx.Err() == nil {
			t.b.Log.Warn("send progress", "err", redactErr(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(tellEvery):
		}
	}
}

// ring keeps the last lines.
type ring struct {
	max   int
	lines []string
}

func (r *ring) add(s string) {
	const longest = 1000
	if len(s) > longest {
		s = s[:longest] + "…"
	}
	if len(r.lines) >= r.max {
		r.lines = r.lines[1:]
	}
	r.lines = append(r.lines[:len(r.lines):len(r.lines)], s)
}
