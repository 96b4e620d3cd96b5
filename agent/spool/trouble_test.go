package spool

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func openDisk(t *testing.T, d *disk, o Options) *Spool {
	t.Helper()
	o.fs = d
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func readAll(t *testing.T, s *Spool) []Record {
	t.Helper()
	var all []Record
	for {
		recs, err := s.TryRead(100, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(recs) == 0 {
			return all
		}
		all = append(all, recs...)
	}
}

// TestARefusedAppendLeavesNothing pins that an append of several records that
// was refused for want of room is not taken in part: whoever made it makes it
// again, under other IDs.
func TestARefusedAppendLeavesNothing(t *testing.T) {
	const segment = 64 << 10
	s := openDisk(t, newDisk(1), Options{SegmentBytes: segment, MaxBytes: 2 * segment})
	defer s.Close()
	body := make([]byte, 5<<10)
	accepted := 0
	for {
		if _, err := s.Append(t.Context(), body, body, body); err != nil {
			if !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
			break
		}
		accepted += 3
	}
	if got := len(readAll(t, s)); got != accepted {
		t.Errorf("accepted %d records, read %d", accepted, got)
	}
}

// TestALargeAppendThatFailsLeavesNothing is the same for one of several
// megabytes whose later part the disk does not take.
func TestALargeAppendThatFailsLeavesNothing(t *testing.T) {
	for fails := 1; fails < 4; fails++ {
		d := newDisk(1)
		s := openDisk(t, d, Options{SegmentBytes: 2 << 20, MaxBytes: 8 << 20})
		if _, err := s.Append(t.Context(), []byte("first")); err != nil {
			t.Fatal(err)
		}
		readAll(t, s)
		d.mu.Lock()
		d.badSync = fails
		d.mu.Unlock()
		_, err := s.Append(t.Context(), make([]byte, 600<<10), make([]byte, 600<<10), make([]byte, 600<<10))
		got := len(readAll(t, s))
		switch {
		case err != nil && got != 0:
			t.Errorf("sync %d fails: refused (%v), and %d records of it are read", fails, err, got)
		case err == nil && got != 3:
			t.Errorf("sync %d fails: accepted, and %d of 3 are read", fails, got)
		}
		s.Close()
	}
}

// TestSentLongAgoIsNotReadAfterACrash pins that a segment whose records have
// all been acknowledged, and written down as such, is not read again after a
// crash only because its file waits to be reused.
func TestSentLongAgoIsNotReadAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segment = 64 << 10
		d := newDisk(1)
		s := openDisk(t, d, Options{SegmentBytes: segment, MaxBytes: 16 * segment})
		defer s.Close()
		for i := range 40 {
			if _, err := s.Append(t.Context(), append(fmt.Appendf(nil, "%d", i), make([]byte, 10<<10)...)); err != nil {
				t.Fatal(err)
			}
			for _, r := range readAll(t, s) {
				s.Ack(r.Seq)
			}
		}
		time.Sleep(time.Hour) // of the bubble's clock: all is written down
		// A kill: what processes saw stays, and nobody closes anything.
		d.mu.Lock()
		killed := newDisk(2)
		for name, n := range d.names {
			killed.names[name] = &inode{data: bytes.Clone(n.data), durable: bytes.Clone(n.data)}
		}
		d.mu.Unlock()
		again := openDisk(t, killed, Options{SegmentBytes: segment, MaxBytes: 16 * segment})
		defer again.Close()
		if recs := readAll(t, again); len(recs) != 0 {
			t.Errorf("%d records that were acknowledged an hour ago are read again", len(recs))
		}
	})
}

// TestAFullDiskIsLeftAlone pins that appends to a spool that needs a segment, and
// has no room for one, do not write the disk full each time.
func TestAFullDiskIsLeftAlone(t *testing.T) {
	const segment = 64 << 10
	d := newDisk(1)
	d.room = 2*segment + segment/2
	s := openDisk(t, d, Options{SegmentBytes: segment, MaxBytes: 16 * segment})
	defer s.Close()
	fill := func() error {
		_, err := s.Append(t.Context(), make([]byte, 10<<10))
		return err
	}
	for range 100 {
		if err := fill(); err != nil {
			break
		}
	}
	if err := fill(); !errors.Is(err, ErrFull) {
		t.Fatalf("error %v, want ErrFull", err)
	}
	d.mu.Lock()
	before := d.ops
	d.mu.Unlock()
	for range 10 {
		if err := fill(); !errors.Is(err, ErrFull) {
			t.Fatalf("error %v, want ErrFull", err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ops != before {
		t.Errorf("10 refused appends changed the disk %d times", d.ops-before)
	}
}

// lines counts what is logged.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// TestAFullDiskDoesNotFloodTheLog pins that acknowledgements which cannot be
// written down are told of now and then, not ten times a second.
func TestAFullDiskDoesNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segment = 64 << 10
		d, log := newDisk(1), &lines{}
		s := openDisk(t, d, Options{SegmentBytes: segment, MaxBytes: 16 * segment, Log: slog.New(slog.NewTextHandler(log, nil))})
		defer s.Close()
		seq, err := s.Append(t.Context(), []byte("one"), []byte("two"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		d.mu.Lock()
		d.room = 1
		d.mu.Unlock()
		s.Ack(seq)
		time.Sleep(10 * time.Minute)
		log.mu.Lock()
		n := strings.Count(log.buf.String(), "cursor")
		log.mu.Unlock()
		if n == 0 || n > 20 {
			t.Errorf("%d lines in ten minutes", n)
		}
		d.mu.Lock()
		d.room = 0
		d.mu.Unlock()
		time.Sleep(time.Second)
		if next, acks := loadCursor(d); next == 0 || len(acks) == 0 {
			t.Error("not written down once it can be")
		}
	})
}

// TestTheSmallestLimitTakesSomething pins that a limit below two segments does
// not make a spool that is full from the beginning.
func TestTheSmallestLimitTakesSomething(t *testing.T) {
	s := openDisk(t, newDisk(1), Options{MaxBytes: 1 << 20})
	defer s.Close()
	if _, err := s.Append(t.Context(), []byte("order")); err != nil {
		t.Error(err)
	}
}
