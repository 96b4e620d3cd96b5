// Package loss kills the orders service again and again and counts what
// arrives. It owns the proof that nothing acknowledged is lost.
package loss

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/spool"
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

// build makes the program under test.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "lecafe-agent")
	out, err := exec.Command("go", "build", "-o", bin, "github.com/lecafe/lecafe/cmd/lecafe-agent").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// service is the orders service as systemd runs it: the socket is handed over.
type service struct {
	t      *testing.T
	bin    string
	state  string
	socket string
	cloud  *cloudtest.Cloud
	log    *os.File

	l   *net.UnixListener
	cmd *exec.Cmd
}

// listen binds a new socket where the old one was.
func (s *service) listen() {
	s.t.Helper()
	_ = os.Remove(s.socket) // there is none the first time
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		s.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	s.l = l
}

func (s *service) start() {
	s.t.Helper()
	f, err := s.l.File()
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	// LISTEN_PID must be the program's own, which the shell's becomes.
	s.cmd = exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, s.bin, "orders", "--no-imds",
		"--state-dir", s.state, "--queue", queue, "--region", "us-east-1", "--endpoint-url", s.cloud.URL)
	s.cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test")
	s.cmd.ExtraFiles = []*os.File{f}
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	// Nothing may survive this test's own end.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

// kill ends the process without a warning, and with it every conversation:
// when it returns, whatever was answered has been answered.
func (s *service) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait() // "signal: killed"
	s.l.Close()      // resets those who were waiting to be accepted
}

// ledger is what the application was told, and what the consumer got.
type ledger struct {
	mu       sync.Mutex
	acked    map[string]string // ID → body
	received map[string]int
	wrong    []string
	full     int // answers 429
	failed   int // posts without an answer
	refused  int // connections not taken
}

// produce posts orders one after the other until ctx ends. Half of them carry
// an idempotency key and are posted until they are acknowledged.
func (lg *ledger) produce(ctx context.Context, who int, socket string, gate *sync.RWMutex) {
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	defer c.CloseIdleConnections()
	rng := rand.New(rand.NewPCG(uint64(who), 7))
	for n := 0; ctx.Err() == nil; n++ {
		body := fmt.Sprintf("producer %d order %d %s", who, n, bytes.Repeat([]byte{'x'}, rng.IntN(2000)))
		key := ""
		if n%2 == 0 {
			key = fmt.Sprintf("key-%d-%d", who, n)
		}
		for ctx.Err() == nil {
			gate.RLock()
			again := lg.post(c, body, key)
			gate.RUnlock()
			if !again || key == "" {
				break
			}
		}
	}
}

// post posts once. What is answered is in the ledger before it returns.
func (lg *ledger) post(c *http.Client, body, key string) (again bool) {
	req, err := http.NewRequest(http.MethodPost, "http://x/v1/orders", bytes.NewReader([]byte(body)))
	if err != nil {
		panic(err)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	var a struct{ ID string }
	resp, err := c.Do(req)
	if err == nil {
		var b []byte
		b, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && resp.StatusCode == http.StatusAccepted {
			err = json.Unmarshal(b, &a)
		}
	}
	lg.mu.Lock()
	defer lg.mu.Unlock()
	switch {
	case err != nil:
		lg.failed++
		return true
	case resp.StatusCode == http.StatusAccepted:
		lg.acked[a.ID] = body
		return false
	case resp.StatusCode == http.StatusTooManyRequests:
		lg.full++
		return true
	default:
		lg.refused++
		return true
	}
}

// consume receives until ctx ends.
func (lg *ledger) consume(ctx context.Context, c *cloudtest.Cloud) {
	api := sqs.NewFromConfig(c.Config())
	u, err := api.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String(queue)})
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		out, err := api.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: u.QueueUrl, MaxNumberOfMessages: 10, WaitTimeSeconds: 1, MessageAttributeNames: []string{"All"}})
		if err != nil {
			continue
		}
		var del []types.DeleteMessageBatchRequestEntry
		lg.mu.Lock()
		for i, m := range out.Messages {
			id := aws.ToString(m.MessageAttributes[orders.IDAttribute].StringValue)
			lg.received[id]++
			if want, ok := lg.acked[id]; ok && want != aws.ToString(m.Body) {
				lg.wrong = append(lg.wrong, id)
			}
			del = append(del, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: m.ReceiptHandle})
		}
		lg.mu.Unlock()
		if len(del) > 0 {
			_, _ = api.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: u.QueueUrl, Entries: del})
		}
	}
}

func (lg *ledger) lost() (ids []string) {
	lg.mu.Lock()
	defer lg.mu.Unlock()
	for id := range lg.acked {
		if lg.received[id] == 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

func (lg *ledger) counts() (acked, full int) {
	lg.mu.Lock()
	defer lg.mu.Unlock()
	return len(lg.acked), lg.full
}

// maim does to the newest segment what a power cut may: it cuts, flips and
// overwrites bytes behind the last record that anybody was told of.
func (lg *ledger) maim(t *testing.T, state string, rng *rand.Rand) (what string) {
	t.Helper()
	dir := filepath.Join(state, "spool")
	in, err := spool.Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	tail := map[string]int64{} // segment → where its unacknowledged tail begins
	newest := ""
	lg.mu.Lock()
	for e, err := range in.Records() {
		if err != nil {
			lg.mu.Unlock()
			t.Fatal(err)
		}
		newest = e.Segment
		if _, ok := tail[e.Segment]; !ok {
			tail[e.Segment] = 4096
		}
		o, err := orders.DecodeRecord(e.Data)
		if err != nil {
			lg.mu.Unlock()
			t.Fatal(err)
		}
		if _, told := lg.acked[o.ID.String()]; told {
			tail[e.Segment] = e.Offset + int64(24+len(e.Data)+7)&^7
		}
	}
	lg.mu.Unlock()
	if newest == "" {
		return ""
	}
	path, from := filepath.Join(dir, newest), tail[newest]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) < from+512 {
		return ""
	}
	switch rng.IntN(4) {
	case 0:
		b, what = b[:from+rng.Int64N(512)], "cut"
	case 1:
		for range 20 {
			b[from+rng.Int64N(min(int64(len(b))-from, 8192))] ^= byte(1 << rng.IntN(8))
		}
		what = "bits flipped"
	case 2:
		at := from &^ 511
		if at < from {
			at += 512
		}
		for i := at; i < min(at+2048, int64(len(b))); i++ {
			b[i] = byte(rng.Uint32())
		}
		what = "sectors overwritten"
	case 3:
		// A frame that begins well and never ends, as a torn write leaves it.
		if len(b) >= 4096+24 {
			copy(b[from:], b[4096:4096+24])
		}
		what = "torn frame"
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return what
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
