package sinks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/lecafe/lecafe/agent/report"
)

type doer interface {
	Do(*http.Request) (*http.Response, error)
}

// Webhook POSTs reports. Its URL may hold a secret and is never shown whole.
type Webhook struct {
	Client doer
	URL    string
}

// Name is NameWebhook.
func (Webhook) Name() string { return NameWebhook }

// Send posts the report; any answer of 2xx has taken it. The header
// Idempotency-Key is the report's ID.
func (w Webhook) Send(ctx context.Context, r *report.Report) error {
	doc, err := report.Encode(r)
	if err != nil {
		return err
	}
	u, err := url.Parse(w.URL)
	if err != nil {
		return fmt.Errorf("%w: report.webhook.url is no URL; correct it", ErrRefused)
	}
	where := "webhook at " + u.Host
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(doc))
	if err != nil {
		return fmt.Errorf("%w: report.webhook.url cannot be requested; correct it", ErrRefused)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", r.ID)
	resp, err := w.Client.Do(req)
	if err != nil {
		// The error repeats the URL: only what is behind it may be told.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return describe(where, err, "the agent tries again")
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can serve again
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusRequestTimeout && resp.StatusCode != http.StatusTooManyRequests &&
		resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusNotFound:
		return fmt.Errorf("send report to %s: %w: %s; correct report.webhook.url", where, ErrRefused, resp.Status)
	}
	return describe(where, errors.New(resp.Status), "the agent tries again")
}
