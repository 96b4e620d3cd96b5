package orders_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/orders/client"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// deadline is generous: it only ends tests that hang.
const deadline = 20 * time.Second

// running is a service under test.
type running struct {
	t      testing.TB
	svc    *orders.Service
	client *client.Client
	socket string
	cancel context.CancelFunc
	done   chan error
}

func start(t testing.TB, svc *orders.Service) *running {
	t.Helper()
	if svc.Dir == "" {
		svc.Dir = t.TempDir()
	}
	if svc.DrainBound == 0 {
		svc.DrainBound = 2 * time.Second // the cloud may end before the service
	}
	r := &running{t: t, svc: svc, socket: filepath.Join(t.TempDir(), "o.sock"), done: make(chan error, 1)}
	l, err := orders.ListenUnix(r.socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	svc.Listen = []net.Listener{l}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	ready := make(chan struct{})
	svc.Ready = func() { close(ready) }
	go func() { r.done <- svc.Run(ctx) }()
	select {
	case <-ready:
	case err := <-r.done:
		t.Fatalf("service ended: %v", err)
	}
	r.client = client.New(r.socket)
	t.Cleanup(r.stop)
	return r
}

// stop ends the service and waits for it.
func (r *running) stop() {
	r.client.Close()
	r.cancel()
	if r.done == nil {
		return
	}
	if err := <-r.done; err != nil {
		r.t.Errorf("service: %v", err)
	}
	r.done = nil
}

func to(c *cloudtest.Cloud, queue string) func(context.Context) (orders.Target, error) {
	return func(context.Context) (orders.Target, error) {
		return orders.Target{Queue: queue, AWS: c.Config()}, nil
	}
}

// post posts one order by plain HTTP.
func (r *running) post(path, body string, header ...string) (int, http.Header, string) {
	r.t.Helper()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.socket)
	}}}
	req, err := http.NewRequest(http.MethodPost, "http://x"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := hc.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func (r *running) status() orders.Status {
	r.t.Helper()
	b, err := r.client.Get(context.Background(), "/v1/status")
	if err != nil {
		r.t.Fatal(err)
	}
	var s orders.Status
	if err := json.Unmarshal(b, &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// await polls the status until it is as wished.
func (r *running) await(what string, ok func(orders.Status) bool) orders.Status {
	r.t.Helper()
	end := time.Now().Add(deadline)
	for {
		s := r.status()
		if ok(s) {
			return s
		}
		if time.Now().After(end) {
			b, _ := json.MarshalIndent(s, "", " ")
			r.t.Fatalf("not %s in %v: %s", what, deadline, b)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func empty(s orders.Status) bool { return s.Spooled == 0 }

// message is what a consumer got.
type message struct {
	types.Message
	id string
}

// receive takes n messages from a queue, in the order of their arrival.
func receive(t testing.TB, c *cloudtest.Cloud, queue string, n int) []message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	api := sqs.NewFromConfig(c.Config())
	u, err := api.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &queue})
	if err != nil {
		t.Fatal(err)
	}
	var out []message
	for len(out) < n {
		res, err := api.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl: u.QueueUrl, MaxNumberOfMessages: 10, WaitTimeSeconds: 1,
			MessageAttributeNames: []string{"All"}, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"},
		})
		if err != nil {
			t.Fatalf("received %d of %d: %v", len(out), n, err)
		}
		var del []types.DeleteMessageBatchRequestEntry
		for i, m := range res.Messages {
			out = append(out, message{m, aws.ToString(m.MessageAttributes[orders.IDAttribute].StringValue)})
			del = append(del, types.DeleteMessageBatchRequestEntry{Id: aws.String(fmt.Sprint(i)), ReceiptHandle: m.ReceiptHandle})
		}
		if len(del) > 0 {
			if _, err := api.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: u.QueueUrl, Entries: del}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return out
}

func TestAnOrderReachesTheQueueWithAllItCarries(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("lecafe-orders", nil)
	r := start(t, &orders.Service{Resolve: to(c, "lecafe-orders")})
	code, _, answer := r.post("/v1/orders", "2 × espresso\n", "Attribute-Table", "7", "Message-Group-Id", "bar")
	if code != http.StatusAccepted {
		t.Fatalf("%d %s", code, answer)
	}
	var a struct{ ID string }
	if err := json.Unmarshal([]byte(answer), &a); err != nil {
		t.Fatal(err)
	}
	m := receive(t, c, "lecafe-orders", 1)[0]
	if aws.ToString(m.Body) != "2 × espresso\n" || m.id != a.ID || aws.ToString(m.MessageAttributes["table"].StringValue) != "7" || m.Attributes["MessageGroupId"] != "bar" {
		t.Errorf("answered %s, received %s %q %v %v", a.ID, m.id, aws.ToString(m.Body), m.MessageAttributes, m.Attributes)
	}
	r.await("empty", empty)
}

func TestClientSendsBatches(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	r := start(t, &orders.Service{Resolve: to(c, "q")})
	var batch []client.Order
	for i := range 250 {
		batch = append(batch, client.Order{Body: fmt.Sprint("order ", i), Attributes: map[string]string{"MixedCase": "kept"}})
	}
	ids, err := r.client.SendBatch(t.Context(), batch)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for i, id := range ids {
		want[id] = batch[i].Body
	}
	for _, m := range receive(t, c, "q", 250) {
		if want[m.id] != aws.ToString(m.Body) || aws.ToString(m.MessageAttributes["MixedCase"].StringValue) != "kept" {
			t.Errorf("%s: got %q, want %q, %v", m.id, aws.ToString(m.Body), want[m.id], m.MessageAttributes)
		}
		delete(want, m.id)
	}
	if len(want) != 0 {
		t.Errorf("%d orders did not arrive", len(want))
	}
}
