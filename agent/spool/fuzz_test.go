package spool

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzFiles opens a spool over any bytes in its files: it must come up, give
// out nothing twice, take a record and give that one back.
func FuzzFiles(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(Options{Dir: dir, SegmentBytes: 16 << 10})
	if err != nil {
		f.Fatal(err)
	}
	for _, size := range []int{0, 1, 7, 8, 100, 3000} {
		if _, err := s.Append(f.Context(), bytes.Repeat([]byte{'x'}, size)); err != nil {
			f.Fatal(err)
		}
	}
	recs, err := s.TryRead(3, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	s.Ack(recs[0].Seq, recs[2].Seq)
	s.Close()
	seg, err := os.ReadFile(filepath.Join(dir, "0000000000000001.seg"))
	if err != nil {
		f.Fatal(err)
	}
	cursor, err := os.ReadFile(filepath.Join(dir, "cursor"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seg, cursor)
	f.Add(seg[:len(seg)-5], cursor[:10])
	f.Add(seg[4096:], []byte{})
	f.Fuzz(func(t *testing.T, seg, cursor []byte) {
		o := Options{Dir: t.TempDir(), SegmentBytes: 16 << 10}
		for name, b := range map[string][]byte{"0000000000000001.seg": seg, "cursor": cursor} {
			if err := os.WriteFile(filepath.Join(o.Dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		in, err := Inspect(o.Dir)
		if err != nil {
			t.Fatalf("inspect: %v", err)
		}
		for _, err := range in.Records() {
			if err != nil {
				t.Fatalf("inspect: %v", err)
			}
		}
		// In memory: the reading counts here, not the syncs.
		o.fs = newDisk(1)
		for name, b := range map[string][]byte{"0000000000000001.seg": seg, "cursor": cursor} {
			f, err := o.fs.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(b, 0); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Open(o)
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		defer s.Close()
		seen := map[uint64]bool{}
		read := func() (last string) {
			for {
				recs, err := s.TryRead(10, 1<<20)
				if err != nil {
					t.Fatalf("read: %v", err)
				}
				if len(recs) == 0 {
					return last
				}
				for _, r := range recs {
					if seen[r.Seq] {
						t.Fatalf("%d twice", r.Seq)
					}
					seen[r.Seq] = true
					last = string(r.Data)
					s.Ack(r.Seq)
				}
			}
		}
		read()
		if _, err := s.Append(t.Context(), []byte("mine")); err != nil {
			t.Fatalf("append: %v", err)
		}
		if got := read(); got != "mine" {
			t.Fatalf("read %q after the append", got)
		}
	})
}
