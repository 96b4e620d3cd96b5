// Package loss kills the orders service again and again and counts what
// arrives. It owns the proof that nothing acknowledged is lost.
package loss

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

const (
	producers = 32
	patience  = 3 * time.Minute // ends a test that hangs
	queue     = "lecafe-orders"
)

// kills is how often the process is killed: 200 for `make loss`.
func kills(t *testing.T) int {
	t.Helper()
	s := os.Getenv("LECAFE_LOSS_KILLS")
	if s == "" {
		return 12
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("LECAFE_LOSS_KILLS=%q is no number of kills", s)
	}
	return n
}

func TestNothingAcknowledgedIsLost(t *testing.T) {
	n := kills(t)
	// On a real disk, so that syncs are syncs.
	state, err := os.MkdirTemp("/var/tmp", "lecafe-loss-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue(queue, map[string]string{"VisibilityTimeout": "600"})
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s := &service{t: t, bin: build(t), state: state, socket: filepath.Join(t.TempDir(), "o.sock"), cloud: c, log: log}
	lg := &ledger{acked: map[string]string{}, received: map[string]int{}}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)

	// The cloud misbehaves all the time.
	for _, f := range []cloud.Fault{
		{Kind: cloud.Throttle}, {Kind: cloud.Error5xx}, {Kind: cloud.Reset}, {Kind: cloud.Reset, After: true},
	} {
		f.Service, f.Action = "sqs", "SendMessageBatch"
		go func() {
			rng := rand.New(rand.NewPCG(seed, uint64(f.Kind)))
			for t.Context().Err() == nil {
				f.Skip, f.Times = 5+rng.IntN(40), 1
				in := c.Inject(f)
				for in.Hits() == 0 && t.Context().Err() == nil {
					pause(t.Context(), 20*time.Millisecond)
				}
				in.Remove()
			}
		}()
	}

	consuming, stopConsuming := context.WithCancel(context.Background())
	defer stopConsuming()
	var consumers sync.WaitGroup
	for range 4 {
		consumers.Go(func() { lg.consume(consuming, c) })
	}
	producing, stopProducing := context.WithCancel(context.Background())
	defer stopProducing()
	gate := new(sync.RWMutex) // held while there is no service
	gate.Lock()
	var posting sync.WaitGroup
	for who := range producers {
		posting.Go(func() { lg.produce(producing, who, s.socket, gate) })
	}

	// progress waits until more orders are acknowledged.
	progress := func(what string, more int) {
		t.Helper()
		before, _ := lg.counts()
		end := time.Now().Add(patience)
		for {
			if now, _ := lg.counts(); now >= before+more {
				return
			}
			if time.Now().After(end) {
				b, _ := os.ReadFile(log.Name())
				t.Fatalf("%s: no order acknowledged in %v; log ends:\n%s", what, patience, b[max(0, len(b)-3000):])
			}
			pause(t.Context(), time.Millisecond)
		}
	}
	maimed := map[string]int{}
	var away *cloud.Injected
	for i := range n {
		s.listen()
		s.start()
		gate.Unlock()
		switch i {
		case n / 3: // the disk is full for a while, then there is room again
			progress("before the disk is full", 50)
			limit := func(bytes uint64) {
				if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}, nil); err != nil {
					t.Fatal(err)
				}
			}
			limit(8192)
			_, before := lg.counts()
			for end := time.Now().Add(patience); ; {
				if _, full := lg.counts(); full >= before+producers {
					break
				}
				if time.Now().After(end) {
					t.Fatal("a full disk was not noticed")
				}
				pause(t.Context(), time.Millisecond)
			}
			limit(unix.RLIM_INFINITY)
			progress("after the disk was full", 50)
		case n / 2: // the network goes
			away = c.Inject(cloud.Fault{Service: "sqs", Action: "SendMessageBatch", Kind: cloud.Reset})
		case n/2 + max(2, n/10): // and comes back
			away.Remove()
			away = nil
		}
		if i%4 != 0 { // often at once, sometimes before anything is ready
			progress("between kills", 1+rng.IntN(100))
		}
		pause(t.Context(), time.Duration(rng.IntN(60))*time.Millisecond)
		s.kill()
		gate.Lock() // every post has ended: what was answered is in the ledger
		if i%3 == 1 {
			maimed[lg.maim(t, state, rng)]++
		}
	}
	if away != nil {
		away.Remove()
	}
	s.listen()
	s.start()
	gate.Unlock()
	progress("after the last kill", 20)
	stopProducing()
	posting.Wait()
	for end := time.Now().Add(patience); len(lg.lost()) > 0 && time.Now().Before(end); {
		pause(t.Context(), 20*time.Millisecond)
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("the service did not stop well: %v", err)
	}
	s.l.Close()
	// What the drain sent is received too.
	pause(t.Context(), 1500*time.Millisecond)
	stopConsuming()
	consumers.Wait()

	lost := lg.lost()
	duplicates := 0
	for _, times := range lg.received {
		duplicates += times - 1
	}
	t.Logf("posts without an answer %d, spool full %d, other answers %d, tails maimed %v", lg.failed, lg.full, lg.refused, maimed)
	summary := fmt.Sprintf("kills %d acknowledged %d lost %d duplicates %d", n, len(lg.acked), len(lost), duplicates)
	t.Log(summary)
	if path := os.Getenv("LECAFE_LOSS_SUMMARY"); path != "" {
		if err := os.WriteFile(path, []byte(summary+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if len(lost) > 0 {
		t.Errorf("acknowledged and lost: %v", lost[:min(len(lost), 10)])
	}
	if len(lg.wrong) > 0 {
		t.Errorf("arrived with another body: %v", lg.wrong[:min(len(lg.wrong), 10)])
	}
	if lg.full == 0 {
		t.Error("the disk was never full")
	}
}

// TestNobodyIsRefusedWhileTheServiceRestarts posts over a socket that outlives
// the processes behind it, as systemd's does.
func TestNobodyIsRefusedWhileTheServiceRestarts(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue(queue, map[string]string{"VisibilityTimeout": "600"})
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s := &service{t: t, bin: build(t), state: t.TempDir(), socket: filepath.Join(t.TempDir(), "o.sock"), cloud: c, log: log}
	s.listen()
	defer s.l.Close()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var refused, taken atomic.Int64
	var posting sync.WaitGroup
	for range 8 {
		posting.Go(func() {
			for ctx.Err() == nil {
				// One connection a post: a kept one ends with the process, and
				// whether its last request was read nobody knows.
				conn, err := net.Dial("unix", s.socket)
				if err != nil {
					t.Logf("not connected: %v", err)
					refused.Add(1)
					continue
				}
				cl := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
				resp, err := cl.Post("http://x/v1/orders", "text/plain", bytes.NewReader([]byte("x")))
				if err != nil {
					t.Logf("no answer: %v", err)
					refused.Add(1)
					continue
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusAccepted {
					t.Logf("answer %s", resp.Status)
					refused.Add(1)
					continue
				}
				taken.Add(1)
			}
		})
	}
	for range 5 {
		s.start()
		before := taken.Load()
		for end := time.Now().Add(patience); taken.Load() < before+50; {
			if time.Now().After(end) {
				t.Fatal("no order is taken")
			}
			pause(t.Context(), time.Millisecond)
		}
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		if err := s.cmd.Wait(); err != nil {
			t.Fatalf("stop: %v", err)
		}
	}
	s.start()
	stop()
	posting.Wait()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if refused.Load() > 0 {
		b, _ := os.ReadFile(log.Name())
		t.Errorf("%d posts were refused, %d taken; log:\n%s", refused.Load(), taken.Load(), b)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
