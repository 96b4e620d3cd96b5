package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/agent/config"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
)

// keep brings one config object up to date, then again at each poll, reload
// and, while it fails, with a growing pause.
func (a *Agent) keep(ctx context.Context, c *config.Object, o settings.Object) {
	subject := "config " + o.Path
	reload := a.reloads(ctx)
	var b backoff
	for first := true; ; first = false {
		changed, err := c.Sync(ctx)
		if ctx.Err() != nil {
			return
		}
		a.configOutcome(subject, c, o, err)
		if changed && !first {
			a.reportConfig(c, o, err)
		}
		wait := time.Duration(0)
		switch {
		case err != nil && !errors.Is(err, config.ErrRolledBack):
			b.wait = min(max(2*b.wait, time.Second), time.Minute)
			wait = config.NextPoll(b.wait)
		case o.Poll > 0:
			b = backoff{}
			wait = config.NextPoll(o.Poll)
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-timer:
		case <-reload:
		}
	}
}

func (a *Agent) configOutcome(subject string, c *config.Object, o settings.Object, err error) {
	a.publish()
	if err == nil || o.Optional && errors.Is(err, config.ErrMissing) {
		if err == nil {
			a.answered()
		}
		a.trouble(subject, nil, false)
		return
	}
	a.log.Warn("config is not up to date", "source", o.Source, "error", plain(err))
	cause := c.Cause(err)
	if o.Optional && cause.Severity == "" {
		cause.Severity = report.SeverityDegraded
	}
	// While a generation from before serves, an S3 that does not answer need
	// not hold the verdict up until the deadline.
	settled := !errors.Is(err, config.ErrUnreachable) || c.Status().Generation > 0
	if settled && !errors.Is(err, config.ErrUnreachable) {
		a.answered()
	}
	a.trouble(subject, &cause, settled)
}

// reportConfig reports a generation that went live or was rolled back after
// the boot.
func (a *Agent) reportConfig(c *config.Object, o settings.Object, err error) {
	now := time.Now()
	st := c.Status()
	r := &report.Report{
		ID: report.NewID(), Kind: report.KindConfig, Verdict: report.Success, JudgedAt: now, BootedAt: now,
		Summary:  fmt.Sprintf("Generation %d of %s is live.", st.Generation, o.Path),
		UserData: report.UserData{Format: "unknown"},
	}
	if err != nil {
		cause := c.Cause(err)
		cause.Severity = report.SeverityDegraded
		r.Verdict, r.Summary, r.Causes = report.Degraded, cause.Message, []report.Cause{cause}
	}
	a.complete(r)
	a.enqueue(r)
}

// reloads fans SIGHUP out: every keeper gets its own channel.
func (a *Agent) reloads(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{}, 1)
	a.mu.Lock()
	a.state.reloads = append(a.state.reloads, ch)
	start := len(a.state.reloads) == 1 && a.o.Reload != nil
	a.mu.Unlock()
	if start {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-a.o.Reload:
				}
				a.mu.Lock()
				for _, c := range a.state.reloads {
					select {
					case c <- struct{}{}:
					default:
					}
				}
				a.mu.Unlock()
			}
		}()
	}
	return ch
}

type configUnits interface {
	Run(ctx context.Context, argv []string, timeout time.Duration) error
	Reload(ctx context.Context, unit string) error
	Restart(ctx context.Context, unit string) error
}

// configUnits is a nil interface where there is no systemd.
func (a *Agent) configUnits() configUnits {
	if a.systemd == nil {
		return nil
	}
	return a.systemd
}

// askQueue finds out whether the queue is there and may be used. By URL only
// its attributes can be asked for; a role that may send but not ask is fine.
func askQueue(ctx context.Context, client *sqs.Client, queue string) error {
	if !strings.Contains(queue, "://") {
		_, err := client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &queue})
		return err
	}
	_, err := client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &queue, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameQueueArn}})
	if denied(err) {
		return nil
	}
	return err
}

func denied(err error) bool {
	var ae smithy.APIError
	return errors.As(err, &ae) && (ae.ErrorCode() == "AccessDenied" || ae.ErrorCode() == "AccessDeniedException")
}

func queueCause(queue string, err error) (report.Cause, bool) {
	c := report.Cause{
		Stage: report.StageOrders, Code: report.CodeQueueUnreachable,
		Message: "The orders' queue " + queue + " cannot be reached: " + plain(err) + ".",
		Fix:     "Look at the route to SQS: a VPC endpoint, a NAT gateway or aws.proxy. Orders wait on disk until then.",
	}
	var gone *types.QueueDoesNotExist
	var ae smithy.APIError
	switch {
	case errors.As(err, &gone), errors.As(err, &ae) && strings.HasSuffix(ae.ErrorCode(), "NonExistentQueue"):
		c.Code = report.CodeQueueMissing
		c.Message = "The orders' queue " + queue + " does not exist."
		c.Fix = "Create it, or correct orders.queue."
	case denied(err):
		c.Code = report.CodeQueueDenied
		c.Message = "The role may not use the orders' queue " + queue + "."
		c.Fix = "Allow the role sqs:GetQueueUrl and sqs:SendMessage on it."
	default:
		return c, false
	}
	return c, true
}

func webhookTransport(s settings.AWS) http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	if s.Proxy != "" {
		if u, err := url.Parse(s.Proxy); err == nil {
			t.Proxy = http.ProxyURL(u)
		}
	}
	if s.CABundle != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if pem, err := os.ReadFile(s.CABundle); err == nil && pool.AppendCertsFromPEM(pem) {
			t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		}
	}
	return t
}
