package spool

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// window is how much of a segment is read at once.
const window = 256 << 10

func segmentID(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, ".seg")
	if !ok || len(hex) != 16 {
		return 0, false
	}
	id, err := strconv.ParseUint(hex, 16, 64)
	return id, err == nil
}

// recover takes over what an earlier process left. What each crash leaves:
//
//   - between allocating and using a segment: a file without records; reused
//   - in a commit: a torn tail behind the last synced frame; cut
//   - between commit and seal: an unsealed segment; scanned and sealed
//   - between acknowledging and writing the cursor: records read again
//   - in a removal: a segment that is acknowledged still; removed
//
// No old segment is appended to again.
func (s *Spool) recover() error {
	names, err := s.fs.List()
	if err != nil {
		return err
	}
	slices.Sort(names)
	next, acks := loadCursor(s.fs)
	s.nextSeq, s.nextID = max(next, 1), 1
	for _, name := range names {
		id, ok := segmentID(name)
		if !ok {
			if strings.HasSuffix(name, asideSuffix) {
				s.stats.Aside++
			}
			continue
		}
		s.nextID = max(s.nextID, id+1)
		f, err := s.fs.Open(name)
		if err != nil {
			return err
		}
		g, err := s.load(f, id)
		if err != nil {
			f.Close()
			return fmt.Errorf("%s: %w", name, err)
		}
		if g.count == 0 {
			// Never used, or nothing of it was committed.
			if g.size == s.opt.SegmentBytes && len(s.free) < 2 {
				s.free = append(s.free, freeFile{name, f})
				continue
			}
			f.Close()
			if err := s.fs.Remove(name); err != nil {
				return err
			}
			continue
		}
		f.Close()
		g.setBits(acks[g.first])
		s.nextSeq = max(s.nextSeq, g.first+g.count)
		s.segs = append(s.segs, g)
	}
	slices.SortFunc(s.segs, func(a, b *segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	for _, g := range slices.Clone(s.segs) {
		s.retireIfDone(g)
	}
	return nil
}

// load reads a segment's header and seal, and scans, cuts and seals it where
// the last process was still writing to it.
func (s *Spool) load(f file, id uint64) (*segment, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	g := &segment{id: id, size: size, sealed: true}
	head := make([]byte, min(size, headerSize))
	if _, err := f.ReadAt(head, 0); err != nil && err != io.EOF {
		clear(head)
	}
	hid, first, known := parseHeader(head)
	known = known && hid == id
	if known && len(head) == headerSize {
		if end, count, ok := parseSeal(head[sealOffset:], id); ok && end <= size && count > 0 {
			g.first, g.end, g.count = first, end, count
			return g, nil
		}
	}
	fr := newFrames(f, id, size, window)
	end, last, found := int64(headerSize), uint64(0), false
	for off := end; ; {
		seq, _, n, ok := fr.frame(off)
		if !ok {
			at, more := fr.resync(off + 8)
			if !more {
				break
			}
			off = at
			continue
		}
		if !found && !known {
			first = seq
		}
		found, last = true, seq
		off += n
		end = off
	}
	if !found || last < first {
		return g, nil
	}
	g.first, g.end, g.count = first, end, last-first+1
	if fr.claims(end) {
		s.stats.TornTail++
		s.log.Info("spool: cut an unfinished commit", "segment", g.name(), "offset", end)
	}
	if !known {
		s.log.Warn("spool: segment header was damaged", "segment", g.name())
		if _, err := f.WriteAt(headerBlock(id, first), 0); err != nil {
			return g, nil // readable without, and tried again next time
		}
	}
	if _, err := f.WriteAt(sealSlot(id, g.end, g.count), sealOffset); err != nil {
		s.log.Warn("seal spool segment", "segment", g.name(), "error", err)
		return g, nil
	}
	if err := f.Sync(); err != nil {
		s.log.Warn("seal spool segment", "segment", g.name(), "error", err)
		return g, nil
	}
	if err := f.Truncate(g.end); err == nil {
		g.size = g.end
	}
	return g, nil
}
