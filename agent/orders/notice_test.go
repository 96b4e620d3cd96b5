package orders_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// TestAStopDuringANoticeAsksForItsTime pins that a stop which comes while the
// service drains for a notice is noticed at once: it asks systemd for the time
// that it takes, or would be killed with orders that are neither sent nor sealed.
func TestAStopDuringANoticeAsksForItsTime(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	var works atomic.Bool
	b := &between{call: func([]types.SendMessageBatchRequestEntry) error {
		if works.Load() {
			return nil
		}
		return errors.New("no network")
	}}
	notice, extended := make(chan string, 1), make(chan time.Duration, 9)
	r := start(t, &orders.Service{
		Resolve: to(c, "q"), API: b.api, DrainBound: 10 * time.Minute, NoticeBound: 9 * time.Minute,
		Notices: func(ctx context.Context) string {
			select {
			case why := <-notice:
				return why
			case <-ctx.Done():
				return ""
			}
		},
		Extend: func(d time.Duration) { extended <- d },
	})
	r.sendMany(3)
	r.await("failing", func(s orders.Status) bool { return s.Forward.Failing != "" })
	notice <- "spot interruption"
	<-extended
	r.cancel()
	select {
	case d := <-extended:
		if d < 10*time.Minute {
			t.Errorf("asked for %s", d)
		}
	case <-time.After(deadline):
		t.Error("no time is asked for")
	}
	works.Store(true)
	r.stop() // before the cloud
}

// uploads takes sealed orders.
type uploads chan string

func (u uploads) PutObject(_ context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	b, err := io.ReadAll(in.Body)
	u <- string(b)
	return &s3.PutObjectOutput{}, err
}

// TestANoticeLeavesTimeToSeal pins that after a notice the orders are sealed in
// time, however long a stop may drain.
func TestANoticeLeavesTimeToSeal(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	b := &between{call: func([]types.SendMessageBatchRequestEntry) error { return errors.New("no network") }}
	notice, sealed := make(chan string, 1), make(uploads, 9)
	target := to(c, "q")
	r := start(t, &orders.Service{
		API: b.api, DrainBound: 10 * time.Minute, NoticeBound: 10 * time.Millisecond,
		Resolve: func(ctx context.Context) (orders.Target, error) {
			t, err := target(ctx)
			t.SealTo, t.Sender = "s3://left/orders", func(context.Context) (string, error) { return "AROAEXAMPLE:i-1", nil }
			return t, err
		},
		Uploader: sealed.api,
		Notices: func(ctx context.Context) string {
			select {
			case why := <-notice:
				return why
			case <-ctx.Done():
				return ""
			}
		},
	})
	r.sendMany(3)
	r.await("failing", func(s orders.Status) bool { return s.Forward.Failing != "" })
	notice <- "spot interruption"
	select {
	case <-sealed:
	case <-time.After(deadline):
		t.Fatal("not sealed")
	}
	r.await("empty", empty)
}

func (u uploads) api(aws.Config) orders.UploadAPI { return u }
