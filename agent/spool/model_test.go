package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is what a spool has promised.
type model struct {
	submitted map[string]bool // every payload ever handed over
	owed      map[string]bool // acknowledged to the producer, not by the consumer
	next      int
}

func newModel() *model { return &model{map[string]bool{}, map[string]bool{}, 0} }

func (m *model) payload(size int) []byte {
	m.next++
	p := fmt.Appendf(nil, "%08d:", m.next)
	p = append(p, bytes.Repeat([]byte{byte(m.next)}, size)...)
	m.submitted[string(p)] = true
	return p
}

// append posts batches at the same time and notes which were accepted.
func (m *model) append(s *Spool, sizes [][]int) (crashed bool) {
	var wg sync.WaitGroup
	results := make([]error, len(sizes))
	batches := make([][][]byte, len(sizes))
	for i, b := range sizes {
		for _, size := range b {
			batches[i] = append(batches[i], m.payload(size))
		}
		wg.Go(func() { _, results[i] = s.Append(context.Background(), batches[i]...) })
	}
	wg.Wait()
	for i, err := range results {
		if err == nil {
			for _, p := range batches[i] {
				m.owed[string(p)] = true
			}
		}
		crashed = crashed || errors.Is(err, errCrash)
	}
	return crashed
}

// verify reads everything and compares. Each record must have been handed over,
// no record may come twice from one open spool, and all that is owed is there.
// It returns nil where the power is cut meanwhile.
func (m *model) verify(t interface{ Fatalf(string, ...any) }, s *Spool) (seqs map[string]uint64) {
	s.Rewind()
	seqs = map[string]uint64{}
	last := uint64(0)
	for {
		recs, err := s.TryRead(7, 5000)
		if errors.Is(err, errCrash) {
			return nil
		}
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		if len(recs) == 0 {
			break
		}
		for _, r := range recs {
			if !m.submitted[string(r.Data)] {
				t.Fatalf("read what nobody wrote: %d bytes at %d", len(r.Data), r.Seq)
			}
			if _, twice := seqs[string(r.Data)]; twice {
				t.Fatalf("read twice: %.9s", r.Data)
			}
			if r.Seq <= last {
				t.Fatalf("sequence number %d after %d", r.Seq, last)
			}
			last = r.Seq
			seqs[string(r.Data)] = r.Seq
		}
	}
	if d, ok := s.fs.(*disk); ok && d.dead() {
		return nil
	}
	for p := range m.owed {
		if _, ok := seqs[p]; !ok {
			t.Fatalf("lost: %.9s (%d owed, %d read)", p, len(m.owed), len(seqs))
		}
	}
	return seqs
}

const testSegment = 16 << 10

func testOptions(d *disk) Options {
	return Options{fs: d, SegmentBytes: testSegment, MaxBytes: 32 * testSegment, CursorEvery: time.Millisecond}
}

// TestModel runs random operations against the model, with the power cut at a
// random change of the disk, failing syncs and a disk that fills up.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDisk(rapid.Uint64().Draw(t, "seed"))
		m := newModel()
		s, err := Open(testOptions(d))
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		defer func() { s.Close() }()
		reopen := func(t *rapid.T) {
			if err := s.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			if d.dead() {
				d = d.restart()
			}
			d.crashAt, d.badSync, d.room = 0, 0, 0
			if s, err = Open(testOptions(d)); err != nil {
				t.Fatalf("reopen: %v", err)
			}
			m.verify(t, s)
		}
		size := rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(0, 4000))
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				batches := rapid.SliceOfN(rapid.SliceOfN(size, 1, 5), 1, 6).Draw(t, "batches")
				if m.append(s, batches) {
					reopen(t)
				}
			},
			"acknowledge": func(t *rapid.T) {
				seqs := m.verify(t, s)
				if seqs == nil {
					reopen(t)
				}
				every := rapid.IntRange(1, 4).Draw(t, "every")
				rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "which"), 0))
				for p, seq := range seqs {
					if rng.IntN(every) == 0 {
						s.Ack(seq)
						delete(m.owed, p)
					}
				}
			},
			"reopen": reopen,
			"cut the power": func(t *rapid.T) {
				d.mu.Lock()
				d.crashAt = d.ops + rapid.IntRange(1, 40).Draw(t, "in")
				d.mu.Unlock()
			},
			"fail a sync": func(t *rapid.T) {
				d.mu.Lock()
				d.badSync = rapid.IntRange(1, 3).Draw(t, "in")
				d.mu.Unlock()
			},
			"fill the disk": func(t *rapid.T) {
				d.mu.Lock()
				d.room = rapid.Int64Range(1, 20*testSegment).Draw(t, "room")
				d.mu.Unlock()
			},
		})
		reopen(t)
	})
}

// TestPowerCutAtEveryChange cuts the power at each change of the disk that a
// fixed piece of work makes.
func TestPowerCutAtEveryChange(t *testing.T) {
	work := func(d *disk, m *model) *Spool {
		s, err := Open(testOptions(d))
		if err != nil {
			return nil
		}
		for i := range 12 {
			if m.append(s, [][]int{{100, 2000}, {3000}, {i * 10}}) {
				return s
			}
			if i%3 == 2 {
				recs, err := s.TryRead(6, 1<<20)
				if err != nil {
					return s
				}
				for _, r := range recs {
					s.Ack(r.Seq)
					delete(m.owed, string(r.Data))
				}
			}
		}
		return s
	}
	for at := 1; ; at++ {
		cut := false
		for seed := range uint64(3) {
			d, m := newDisk(seed), newModel()
			d.crashAt = at
			if s := work(d, m); s != nil {
				s.Close()
			}
			if !d.dead() {
				continue
			}
			cut = true
			after := d.restart()
			s, err := Open(testOptions(after))
			if err != nil {
				t.Fatalf("power cut at change %d: open: %v", at, err)
			}
			m.verify(failer{t, at}, s)
			// And it goes on.
			if m.append(s, [][]int{{10}}); s.Stats().Appended == 0 {
				t.Fatalf("power cut at change %d: nothing can be appended", at)
			}
			m.verify(failer{t, at}, s)
			s.Close()
		}
		if !cut {
			if at < 50 {
				t.Fatalf("the work makes only %d changes", at)
			}
			return
		}
	}
}

type failer struct {
	*testing.T
	at int
}

func (f failer) Fatalf(format string, args ...any) {
	f.T.Helper()
	f.T.Fatalf("power cut at change %d: "+format, append([]any{f.at}, args...)...)
}
