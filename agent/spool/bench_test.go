package spool_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/spool"
)

const benchBody = 1 << 10

// benchDir is on a real disk: /tmp may be memory.
func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lecafe-bench-*")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// raw is the disk alone: n records of the benchmark's size written at once and
// synced, again and again, by one goroutine that waits for nobody, in a file
// whose blocks are all written already.
type raw struct {
	f   *os.File
	buf []byte
	off int64
}

const rawSize = 64 << 20

func newRaw(b *testing.B, n int) *raw {
	b.Helper()
	f, err := os.Create(filepath.Join(benchDir(b), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	zero := make([]byte, 1<<20)
	for off := int64(0); off < rawSize; off += int64(len(zero)) {
		if _, err := f.WriteAt(zero, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	r := &raw{f: f, buf: make([]byte, n*benchBody)}
	for i := range r.buf {
		r.buf[i] = byte(i)
	}
	return r
}

// rate returns records a second over d.
func (r *raw) rate(b *testing.B, d time.Duration) float64 {
	b.Helper()
	records, start := 0, time.Now()
	for ; time.Since(start) < d; r.off += int64(len(r.buf)) {
		if r.off+int64(len(r.buf)) > rawSize {
			r.off = 0
		}
		if _, err := r.f.WriteAt(r.buf, r.off); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(r.f.Fd())); err != nil {
			b.Fatal(err)
		}
		records += len(r.buf) / benchBody
	}
	return float64(records) / time.Since(start).Seconds()
}

// produce has so many producers append, each waiting for its record to be
// durable before the next, for d, and returns records a second.
func produce(b *testing.B, producers int, d time.Duration, put func(body []byte) error) float64 {
	b.Helper()
	var done atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range producers {
		wg.Go(func() {
			body := make([]byte, benchBody)
			n := 0
			for time.Since(start) < d {
				if err := put(body); err != nil {
					b.Error(err)
					return
				}
				n++
			}
			done.Add(int64(n))
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}

const (
	rounds = 25
	round  = 100 * time.Millisecond
)

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// BenchmarkIntake compares durable appends with the bare disk and with bbolt, in
// turns of 0.1 s: what else the machine does meets all of them alike, and each
// turn has its own ratio to the disk's turns before and after it. The figures
// are the medians. Intake is measured alone, and with a reader that takes and
// acknowledges the records as they come, on the same processors.
func BenchmarkIntake(b *testing.B) {
	for _, producers := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("producers=%d", producers), func(b *testing.B) { benchIntake(b, producers, false) })
		b.Run(fmt.Sprintf("producers=%d/reader", producers), func(b *testing.B) { benchIntake(b, producers, true) })
	}
}

func benchIntake(b *testing.B, producers int, reader bool) {
	disk := newRaw(b, producers)
	s, err := spool.Open(spool.Options{Dir: filepath.Join(benchDir(b), "s"), MaxBytes: 8 << 30})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if reader {
		go acknowledge(ctx, s)
	}
	put := func(body []byte) error {
		_, err := s.Append(ctx, body)
		return err
	}
	db, err := bolt.Open(filepath.Join(benchDir(b), "db"), 0o600, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.MaxBatchSize, db.MaxBatchDelay = max(producers, 1), time.Millisecond
	name := []byte("orders")
	if err := db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket(name); return err }); err != nil {
		b.Fatal(err)
	}
	var seq atomic.Uint64
	putBolt := func(body []byte) error {
		var key [8]byte
		binary.BigEndian.PutUint64(key[:], seq.Add(1))
		return db.Batch(func(tx *bolt.Tx) error { return tx.Bucket(name).Put(key[:], body) })
	}
	produce(b, producers, round, put) // allocates what is then used again
	before := s.Stats()
	var ofRaw, ofBolt, rates, rawRates, boltRates []float64
	for b.Loop() {
		last := disk.rate(b, round)
		for i := range rounds {
			rate := produce(b, producers, round, put)
			next := disk.rate(b, round)
			base := (last + next) / 2
			ofRaw, rates, rawRates = append(ofRaw, rate/base), append(rates, rate), append(rawRates, base)
			if last = next; i%5 == 4 {
				bolt := produce(b, producers, round, putBolt)
				ofBolt, boltRates = append(ofBolt, rate/bolt), append(boltRates, bolt)
				last = disk.rate(b, round)
			}
		}
	}
	b.ReportMetric(median(rates), "records/s")
	b.ReportMetric(median(rawRates), "raw-records/s")
	b.ReportMetric(median(boltRates), "bbolt-records/s")
	b.ReportMetric(median(ofRaw), "of-raw")
	b.ReportMetric(median(ofBolt), "times-bbolt")
	st := s.Stats()
	b.ReportMetric(float64(st.Appended-before.Appended)/float64(max(st.Commits-before.Commits, 1)), "records/commit")
}

func acknowledge(ctx context.Context, s *spool.Spool) {
	for {
		recs, err := s.Read(ctx, 1000, 1<<20)
		if err != nil {
			return
		}
		seqs := make([]uint64, len(recs))
		for i, r := range recs {
			seqs[i] = r.Seq
		}
		s.Ack(seqs...)
	}
}

// BenchmarkOpenMillion is the time from opening a spool of a million records
// to the first of them in hand, and to a first append.
func BenchmarkOpenMillion(b *testing.B) {
	const n = 1_000_000
	dir := filepath.Join(benchDir(b), "s")
	o := spool.Options{Dir: dir, MaxBytes: 4 << 30}
	s, err := spool.Open(o)
	if err != nil {
		b.Fatal(err)
	}
	recs := make([][]byte, 1000)
	for i := range recs {
		recs[i] = make([]byte, benchBody)
	}
	for range n / len(recs) {
		if _, err := s.Append(context.Background(), recs...); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		s, err := spool.Open(o)
		if err != nil {
			b.Fatal(err)
		}
		if got := s.Stats().Records; got < n {
			b.Fatalf("%d records", got)
		}
		if recs, err := s.TryRead(10, 1<<20); err != nil || len(recs) == 0 {
			b.Fatalf("%d records, %v", len(recs), err)
		}
		if _, err := s.Append(context.Background(), recs[0]); err != nil {
			b.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/(1<<20), "MiB-allocated")
		s.Close()
	}
}
