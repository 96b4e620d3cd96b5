package fleet_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
)

// A watcher is measured in a process of its own, so that the fake's memory is
// not counted as its.
const watcherEnv = "LECAFE_TEST_WATCHER"

func TestMain(m *testing.M) {
	if address := os.Getenv(watcherEnv); address != "" {
		os.Exit(watcherProcess(address))
	}
	if address := os.Getenv(remedyEnv); address != "" {
		os.Exit(remedyProcess(address))
	}
	os.Exit(m.Run())
}

// measured is what one watcher process did.
type measured struct {
	Full, Delta time.Duration
	CPU         time.Duration // of the full pass: the watcher alone
	Calls       int64         // of the full pass
	DeltaCalls  int64
	RSS         int64 // KiB, the peak
	Counts      map[fleet.Verdict]int
	After       map[fleet.Verdict]int
}

// watcherProcess makes a full pass, waits for a line on stdin, makes a delta
// pass, and prints what it took.
func watcherProcess(address string) int {
	var groups []string
	for n := range 20 {
		groups = append(groups, fmt.Sprintf("g%02d", n))
	}
	var out measured
	ctx := context.Background()
	debug.SetGCPercent(40) // as lecafe watch does
	w := newWatcher(&testing.B{}, address, fleet.Selection{Groups: groups})
	start := time.Now()
	s, err := w.Pass(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	out.Full, out.Calls, out.Counts = time.Since(start), w.Meter.Calls(), s.Counts
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	out.CPU = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	fmt.Println("passed")
	if _, err := fmt.Scanln(new(string)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	start = time.Now()
	if s, err = w.Delta(ctx, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	out.Delta, out.DeltaCalls, out.After = time.Since(start), w.Meter.Calls()-out.Calls, s.Counts
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	out.RSS = usage.Maxrss
	_ = json.NewEncoder(os.Stdout).Encode(out)
	return 0
}

// scale runs a watcher over size instances in 20 groups: nearly all
// succeeded, 20 failed, 100 report between the two passes.
func scale(t testing.TB, size int) measured {
	t.Helper()
	f := newFakeAWS()
	launched := now.Add(-5 * time.Minute)
	var late []*fakeInstance
	for g := range 20 {
		for n, i := range f.add(fmt.Sprintf("g%02d", g), size/20, launched) {
			switch {
			case n < 5:
				late = append(late, i)
			case n == 5:
				f.put(i, report.Failure, launched.Add(time.Minute), exit3)
			default:
				f.put(i, report.Success, launched.Add(time.Minute))
			}
		}
	}
	srv := httptest.NewServer(f)
	defer srv.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), watcherEnv+"="+srv.URL)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var word string
	if _, err := fmt.Fscanln(out, &word); err != nil || word != "passed" {
		t.Fatalf("the watcher said %q: %v", word, err)
	}
	for _, i := range late {
		f.put(i, report.Success, now)
	}
	fmt.Fprintln(in, "go")
	var m measured
	if err := json.NewDecoder(out).Decode(&m); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if m.Counts[fleet.Success] != size-120 || m.Counts[fleet.Failure] != 20 || m.Counts[fleet.Pending] != 100 || m.After[fleet.Success] != size-20 {
		t.Fatalf("verdicts %v, then %v", m.Counts, m.After)
	}
	return m
}

// Ten thousand instances in twenty groups take at most 60 calls, and no report
// of a success is read.
func TestTenThousandInstancesInFewCalls(t *testing.T) {
	m := scale(t, 10_000)
	if m.Calls > 60 {
		t.Errorf("%d calls for 10,000 instances in 20 groups, want at most 60", m.Calls)
	}
	if m.DeltaCalls > 11 {
		t.Errorf("%d calls for a delta", m.DeltaCalls)
	}
}

// BenchmarkScale measures a full and a delta pass, and prints the growth of
// time, calls and memory as a table.
func BenchmarkScale(b *testing.B) {
	var table strings.Builder
	fmt.Fprintf(&table, "\n%10s %10s %10s %8s %10s %12s %10s\n", "instances", "full pass", "its CPU", "calls", "delta", "delta calls", "peak RSS")
	for _, size := range []int{1_000, 10_000, 100_000} {
		var m measured
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			var full, delta time.Duration
			var rss int64
			n := 0
			for b.Loop() {
				m = scale(b, size)
				full, delta, rss, n = full+m.Full, delta+m.Delta, max(rss, m.RSS), n+1
			}
			m.Full, m.Delta, m.RSS = full/time.Duration(n), delta/time.Duration(n), rss
			b.ReportMetric(0, "ns/op") // of the fake and the process's start, too
			b.ReportMetric(m.Full.Seconds(), "full-s")
			b.ReportMetric(m.CPU.Seconds(), "full-cpu-s")
			b.ReportMetric(m.Delta.Seconds(), "delta-s")
			b.ReportMetric(float64(m.Calls), "full-calls")
			b.ReportMetric(float64(m.DeltaCalls), "delta-calls")
			b.ReportMetric(float64(m.RSS)/1024, "peak-MB")
		})
		if m.Calls == 0 {
			continue // another size was asked for
		}
		fmt.Fprintf(&table, "%10d %9.2fs %9.2fs %8d %9.2fs %12d %7d MB\n", size, m.Full.Seconds(), m.CPU.Seconds(), m.Calls, m.Delta.Seconds(), m.DeltaCalls, m.RSS/1024)
	}
	fmt.Fprint(os.Stderr, table.String())
}
