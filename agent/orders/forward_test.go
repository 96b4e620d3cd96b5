package orders_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/orders/client"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// between is a client that fails entries, or calls, as a test wishes.
type between struct {
	*sqs.Client
	mu    sync.Mutex
	entry func(types.SendMessageBatchRequestEntry) *types.BatchResultErrorEntry
	call  func([]types.SendMessageBatchRequestEntry) error
	calls int
}

func (b *between) SendMessageBatch(ctx context.Context, in *sqs.SendMessageBatchInput, o ...func(*sqs.Options)) (*sqs.SendMessageBatchOutput, error) {
	b.mu.Lock()
	b.calls++
	if b.call != nil {
		if err := b.call(in.Entries); err != nil {
			b.mu.Unlock()
			return nil, err
		}
	}
	pass := *in
	pass.Entries = nil
	var failed []types.BatchResultErrorEntry
	for _, e := range in.Entries {
		if b.entry != nil {
			if f := b.entry(e); f != nil {
				f.Id = e.Id
				failed = append(failed, *f)
				continue
			}
		}
		pass.Entries = append(pass.Entries, e)
	}
	b.mu.Unlock()
	if len(pass.Entries) == 0 {
		return &sqs.SendMessageBatchOutput{Failed: failed}, nil
	}
	out, err := b.Client.SendMessageBatch(ctx, &pass, o...)
	if err == nil {
		out.Failed = append(out.Failed, failed...)
	}
	return out, err
}

func (b *between) api(cfg aws.Config) orders.QueueAPI {
	b.Client = orders.NewClient(cfg, 16)
	return b
}

func (r *running) sendMany(n int) map[string]string {
	r.t.Helper()
	var batch []client.Order
	for i := range n {
		batch = append(batch, client.Order{Body: fmt.Sprint("order ", i)})
	}
	ids, err := r.client.SendBatch(context.Background(), batch)
	if err != nil {
		r.t.Fatal(err)
	}
	sent := map[string]string{}
	for i, id := range ids {
		sent[id] = batch[i].Body
	}
	return sent
}

// arrived checks that exactly the orders sent were received.
func arrived(t *testing.T, sent map[string]string, got []message) {
	t.Helper()
	seen := map[string]bool{}
	for _, m := range got {
		if sent[m.id] != aws.ToString(m.Body) || seen[m.id] {
			t.Errorf("received %s %q, twice %v", m.id, aws.ToString(m.Body), seen[m.id])
		}
		seen[m.id] = true
	}
	if len(seen) != len(sent) {
		t.Errorf("%d of %d orders arrived", len(seen), len(sent))
	}
}

func TestOnlyTheFailedEntriesOfABatchAreSentAgain(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	tries := map[string]int{}
	b := &between{entry: func(e types.SendMessageBatchRequestEntry) *types.BatchResultErrorEntry {
		tries[*e.MessageBody]++
		if n, _ := strconv.Atoi(strings.TrimPrefix(*e.MessageBody, "order ")); n%3 == 0 && tries[*e.MessageBody] <= 2 {
			return &types.BatchResultErrorEntry{Code: aws.String("InternalError"), Message: aws.String("try again")}
		}
		return nil
	}}
	r := start(t, &orders.Service{Resolve: to(c, "q"), API: b.api})
	sent := r.sendMany(60)
	arrived(t, sent, receive(t, c, "q", 60))
	r.await("empty", empty)
	for body, n := range tries {
		i, _ := strconv.Atoi(strings.TrimPrefix(body, "order "))
		if want := map[bool]int{true: 3, false: 1}[i%3 == 0]; n != want {
			t.Errorf("%s was sent %d times, want %d", body, n, want)
		}
	}
}

func TestWhatTheQueueRefusesForGoodIsParkedAndHoldsUpNothing(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	b := &between{entry: func(e types.SendMessageBatchRequestEntry) *types.BatchResultErrorEntry {
		if *e.MessageBody == "order 7" {
			return &types.BatchResultErrorEntry{Code: aws.String("InvalidMessageContents"), Message: aws.String("not this one"), SenderFault: true}
		}
		return nil
	}}
	dir := t.TempDir()
	r := start(t, &orders.Service{Dir: dir, Resolve: to(c, "q"), API: b.api})
	sent := r.sendMany(30)
	got := receive(t, c, "q", 29)
	s := r.await("empty", empty)
	if s.Parked != 1 || s.Forward.Parked != 1 {
		t.Errorf("parked %d and %d", s.Parked, s.Forward.Parked)
	}
	p := orders.Parking{Dir: filepath.Join(dir, "parked")}
	names, err := p.Names()
	if err != nil || len(names) != 1 {
		t.Fatalf("parked: %v, %v", names, err)
	}
	e, err := p.Read(names[0])
	if err != nil || e.Code != "InvalidMessageContents" || e.Message != "not this one" || e.Order.Body != "order 7" || e.Order.ID.String() != names[0] {
		t.Errorf("parked %+v, %v", e, err)
	}
	delete(sent, names[0])
	arrived(t, sent, got)
	r.stop()
	// It is not tried again by itself, but on request.
	r = start(t, &orders.Service{Dir: dir, Resolve: to(c, "q"), API: b.api})
	r.await("empty", empty)
	r.stop()
	replayed, err := orders.ReplayParked(t.Context(), orders.NewClient(c.Config(), 4), "q", p, nil)
	if err != nil || replayed.Sent != 1 {
		t.Fatalf("%+v, %v", replayed, err)
	}
	if m := receive(t, c, "q", 1)[0]; m.id != names[0] {
		t.Errorf("received %s, parked was %s", m.id, names[0])
	}
	if names, _ := p.Names(); len(names) != 0 {
		t.Errorf("still parked: %v", names)
	}
}

func TestOneOrderThatSpoilsItsCallIsFoundAndParked(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	b := &between{call: func(entries []types.SendMessageBatchRequestEntry) error {
		for _, e := range entries {
			if *e.MessageBody == "order 3" {
				return &smithy.GenericAPIError{Code: "InvalidMessageContents", Message: "one of them"}
			}
		}
		return nil
	}}
	r := start(t, &orders.Service{Resolve: to(c, "q"), API: b.api})
	sent := r.sendMany(25)
	got := receive(t, c, "q", 24)
	if s := r.await("empty", empty); s.Parked != 1 {
		t.Errorf("parked %d", s.Parked)
	}
	for id, body := range sent {
		if body == "order 3" {
			delete(sent, id)
		}
	}
	arrived(t, sent, got)
}

// TestNothingThatMayPassIsParkedOrDropped has every failure that is not the
// order's own, one after the other.
func TestNothingThatMayPassIsParkedOrDropped(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault cloud.Fault
		kind  string
	}{
		"throttled":        {cloud.Fault{Kind: cloud.Throttle}, orders.KindThrottled},
		"server error":     {cloud.Fault{Kind: cloud.Error5xx}, orders.KindServer},
		"reset":            {cloud.Fault{Kind: cloud.Reset}, orders.KindNetwork},
		"denied":           {cloud.Fault{Kind: cloud.AccessDenied}, orders.KindDenied},
		"expired":          {cloud.Fault{Kind: cloud.Code, Status: 403, Code: "ExpiredToken"}, orders.KindCredentials},
		"queue gone":       {cloud.Fault{Kind: cloud.Code, Code: "QueueDoesNotExist"}, orders.KindGone},
		"an unknown error": {cloud.Fault{Kind: cloud.Code, Code: "NeverHeardOf"}, orders.KindOther},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cl := cloudtest.New(t, cloud.Options{})
			cl.SQS.CreateQueue("q", nil)
			c.fault.Service, c.fault.Action = "sqs", "SendMessageBatch"
			f := cl.Inject(c.fault)
			r := start(t, &orders.Service{Resolve: to(cl, "q")})
			sent := r.sendMany(40)
			s := r.await("failing", func(s orders.Status) bool { return s.Forward.Errors[c.kind] >= 3 })
			if s.State != "failing" || s.Forward.Failing != c.kind || s.Forward.LastError == "" || s.Spooled != 40 || s.Parked != 0 {
				t.Errorf("%+v", s)
			}
			f.Remove()
			arrived(t, sent, receive(t, cl, "q", 40))
			if s := r.await("empty", empty); s.Parked != 0 || s.Forward.Failing != "" {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestAQueueThatIsMadeLaterGetsWhatWaited(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	r := start(t, &orders.Service{Resolve: to(c, "late")})
	sent := r.sendMany(15)
	r.await("reported", func(s orders.Status) bool { return s.Forward.Failing == orders.KindGone })
	c.SQS.CreateQueue("late", nil)
	arrived(t, sent, receive(t, c, "late", 15))
}

func TestRotatedCredentialsAreFetchedAnew(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	var mu sync.Mutex
	fetched := 0
	cfg := c.As(wire.Credentials{AccessKeyID: "ASIAOLD", SecretAccessKey: "old"})
	good := c.Config().Credentials
	old := cfg.Credentials
	cfg.Credentials = aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		mu.Lock()
		defer mu.Unlock()
		switch fetched++; fetched {
		case 1:
			return old.Retrieve(ctx)
		case 2:
			return aws.Credentials{}, errors.New("not there yet")
		}
		return good.Retrieve(ctx)
	}))
	r := start(t, &orders.Service{Resolve: func(context.Context) (orders.Target, error) {
		return orders.Target{Queue: "q", AWS: cfg}, nil
	}})
	sent := r.sendMany(20)
	arrived(t, sent, receive(t, c, "q", 20))
	if s := r.status(); s.Forward.Errors[orders.KindCredentials] < 2 {
		t.Errorf("errors %v", s.Forward.Errors)
	}
}

func TestALostAnswerDuplicatesUnderTheSameID(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	c.Inject(cloud.Fault{Service: "sqs", Action: "SendMessageBatch", Kind: cloud.Reset, After: true, Times: 1})
	r := start(t, &orders.Service{Resolve: to(c, "q"), Concurrency: 1})
	sent := r.sendMany(10)
	times := map[string]int{}
	for _, m := range receive(t, c, "q", 20) {
		if sent[m.id] != aws.ToString(m.Body) {
			t.Errorf("%s has body %q", m.id, aws.ToString(m.Body))
		}
		times[m.id]++
	}
	if len(times) != 10 {
		t.Errorf("%v", times)
	}
}

func TestOrderInAGroupHoldsOnFIFOQueuesWhateverFails(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q.fifo", nil)
	rng := rand.New(rand.NewPCG(1, 2))
	b := &between{
		entry: func(e types.SendMessageBatchRequestEntry) *types.BatchResultErrorEntry {
			if rng.IntN(4) == 0 {
				return &types.BatchResultErrorEntry{Code: aws.String("InternalError")}
			}
			return nil
		},
		call: func([]types.SendMessageBatchRequestEntry) error {
			if rng.IntN(10) == 0 {
				return &smithy.GenericAPIError{Code: "RequestThrottled"}
			}
			return nil
		},
	}
	c.Inject(cloud.Fault{Service: "sqs", Action: "SendMessageBatch", Kind: cloud.Reset, After: true, Skip: 2, Times: 2})
	r := start(t, &orders.Service{Resolve: to(c, "q.fifo"), API: b.api})
	const groups, each = 12, 10
	var batch []client.Order
	for i := range groups * each {
		batch = append(batch, client.Order{Body: strconv.Itoa(i / groups), Group: "g" + strconv.Itoa(i%groups)})
	}
	if _, err := r.client.SendBatch(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	for _, m := range receive(t, c, "q.fifo", groups*each) {
		g := m.Attributes["MessageGroupId"]
		if n, _ := strconv.Atoi(aws.ToString(m.Body)); n != next[g] {
			t.Fatalf("group %s: got %d, want %d", g, n, next[g])
		}
		next[g]++
	}
}

func TestADelayCountsFromAcceptance(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	delays := make(chan int32, 2)
	b := &between{call: func(entries []types.SendMessageBatchRequestEntry) error {
		select {
		case delays <- entries[0].DelaySeconds:
		default:
		}
		return nil
	}}
	r := start(t, &orders.Service{Resolve: to(c, "q"), API: b.api})
	r.post("/v1/orders", "later", "Delay-Seconds", "600")
	if d := <-delays; d > 600 || d < 600-int32(deadline.Seconds()) {
		t.Errorf("delay %d", d)
	}
	r.await("empty", empty)
}

func TestStopSendsWhatItCanAndTheNextStartTheRest(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	dir := t.TempDir()
	f := c.Inject(cloud.Fault{Service: "sqs", Action: "SendMessageBatch", Kind: cloud.Reset})
	r := start(t, &orders.Service{Dir: dir, Resolve: to(c, "q"), DrainBound: 50 * time.Millisecond})
	sent := r.sendMany(35)
	r.stop()
	f.Remove()
	r = start(t, &orders.Service{Dir: dir, Resolve: to(c, "q")})
	for id, body := range r.sendMany(5) {
		sent[id] = body
	}
	r.stop() // drains
	arrived(t, sent, receive(t, c, "q", 40))
	r = start(t, &orders.Service{Dir: dir, Resolve: nowhere})
	if s := r.status(); s.Spooled != 0 {
		t.Errorf("%d orders are left after the drain", s.Spooled)
	}
}
