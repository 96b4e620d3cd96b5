package sinks_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/autoscaling"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/sinks"
)

// TestSentAlthoughTheDiskIsFull pins that a report that was completed late is
// sent, although what was added to it cannot be written down.
func TestSentAlthoughTheDiskIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "outbox")
		o := open(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		r := sample(report.Failure)
		r.Sender = ""
		if err := o.Add(r, []string{"a"}, false); err == nil {
			t.Fatal("no error although nothing can be written")
		}
		var sender string
		f := &fake{name: "a", sent: make(chan string, 9)}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			(&sinks.Pump{Outbox: o, Sinks: []sinks.Sink{f}, Log: slog.New(slog.DiscardHandler), Fill: func(r *report.Report) bool {
				changed := r.Sender == ""
				r.Sender = "AROAEXAMPLEEXAMPLE12:i-0abc1234def567890"
				sender = r.Sender
				return changed
			}}).Run(ctx)
		}()
		defer func() { stop(); <-done }()
		select {
		case <-f.sent:
		case <-time.After(time.Hour): // of the bubble's clock
			t.Fatal("never sent")
		}
		if sender == "" {
			t.Error("not completed")
		}
	})
}

// TestOutboxWithoutADirectory pins that reports are sent from memory where the
// disk gives no directory: read-only, or full.
func TestOutboxWithoutADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := sinks.OpenOutbox(filepath.Join(file, "outbox"))
	if err == nil || o == nil {
		t.Fatalf("outbox %v, error %v; want both", o, err)
	}
	r := sample(report.Failure)
	if err := o.Add(r, []string{"a"}, false); err == nil {
		t.Error("no error although nothing was written")
	}
	if got := o.Waiting("a"); !slices.Equal(got, []string{r.ID}) {
		t.Errorf("waiting %v", got)
	}
}

// TestOneUnreadableEntryHoldsUpNoOther pins that what cannot be read from the
// outbox keeps neither the other reports nor the agent.
func TestOneUnreadableEntryHoldsUpNoOther(t *testing.T) {
	dir := t.TempDir()
	r := sample(report.Failure)
	if err := open(t, dir).Add(r, []string{"a"}, false); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "00.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	o, _ := sinks.OpenOutbox(dir)
	if o == nil || !slices.Equal(o.Waiting("a"), []string{r.ID}) {
		t.Error("the readable report is not there")
	}
}

// TestAbandonComesLast pins that an instance is not given up, which ends it,
// before the report has arrived that says why; and that one that nobody takes
// does not keep it for ever.
func TestAbandonComesLast(t *testing.T) {
	for _, c := range []struct {
		name      string
		verdict   report.Verdict
		fails     int // sends of the other sink, then it works
		afterSent bool
	}{
		{"failure and a sink that works late", report.Failure, 4, true},
		{"failure and a sink that never works", report.Failure, 1 << 20, false},
		{"success", report.Success, 1 << 20, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := open(t, t.TempDir())
				began := time.Now()
				other := &fake{name: "s3", sent: make(chan string, 1)}
				for range min(c.fails, 1000) {
					other.errs = append(other.errs, errors.New("AccessDenied"))
				}
				completed := make(chan time.Duration, 1)
				hook := &sinks.Hook{
					Hook: "boot", Group: func() string { return "web" }, InstanceID: func() string { return "i-1" },
					Complete: func(context.Context, *autoscaling.CompleteLifecycleActionInput, ...func(*autoscaling.Options)) (*autoscaling.CompleteLifecycleActionOutput, error) {
						completed <- time.Since(began)
						return nil, nil
					},
				}
				stop := pump(t, o, hook, other)
				defer stop()
				if err := o.Add(sample(c.verdict), []string{sinks.NameHook, "s3"}, false); err != nil {
					t.Fatal(err)
				}
				at := <-completed
				if sent := len(other.sent) == 1; sent != c.afterSent {
					t.Errorf("completed after %s, the report was sent before: %v, want %v", at, sent, c.afterSent)
				}
				if limit := 2 * time.Minute; at > limit {
					t.Errorf("completed after %s, want at most %s", at, limit)
				}
				if c.verdict == report.Success && at > time.Second {
					t.Errorf("a healthy instance waited %s", at)
				}
			})
		})
	}
}
