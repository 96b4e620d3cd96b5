package spool

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// keeper does what must not delay a commit: it allocates the next segment,
// seals and removes old ones and writes the acknowledgements down.
func (s *Spool) keeper() {
	t := time.NewTicker(s.opt.CursorEvery)
	defer t.Stop()
	for {
		s.mu.Lock()
		closing := s.closed
		s.mu.Unlock()
		if closing {
			s.done.Wait()
		}
		s.housekeep(closing)
		if closing {
			return
		}
		select {
		case <-s.keep:
		case <-t.C:
			s.saveCursor(false)
		}
	}
}

func (s *Spool) housekeep(closing bool) {
	s.makeSpare(closing)
	for {
		s.mu.Lock()
		var seal, retire *segment
		if len(s.toSeal) > 0 {
			seal, s.toSeal = s.toSeal[0], s.toSeal[1:]
		} else if len(s.toRetire) > 0 {
			retire = s.toRetire[0]
		}
		s.mu.Unlock()
		switch {
		case seal != nil:
			s.seal(seal)
		case retire != nil:
			s.retire(retire)
			s.makeSpare(closing)
		default:
			if closing {
				s.saveCursor(true)
				s.closeSpares()
			}
			return
		}
	}
}

// seal writes down where a segment ends, so that the next Open need not scan
// it. Failing is harmless: then it is scanned.
func (s *Spool) seal(g *segment) {
	var err error
	if g.count > 0 {
		if _, err = g.f.WriteAt(sealSlot(g.id, g.end, g.count), sealOffset); err == nil {
			err = g.f.Sync()
		}
	}
	if g.cut && err == nil {
		// Nothing behind the end is wanted: give the room back.
		if err = g.f.Truncate(g.end); err == nil {
			s.mu.Lock()
			g.size = g.end
			s.mu.Unlock()
		}
	}
	if err != nil {
		s.log.Warn("seal spool segment", "segment", g.name(), "error", err)
	}
	g.f.Close()
	g.f = nil
}

// retire removes an acknowledged segment, or keeps its file as the next spare.
// That one gets another segment's name at once: under its own its records would
// be read again after a crash, however long ago they were acknowledged.
func (s *Spool) retire(g *segment) {
	s.mu.Lock()
	reuse := g.size == s.opt.SegmentBytes && len(s.free) == 0 && !s.closed
	name := g.name()
	if reuse {
		name = segmentName(s.nextID)
		s.nextID++
	}
	s.mu.Unlock()
	var f file
	var err error
	if reuse {
		if f, err = s.fs.Open(g.name()); err == nil {
			if err = s.fs.Rename(g.name(), name); err != nil {
				f.Close()
			}
		}
		reuse = err == nil
	}
	if !reuse {
		if err := s.fs.Remove(g.name()); err != nil {
			s.log.Warn("remove spool segment", "segment", g.name(), "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.toRetire = slices.DeleteFunc(s.toRetire, func(x *segment) bool { return x == g })
	if reuse {
		s.free = append(s.free, freeFile{name, f})
	}
}

// makeSpare sees to it that a segment is ready when the active one is full.
func (s *Spool) makeSpare(closing bool) {
	s.mu.Lock()
	if s.spare != nil || closing || s.spareErr != nil && !s.wanted {
		s.mu.Unlock()
		return
	}
	id := s.nextID
	s.nextID++
	var free *freeFile
	if n := len(s.free); n > 0 {
		free = &s.free[n-1]
		s.free = s.free[:n-1]
	}
	over := free == nil && s.diskBytes()+s.opt.SegmentBytes > s.opt.MaxBytes
	s.mu.Unlock()

	var f file
	var err error
	switch {
	case over:
		err = fmt.Errorf("%w: its limit of %d bytes is reached", ErrFull, s.opt.MaxBytes)
	case free != nil:
		f = free.f
		if err = s.fs.Rename(free.name, segmentName(id)); err != nil {
			f.Close()
		}
	default:
		// Without the room nothing is written: filling the disk to its last byte
		// and making room again, for every append, would hit everybody else on it.
		if room, rerr := s.fs.Room(); rerr == nil && room < s.opt.SegmentBytes {
			err = fmt.Errorf("%w: the disk has %d bytes left, a segment takes %d", ErrFull, room, s.opt.SegmentBytes)
		} else {
			f, err = s.allocate(segmentName(id))
		}
	}
	if err == nil {
		if err = s.fs.SyncDir(); err != nil {
			f.Close()
			_ = s.fs.Remove(segmentName(id))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		if !errors.Is(err, ErrFull) {
			s.stats.LastErr = err.Error()
			if noSpace(err) {
				err = fmt.Errorf("%w: %w", ErrFull, err)
			}
			err = fmt.Errorf("allocate spool segment: %w", err)
		}
		// Only a writer that waits is told: while nobody needs a segment the
		// lack of one is no failure, and the next who does tries again.
		// Segments about to be removed make room: then it is tried again at once.
		if s.wanted && len(s.toRetire) == 0 {
			s.spareErr = err
		}
	default:
		s.spare = &segment{id: id, f: f, size: s.opt.SegmentBytes}
	}
	s.spareC.Broadcast()
}

// allocate creates a segment file of zeros that are on the disk, so that a
// commit has no metadata to write and cannot run out of room.
func (s *Spool) allocate(name string) (file, error) {
	f, err := s.fs.Create(name)
	if err != nil {
		return nil, err
	}
	zero := make([]byte, 256<<10)
	for off := int64(0); off < s.opt.SegmentBytes && err == nil; off += int64(len(zero)) {
		_, err = f.WriteAt(zero[:min(int64(len(zero)), s.opt.SegmentBytes-off)], off)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		_ = s.fs.Remove(name)
		return nil, err
	}
	return f, nil
}

// closeSpares keeps one empty segment's file for the next Open, and removes
// those that waited to be reused.
func (s *Spool) closeSpares() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spare != nil {
		s.spare.f.Close()
		s.spare = nil
	}
	for _, fr := range s.free {
		fr.f.Close()
		if err := s.fs.Remove(fr.name); err != nil {
			s.log.Warn("remove spool segment", "segment", fr.name, "error", err)
		}
	}
	s.free = nil
}
