package orders_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/orders/client"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// nowhere is a service whose queue is not known yet: it takes orders.
func nowhere(context.Context) (orders.Target, error) {
	return orders.Target{}, errors.New("no queue yet")
}

func TestWhatSQSWouldRefuseIsRefusedAtTheDoor(t *testing.T) {
	t.Parallel()
	r := start(t, &orders.Service{Resolve: nowhere})
	long := strings.Repeat("x", 1<<20)
	many := []string{}
	for i := range 10 {
		many = append(many, fmt.Sprint("Attribute-A", i), "v")
	}
	for name, c := range map[string]struct {
		body   string
		header []string
		status int
		code   string
	}{
		"a control character":             {"a\x01b", nil, 400, "invalid_character"},
		"NUL":                             {"\x00", nil, 400, "invalid_character"},
		"U+FFFE":                          {"a\uFFFE", nil, 400, "invalid_character"},
		"U+FFFF":                          {"a\uFFFF", nil, 400, "invalid_character"},
		"a surrogate in UTF-8":            {"\xed\xa0\x80", nil, 400, "invalid_character"},
		"Latin-1":                         {"caf\xe9", nil, 400, "invalid_character"},
		"U+FFFD is a character":           {"\uFFFD", nil, 202, ""},
		"all white space that is allowed": {"\t\r\n ", nil, 202, ""},
		"beyond the BMP":                  {"☕ 😀", nil, 202, ""},
		"empty":                           {"", nil, 400, "empty_body"},
		"too large with its attributes":   {long[:1<<20-56], nil, 413, "too_large"},
		"as large as can be":              {long[:1<<20-57], nil, 202, ""},
		"larger than any message":         {long + "x", nil, 413, "too_large"},
		"delay that is no number":         {"x", []string{"Delay-Seconds", "soon"}, 400, "bad_delay"},
		"delay too long":                  {"x", []string{"Delay-Seconds", "901"}, 400, "bad_delay"},
		"negative delay":                  {"x", []string{"Delay-Seconds", "-1"}, 400, "bad_delay"},
		"longest delay":                   {"x", []string{"Delay-Seconds", "900"}, 202, ""},
		"group with a space":              {"x", []string{"Message-Group-Id", "a b"}, 400, "bad_group"},
		"group too long":                  {"x", []string{"Message-Group-Id", strings.Repeat("g", 129)}, 400, "bad_group"},
		"key too long":                    {"x", []string{"Idempotency-Key", strings.Repeat("k", 257)}, 400, "bad_key"},
		"two keys":                        {"x", []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}, 400, "bad_header"},
		"reserved attribute":              {"x", []string{"Attribute-AWS.x", "v"}, 400, "bad_attribute"},
		"our own attribute":               {"x", []string{"Attribute-Lecafe-Order-Id", "v"}, 400, "bad_attribute"},
		"empty attribute":                 {"x", []string{"Attribute-A", ""}, 400, "bad_attribute"},
		"ten attributes":                  {"x", many, 400, "bad_attribute"},
		"nine attributes":                 {"x", many[:18], 202, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.status().Spooled
			status, _, answer := r.post("/v1/orders", c.body, c.header...)
			var a struct{ ID, Code, Error string }
			if err := json.Unmarshal([]byte(answer), &a); err != nil {
				t.Fatalf("%v in %q", err, answer)
			}
			if status != c.status || a.Code != c.code {
				t.Fatalf("%d %s, want %d %s", status, answer, c.status, c.code)
			}
			after := r.status().Spooled
			if took := after - before; took != map[bool]uint64{true: 1, false: 0}[c.status == 202] {
				t.Errorf("%d orders were spooled", took)
			}
			if (c.status == 202) == (a.Error != "") || (c.status == 202) != (a.ID != "") {
				t.Errorf("answer %q", answer)
			}
		})
	}
}

func TestABatchIsTakenWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	r := start(t, &orders.Service{Resolve: nowhere})
	for name, c := range map[string]struct {
		body   string
		status int
		want   string
	}{
		"good":                {`{"body":"a"}` + "\n\n" + `{"body":"b","group":"g","delay_seconds":3,"attributes":{"Name":"v"}}`, 202, ""},
		"one line is no JSON": {`{"body":"a"}` + "\n{", 400, `"line":2`},
		"unknown field":       {`{"body":"a","prio":1}`, 400, "prio"},
		"delay in words":      {`{"body":"a","delay_seconds":"3"}`, 400, "delay_seconds is a string, want an integer"},
		"part of a second":    {`{"body":"a","delay_seconds":1.5}`, 400, "delay_seconds is a number 1.5, want an integer"},
		"body of numbers":     {`{"body":[1]}`, 400, "body is an array, want a string"},
		"attributes in words": {`{"body":"a","attributes":true}`, 400, "attributes is a boolean, want an object of strings"},
		"attribute by number": {`{"body":"a","attributes":{"n":1}}`, 400, "is a number, want a string"},
		"a line of words":     {`"a"`, 400, "the line is a string, want an object"},
		"two values":          {`{"body":"a"} {"body":"b"}`, 400, `"line":1`},
		"bad character":       {`{"body":"a"}` + "\n" + `{"body":"\u0001"}`, 400, "invalid_character"},
		"lone surrogate":      {"{\"body\":\"caf\xe9\"}", 400, "invalid_character"},
		"no body":             {`{"group":"a"}`, 400, "empty_body"},
		"nothing":             {"\n\n", 400, "empty_batch"},
		"one key twice":       {`{"body":"a","idempotency_key":"k"}` + "\n" + `{"body":"b","idempotency_key":"k"}`, 400, "bad_key"},
		"too many":            {strings.Repeat("{\"body\":\"a\"}\n", 1001), 413, "too_large"},
		"too large":           {strings.Repeat(" ", 4<<20+1), 413, "too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.status().Spooled
			status, _, answer := r.post("/v1/orders/batch", c.body)
			if strings.Contains(answer, "json: ") || strings.Contains(answer, "Go ") {
				t.Errorf("the answer speaks of the program: %s", answer)
			}
			if status != c.status || !strings.Contains(answer, c.want) {
				t.Fatalf("%d %s, want %d with %q", status, answer, c.status, c.want)
			}
			took := r.status().Spooled - before
			if status == 202 {
				var a struct{ IDs []string }
				if err := json.Unmarshal([]byte(answer), &a); err != nil || len(a.IDs) != 2 || took != 2 {
					t.Errorf("%q, %d spooled", answer, took)
				}
			} else if took != 0 {
				t.Errorf("%d spooled of a refused batch", took)
			}
		})
	}
}

func TestOtherPathsAndMethodsAreToldInJSON(t *testing.T) {
	t.Parallel()
	r := start(t, &orders.Service{Resolve: nowhere})
	for path, c := range map[string]struct {
		status      int
		code, allow string
	}{
		"/v1/status": {405, "method_not_allowed", "GET"},
		"/metrics":   {405, "method_not_allowed", "GET"},
		"/v1/order":  {404, "not_found", ""},
		"/":          {404, "not_found", ""},
	} {
		status, header, answer := r.post(path, "latte")
		var a struct{ Code, Error string }
		if err := json.Unmarshal([]byte(answer), &a); err != nil || status != c.status || a.Code != c.code || a.Error == "" || header.Get("Allow") != c.allow {
			t.Errorf("POST %s: %d %v %s, want %d %s", path, status, header, answer, c.status, c.code)
		}
	}
	if n := r.status().Spooled; n != 0 {
		t.Errorf("%d orders were spooled", n)
	}
}

func TestAKeyStandsForOneOrder(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	dir := t.TempDir()
	r := start(t, &orders.Service{Dir: dir, Resolve: to(c, "q")})
	id := func(answer string) string {
		var a struct{ ID string }
		if err := json.Unmarshal([]byte(answer), &a); err != nil {
			t.Fatal(err)
		}
		return a.ID
	}
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			status, _, answer := r.post("/v1/orders", "flat white", "Idempotency-Key", "order-1")
			if status != 202 {
				t.Errorf("%d %s", status, answer)
			}
			ids[i] = id(answer)
		})
	}
	wg.Wait()
	for _, got := range ids {
		if got != ids[0] {
			t.Fatalf("one key, two orders: %v", ids)
		}
	}
	if n := r.status().Accepted; n != 1 {
		t.Errorf("%d orders were spooled for one key", n)
	}
	if status, _, answer := r.post("/v1/orders", "something else", "Idempotency-Key", "order-1"); status != http.StatusConflict || !strings.Contains(answer, "key_conflict") {
		t.Errorf("another order under the key: %d %s", status, answer)
	}
	status, header, answer := r.post("/v1/orders", "flat white", "Idempotency-Key", "order-1")
	if status != 202 || header.Get("Idempotent-Replayed") != "true" || id(answer) != ids[0] {
		t.Errorf("posted again: %d %v %s", status, header, answer)
	}
	// After a restart the key is forgotten, its ID is not.
	r.stop()
	r = start(t, &orders.Service{Dir: dir, Resolve: to(c, "q")})
	if _, _, answer := r.post("/v1/orders", "flat white", "Idempotency-Key", "order-1"); id(answer) != ids[0] {
		t.Errorf("after a restart: %s, want ID %s", answer, ids[0])
	}
	for _, m := range receive(t, c, "q", 2) {
		if m.id != ids[0] {
			t.Errorf("received %s", m.id)
		}
	}
}

func TestTheQueuesOwnLimitsHoldOnceTheyAreKnown(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("small", map[string]string{"MaximumMessageSize": "2048"})
	r := start(t, &orders.Service{Resolve: to(c, "small")})
	r.await("aware of the limit", func(s orders.Status) bool { return s.Forward.MaxMessage == 2048 })
	if status, _, answer := r.post("/v1/orders", strings.Repeat("x", 2048)); status != 413 {
		t.Errorf("2048 bytes and an attribute: %d %s", status, answer)
	}
	if status, _, answer := r.post("/v1/orders", strings.Repeat("x", 2048-57)); status != 202 {
		t.Errorf("just fits: %d %s", status, answer)
	}
	receive(t, c, "small", 1)
}

func TestAFIFOQueueNeedsAGroup(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q.fifo", nil)
	r := start(t, &orders.Service{Resolve: to(c, "q.fifo")})
	r.await("aware of the queue", func(s orders.Status) bool { return s.Forward.FIFO })
	if status, _, answer := r.post("/v1/orders", "x"); status != 400 || !strings.Contains(answer, "bad_group") {
		t.Errorf("without a group: %d %s", status, answer)
	}
	if status, _, answer := r.post("/v1/orders", "x", "Message-Group-Id", "g", "Delay-Seconds", "5"); status != 400 || !strings.Contains(answer, "bad_delay") {
		t.Errorf("with a delay: %d %s", status, answer)
	}
	if status, _, answer := r.post("/v1/orders", "x", "Message-Group-Id", "g"); status != 202 {
		t.Errorf("with a group: %d %s", status, answer)
	}
	if m := receive(t, c, "q.fifo", 1)[0]; m.Attributes["MessageGroupId"] != "g" || m.Attributes["MessageDeduplicationId"] != m.id {
		t.Errorf("%v, ID %s", m.Attributes, m.id)
	}
}

func TestAFullSpoolIsBackPressureAndLosesNothing(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	open := make(chan struct{})
	r := start(t, &orders.Service{MaxBytes: 12 << 20, Resolve: func(ctx context.Context) (orders.Target, error) {
		select {
		case <-open:
			return to(c, "q")(ctx)
		case <-ctx.Done():
			return orders.Target{}, ctx.Err()
		}
	}})
	body := strings.Repeat("x", 500<<10)
	accepted := map[string]bool{}
	for {
		status, header, answer := r.post("/v1/orders", body)
		if status == 429 {
			if header.Get("Retry-After") == "" || !strings.Contains(answer, "spool_full") {
				t.Errorf("%v %s", header, answer)
			}
			break
		}
		var a struct{ ID string }
		if err := json.Unmarshal([]byte(answer), &a); err != nil || status != 202 || len(accepted) > 100 {
			t.Fatalf("%d %s after %d orders", status, answer, len(accepted))
		}
		accepted[a.ID] = true
	}
	close(open)
	// The client waits for room by itself.
	id, err := r.client.Send(t.Context(), client.Order{Body: body})
	if err != nil {
		t.Fatal(err)
	}
	accepted[id] = true
	for _, m := range receive(t, c, "q", len(accepted)) {
		if !accepted[m.id] || len(aws.ToString(m.Body)) != len(body) {
			t.Errorf("received %s", m.id)
		}
		delete(accepted, m.id)
	}
	if len(accepted) > 0 {
		t.Errorf("%d orders are lost", len(accepted))
	}
}

func TestMetricsNameWhatHappened(t *testing.T) {
	t.Parallel()
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	r := start(t, &orders.Service{Resolve: to(c, "q")})
	r.post("/v1/orders", "x")
	r.post("/v1/orders", "")
	r.await("empty", func(s orders.Status) bool { return s.Accepted == 1 && s.Spooled == 0 && s.Forward.Sent == 1 })
	b, err := r.client.Get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# TYPE lecafe_orders_accepted_total counter\nlecafe_orders_accepted_total 1\n", `lecafe_orders_refused_total{reason="invalid"} 1`,
		"lecafe_orders_sent_total 1\n", "lecafe_spool_records 0\n", "lecafe_orders_parked 0\n",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
}
