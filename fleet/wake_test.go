package fleet_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// queue is a lab's queue with an instance role that may send to it.
type queue struct {
	*cloudtest.Cloud
	url string
}

func newQueue(t *testing.T, attributes map[string]string) *queue {
	c := cloudtest.New(t, cloud.Options{})
	out, err := sqs.NewFromConfig(c.Config()).CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("reports"), Attributes: attributes})
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"app", "other"} {
		if err := c.PutRolePolicy(role, "send", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sqs:*","Resource":"*"}]}`); err != nil {
			t.Fatal(err)
		}
	}
	return &queue{c, *out.QueueUrl}
}

func (q *queue) send(t *testing.T, creds wire.Credentials, body string) {
	t.Helper()
	if _, err := sqs.NewFromConfig(q.As(creds)).SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &q.url, MessageBody: &body}); err != nil {
		t.Fatal(err)
	}
}

func messageOf(sender, instance, id string) string {
	b, _ := report.Encode(&report.Report{ID: id, Kind: report.KindBootstrap, Verdict: report.Success, Sender: sender, Instance: report.Instance{ID: instance}, JudgedAt: now})
	return string(b)
}

// listen runs a waker and collects what it says.
type listener struct {
	mu      sync.Mutex
	senders []string
	refused []fleet.Refusal
	notices []string
	more    chan struct{}
}

func listen(t *testing.T, k *fleet.Waker) *listener {
	l := &listener{more: make(chan struct{}, 100)}
	tell := func() { l.more <- struct{}{} }
	k.Idle = 10 * time.Millisecond
	k.Refused = func(r fleet.Refusal) { l.mu.Lock(); l.refused = append(l.refused, r); l.mu.Unlock(); tell() }
	k.Notice = func(s string) { l.mu.Lock(); l.notices = append(l.notices, s); l.mu.Unlock(); tell() }
	ctx, cancel := context.WithCancel(context.Background())
	wake := make(chan []string)
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Run(ctx, wake) }()
	go func() {
		for {
			select {
			case s := <-wake:
				l.mu.Lock()
				l.senders = append(l.senders, s...)
				l.mu.Unlock()
				tell()
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return l
}

// until waits for what holds under the lock.
func (l *listener) until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		l.mu.Lock()
		ok := holds()
		l.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("%s did not come: senders %q, refused %+v, notices %q", what, l.senders, l.refused, l.notices)
		}
	}
}

func TestTwoWakersDoNotStealFromEachOther(t *testing.T) {
	q := newQueue(t, nil)
	a := listen(t, &fleet.Waker{API: sqs.NewFromConfig(q.Config()), Queue: "reports"})
	b := listen(t, &fleet.Waker{API: sqs.NewFromConfig(q.Config()), Queue: q.url})
	var want []string
	for _, id := range []string{"i-0000000000000000a", "i-0000000000000000b", "i-0000000000000000c"} {
		creds := q.Vault.Vend("app", id, time.Hour)
		want = append(want, creds.Caller.UserID)
		q.send(t, creds, messageOf(creds.Caller.UserID, id, report.NewID()))
	}
	for _, l := range []*listener{a, b} {
		l.until(t, "every sender", func() bool { slices.Sort(l.senders); return slices.Equal(l.senders, want) })
	}
}

func TestMessagesThatAreNotBelieved(t *testing.T) {
	q := newQueue(t, nil)
	l := listen(t, &fleet.Waker{API: sqs.NewFromConfig(q.Config()), Queue: "reports"})
	victim := q.Vault.Vend("app", "i-0000000000000000a", time.Hour)
	evil := q.Vault.Vend("app", "i-0000000000000000e", time.Hour)
	id := report.NewID()
	q.send(t, evil, messageOf(victim.Caller.UserID, "i-0000000000000000a", report.NewID())) // claims another's sender
	q.send(t, evil, messageOf(evil.Caller.UserID, "i-0000000000000000a", report.NewID()))   // speaks of another
	q.send(t, evil, "\x09{broken")
	operator, _ := q.Vault.Lookup("test")
	q.send(t, operator, messageOf(victim.Caller.UserID, "i-0000000000000000a", report.NewID())) // no instance at all
	l.until(t, "four refusals", func() bool { return len(l.refused) == 4 })
	reasons := map[fleet.Reason]int{}
	for _, r := range l.refused {
		reasons[r.Reason]++
	}
	if reasons[fleet.Forged] != 3 || reasons[fleet.Malformed] != 1 {
		t.Errorf("refused %+v", l.refused)
	}
	// A true report, then a copy of its ID under another name.
	q.send(t, victim, messageOf(victim.Caller.UserID, "i-0000000000000000a", id))
	l.until(t, "the true one", func() bool { return len(l.senders) == 1 })
	q.send(t, evil, messageOf(evil.Caller.UserID, "i-0000000000000000e", id))
	l.until(t, "the copy's refusal", func() bool { return len(l.refused) == 5 })
	if l.refused[4].Reason != fleet.Replayed || len(l.senders) != 1 {
		t.Errorf("refused %+v, senders %q", l.refused[4], l.senders)
	}
}

func TestConstantSenderOfAnEmulator(t *testing.T) {
	q := newQueue(t, nil)
	operator, _ := q.Vault.Lookup("test") // as moto: one SenderId for all
	strict := listen(t, &fleet.Waker{API: sqs.NewFromConfig(q.Config()), Queue: "reports"})
	lax := listen(t, &fleet.Waker{API: sqs.NewFromConfig(q.Config()), Queue: "reports", NoVerify: true})
	q.send(t, operator, messageOf("AROAAPPAPP:i-0000000000000000a", "i-0000000000000000a", report.NewID()))
	strict.until(t, "the notice", func() bool {
		return len(strict.notices) == 1 && strings.Contains(strict.notices[0], "--no-verify-sender") && len(strict.refused) == 1
	})
	lax.until(t, "the sender", func() bool { return slices.Equal(lax.senders, []string{"AROAAPPAPP:i-0000000000000000a"}) })
}

func TestRedrivePolicyStopsTheWaker(t *testing.T) {
	q := newQueue(t, nil)
	client := sqs.NewFromConfig(q.Config())
	dead, err := client.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("dead")})
	if err != nil {
		t.Fatal(err)
	}
	_ = dead
	if _, err := client.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: &q.url, Attributes: map[string]string{
		"RedrivePolicy": `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":"3"}`}}); err != nil {
		t.Fatal(err)
	}
	l := listen(t, &fleet.Waker{API: client, Queue: "reports"})
	l.until(t, "the notice", func() bool { return len(l.notices) == 1 && strings.Contains(l.notices[0], "redrive") })
}
