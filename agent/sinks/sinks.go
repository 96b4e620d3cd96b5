// Package sinks sends reports: to S3, SQS, an Auto Scaling lifecycle hook, a
// webhook and the console. It owns the outbox, so that a report is sent until
// it has arrived, across restarts of the agent and the instance, and nothing is
// marked done that was not sent. What a report says is not its business.
package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/lecafe/lecafe/agent/report"
)

// Sink takes reports. Send returns nil once the report has arrived; sending the
// same report again does no harm.
type Sink interface {
	Name() string
	Send(ctx context.Context, r *report.Report) error
}

// patient is a Sink whose sending may end the instance: the others go first, as
// long as it can wait for them.
type patient interface {
	Patience(r *report.Report) time.Duration
}

// errOthersFirst is what a patient sink waits for.
var errOthersFirst = errors.New("waiting for the report to arrive elsewhere")

// ErrRefused is wrapped by a Sink's error when trying again cannot help; the
// outbox then keeps the entry with its reason and tries no more.
var ErrRefused = errors.New("refused for good")

// Backoff between attempts of one sink.
const (
	firstWait = time.Second
	maxWait   = time.Minute
)

// attempts bounds one call of a sink, the SDK's own retries included.
const sendTimeout = 45 * time.Second

// Pump sends what is in the outbox until ctx ends. One goroutine a sink: a
// webhook that hangs does not hold up S3.
type Pump struct {
	Outbox *Outbox
	Sinks  []Sink
	Log    *slog.Logger
	// Ready is asked before each round: nil when sending can be tried. A sink
	// that needs no credentials is not asked for.
	Ready func(sink string) error
	// Fill completes a report that was judged before its sender was known.
	Fill func(r *report.Report) (changed bool)
}

// Run sends until ctx ends.
func (p *Pump) Run(ctx context.Context) {
	done := make(chan struct{}, len(p.Sinks))
	for _, s := range p.Sinks {
		go func() {
			p.serve(ctx, s)
			done <- struct{}{}
		}()
	}
	for range p.Sinks {
		<-done
	}
}

func (p *Pump) serve(ctx context.Context, s Sink) {
	wait := firstWait
	for ctx.Err() == nil {
		changed := p.Outbox.Changed()
		again, others := p.round(ctx, s)
		var timer <-chan time.Time
		if again {
			// Half to full: a fleet that lost its queue does not return as one.
			timer = time.After(wait/2 + rand.N(wait/2))
			if !others { // nothing has failed
				wait = min(2*wait, maxWait)
			}
		} else {
			wait = firstWait
		}
		select {
		case <-ctx.Done():
		case <-changed:
			wait = firstWait
		case <-timer:
		}
	}
}

// round tries every entry that waits for s and says whether one still does, and
// whether that is only because others go first.
func (p *Pump) round(ctx context.Context, s Sink) (again, others bool) {
	for _, id := range p.Outbox.Waiting(s.Name()) {
		if p.Ready != nil {
			if err := p.Ready(s.Name()); err != nil {
				p.Outbox.Note(id, s.Name(), err)
				return true, false
			}
		}
		r, err := p.Outbox.Report(id, p.Fill)
		if err != nil {
			p.Log.Error("outbox entry cannot be read", "report", id, "error", err)
			continue
		}
		if last, ok := s.(patient); ok && !p.Outbox.Alone(id, s.Name(), last.Patience(r)) {
			p.Outbox.Note(id, s.Name(), errOthersFirst)
			others = true
			continue
		}
		c, cancel := context.WithTimeout(ctx, sendTimeout)
		err = s.Send(c, r)
		cancel()
		switch {
		case err == nil:
			if err := p.Outbox.Done(id, s.Name()); err != nil {
				p.Log.Error("outbox cannot be written", "report", id, "sink", s.Name(), "error", err)
				again = true
				continue
			}
			p.Log.Info("report sent", "report", id, "sink", s.Name())
		case ctx.Err() != nil:
			return true, false
		case errors.Is(err, ErrRefused):
			p.Log.Error("report refused", "report", id, "sink", s.Name(), "error", report.Redact(err.Error()))
			if err := p.Outbox.Refused(id, s.Name(), err); err != nil {
				p.Log.Error("outbox cannot be written", "report", id, "sink", s.Name(), "error", err)
			}
		default:
			p.Log.Warn("report not sent", "report", id, "sink", s.Name(), "error", report.Redact(err.Error()))
			p.Outbox.Note(id, s.Name(), err)
			again = true
		}
	}
	return again || others, others && !again
}

// code returns the API error code of err, "" where AWS did not answer.
func code(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}

func httpStatus(err error) int {
	var re *smithyhttp.ResponseError
	if errors.As(err, &re) {
		return re.HTTPStatusCode()
	}
	return 0
}

func describe(sink string, err error, hint string) error {
	return fmt.Errorf("send report to %s: %w; %s", sink, err, hint)
}
