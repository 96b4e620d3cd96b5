package spool

import (
	"context"
	"fmt"
	"runtime"
)

// maxCommit bounds the bytes of one write, and with them the writer's buffer,
// but for an append that is larger by itself.
const maxCommit = 1 << 20

// gather is how many appends a commit stops looking for more at, patience how
// often it looks in vain.
const (
	gather   = 1024
	patience = 30
)

// pending is one Append that waits for its commit.
type pending struct {
	recs  [][]byte
	first uint64
	err   error
}

// batch is the appends of one commit. They are told together: waking all who
// wait for one channel costs less than a channel for each.
type batch struct {
	list []pending
	done chan struct{} // closed when first and err of all are set
}

// Append makes records durable, all of them before it returns nil, and returns
// the first one's sequence number; the others follow it. They share a segment,
// and are too large together where they do not fit one. After an error none of
// them counts as accepted, although after a failed sync, or when ctx ended
// first, some may still be read later; then the records must not be changed
// afterwards either.
func (s *Spool) Append(ctx context.Context, recs ...[]byte) (uint64, error) {
	size := headerSize + framesSize(recs)
	for _, r := range recs {
		if len(r) > MaxRecord {
			return 0, fmt.Errorf("append %d bytes: %w", len(r), ErrTooLarge)
		}
	}
	if size > s.opt.SegmentBytes {
		return 0, fmt.Errorf("append %d records, %d bytes with their frames: %w", len(recs), size, ErrTooLarge)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, ErrClosed
	}
	b, i := s.queue, len(s.queue.list)
	b.list = append(b.list, pending{recs: recs})
	if i == 0 {
		s.work.Signal()
	}
	s.mu.Unlock()
	select {
	case <-b.done:
		return b.list[i].first, b.list[i].err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// write is the writer goroutine: it alone touches the active segment's file.
func (s *Spool) write() {
	woken, waiting := 0, 0 // by the last commit, and behind it
	for {
		s.mu.Lock()
		for len(s.queue.list) == 0 && !s.closed {
			s.work.Wait()
		}
		if len(s.queue.list) == 0 {
			s.mu.Unlock()
			break
		}
		// The producers that the last commit woke are about to queue again:
		// letting them run first makes one large commit of two small ones. Those
		// who do not come are not waited for longer than a fraction of a sync.
		for spins, queued := 0, -1; len(s.queue.list) < min(waiting+woken, gather) && spins < patience; spins++ {
			if n := len(s.queue.list); n != queued {
				queued, spins = n, 0
			}
			s.mu.Unlock()
			runtime.Gosched()
			s.mu.Lock()
		}
		b := s.queue
		s.queue = newBatch(len(b.list))
		s.mu.Unlock()
		s.commit(b.list)
		close(b.done)
		s.mu.Lock()
		woken, waiting = len(b.list), len(s.queue.list)
		s.mu.Unlock()
	}
	s.mu.Lock()
	if g := s.active; g != nil {
		s.sealActive(true)
	}
	s.mu.Unlock()
}

func newBatch(size int) *batch {
	return &batch{list: make([]pending, 0, min(size, gather)), done: make(chan struct{})}
}

// commit writes a batch, in as many writes as its size and the segments ask for.
func (s *Spool) commit(batch []pending) {
	buf := s.buf[:0]
	var n uint64      // records in buf
	whole := 0        // batch[:whole] are durable
	encoded := 0      // batch[whole:encoded] are in buf
	next := s.nextSeq // only the writer changes it
	fail := func(err error) {
		for i := range batch[whole:] {
			batch[whole+i].err = err
		}
	}
	flush := func() error {
		if n > 0 {
			if err := s.flush(buf, next, n); err != nil {
				return err
			}
			buf, n = buf[:0], 0
		}
		whole = encoded
		return nil
	}
	for i := range batch {
		p := &batch[i]
		// The records of one append are in one write to one segment: where that
		// fails, or there is no segment, none of them is accepted.
		if size := framesSize(p.recs); size > 0 {
			if len(buf) > 0 && (!s.fits(buf, size) || int64(len(buf))+size > maxCommit) {
				if err := flush(); err != nil {
					fail(err)
					return
				}
			}
			if s.active == nil || !s.fits(buf, size) {
				if err := s.roll(next); err != nil {
					fail(err)
					return
				}
			}
			if s.active.fresh && len(buf) == 0 {
				buf = append(buf, headerBlock(s.active.id, s.active.first)...)
			}
		}
		p.first = next
		for _, r := range p.recs {
			buf = appendFrame(buf, s.active.id, next, r)
			next++
			n++
		}
		encoded++
	}
	if err := flush(); err != nil {
		fail(err)
		return
	}
	s.buf = buf[:0]
	if cap(s.buf) > 2*maxCommit {
		s.buf = nil
	}
}

func framesSize(recs [][]byte) int64 {
	var n int64
	for _, r := range recs {
		n += frameSize(len(r))
	}
	return n
}

// fits says whether frames of size bytes have room behind buf.
func (s *Spool) fits(buf []byte, size int64) bool {
	used := s.active.end + int64(len(buf))
	if s.active.fresh && len(buf) > 0 {
		used = int64(len(buf)) // the header is in buf
	}
	return used+size <= s.opt.SegmentBytes
}

// flush writes and syncs one commit to the active segment. After a failure the
// segment is poisoned: what the failed sync leaves on the disk is unknown, and
// a later sync that succeeds says nothing about it, so nothing is appended to
// it again.
func (s *Spool) flush(buf []byte, next, n uint64) error {
	g := s.active
	at := g.end
	if g.fresh {
		at = 0
	}
	var err error
	if _, err = g.f.WriteAt(buf, at); err != nil {
		err = fmt.Errorf("write spool segment: %w", err)
	} else if err = g.f.Sync(); err != nil {
		err = fmt.Errorf("sync spool segment: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextSeq = next
	if err != nil {
		s.stats.Poisoned++
		s.stats.LastErr = err.Error()
		g.cut = true
		s.log.Error("spool segment abandoned", "segment", g.name(), "error", err)
		s.sealActive(false)
		if noSpace(err) {
			s.stats.Full++
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
		return err
	}
	g.fresh = false
	g.end = at + int64(len(buf))
	g.count += n
	s.stats.Appended += n
	s.stats.Commits++
	close(s.readable)
	s.readable = make(chan struct{})
	return nil
}

// sealActive ends the active segment; the keeper writes the seal.
func (s *Spool) sealActive(cut bool) {
	g := s.active
	s.active = nil
	g.sealed = true
	g.cut = g.cut || cut
	s.toSeal = append(s.toSeal, g)
	s.retireIfDone(g)
	s.wakeKeeper()
}

// roll makes the spare segment the active one, and waits for the keeper to
// have one ready.
func (s *Spool) roll(first uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active != nil {
		s.sealActive(false)
	}
	s.spareErr = nil
	for s.spare == nil && s.spareErr == nil {
		if s.closed {
			return ErrClosed
		}
		s.wanted = true
		s.wakeKeeper()
		s.spareC.Wait()
	}
	s.wanted = false
	if s.spare == nil {
		s.stats.Full++
		return s.spareErr
	}
	g := s.spare
	s.spare = nil
	g.first, g.fresh, g.end = first, true, headerSize
	s.active = g
	s.segs = append(s.segs, g)
	s.wakeKeeper()
	return nil
}

func (s *Spool) wakeKeeper() {
	select {
	case s.keep <- struct{}{}:
	default:
	}
}
