package orders_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

const sender = "AROAEXAMPLEID:i-0123456789abcdef0"

func sealing(c *cloudtest.Cloud) func(context.Context) (orders.Target, error) {
	return func(context.Context) (orders.Target, error) {
		return orders.Target{
			Queue: "q", SealTo: "s3://left/over", AWS: c.Config(),
			Sender: func(context.Context) (string, error) { return sender, nil },
		}, nil
	}
}

// sealed returns the orders in the bucket, and their keys.
func sealed(t *testing.T, c *cloudtest.Cloud) ([]*orders.Order, []string) {
	t.Helper()
	api := s3.NewFromConfig(c.Config(), func(o *s3.Options) { o.UsePathStyle = true })
	list, err := api.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("left")})
	if err != nil {
		t.Fatal(err)
	}
	var all []*orders.Order
	var keys []string
	for _, o := range list.Contents {
		out, err := api.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("left"), Key: o.Key})
		if err != nil {
			t.Fatal(err)
		}
		got, err := orders.ReadSealed(out.Body)
		if err != nil {
			t.Fatal(err)
		}
		all, keys = append(all, got...), append(keys, *o.Key)
	}
	return all, keys
}

func TestWhatIsLeftAtTheInstancesEndIsSealedAndCanBeReplayed(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	c.S3.CreateBucket("left", "us-east-1")
	f := c.Inject(cloud.Fault{Service: "sqs", Kind: cloud.Reset})
	notice := make(chan string)
	dir := t.TempDir()
	r := start(t, &orders.Service{Dir: dir, Resolve: sealing(c), DrainBound: 50 * time.Millisecond, Notices: func(ctx context.Context) string {
		select {
		case why := <-notice:
			return why
		case <-ctx.Done():
			return ""
		}
	}})
	sent := r.sendMany(45)
	r.await("failing", func(s orders.Status) bool { return s.State == "failing" })
	notice <- "spot interruption"
	s := r.await("sealed", empty)
	if s.State != "draining" || s.Notice != "spot interruption" {
		t.Errorf("%+v", s)
	}
	// What comes after the notice is sealed by the stop.
	for id, body := range r.sendMany(3) {
		sent[id] = body
	}
	r.stop()
	left, keys := sealed(t, c)
	if len(left) != 48 || len(keys) != 2 {
		t.Fatalf("%d orders in %v", len(left), keys)
	}
	for _, k := range keys {
		if !strings.HasPrefix(k, "over/"+sender+"/") || !strings.HasSuffix(k, orders.SealSuffix) {
			t.Errorf("key %s", k)
		}
	}
	f.Remove()
	replayed, err := orders.Replay(t.Context(), orders.NewClient(c.Config(), 4), "q", left, nil)
	if err != nil || replayed.Sent != 48 {
		t.Fatalf("%+v, %v", replayed, err)
	}
	arrived(t, sent, receive(t, c, "q", 48))
	// Nothing of it is on the disk any more.
	r = start(t, &orders.Service{Dir: dir, Resolve: nowhere})
	if s := r.status(); s.Spooled != 0 {
		t.Errorf("%d orders are in the spool", s.Spooled)
	}
}

func TestAMachineGoingDownForWhoKnowsWhySealsACopy(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	c.S3.CreateBucket("left", "us-east-1")
	f := c.Inject(cloud.Fault{Service: "sqs", Kind: cloud.Reset})
	dir := t.TempDir()
	r := start(t, &orders.Service{Dir: dir, Resolve: sealing(c), DrainBound: 50 * time.Millisecond, Stopping: func(context.Context) bool { return true }})
	sent := r.sendMany(12)
	r.await("failing", func(s orders.Status) bool { return s.State == "failing" })
	r.stop()
	if left, _ := sealed(t, c); len(left) != 12 {
		t.Errorf("%d orders sealed", len(left))
	}
	f.Remove()
	// It was a stop, not the end: the next boot sends them itself.
	r = start(t, &orders.Service{Dir: dir, Resolve: sealing(c)})
	arrived(t, sent, receive(t, c, "q", 12))
	r.await("empty", empty)
}

func TestAServiceThatIsMerelyRestartedSealsNothing(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	c.S3.CreateBucket("left", "us-east-1")
	c.Inject(cloud.Fault{Service: "sqs", Kind: cloud.Reset})
	r := start(t, &orders.Service{Resolve: sealing(c), DrainBound: 50 * time.Millisecond, Stopping: func(context.Context) bool { return false }})
	r.sendMany(12)
	r.await("failing", func(s orders.Status) bool { return s.State == "failing" })
	r.stop()
	if left, keys := sealed(t, c); len(left) != 0 {
		t.Errorf("sealed %v", keys)
	}
}

func TestACutSealedObjectIsAnError(t *testing.T) {
	t.Parallel()
	o := &orders.Order{ID: orders.IDOfKey("k"), Body: "x", Accepted: time.UnixMilli(1)}
	line, err := o.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"cut line":      string(line[:len(line)-1]),
		"no newline":    string(line),
		"unknown field": `{"id":"` + o.ID.String() + `","body":"x","accepted_at":"2026-01-01T00:00:00Z","prio":1}` + "\n",
		"no ID":         `{"body":"x","accepted_at":"2026-01-01T00:00:00Z"}` + "\n",
	} {
		if got, err := orders.ReadSealed(strings.NewReader(b)); err == nil {
			t.Errorf("%s: read %d orders", name, len(got))
		}
	}
	got, err := orders.ReadSealed(bytes.NewReader(append(line, '\n')))
	if err != nil || len(got) != 1 || got[0].ID != o.ID || got[0].Body != "x" || !got[0].Accepted.Equal(o.Accepted) {
		t.Errorf("%+v, %v", got, err)
	}
}
