package spool

import (
	"hash/crc32"
	"io"
	"slices"
	"time"
)

// The cursor file holds which records of the live segments are acknowledged.
// It is written whole to a second file and renamed over the first. An old or a
// lost cursor makes records be read again, nothing else.
//
//	 0  magic "lecafe cursor 1\n"
//	16  lowest sequence number never given away, 8 bytes
//	24  number of entries, 4 bytes
//	    per entry: first sequence number 8, words 4, then words of 8 bytes: bit i of word w is record 64w+i
//	    CRC-32C of all before, 4 bytes
const (
	cursorName = "cursor"
	cursorTemp = "cursor.new"
)

var magicCursor = [16]byte([]byte("lecafe cursor 1\n"))

type cursorEntry struct {
	first uint64
	bits  []uint64
}

func encodeCursor(next uint64, entries []cursorEntry) []byte {
	b := slices.Clone(magicCursor[:])
	b = le.AppendUint64(b, next)
	b = le.AppendUint32(b, uint32(len(entries)))
	for _, e := range entries {
		b = le.AppendUint64(b, e.first)
		b = le.AppendUint32(b, uint32(len(e.bits)))
		for _, w := range e.bits {
			b = le.AppendUint64(b, w)
		}
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

func decodeCursor(b []byte) (next uint64, entries map[uint64][]uint64, ok bool) {
	if len(b) < 32 || [16]byte(b[:16]) != magicCursor || crc32.Checksum(b[:len(b)-4], castagnoli()) != le.Uint32(b[len(b)-4:]) {
		return 0, nil, false
	}
	next, n, b := le.Uint64(b[16:]), le.Uint32(b[24:]), b[28:len(b)-4]
	entries = map[uint64][]uint64{}
	for range n {
		if len(b) < 12 {
			return 0, nil, false
		}
		first, words := le.Uint64(b), int(le.Uint32(b[8:]))
		b = b[12:]
		if words > len(b)/8 {
			return 0, nil, false
		}
		bits := make([]uint64, words)
		for i := range bits {
			bits[i] = le.Uint64(b[8*i:])
		}
		b = b[8*words:]
		entries[first] = bits
	}
	return next, entries, len(b) == 0
}

// saveCursor writes the acknowledgements down. Only a closing spool syncs
// them: what a power cut takes of them costs duplicates alone.
func (s *Spool) saveCursor(sync bool) {
	s.mu.Lock()
	if !s.dirty {
		s.mu.Unlock()
		return
	}
	s.dirty = false
	var entries []cursorEntry
	for _, g := range s.segs {
		if g.acked > 0 {
			entries = append(entries, cursorEntry{g.first, slices.Clone(g.bits)})
		}
	}
	b := encodeCursor(s.nextSeq, entries)
	s.mu.Unlock()
	f, err := s.fs.Create(cursorTemp)
	if err == nil {
		if _, err = f.WriteAt(b, 0); err == nil && sync {
			err = f.Sync()
		}
		f.Close()
		if err == nil {
			err = s.fs.Rename(cursorTemp, cursorName)
		}
		if err == nil && sync {
			err = s.fs.SyncDir()
		}
	}
	if err == nil {
		s.quiet = time.Time{}
		return
	}
	s.mu.Lock()
	s.dirty = true
	s.mu.Unlock()
	// It is tried again ten times a second: a disk that stays full for a day is
	// not told of a million times.
	if now := time.Now(); now.After(s.quiet) {
		s.quiet = now.Add(time.Minute)
		s.log.Warn("write spool cursor", "error", err)
	}
}

func loadCursor(fs fsys) (next uint64, entries map[uint64][]uint64) {
	f, err := fs.Open(cursorName)
	if err != nil {
		return 0, nil
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil || size > 64<<20 {
		return 0, nil
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); err != nil && (err != io.EOF || n < len(b)) {
		return 0, nil
	}
	next, entries, _ = decodeCursor(b)
	return next, entries
}
