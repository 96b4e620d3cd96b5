package spool_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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

// rawRate is what the disk can do: n records of the benchmark's size written at
// once and synced, again and again, by one goroutine that waits for nobody, in
// a file whose blocks are all written already.
func rawRate(b *testing.B, n int, d time.Duration) float64 {
	b.Helper()
	f, err := os.Create(filepath.Join(benchDir(b), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	const size = 64 << 20
	zero := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(zero)) {
		if _, err := f.WriteAt(zero, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, n*benchBody)
	for i := range buf {
		buf[i] = byte(i)
	}
	records, start := 0, time.Now()
	for off := int64(0); time.Since(start) < d; off += int64(len(buf)) {
		if off+int64(len(buf)) > size {
			off = 0
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		records += n
	}
	return float64(records) / time.Since(start).Seconds()
}

// produce has b.N records appended by so many producers, each waiting for its
// record to be durable before the next, and returns records a second.
func produce(b *testing.B, producers int, put func(body []byte) error) float64 {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range producers {
		wg.Go(func() {
			body := make([]byte, benchBody)
			for left.Add(-1) >= 0 {
				if err := put(body); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	rate := float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "records/s")
	return rate
}

// BenchmarkIntake compares durable appends with the bare disk ("of-raw") in the
// same run, with records acknowledged as they come, as in service.
func BenchmarkIntake(b *testing.B) {
	for _, producers := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("spool/producers=%d", producers), func(b *testing.B) {
			raw := rawRate(b, producers, 500*time.Millisecond)
			s, err := spool.Open(spool.Options{Dir: filepath.Join(benchDir(b), "s")})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() {
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
			}()
			rate := produce(b, producers, func(body []byte) error {
				_, err := s.Append(ctx, body)
				return err
			})
			raw = (raw + rawRate(b, producers, 500*time.Millisecond)) / 2
			b.ReportMetric(raw, "raw-records/s")
			b.ReportMetric(rate/raw, "of-raw")
			st := s.Stats()
			b.ReportMetric(float64(st.Appended)/float64(max(st.Commits, 1)), "records/commit")
		})
		b.Run(fmt.Sprintf("bbolt/producers=%d", producers), func(b *testing.B) {
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
			produce(b, producers, func(body []byte) error {
				var key [8]byte
				binary.BigEndian.PutUint64(key[:], seq.Add(1))
				return db.Batch(func(tx *bolt.Tx) error { return tx.Bucket(name).Put(key[:], body) })
			})
		})
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
