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
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/spool"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

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
