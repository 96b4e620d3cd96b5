package fleet

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go/middleware"
)

// Meter counts calls as AWS sees them, repeats included.
type Meter struct {
	// Throttling is told when AWS refuses a call for the first time: a pass
	// takes long from then on. May be nil; it is set before the first call.
	Throttling func()

	calls, throttled atomic.Int64
}

// Calls is the number of calls so far.
func (m *Meter) Calls() int64 { return m.calls.Load() }

// Throttled is the number of calls AWS refused for their rate so far.
func (m *Meter) Throttled() int64 { return m.throttled.Load() }

// Config returns cfg with the meter in it, and with retries that outlast
// throttling: a watcher that gives up is of no use to anybody.
func (m *Meter) Config(cfg aws.Config) aws.Config {
	cfg = cfg.Copy()
	cfg.Retryer = func() aws.Retryer {
		return &patient{m, retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts = 12
			o.MaxBackoff = 20 * time.Second
			o.RateLimiter = ratelimit.None
		})}
	}
	cfg.APIOptions = append(cfg.APIOptions, func(s *middleware.Stack) error {
		return s.Deserialize.Add(middleware.DeserializeMiddlewareFunc("lecafe.Meter", func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
			m.calls.Add(1)
			return next.HandleDeserialize(ctx, in)
		}), middleware.After)
	})
	return cfg
}

type patient struct {
	meter *Meter
	*retry.Standard
}

var throttles = retry.IsErrorThrottles(retry.DefaultThrottles)

// RetryDelay is the SDK's for throttling, which wants time. What broke on its
// way is tried again soon.
func (p *patient) RetryDelay(attempt int, err error) (time.Duration, error) {
	d, delayErr := p.Standard.RetryDelay(attempt, err)
	var status interface{ HTTPStatusCode() int }
	overloaded := errors.As(err, &status) && status.HTTPStatusCode() == http.StatusServiceUnavailable
	if overloaded || throttles.IsErrorThrottle(err).Bool() {
		if p.meter.throttled.Add(1) == 1 && p.meter.Throttling != nil {
			p.meter.Throttling()
		}
		return d, delayErr
	}
	return d / 10, delayErr
}
