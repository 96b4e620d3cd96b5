package orders_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/spool"
	"github.com/lecafe/lecafe/internal/procstatus"
)

// sink is an SQS that takes everything at the least cost, so that the sender is
// measured and not the fake. Bodies must need no escaping in JSON.
type sink struct {
	*httptest.Server
	delay time.Duration
	taken atomic.Int64
	calls atomic.Int64
}

func newSink(b *testing.B, delay time.Duration) *sink {
	b.Helper()
	s := &sink{delay: delay}
	s.Server = httptest.NewServer(s)
	b.Cleanup(s.Close)
	return s
}

func (s *sink) config() aws.Config {
	return aws.Config{Region: "us-east-1", BaseEndpoint: aws.String(s.URL), Credentials: aws.NewCredentialsCache(credentials.NewStaticCredentialsProvider("AKID", "secret", ""))}
}

var sinkBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	in := sinkBuffers.Get().(*bytes.Buffer)
	defer sinkBuffers.Put(in)
	in.Reset()
	if _, err := io.Copy(in, r.Body); err != nil {
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	switch r.Header.Get("X-Amz-Target") {
	case "AmazonSQS.GetQueueUrl":
		fmt.Fprintf(w, `{"QueueUrl":"%s/123456789012/q"}`, s.URL)
		return
	case "AmazonSQS.GetQueueAttributes":
		io.WriteString(w, `{"Attributes":{"MaximumMessageSize":"1048576"}}`)
		return
	}
	out := make([]byte, 0, 2048)
	out = append(out, `{"Successful":[`...)
	n := 0
	for rest := in.Bytes(); ; n++ {
		_, after, ok := bytes.Cut(rest, []byte(`"Id":"`))
		if !ok {
			break
		}
		id, after, _ := bytes.Cut(after, []byte(`"`))
		_, after, _ = bytes.Cut(after, []byte(`"MessageBody":"`))
		body, after, _ := bytes.Cut(after, []byte(`"`))
		sum := md5.Sum(body)
		if n > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, `{"Id":"`...), id...), `","MessageId":"m","MD5OfMessageBody":"`...)
		out = append(hex.AppendEncode(out, sum[:]), `"}`...)
		rest = after
	}
	if s.delay > 0 {
		time.Sleep(s.delay)
	}
	s.taken.Add(int64(n))
	s.calls.Add(1)
	w.Write(append(out, `],"Failed":[]}`...))
}

func kib() string { return strings.Repeat("0123456789abcdef", 64) }

// bare sends n orders with the SDK and nothing else, so many calls at once.
func bare(b *testing.B, s *sink, api *sqs.Client, n, concurrency int) float64 {
	b.Helper()
	url := s.URL + "/123456789012/q"
	entries := make([]types.SendMessageBatchRequestEntry, 10)
	for i := range entries {
		entries[i] = types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: aws.String(kib()), MessageAttributes: map[string]types.MessageAttributeValue{
			orders.IDAttribute: {DataType: aws.String("String"), StringValue: aws.String("00000000-0000-0000-0000-000000000000")},
		}}
	}
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	start := time.Now()
	for range concurrency {
		wg.Go(func() {
			for left.Add(-10) > -10 {
				if _, err := api.SendMessageBatch(context.Background(), &sqs.SendMessageBatchInput{QueueUrl: &url, Entries: entries}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(n) / time.Since(start).Seconds()
}

// BenchmarkForward empties a full spool in turns with the bare SDK at equal
// concurrency: what else the machine does meets both alike. "of-sdk" is the
// median of the turns' ratios, each to the SDK's turns before and after it.
func BenchmarkForward(b *testing.B) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		b.Run(fmt.Sprintf("answers=%v", delay), func(b *testing.B) {
			const rounds, n = 9, 4000
			s := newSink(b, delay)
			api := sqs.NewFromConfig(s.config(), func(o *sqs.Options) {
				o.HTTPClient = awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.MaxIdleConnsPerHost = orders.DefaultConcurrency })
			})
			own := orders.NewClient(s.config(), orders.DefaultConcurrency)
			dir, err := os.MkdirTemp("/var/tmp", "lecafe-bench-*")
			if err != nil {
				b.Fatal(err)
			}
			defer os.RemoveAll(dir)
			sp, err := spool.Open(spool.Options{Dir: filepath.Join(dir, "s"), MaxBytes: 8 << 30})
			if err != nil {
				b.Fatal(err)
			}
			defer sp.Close()
			var rates, sdk, ratios []float64
			forward(b, sp, own, dir, n) // connections, pools
			for b.Loop() {
				last := bare(b, s, api, n, orders.DefaultConcurrency)
				for range rounds {
					rate := forward(b, sp, own, dir, n)
					next := bare(b, s, api, n, orders.DefaultConcurrency)
					rates, sdk, ratios = append(rates, rate), append(sdk, (last+next)/2), append(ratios, rate/((last+next)/2))
					last = next
				}
			}
			b.ReportMetric(median(rates), "orders/s")
			b.ReportMetric(median(sdk), "sdk-orders/s")
			b.ReportMetric(median(ratios), "of-sdk")
			b.ReportMetric(slices.Min(ratios), "of-sdk-worst")
		})
	}
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// forward spools n orders and returns how many a second a forwarder then sends.
func forward(b *testing.B, sp *spool.Spool, api *sqs.Client, dir string, n int) float64 {
	b.Helper()
	rec := orders.Record(&orders.Order{ID: orders.NewID(time.Now()), Accepted: time.Now(), Body: kib()})
	recs := make([][]byte, 500)
	for i := range recs {
		recs[i] = rec
	}
	for left := n; left > 0; left -= len(recs) {
		if _, err := sp.Append(b.Context(), recs[:min(left, len(recs))]...); err != nil {
			b.Fatal(err)
		}
	}
	f := &orders.Forwarder{Spool: sp, Queue: "q", API: api, Parking: orders.Parking{Dir: filepath.Join(dir, "p")}}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	done := make(chan error, 1)
	start := time.Now()
	go func() { done <- f.Run(ctx) }()
	if err := f.Drain(ctx); err != nil {
		b.Fatal(err)
	}
	rate := float64(n) / time.Since(start).Seconds()
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return rate
}

// BenchmarkEndToEnd posts to the real program over its socket; the clock stops
// when the queue has everything. Producers and queue take their share of the
// same cores.
func BenchmarkEndToEnd(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "lecafe-agent")
	if out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", bin, "github.com/lecafe/lecafe/cmd/lecafe-agent").CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	for _, c := range []struct{ producers, batch int }{{64, 1}, {8, 100}} {
		b.Run(fmt.Sprintf("producers=%d/batch=%d", c.producers, c.batch), func(b *testing.B) {
			s := newSink(b, 0)
			dir, err := os.MkdirTemp("/var/tmp", "lecafe-bench-*")
			if err != nil {
				b.Fatal(err)
			}
			defer os.RemoveAll(dir)
			socket := filepath.Join(dir, "o.sock")
			cmd := exec.Command(bin, "orders", "--no-imds", "--state-dir", dir, "--listen", socket, "--queue", "q", "--region", "us-east-1", "--endpoint-url", s.URL)
			cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b")
			var log bytes.Buffer
			cmd.Stderr = &log
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			defer cmd.Process.Kill()
			for {
				if conn, err := net.Dial("unix", socket); err == nil {
					conn.Close()
					break
				}
				time.Sleep(time.Millisecond)
			}
			idle := memory(b, cmd.Process.Pid, "VmRSS")
			body := kib()
			path := "/v1/orders"
			if c.batch > 1 {
				body, path = strings.Repeat(`{"body":"`+body+"\"}\n", c.batch), "/v1/orders/batch"
			}
			n := (max(b.N, 1000) + c.batch - 1) / c.batch
			var left atomic.Int64
			left.Store(int64(n))
			var wg sync.WaitGroup
			b.ResetTimer()
			start := time.Now()
			for range c.producers {
				wg.Go(func() { post(b, socket, path, body, &left) })
			}
			wg.Wait()
			posted := time.Since(start)
			for s.taken.Load() < int64(n*c.batch) {
				time.Sleep(time.Millisecond)
			}
			rate := float64(n*c.batch) / time.Since(start).Seconds()
			b.StopTimer()
			b.ReportMetric(rate, "orders/s")
			b.ReportMetric(float64(n*c.batch)/posted.Seconds(), "posted/s")
			b.ReportMetric(float64(s.taken.Load())/float64(max(s.calls.Load(), 1)), "orders/call")
			b.ReportMetric(idle, "MiB-idle")
			b.ReportMetric(memory(b, cmd.Process.Pid, "VmHWM"), "MiB-peak")
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				b.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				b.Fatalf("%v\n%s", err, log.String())
			}
			// Unlike the rate, this holds on a machine that does other things too.
			cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			b.ReportMetric(float64(cpu.Microseconds())/float64(n*c.batch), "agent-cpu-µs/order")
		})
	}
}

// post posts the same body over one connection until none is left, with as
// little client as possible.
func post(b *testing.B, socket, path, body string, left *atomic.Int64) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		b.Error(err)
		return
	}
	defer conn.Close()
	req := []byte("POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
	buf := make([]byte, 16<<10)
	for left.Add(-1) >= 0 {
		if _, err := conn.Write(req); err != nil {
			b.Error(err)
			return
		}
		got := 0
		for {
			n, err := conn.Read(buf[got:])
			if err != nil {
				b.Error(err)
				return
			}
			got += n
			head, rest, ok := bytes.Cut(buf[:got], []byte("\r\n\r\n"))
			if !ok {
				continue
			}
			if !bytes.HasPrefix(head, []byte("HTTP/1.1 202 ")) {
				b.Errorf("%s", buf[:got])
				return
			}
			_, length, _ := bytes.Cut(head, []byte("Content-Length: "))
			length, _, _ = bytes.Cut(length, []byte("\r\n"))
			if want, err := strconv.Atoi(string(length)); err == nil && len(rest) >= want || err != nil && bytes.HasSuffix(rest, []byte("0\r\n\r\n")) {
				break
			}
		}
	}
}

// memory is a figure of /proc/PID/status in MiB.
func memory(b *testing.B, pid int, field string) float64 {
	b.Helper()
	n, err := procstatus.MiB(pid, field)
	if err != nil {
		b.Fatal(err)
	}
	return n
}
