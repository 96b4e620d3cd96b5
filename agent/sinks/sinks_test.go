package sinks_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/sinks"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

func sample(v report.Verdict) *report.Report {
	at := time.Date(2026, 11, 22, 2, 16, 0, 0, time.UTC)
	return &report.Report{
		ID: report.NewID(), Kind: report.KindBootstrap, Verdict: v, Summary: "s", BootedAt: at, JudgedAt: at,
		Instance: report.Instance{ID: "i-0abc1234def567890"}, Sender: "AROAEXAMPLEEXAMPLE12:i-0abc1234def567890", UserData: report.UserData{Format: "none"},
	}
}

// fake fails its first sends with errs.
type fake struct {
	name string
	mu   sync.Mutex
	errs []error
	got  []string
	sent chan string
}

func (f *fake) Name() string { return f.name }

func (f *fake) Send(_ context.Context, r *report.Report) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return err
	}
	f.got = append(f.got, r.ID)
	f.sent <- r.ID
	return nil
}

func pump(t *testing.T, o *sinks.Outbox, ss ...sinks.Sink) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		(&sinks.Pump{Outbox: o, Sinks: ss, Log: slog.New(slog.DiscardHandler)}).Run(ctx)
		close(done)
	}()
	return func() { cancel(); <-done }
}

func open(t *testing.T, dir string) *sinks.Outbox {
	t.Helper()
	o, err := sinks.OpenOutbox(dir)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestSendsUntilItHasArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		o := open(t, dir)
		bad := &fake{name: "bad", errs: []error{io.ErrUnexpectedEOF, io.ErrUnexpectedEOF, io.ErrUnexpectedEOF}, sent: make(chan string, 9)}
		good := &fake{name: "good", sent: make(chan string, 9)}
		defer pump(t, o, bad, good)()
		r := sample(report.Success)
		if err := o.Add(r, []string{"bad", "good"}, false); err != nil {
			t.Fatal(err)
		}
		if id := <-good.sent; id != r.ID {
			t.Errorf("good got %s", id)
		}
		synctest.Wait()
		if p := o.Pending(); len(p) != 1 || p[0].Sink != "bad" || p[0].Error == "" {
			t.Errorf("pending %+v", p)
		}
		if id := <-bad.sent; id != r.ID {
			t.Errorf("bad got %s", id)
		}
		synctest.Wait()
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("left in the outbox: %v", left)
		}
		if len(good.got) != 1 {
			t.Errorf("good got it %d times", len(good.got))
		}
	})
}

func TestOutboxSurvives(t *testing.T) {
	dir := t.TempDir()
	r := sample(report.Failure)
	o := open(t, dir)
	if err := o.Add(r, []string{"a", "b"}, false); err != nil {
		t.Fatal(err)
	}
	if err := o.Done(r.ID, "a"); err != nil {
		t.Fatal(err)
	}
	o = open(t, dir)
	if got := o.Waiting("a"); len(got) != 0 {
		t.Errorf("a has it, and would get it again: %v", got)
	}
	if got := o.Waiting("b"); !slices.Equal(got, []string{r.ID}) {
		t.Errorf("b waits for %v", got)
	}
	again, err := o.Report(r.ID, nil)
	if err != nil || again.Verdict != report.Failure || again.Sender != r.Sender {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestOutboxPutsBrokenFilesAside(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.json"), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := sinks.OpenOutbox(dir)
	if err == nil || !strings.Contains(err.Error(), "x.json") {
		t.Errorf("it is not told: %v", err)
	}
	if p := o.Pending(); len(p) != 0 {
		t.Errorf("pending %v", p)
	}
	if _, err := os.Stat(filepath.Join(dir, "x.json.bad")); err != nil {
		t.Error(err)
	}
}

func TestUndecidedReportsWaitForTheirSinks(t *testing.T) {
	dir := t.TempDir()
	r := sample(report.Failure)
	if err := open(t, dir).Add(r, nil, true); err != nil {
		t.Fatal(err)
	}
	o := open(t, dir)
	if got := o.Undecided(); !slices.Equal(got, []string{r.ID}) {
		t.Fatalf("undecided %v", got)
	}
	if err := o.Add(r, []string{"a"}, false); err != nil {
		t.Fatal(err)
	}
	if got, left := o.Waiting("a"), o.Undecided(); len(got) != 1 || len(left) != 0 {
		t.Errorf("waiting %v, undecided %v", got, left)
	}
}

func TestRefusedIsKeptAndNotTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		o := open(t, dir)
		f := &fake{name: "a", errs: []error{fmt.Errorf("%w: gone", sinks.ErrRefused)}, sent: make(chan string, 1)}
		defer pump(t, o, f)()
		if err := o.Add(sample(report.Success), []string{"a"}, false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // of the bubble's clock
		if p := o.Pending(); len(p) != 1 || !p[0].Refused || !strings.Contains(p[0].Error, "gone") {
			t.Errorf("pending %+v", p)
		}
		if len(f.got) != 0 {
			t.Error("it was tried again")
		}
		if p := open(t, dir).Pending(); len(p) != 1 || !p[0].Refused {
			t.Errorf("after a restart %+v", p)
		}
	})
}

func TestS3AndSQS(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	c.S3.CreateBucket("reports", "us-east-1")
	c.SQS.CreateQueue("boots", nil)
	c.SQS.CreateQueue("boots.fifo", map[string]string{"FifoQueue": "true"})
	bucket := s3.NewFromConfig(c.Config(), func(o *s3.Options) { o.UsePathStyle = true })
	r := sample(report.Success)
	key := report.KeyOf("p", r).String()

	sink := sinks.S3{Put: bucket.PutObject, Bucket: "reports", Prefix: "p"}
	for range 2 { // a resend arrives where the first did
		if err := sink.Send(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.S3.Objects("reports", ""); !slices.Equal(got, []string{key}) {
		t.Errorf("objects %v, want %s", got, key)
	}
	changed := *r
	changed.Summary = "somebody else's"
	if err := sink.Send(t.Context(), &changed); err != nil {
		t.Fatal(err)
	}
	obj, err := bucket.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("reports"), Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := io.ReadAll(obj.Body)
	if err != nil || bytes.Contains(doc, []byte("somebody")) {
		t.Errorf("a report was replaced: %s, %v", doc, err)
	}
	if err := (sinks.S3{Put: bucket.PutObject, Bucket: "nowhere"}).Send(t.Context(), r); err == nil || !strings.Contains(err.Error(), "report.s3.bucket") {
		t.Errorf("a missing bucket: %v", err)
	}

	queue := sqs.NewFromConfig(c.Config())
	for _, name := range []string{"boots", "boots.fifo"} {
		sink := &sinks.SQS{URL: queue.GetQueueUrl, Message: queue.SendMessage, Queue: name, Prefix: "p"}
		for range 2 {
			if err := sink.Send(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		url, err := queue.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: &name})
		if err != nil {
			t.Fatal(err)
		}
		got, err := queue.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url.QueueUrl, MaxNumberOfMessages: 10, MessageAttributeNames: []string{"All"}})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]int{"boots": 2, "boots.fifo": 1}[name]
		if len(got.Messages) != want {
			t.Errorf("%s: %d messages, want %d", name, len(got.Messages), want)
		}
		for _, m := range got.Messages {
			if back, err := report.Decode([]byte(*m.Body)); err != nil || back.ID != r.ID || *m.MessageAttributes[sinks.Attribute].StringValue != key {
				t.Errorf("%s: %v %+v", name, err, m)
			}
		}
	}
	if err := (&sinks.SQS{URL: queue.GetQueueUrl, Message: queue.SendMessage, Queue: "nowhere"}).Send(t.Context(), r); err == nil || !strings.Contains(err.Error(), "report.sqs.queue") {
		t.Errorf("a missing queue: %v", err)
	}
}

func TestWebhook(t *testing.T) {
	codes := []int{503, 200}
	var keys []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		w.WriteHeader(codes[0])
		codes = codes[1:]
	}))
	defer srv.Close()
	r := sample(report.Success)
	w := sinks.Webhook{Client: srv.Client(), URL: srv.URL + "/hook?token=hunter2"}
	if err := w.Send(t.Context(), r); err == nil || errors.Is(err, sinks.ErrRefused) {
		t.Errorf("503: %v", err)
	}
	if err := w.Send(t.Context(), r); err != nil {
		t.Errorf("200: %v", err)
	}
	codes = []int{400}
	if err := w.Send(t.Context(), r); !errors.Is(err, sinks.ErrRefused) {
		t.Errorf("400: %v", err)
	}
	if len(keys) != 3 || keys[0] != r.ID || keys[1] != r.ID {
		t.Errorf("keys %v", keys)
	}
	srv.Close()
	if err := w.Send(t.Context(), r); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the URL's secret is told: %v", err)
	}
}

func TestLifecycleHook(t *testing.T) {
	var results []string
	var fail error
	h := &sinks.Hook{
		Hook: "boot", Group: func() string { return "web" }, InstanceID: func() string { return "i-1" },
		Complete: func(_ context.Context, in *autoscaling.CompleteLifecycleActionInput, _ ...func(*autoscaling.Options)) (*autoscaling.CompleteLifecycleActionOutput, error) {
			results = append(results, *in.LifecycleActionResult)
			return nil, fail
		},
	}
	for _, v := range []report.Verdict{report.Success, report.Degraded, report.Failure} {
		if err := h.Send(t.Context(), sample(v)); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(results, []string{"CONTINUE", "CONTINUE", "ABANDON"}) {
		t.Errorf("results %v", results)
	}
	// Too early is tried again, too late is final in the end.
	fail = &smithy.GenericAPIError{Code: "ValidationError", Message: "No active Lifecycle Action found with instance ID i-1"}
	for i := 1; ; i++ {
		err := h.Send(t.Context(), sample(report.Success))
		if err == nil {
			t.Fatal("an error counts as sent")
		}
		if errors.Is(err, sinks.ErrRefused) {
			if i < 3 {
				t.Errorf("given up after %d", i)
			}
			break
		}
		if i > 20 {
			t.Fatal("never given up")
		}
	}
	h.Group = func() string { return "" }
	if err := h.Send(t.Context(), sample(report.Success)); err == nil || !strings.Contains(err.Error(), "lifecycle_hook.group") {
		t.Errorf("no group: %v", err)
	}
}

// device is a console that remembers.
type device struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (d *device) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.buf.Write(b)
}

func (d *device) Close() error { return nil }

func TestConsole(t *testing.T) {
	d := &device{}
	c := sinks.NewConsole(d)
	c.Write(sinks.Line{Event: "trouble", Code: report.CodeScriptExit, Message: "PASSWORD=hunter2\nsecond line \x1b[31m" + strings.Repeat("x", 3000)})
	c.Close()
	lines := strings.Split(strings.TrimRight(d.buf.String(), "\r\n"), "\r\n")
	if len(lines) != 1 || !strings.HasPrefix(lines[0], sinks.Prefix+"{") || len(lines[0]) > 1000 || strings.Contains(lines[0], "hunter2") || strings.Contains(lines[0], "\x1b") {
		t.Errorf("console has %q", lines)
	}
	var l sinks.Line
	if err := json.Unmarshal([]byte(strings.TrimPrefix(lines[0], sinks.Prefix)), &l); err != nil || l.Code != report.CodeScriptExit {
		t.Errorf("%v, %+v", err, l)
	}
}

// stuck is a serial line that nobody reads.
type stuck struct{ free chan struct{} }

func (s stuck) Write(b []byte) (int, error) { <-s.free; return len(b), nil }
func (stuck) Close() error                  { return nil }

func TestConsoleHoldsUpNobodyAndDoesNotFlood(t *testing.T) {
	s := stuck{make(chan struct{})}
	c := sinks.NewConsole(s)
	for range 10000 {
		c.Write(sinks.Line{Event: "trouble", Message: "x"})
	}
	if c.Dropped() < 9000 {
		t.Errorf("%d dropped", c.Dropped())
	}
	close(s.free)
	c.Close()
	c.Write(sinks.Line{Event: "late"}) // of no effect
	(*sinks.Console)(nil).Write(sinks.Line{})

	d := &device{}
	c = sinks.NewConsole(d)
	for range 1000 {
		c.Write(sinks.Line{Event: "trouble", Message: "x"})
	}
	c.Write(sinks.Line{Event: "verdict", Message: "the end"})
	c.Close()
	if n := strings.Count(d.buf.String(), "\n"); n > 200 || !strings.HasSuffix(d.buf.String(), `"message":"the end"}`+"\r\n") {
		t.Errorf("%d lines, at the end %q", n, d.buf.String()[max(0, d.buf.Len()-200):])
	}
}
