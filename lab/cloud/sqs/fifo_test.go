package sqs_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

func (l *lab) sendFIFO(q *string, group, dedup, body string) *sqs.SendMessageOutput {
	l.Helper()
	out, err := l.c.SendMessage(l.Context(), &sqs.SendMessageInput{QueueUrl: q, MessageBody: &body, MessageGroupId: &group, MessageDeduplicationId: &dedup})
	if err != nil {
		l.Fatal(err)
	}
	return out
}

func TestFIFO(t *testing.T) {
	l := start(t)
	q := l.queue("orders.fifo", map[string]string{"FifoQueue": "true"})
	one := l.sendFIFO(q, "table-1", "a", "1a")
	l.sendFIFO(q, "table-1", "b", "1b")
	l.sendFIFO(q, "table-2", "c", "2a")
	// A duplicate within five minutes is answered like the first and not queued.
	again := l.sendFIFO(q, "table-1", "a", "1a")
	if *again.MessageId != *one.MessageId || *again.SequenceNumber != *one.SequenceNumber {
		t.Errorf("duplicate %+v of %+v", again, one)
	}

	first := l.receive(q, 1)
	if bodies(first) != "1a" || first[0].Attributes["MessageGroupId"] != "table-1" || first[0].Attributes["SequenceNumber"] != *one.SequenceNumber {
		t.Fatalf("%+v", first)
	}
	// The group waits while its message is in flight; others do not.
	if got := bodies(l.receive(q, 10)); got != "2a" {
		t.Errorf("beside a message in flight: %q", got)
	}
	if err := l.delete(q, first[0]); err != nil {
		t.Fatal(err)
	}
	second := l.receive(q, 10)
	if bodies(second) != "1b" {
		t.Errorf("next of the group: %q", bodies(second))
	}
	// The handle of a receipt that has run out deletes nothing.
	l.clock.Advance(time.Minute)
	code(t, l.delete(q, second[0]), "InvalidParameterValue")
	if got := bodies(l.receive(q, 10)); got != "1b 2a" {
		t.Errorf("after the visibility timeout: %q", got)
	}

	l.clock.Advance(4*time.Minute - time.Second) // 4:59 since the first sending
	l.sendFIFO(q, "table-3", "a", "dup")
	l.clock.Advance(2 * time.Second)
	l.sendFIFO(q, "table-3", "a", "new")
	got := bodies(l.receive(q, 10))
	if strings.Contains(got, "dup") || !strings.Contains(got, "new") {
		t.Errorf("deduplication lasts five minutes: %q", got)
	}

	for name, tt := range map[string]struct {
		in   sqs.SendMessageInput
		code string
	}{
		"no group":         {sqs.SendMessageInput{MessageDeduplicationId: aws.String("x")}, "MissingParameter"},
		"no deduplication": {sqs.SendMessageInput{MessageGroupId: aws.String("x")}, "InvalidParameterValue"},
		"a delay":          {sqs.SendMessageInput{MessageGroupId: aws.String("x"), MessageDeduplicationId: aws.String("y"), DelaySeconds: 1}, "InvalidParameterValue"},
		"group's spaces":   {sqs.SendMessageInput{MessageGroupId: aws.String("x y"), MessageDeduplicationId: aws.String("y")}, "InvalidParameterValue"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.in.QueueUrl, tt.in.MessageBody = q, aws.String("x")
			_, err := l.c.SendMessage(t.Context(), &tt.in)
			code(t, err, tt.code)
		})
	}
	standard := l.queue("orders", nil)
	_, err := l.c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: standard, MessageBody: aws.String("x"), MessageDeduplicationId: aws.String("y")})
	code(t, err, "InvalidParameterValue")
}

func TestContentBasedDeduplication(t *testing.T) {
	l := start(t)
	q := l.queue("orders.fifo", map[string]string{"FifoQueue": "true", "ContentBasedDeduplication": "true"})
	for range 2 {
		if _, err := l.c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: q, MessageBody: aws.String("x"), MessageGroupId: aws.String("g")}); err != nil {
			t.Fatal(err)
		}
	}
	if got := bodies(l.receive(q, 10)); got != "x" {
		t.Errorf("received %q", got)
	}
}

func TestDeadLetterQueue(t *testing.T) {
	l := start(t)
	dlq := l.queue("dead", nil)
	arn := l.attributes(dlq)["QueueArn"]
	q := l.queue("orders", map[string]string{"RedrivePolicy": `{"deadLetterTargetArn":"` + arn + `","maxReceiveCount":"2"}`, "VisibilityTimeout": "1"})
	l.send(q, "poison")
	var id string
	for range 2 {
		got := l.receive(q, 1)
		if len(got) != 1 {
			t.Fatalf("%d messages", len(got))
		}
		id = *got[0].MessageId
		l.clock.Advance(time.Second)
	}
	if got := l.receive(q, 1); len(got) != 0 {
		t.Errorf("received a third time: %q", bodies(got))
	}
	dead := l.receive(dlq, 1)
	if bodies(dead) != "poison" || *dead[0].MessageId != id || dead[0].Attributes["DeadLetterQueueSourceArn"] != l.attributes(q)["QueueArn"] {
		t.Fatalf("%+v", dead)
	}
	sources, err := l.c.ListDeadLetterSourceQueues(t.Context(), &sqs.ListDeadLetterSourceQueuesInput{QueueUrl: dlq})
	if err != nil || len(sources.QueueUrls) != 1 || sources.QueueUrls[0] != *q {
		t.Errorf("%+v %v", sources, err)
	}
	for name, policy := range map[string]string{
		"no such queue": `{"deadLetterTargetArn":"` + arn + `x","maxReceiveCount":1}`,
		"another type":  `{"deadLetterTargetArn":"` + l.attributes(l.queue("dead.fifo", map[string]string{"FifoQueue": "true"}))["QueueArn"] + `","maxReceiveCount":1}`,
	} {
		_, err := l.c.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: q, Attributes: map[string]string{"RedrivePolicy": policy}})
		t.Run(name, func(t *testing.T) { code(t, err, "InvalidParameterValue") })
	}
	_, err = l.c.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: q, Attributes: map[string]string{"RedrivePolicy": "nonsense"}})
	code(t, err, "InvalidAttributeValue")
}
