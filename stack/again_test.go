package stack_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/stack"
)

// removed is a stack that was made, and removed a moment ago with its queues.
// tell hears what the stack tells from then on.
func removed(t *testing.T, tell func(clock *wire.Manual, line string)) (*stack.Stack, *cloudtest.Cloud) {
	clock := wire.NewManual(time.Now())
	c := cloudtest.New(t, cloud.Options{Clock: clock})
	s := &stack.Stack{Name: "lecafe", Clients: stack.NewClients(c.Config()), Interval: time.Millisecond, QueueWait: time.Millisecond}
	if err := up(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	r, err := s.PlanRemoval(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := s.Remove(t.Context(), r, false); err != nil || len(kept) > 0 {
		t.Fatalf("%v %v", kept, err)
	}
	s.Tell = func(line string) { tell(clock, line) }
	return s, c
}

func up(ctx context.Context, s *stack.Stack) error {
	p, err := s.Plan(ctx, stack.Request{})
	if err != nil {
		return err
	}
	return p.Execute(ctx)
}

const held = "SQS holds the name back"

// passes lets the minute pass whenever up waits for a name, and counts that.
func passes(waited *int) func(*wire.Manual, string) {
	return func(clock *wire.Manual, line string) {
		if strings.Contains(line, held) {
			*waited++
			clock.Advance(61 * time.Second)
		}
	}
}

func TestUpAfterDownWaitsForTheQueuesNames(t *testing.T) {
	waited := 0
	s, c := removed(t, passes(&waited))
	if err := up(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if waited != 1 {
		t.Errorf("waited %d times", waited)
	}
	if _, err := sqs.NewFromConfig(c.Config()).GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("lecafe-orders")}); err != nil {
		t.Error(err)
	}
	if p, err := s.Plan(t.Context(), stack.Request{}); err != nil || !p.Empty() {
		t.Errorf("afterwards: %+v %v", p, err)
	}
}

// Names that are not given out in time, and a caller who does not wait: both
// are told what to do, and another up does it.
func TestUpAfterDownGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var clock *wire.Manual
	waited := 0
	s, c := removed(t, func(m *wire.Manual, line string) {
		clock = m
		if strings.Contains(line, held) {
			if waited++; waited == 2 {
				cancel()
			}
		}
	})
	for range 2 {
		err := up(ctx, s)
		if err == nil || !strings.Contains(err.Error(), "QueueDeletedRecently") || !strings.HasSuffix(err.Error(), "; wait a minute and repeat lecafe stack up") {
			t.Errorf("%v", err)
		}
		out, err := cloudformation.NewFromConfig(c.Config()).DescribeStacks(t.Context(), nil)
		if err != nil || len(out.Stacks) != 0 {
			t.Errorf("what is left: %+v %v", out, err)
		}
	}
	clock.Advance(61 * time.Second)
	if err := up(t.Context(), s); err != nil {
		t.Error(err)
	}
	if waited != 2 {
		t.Errorf("waited %d times", waited)
	}
}

// A stack that is there and is to have a queue of a name that was just deleted.
func TestUpdateWaitsForAQueuesName(t *testing.T) {
	waited := 0
	s, c := removed(t, passes(&waited))
	if err := up(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	api := sqs.NewFromConfig(c.Config())
	q, err := api.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("brews")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.DeleteQueue(t.Context(), &sqs.DeleteQueueInput{QueueUrl: q.QueueUrl}); err != nil {
		t.Fatal(err)
	}
	p, err := s.Plan(t.Context(), stack.Request{Set: map[string]string{"ReportsQueue": "brews"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Execute(t.Context()); err != nil || waited != 2 {
		t.Errorf("waited %d times, %v", waited, err)
	}
	if _, err := api.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("brews")}); err != nil {
		t.Error(err)
	}
}
