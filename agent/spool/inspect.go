package spool

import (
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
)

// SegmentInfo describes one segment file.
type SegmentInfo struct {
	Name    string
	ID      uint64
	First   uint64 // first sequence number
	Records uint64 // whole ones
	Acked   uint64
	Bytes   int64 // of the file
	End     int64 // behind the last whole frame
	Sealed  bool
	Damaged []Range // bytes that are no whole frame, before End
	Torn    bool    // an unfinished commit stands at End
	Empty   bool    // a spare one
}

// Range is a range of bytes of a segment.
type Range struct{ From, To int64 }

// Inspection is a look at a spool that changes nothing. It may be taken while
// a process has the spool open; what is written meanwhile may be missing.
type Inspection struct {
	Segments []SegmentInfo
	Aside    []string // files with damaged bytes kept aside
	CursorOK bool     // the cursor file is whole, or there is none

	dir  string
	acks map[uint64][]uint64
}

// Inspect reads every frame of every segment in a directory.
func Inspect(dir string) (*Inspection, error) {
	names, err := osDir(dir).List()
	if err != nil {
		return nil, fmt.Errorf("inspect spool: %w", err)
	}
	in := &Inspection{dir: dir, CursorOK: true}
	if b, err := os.ReadFile(filepath.Join(dir, cursorName)); err == nil {
		_, in.acks, in.CursorOK = decodeCursor(b)
	}
	slices.Sort(names)
	for _, name := range names {
		if filepath.Ext(name) == asideSuffix {
			in.Aside = append(in.Aside, name)
		}
		id, ok := segmentID(name)
		if !ok {
			continue
		}
		s := SegmentInfo{Name: name, ID: id}
		if err := in.walk(&s, nil); err != nil {
			return nil, err
		}
		in.Segments = append(in.Segments, s)
	}
	slices.SortStableFunc(in.Segments, func(a, b SegmentInfo) int { return int(min(max(int64(a.ID)-int64(b.ID), -1), 1)) })
	return in, nil
}

// Records yields every whole record and whether it is acknowledged. An error
// ends the sequence.
func (in *Inspection) Records() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, s := range in.Segments {
			stop := false
			err := in.walk(&SegmentInfo{Name: s.Name, ID: s.ID}, func(e Entry) bool {
				stop = !yield(e, nil)
				return !stop
			})
			if stop {
				return
			}
			if err != nil {
				yield(Entry{}, err)
				return
			}
		}
	}
}

// Entry is a record with its place.
type Entry struct {
	Record
	Segment string
	Offset  int64
	Acked   bool
}

func (in *Inspection) walk(s *SegmentInfo, visit func(Entry) bool) error {
	f, err := os.Open(filepath.Join(in.dir, s.Name))
	if err != nil {
		return fmt.Errorf("inspect spool: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("inspect spool: %w", err)
	}
	*s = SegmentInfo{Name: s.Name, ID: s.ID, Bytes: st.Size(), End: headerSize, Empty: true}
	head := make([]byte, min(st.Size(), headerSize))
	if _, err := f.ReadAt(head, 0); err != nil && err != io.EOF {
		return fmt.Errorf("inspect spool: %w", err)
	}
	id, first, known := parseHeader(head)
	known = known && id == s.ID
	s.First = first
	sealedEnd := int64(0)
	if known && len(head) == headerSize {
		if end, _, ok := parseSeal(head[sealOffset:], s.ID); ok {
			s.Sealed, sealedEnd = true, end
		}
	}
	limit := st.Size()
	if s.Sealed && sealedEnd <= limit {
		limit = sealedEnd
	}
	fr := newFrames(f, s.ID, limit, window)
	for off := int64(headerSize); ; {
		seq, data, n, ok := fr.frame(off)
		if !ok {
			at, more := fr.resync(off + 8)
			if more {
				s.Damaged = append(s.Damaged, Range{off, at})
				off = at
				continue
			}
			if s.Sealed && off < limit {
				s.Damaged = append(s.Damaged, Range{off, limit})
			} else if !s.Sealed {
				s.Torn = fr.claims(off)
			}
			break
		}
		if s.Empty && !known {
			s.First = seq
		}
		s.Empty = false
		s.Records++
		i := seq - s.First
		bits := in.acks[s.First]
		acked := i/64 < uint64(len(bits)) && bits[i/64]&(1<<(i%64)) != 0
		if acked {
			s.Acked++
		}
		if visit != nil && !visit(Entry{Record{seq, slices.Clone(data)}, s.Name, off, acked}) {
			return nil
		}
		off += n
		s.End = off
	}
	return nil
}
