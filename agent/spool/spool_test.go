package spool_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/lecafe/lecafe/agent/spool"
)

func open(t *testing.T, o spool.Options) *spool.Spool {
	t.Helper()
	s, err := spool.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// drain reads everything there is.
func drain(t *testing.T, s *spool.Spool) []spool.Record {
	t.Helper()
	var all []spool.Record
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

func TestAppendedRecordsAreReadOnceAndAgainAfterReopeningUntilAcknowledged(t *testing.T) {
	o := spool.Options{Dir: t.TempDir(), SegmentBytes: 64 << 10}
	s := open(t, o)
	const n = 1000
	var wg sync.WaitGroup
	for p := range 10 {
		wg.Go(func() {
			for i := range n / 10 {
				if _, err := s.Append(t.Context(), fmt.Appendf(nil, "%d-%d-%0500d", p, i, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	recs := drain(t, s)
	if len(recs) != n {
		t.Fatalf("read %d records, want %d", len(recs), n)
	}
	seen := map[string]bool{}
	for i, r := range recs {
		seen[string(r.Data)] = true
		if i%3 == 0 {
			s.Ack(r.Seq)
		}
	}
	if len(seen) != n {
		t.Fatalf("%d distinct records, want %d", len(seen), n)
	}
	if got := s.Stats().Records; got != n-(n+2)/3 {
		t.Errorf("depth %d", got)
	}
	s.Close()

	s = open(t, o)
	if got := s.Stats().Records; got != n-(n+2)/3 {
		t.Errorf("depth after reopening %d, want %d", got, n-(n+2)/3)
	}
	again := drain(t, s)
	if len(again) != n-(n+2)/3 {
		t.Fatalf("read %d after reopening, want %d", len(again), n-(n+2)/3)
	}
	for _, r := range again {
		s.Ack(r.Seq)
	}
	s.Close()
	s = open(t, o)
	if again := drain(t, s); len(again) != 0 {
		t.Fatalf("%d records after all were acknowledged", len(again))
	}
	segs, _ := filepath.Glob(filepath.Join(o.Dir, "*.seg"))
	if len(segs) > 4 {
		t.Errorf("acknowledged segments stay: %v", segs)
	}
}

func TestLimitIsBackPressureAndAcknowledgingEndsIt(t *testing.T) {
	s := open(t, spool.Options{Dir: t.TempDir(), SegmentBytes: 64 << 10, MaxBytes: 256 << 10})
	body := make([]byte, 10<<10)
	accepted := 0
	for {
		_, err := s.Append(t.Context(), body)
		if errors.Is(err, spool.ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if accepted++; accepted > 100 {
			t.Fatal("no limit")
		}
	}
	recs := drain(t, s)
	if len(recs) != accepted {
		t.Fatalf("accepted %d, read %d", accepted, len(recs))
	}
	for _, r := range recs {
		s.Ack(r.Seq)
	}
	if _, err := s.Append(t.Context(), body); err != nil {
		t.Fatalf("append after acknowledging everything: %v", err)
	}
}

func TestLimitThatChanges(t *testing.T) {
	s := open(t, spool.Options{Dir: t.TempDir(), SegmentBytes: 64 << 10, MaxBytes: 128 << 10})
	full := func() (n int) {
		for {
			if _, err := s.Append(t.Context(), make([]byte, 10_000)); errors.Is(err, spool.ErrFull) {
				return n
			} else if err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	first := full()
	s.SetMaxBytes(512 << 10)
	if more := full(); first == 0 || more < 2*first {
		t.Errorf("%d records within the first limit, %d more within four times as much", first, more)
	}
	// Lowered, it refuses until there is room below it, and loses nothing.
	s.SetMaxBytes(1)
	if got := s.MaxBytes(); got != 128<<10 {
		t.Errorf("limit %d", got)
	}
	recs := drain(t, s)
	if uint64(len(recs)) != s.Stats().Appended {
		t.Errorf("%d of %d records read", len(recs), s.Stats().Appended)
	}
	for _, r := range recs {
		s.Ack(r.Seq)
	}
	if again := full(); again == 0 || again > 2*first {
		t.Errorf("%d records within the lowered limit, %d in the first", again, first)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, spool.Options{Dir: dir})
	if _, err := spool.Open(spool.Options{Dir: dir}); !errors.Is(err, spool.ErrLocked) {
		t.Fatalf("second open: %v", err)
	}
}

func TestTooLargeRecordIsRefusedAndClosedSpoolToo(t *testing.T) {
	s := open(t, spool.Options{Dir: t.TempDir(), SegmentBytes: 64 << 10})
	if _, err := s.Append(t.Context(), make([]byte, 64<<10)); !errors.Is(err, spool.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	s.Close()
	if _, err := s.Append(t.Context(), nil); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := s.Read(context.Background(), 1, 1); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("read closed: %v", err)
	}
}

// write appends bodies, closes the spool, and returns its only used segment.
func write(t *testing.T, o spool.Options, bodies ...string) string {
	t.Helper()
	s := open(t, o)
	for _, b := range bodies {
		if _, err := s.Append(t.Context(), []byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	return filepath.Join(o.Dir, "0000000000000001.seg")
}

func bodies(recs []spool.Record) string {
	var out string
	for _, r := range recs {
		out += string(r.Data) + " "
	}
	return out
}

func TestDamage(t *testing.T) {
	// Three frames of 32 bytes each stand behind the 4096-byte header.
	for name, c := range map[string]struct {
		damage func(b []byte) []byte
		want   string
		aside  uint64
		lost   uint64
	}{
		"bit in the middle record":    {func(b []byte) []byte { b[4096+32+24] ^= 1; return b }, "one three ", 1, 1},
		"marker of the first record":  {func(b []byte) []byte { b[4096] ^= 1; return b }, "two three ", 1, 1},
		"bit in the last record":      {func(b []byte) []byte { b[4096+64+25] ^= 1; return b }, "one two ", 1, 1},
		"header block zeroed":         {func(b []byte) []byte { clear(b[:4096]); return b }, "one two three ", 0, 0},
		"seal and last record zeroed": {func(b []byte) []byte { clear(b[512:600]); clear(b[4096+64:]); return b }, "one two ", 0, 0},
		"torn tail, never sealed":     {func(b []byte) []byte { clear(b[512:600]); return b[:4096+64+28] }, "one two ", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := spool.Options{Dir: t.TempDir(), SegmentBytes: 64 << 10}
			path := write(t, o, "one", "two", "three")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, c.damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, o)
			if _, err := s.Append(t.Context(), []byte("four")); err != nil {
				t.Fatal(err)
			}
			recs := drain(t, s)
			if got := bodies(recs); got != c.want+"four " {
				t.Errorf("read %q, want %q", got, c.want+"four ")
			}
			st := s.Stats()
			if st.Aside != c.aside || st.Lost != c.lost {
				t.Errorf("aside %d lost %d, want %d and %d", st.Aside, st.Lost, c.aside, c.lost)
			}
			for _, r := range recs {
				s.Ack(r.Seq)
			}
			s.Close()
			s = open(t, o)
			if again := drain(t, s); len(again) != 0 {
				t.Errorf("read again: %q", bodies(again))
			}
			bad, _ := filepath.Glob(filepath.Join(o.Dir, "*.bad"))
			if len(bad) != int(c.aside) {
				t.Errorf("kept aside: %v", bad)
			}
		})
	}
}
