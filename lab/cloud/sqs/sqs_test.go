package sqs_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

type lab struct {
	*testing.T
	cloud   *cloudtest.Cloud
	clock   *wire.Manual
	waiting <-chan struct{} // a long poll has begun
	c       *sqs.Client
}

// pollClock tells of every timer of 20 s: a long poll that has found nothing.
type pollClock struct {
	*wire.Manual
	waiting chan<- struct{}
}

func (c pollClock) AfterFunc(d time.Duration, f func()) func() bool {
	stop := c.Manual.AfterFunc(d, f)
	if d == 20*time.Second {
		c.waiting <- struct{}{}
	}
	return stop
}

func start(t *testing.T) *lab {
	t.Helper()
	clock := wire.NewManual(time.Now())
	waiting := make(chan struct{}, 100)
	c := cloudtest.New(t, cloud.Options{Clock: pollClock{clock, waiting}})
	return &lab{T: t, cloud: c, clock: clock, waiting: waiting, c: client(c.Config())}
}

// client signs by the test's clock, which may be ahead of the machine's.
func client(cfg aws.Config) *sqs.Client {
	cfg.Retryer = func() aws.Retryer { return aws.NopRetryer{} }
	return sqs.NewFromConfig(cfg)
}

func (l *lab) queue(name string, attributes map[string]string) *string {
	l.Helper()
	out, err := l.c.CreateQueue(l.Context(), &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		l.Fatal(err)
	}
	return out.QueueUrl
}

func (l *lab) send(q *string, body string) {
	l.Helper()
	if _, err := l.c.SendMessage(l.Context(), &sqs.SendMessageInput{QueueUrl: q, MessageBody: &body}); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) receive(q *string, n int32) []types.Message {
	l.Helper()
	out, err := l.c.ReceiveMessage(l.Context(), &sqs.ReceiveMessageInput{QueueUrl: q, MaxNumberOfMessages: n, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"}, MessageAttributeNames: []string{"All"}})
	if err != nil {
		l.Fatal(err)
	}
	return out.Messages
}

func (l *lab) delete(q *string, m types.Message) error {
	_, err := l.c.DeleteMessage(l.Context(), &sqs.DeleteMessageInput{QueueUrl: q, ReceiptHandle: m.ReceiptHandle})
	return err
}

func bodies(messages []types.Message) string {
	var out []string
	for _, m := range messages {
		out = append(out, *m.Body)
	}
	return strings.Join(out, " ")
}

func code(t *testing.T, err error, want string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || e.ErrorCode() != want {
		t.Fatalf("error %v, want %s", err, want)
	}
}

func TestVisibility(t *testing.T) {
	l := start(t)
	q := l.queue("orders", map[string]string{"VisibilityTimeout": "60"})
	l.send(q, "espresso")
	first := l.receive(q, 10)
	if bodies(first) != "espresso" || len(l.receive(q, 10)) != 0 {
		t.Fatalf("received %q, or twice", bodies(first))
	}
	l.clock.Advance(59 * time.Second)
	if got := l.receive(q, 10); len(got) != 0 {
		t.Errorf("visible too early: %q", bodies(got))
	}
	l.clock.Advance(time.Second)
	second := l.receive(q, 10)
	if len(second) != 1 || second[0].Attributes["ApproximateReceiveCount"] != "2" || *second[0].ReceiptHandle == *first[0].ReceiptHandle {
		t.Fatalf("second receipt %+v", second)
	}
	change := func(m types.Message, seconds int32) error {
		_, err := l.c.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: q, ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: seconds})
		return err
	}
	if err := change(second[0], 600); err != nil {
		t.Fatal(err)
	}
	l.clock.Advance(5 * time.Minute)
	if got := l.receive(q, 10); len(got) != 0 {
		t.Errorf("visible in spite of the longer timeout")
	}
	code(t, change(second[0], 43201), "InvalidParameterValue")
	code(t, change(second[0], 43200), "InvalidParameterValue") // 12 hours from the receipt
	if err := change(second[0], 0); err != nil {
		t.Fatal(err)
	}
	code(t, change(second[0], 10), "AWS.SimpleQueueService.MessageNotInflight")
	third := l.receive(q, 10)
	if len(third) != 1 {
		t.Fatal("not given back by a timeout of 0")
	}
	// A standard queue takes an older receipt handle too; deleting again is fine.
	if err := errors.Join(l.delete(q, first[0]), l.delete(q, third[0])); err != nil {
		t.Error(err)
	}
	l.clock.Advance(time.Minute)
	if got := l.receive(q, 10); len(got) != 0 {
		t.Errorf("deleted message is back")
	}
	code(t, l.delete(q, types.Message{ReceiptHandle: aws.String("nonsense")}), "ReceiptHandleIsInvalid")
}

func TestDelayAndRetention(t *testing.T) {
	l := start(t)
	q := l.queue("orders", map[string]string{"DelaySeconds": "10", "MessageRetentionPeriod": "60"})
	l.send(q, "late")
	if _, err := l.c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: q, MessageBody: aws.String("later"), DelaySeconds: 20}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"", "late", "later"} {
		if got := bodies(l.receive(q, 10)); got != want {
			t.Errorf("received %q, want %q", got, want)
		}
		l.clock.Advance(10 * time.Second)
	}
	l.clock.Advance(50 * time.Second)
	if a := l.attributes(q); a["ApproximateNumberOfMessages"] != "0" || a["ApproximateNumberOfMessagesNotVisible"] != "0" {
		t.Errorf("kept past the retention: %v", a)
	}
	_, err := l.c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: q, MessageBody: aws.String("x"), DelaySeconds: 901})
	code(t, err, "InvalidParameterValue")
}

func (l *lab) attributes(q *string) map[string]string {
	l.Helper()
	out, err := l.c.GetQueueAttributes(l.Context(), &sqs.GetQueueAttributesInput{QueueUrl: q, AttributeNames: []types.QueueAttributeName{"All"}})
	if err != nil {
		l.Fatal(err)
	}
	return out.Attributes
}

func TestLongPoll(t *testing.T) {
	l := start(t)
	q := l.queue("orders", nil)
	type result struct {
		out *sqs.ReceiveMessageOutput
		err error
	}
	poll := func(ctx context.Context) chan result {
		answers := make(chan result, 1)
		go func() {
			out, err := l.c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: q, WaitTimeSeconds: 20})
			answers <- result{out, err}
		}()
		<-l.waiting
		return answers
	}
	// A message ends the wait.
	answers := poll(context.WithoutCancel(t.Context()))
	l.send(q, "espresso")
	if r := <-answers; r.err != nil || bodies(r.out.Messages) != "espresso" {
		t.Fatalf("%+v %v", r.out, r.err)
	}
	// So does the end of another receipt's visibility, and the wait's own. The
	// visibility that ends at 30 s began before the wait of 20 s.
	l.clock.Advance(15 * time.Second)
	for _, want := range []string{"espresso", ""} {
		answers = poll(context.WithoutCancel(t.Context()))
		if want != "" {
			l.clock.Advance(15 * time.Second)
		} else {
			l.clock.Advance(20 * time.Second)
		}
		r := <-answers
		if r.err != nil || bodies(r.out.Messages) != want {
			t.Fatalf("%+v %v, want %q", r.out, r.err, want)
		}
		if want != "" {
			if err := l.delete(q, r.out.Messages[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Closing the cloud ends a wait: Close would hang otherwise.
	ctx, cancel := context.WithCancel(t.Context())
	answers = poll(ctx)
	cancel()
	if r := <-answers; r.err == nil {
		t.Error("a cancelled wait succeeded")
	}
	_, err := l.c.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q, WaitTimeSeconds: 21})
	code(t, err, "InvalidParameterValue")
	_, err = l.c.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q, MaxNumberOfMessages: 11})
	code(t, err, "InvalidParameterValue")
}

func TestMessagesRefused(t *testing.T) {
	l := start(t)
	q := l.queue("orders", map[string]string{"MaximumMessageSize": "1024"})
	text := func(s string) map[string]types.MessageAttributeValue {
		return map[string]types.MessageAttributeValue{"a": {DataType: aws.String("String"), StringValue: aws.String(s)}}
	}
	for name, tt := range map[string]struct {
		body       string
		attributes map[string]types.MessageAttributeValue
		code       string
	}{
		"a control character":     {"bell \x07", nil, "InvalidMessageContents"},
		"NUL":                     {"\x00", nil, "InvalidMessageContents"},
		"a noncharacter":          {"\uffff", nil, "InvalidMessageContents"},
		"another noncharacter":    {"\ufffe", nil, "InvalidMessageContents"},
		"too long":                {strings.Repeat("x", 1025), nil, "InvalidParameterValue"},
		"too long in bytes":       {strings.Repeat("é", 513), nil, "InvalidParameterValue"},
		"too long by attributes":  {strings.Repeat("x", 1020), text("four"), "InvalidParameterValue"},
		"empty":                   {"", nil, "MissingParameter"},
		"attribute's type":        {"x", map[string]types.MessageAttributeValue{"a": {DataType: aws.String("Text"), StringValue: aws.String("x")}}, "InvalidParameterValue"},
		"attribute's name":        {"x", map[string]types.MessageAttributeValue{"AWS.a": {DataType: aws.String("String"), StringValue: aws.String("x")}}, "InvalidParameterValue"},
		"attribute without value": {"x", text(""), "InvalidParameterValue"},
		"attribute's characters":  {"x", text("\x01"), "InvalidMessageContents"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := l.c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: q, MessageBody: &tt.body, MessageAttributes: tt.attributes})
			code(t, err, tt.code)
		})
	}
	for _, body := range []string{"tab\tnew\r\nline", "é 漢 \U0001f600 \ue000 \ufffd", strings.Repeat("x", 1024)} {
		l.send(q, body)
		if got := bodies(l.receive(q, 1)); got != body {
			t.Errorf("received %q, sent %q", got, body)
		}
	}
}

func TestBatches(t *testing.T) {
	l := start(t)
	q := l.queue("orders", nil)
	batch := func(entries ...types.SendMessageBatchRequestEntry) (*sqs.SendMessageBatchOutput, error) {
		return l.c.SendMessageBatch(t.Context(), &sqs.SendMessageBatchInput{QueueUrl: q, Entries: entries})
	}
	entry := func(id, body string) types.SendMessageBatchRequestEntry {
		return types.SendMessageBatchRequestEntry{Id: &id, MessageBody: &body}
	}
	var eleven []types.SendMessageBatchRequestEntry
	for i := range 11 {
		eleven = append(eleven, entry(fmt.Sprint("m", i), strings.Repeat("x", 100)))
	}
	big := strings.Repeat("x", 600_000)
	for name, tt := range map[string]struct {
		entries []types.SendMessageBatchRequestEntry
		code    string
	}{
		"none":            {[]types.SendMessageBatchRequestEntry{}, "AWS.SimpleQueueService.EmptyBatchRequest"},
		"eleven":          {eleven, "AWS.SimpleQueueService.TooManyEntriesInBatchRequest"},
		"over 1 MiB":      {[]types.SendMessageBatchRequestEntry{entry("a", big), entry("b", big)}, "AWS.SimpleQueueService.BatchRequestTooLong"},
		"the same ID":     {[]types.SendMessageBatchRequestEntry{entry("a", "1"), entry("a", "2")}, "AWS.SimpleQueueService.BatchEntryIdsNotDistinct"},
		"an ID with dots": {[]types.SendMessageBatchRequestEntry{entry("a.b", "1")}, "AWS.SimpleQueueService.InvalidBatchEntryId"},
		"a long ID":       {[]types.SendMessageBatchRequestEntry{entry(strings.Repeat("a", 81), "1")}, "AWS.SimpleQueueService.InvalidBatchEntryId"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := batch(tt.entries...)
			code(t, err, tt.code)
		})
	}
	if a := l.attributes(q); a["ApproximateNumberOfMessages"] != "0" {
		t.Errorf("a refused batch left %s messages", a["ApproximateNumberOfMessages"])
	}

	// A 200 may carry failures.
	out, err := batch(entry("good", "1"), entry("bad", "\x00"), entry("empty", ""))
	if err != nil || len(out.Successful) != 1 || *out.Successful[0].Id != "good" || len(out.Failed) != 2 {
		t.Fatalf("%+v %v", out, err)
	}
	for _, f := range out.Failed {
		want := map[string]string{"bad": "InvalidMessageContents", "empty": "MissingParameter"}[*f.Id]
		if *f.Code != want || !f.SenderFault {
			t.Errorf("%s: %s, sender's fault %v", *f.Id, *f.Code, f.SenderFault)
		}
	}
	if _, err := batch(entry("a", big), entry("b", strings.Repeat("x", 1<<20-600_000))); err != nil {
		t.Errorf("exactly 1 MiB: %v", err)
	}

	got := l.receive(q, 10)
	if len(got) != 3 {
		t.Fatalf("%d messages", len(got))
	}
	changed, err := l.c.ChangeMessageVisibilityBatch(t.Context(), &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: q, Entries: []types.ChangeMessageVisibilityBatchRequestEntry{
		{Id: aws.String("ok"), ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 100}, {Id: aws.String("bad"), ReceiptHandle: aws.String("x"), VisibilityTimeout: 1},
	}})
	if err != nil || len(changed.Successful) != 1 || len(changed.Failed) != 1 || *changed.Failed[0].Code != "ReceiptHandleIsInvalid" {
		t.Errorf("%+v %v", changed, err)
	}
	deleted, err := l.c.DeleteMessageBatch(t.Context(), &sqs.DeleteMessageBatchInput{QueueUrl: q, Entries: []types.DeleteMessageBatchRequestEntry{
		{Id: aws.String("a"), ReceiptHandle: got[0].ReceiptHandle}, {Id: aws.String("b"), ReceiptHandle: got[1].ReceiptHandle}, {Id: aws.String("c"), ReceiptHandle: aws.String("x")},
	}})
	if err != nil || len(deleted.Successful) != 2 || len(deleted.Failed) != 1 {
		t.Errorf("%+v %v", deleted, err)
	}
	l.clock.Advance(10 * time.Minute)
	if got := l.receive(q, 10); len(got) != 1 {
		t.Errorf("%d messages left", len(got))
	}
}

// SenderId tells which instance really sent a message.
func TestSenderID(t *testing.T) {
	l := start(t)
	q := l.queue("orders", nil)
	const role = "lecafe-app-role"
	send := func(creds wire.Credentials) error {
		_, err := client(l.cloud.As(creds)).SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: q, MessageBody: aws.String("x")})
		return err
	}
	instance := l.cloud.Vault.Vend(role, "i-0123456789abcdef0", time.Hour)
	code(t, send(instance), "AccessDenied") // no policy yet
	if err := l.cloud.PutRolePolicy(role, "orders", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sqs:SendMessage","Resource":"arn:aws:sqs:*:*:orders"}]}`); err != nil {
		t.Fatal(err)
	}
	if err := send(instance); err != nil {
		t.Fatal(err)
	}
	_, err := client(l.cloud.As(instance)).ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q})
	code(t, err, "AccessDenied")
	got := l.receive(q, 1)
	if want := l.cloud.Vault.RoleID(role) + ":i-0123456789abcdef0"; len(got) != 1 || got[0].Attributes["SenderId"] != want || !strings.HasPrefix(want, "AROA") {
		t.Errorf("%+v, want sender %s", got, want)
	}
}

func TestAttributesOfMessages(t *testing.T) {
	l := start(t)
	q := l.queue("orders", nil)
	sent, err := l.c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: q, MessageBody: aws.String("x"), MessageAttributes: map[string]types.MessageAttributeValue{
		"order.id": {DataType: aws.String("String"), StringValue: aws.String("42")}, "order.cups": {DataType: aws.String("Number.int"), StringValue: aws.String("2")},
		"blob": {DataType: aws.String("Binary"), BinaryValue: []byte{0, 1, 2}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.c.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q, MessageAttributeNames: []string{"order.*"}, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"SentTimestamp"}})
	if err != nil || len(out.Messages) != 1 {
		t.Fatalf("%+v %v", out, err)
	}
	m := out.Messages[0]
	if len(m.MessageAttributes) != 2 || *m.MessageAttributes["order.id"].StringValue != "42" || len(m.Attributes) != 1 || m.Attributes["SentTimestamp"] != strconv.FormatInt(l.clock.Now().UnixMilli(), 10) {
		t.Errorf("%+v %+v", m.MessageAttributes, m.Attributes)
	}
	l.clock.Advance(time.Minute)
	all := l.receive(q, 1)[0]
	if string(all.MessageAttributes["blob"].BinaryValue) != "\x00\x01\x02" || *all.MD5OfMessageAttributes != *sent.MD5OfMessageAttributes {
		t.Errorf("%+v", all)
	}
}

func TestQueues(t *testing.T) {
	l := start(t)
	ctx := t.Context()
	q := l.queue("orders", map[string]string{"VisibilityTimeout": "45"})
	if again := l.queue("orders", map[string]string{"VisibilityTimeout": "45"}); *again != *q {
		t.Errorf("URL %s, then %s", *q, *again)
	}
	for name, tt := range map[string]struct {
		queue      string
		attributes map[string]string
		code       string
	}{
		"exists with others":   {"orders", map[string]string{"VisibilityTimeout": "46"}, "QueueAlreadyExists"},
		"name":                 {"or ders", nil, "InvalidParameterValue"},
		"long name":            {strings.Repeat("q", 81), nil, "InvalidParameterValue"},
		"fifo without suffix":  {"line", map[string]string{"FifoQueue": "true"}, "InvalidParameterValue"},
		"suffix without fifo":  {"line.fifo", nil, "InvalidParameterValue"},
		"unknown attribute":    {"line", map[string]string{"Colour": "brown"}, "InvalidAttributeName"},
		"fifo's attribute":     {"line", map[string]string{"ContentBasedDeduplication": "true"}, "InvalidAttributeName"},
		"size over the limit":  {"line", map[string]string{"MaximumMessageSize": "1048577"}, "InvalidAttributeValue"},
		"size under the limit": {"line", map[string]string{"MaximumMessageSize": "1023"}, "InvalidAttributeValue"},
		"no number":            {"line", map[string]string{"VisibilityTimeout": "soon"}, "InvalidAttributeValue"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := l.c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &tt.queue, Attributes: tt.attributes})
			code(t, err, tt.code)
		})
	}
	url, err := l.c.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String("orders")})
	if err != nil || *url.QueueUrl != *q {
		t.Errorf("%+v %v", url, err)
	}
	_, err = l.c.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String("nosuch")})
	code(t, err, "AWS.SimpleQueueService.NonExistentQueue")
	var missing *types.QueueDoesNotExist
	if !errors.As(err, &missing) {
		t.Errorf("error %T is no QueueDoesNotExist", err)
	}
	// The same name in another region is another queue.
	cfg := l.cloud.Config()
	cfg.Region = "eu-west-1"
	_, err = client(cfg).SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: q, MessageBody: aws.String("x")})
	code(t, err, "AWS.SimpleQueueService.NonExistentQueue")

	l.queue("other", nil)
	var names []string
	p := sqs.NewListQueuesPaginator(l.c, &sqs.ListQueuesInput{MaxResults: aws.Int32(1)})
	for p.HasMorePages() {
		out, err := p.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, out.QueueUrls...)
	}
	if len(names) != 2 || names[0] != *q {
		t.Errorf("queues %v", names)
	}

	l.send(q, "x")
	if _, err := l.c.PurgeQueue(ctx, &sqs.PurgeQueueInput{QueueUrl: q}); err != nil {
		t.Fatal(err)
	}
	if got := l.receive(q, 1); len(got) != 0 {
		t.Errorf("purged queue holds %q", bodies(got))
	}
	_, err = l.c.PurgeQueue(ctx, &sqs.PurgeQueueInput{QueueUrl: q})
	code(t, err, "AWS.SimpleQueueService.PurgeQueueInProgress")
	l.clock.Advance(time.Minute)
	if _, err := l.c.PurgeQueue(ctx, &sqs.PurgeQueueInput{QueueUrl: q}); err != nil {
		t.Error(err)
	}
	if _, err := l.c.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: q}); err != nil {
		t.Fatal(err)
	}
	_, err = l.c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("orders")})
	code(t, err, "AWS.SimpleQueueService.QueueDeletedRecently")
	_, err = l.c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: q})
	code(t, err, "AWS.SimpleQueueService.NonExistentQueue")
	l.clock.Advance(time.Minute)
	l.queue("orders", nil)
}
