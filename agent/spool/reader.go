package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

const asideSuffix = ".bad"

// reader is the consumer's place in the log.
type reader struct {
	seg *segment
	f   file
	fr  *frames
	off int64
	idx uint64
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
	r.seg = nil
}

// Read returns the next records that are durable and not acknowledged: at
// least one, at most limit records and about bytes of data. It waits for one
// until ctx ends. Each record is returned once by an open spool, and again
// after the next Open unless it was acknowledged. Damaged records are skipped
// and their bytes kept in files named *.bad.
func (s *Spool) Read(ctx context.Context, limit int, bytes int) ([]Record, error) {
	for {
		s.mu.Lock()
		wait, closed := s.readable, s.closed
		s.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		recs, err := s.TryRead(limit, bytes)
		if err != nil || len(recs) > 0 {
			return recs, err
		}
		select {
		case <-wait:
		case <-s.stopped:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Rewind makes the next Read start again at the oldest record that is not
// acknowledged. It belongs to the consumer, as Read does.
func (s *Spool) Rewind() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reader.close()
}

// Readable returns a channel that is closed when records have been committed
// after the call.
func (s *Spool) Readable() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.readable
}

// TryRead is Read without the wait: it may return no record.
func (s *Spool) TryRead(limit int, bytes int) ([]Record, error) {
	var out []Record
	got := 0
	r := &s.reader
	for len(out) < limit && got < bytes {
		s.mu.Lock()
		if !s.advance(r) {
			s.mu.Unlock()
			break
		}
		g, end, count := r.seg, r.seg.end, r.seg.count
		someAcked := g.acked > 0 // what is acked after this moment was read before
		s.mu.Unlock()
		if r.f == nil {
			f, err := s.fs.Open(g.name())
			if err != nil {
				return out, fmt.Errorf("read spool: %w", err)
			}
			r.f, r.fr = f, newFrames(f, g.id, end, window)
		}
		if r.fr.end != end {
			// The window may hold bytes from before the commit.
			r.fr.end, r.fr.buf = end, r.fr.buf[:0]
		}
		for len(out) < limit && got < bytes && r.idx < count {
			seq, data, n, ok := r.fr.frame(r.off)
			if !ok || seq < g.first+r.idx || seq-g.first >= count {
				s.skip(r, g, end, count)
				break
			}
			if seq > g.first+r.idx { // numbers of a failed commit, or damage seen before
				s.lose(g, r.idx, seq-g.first, true)
			}
			r.off += n
			r.idx = seq - g.first + 1
			if someAcked {
				s.mu.Lock()
				acked := g.isAcked(seq - g.first)
				s.mu.Unlock()
				if acked {
					continue
				}
			}
			out = append(out, Record{Seq: seq, Data: slices.Clone(data)})
			got += len(data)
		}
	}
	return out, nil
}

// advance moves the reader to a segment with something to read.
func (s *Spool) advance(r *reader) bool {
	if r.seg != nil && r.idx < r.seg.count {
		return true
	}
	if r.seg != nil && !r.seg.sealed {
		return false
	}
	for _, g := range s.segs {
		if r.seg != nil && g.first <= r.seg.first {
			continue
		}
		if g.count == 0 {
			if !g.sealed {
				return false
			}
			continue
		}
		if r.f != nil {
			r.f.Close()
		}
		*r = reader{seg: g, off: headerSize}
		return true
	}
	return false
}

// skip steps over damaged bytes to the next whole frame and keeps them aside.
func (s *Spool) skip(r *reader, g *segment, end int64, count uint64) {
	from, to, idx := r.off, end, count
	for at := from + 8; ; {
		off, ok := r.fr.resync(at)
		if !ok {
			break
		}
		seq, _, _, _ := r.fr.frame(off)
		if seq >= g.first+r.idx && seq-g.first < count {
			to, idx = off, seq-g.first
			break
		}
		at = off + 8
	}
	err := s.keepAside(r.fr, fmt.Sprintf("%016x-%08x%s", g.id, from, asideSuffix), from, to)
	if err != nil {
		// Without the copy the segment itself is the only trace: it stays.
		s.log.Error("spool: damaged bytes not kept aside, segment stays", "segment", g.name(), "error", err)
	}
	s.log.Error("spool: damaged records skipped", "segment", g.name(), "offset", from, "bytes", to-from, "records", idx-r.idx)
	s.lose(g, r.idx, idx, err == nil)
	r.off, r.idx = to, idx
}

// lose accounts for records that cannot be read. Settled ones no longer hold
// their segment.
func (s *Spool) lose(g *segment, from, to uint64, settled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := from; i < to; i++ {
		if g.isAcked(i) {
			continue
		}
		s.stats.Lost++
		if settled {
			g.ack(i)
			s.dirty = true
		}
	}
	s.retireIfDone(g)
}

// keepAside copies a range of a segment to a file of its own.
func (s *Spool) keepAside(fr *frames, name string, from, to int64) error {
	f, err := s.fs.Create(name)
	if err != nil {
		return err
	}
	for off := from; off < to && err == nil; {
		b := fr.bytesAt(off, int(min(to-off, window)))
		if len(b) == 0 {
			break
		}
		_, err = f.WriteAt(b, off-from)
		off += int64(len(b))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = s.fs.SyncDir()
	}
	if err == nil {
		s.mu.Lock()
		s.stats.Aside++
		s.mu.Unlock()
	}
	return err
}
