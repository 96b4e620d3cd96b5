// Package client posts orders to lecafe's local socket. It owns retries that
// cannot duplicate an order, and imports nothing but the standard library, so
// that an application may use it without the rest.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Socket is where lecafe-orders.socket listens.
const Socket = "/run/lecafe/orders.sock"

// Order is what an application posts. Attributes reach SQS as string
// attributes with their names as they are.
type Order struct {
	Body           string            `json:"body"`
	Group          string            `json:"group,omitempty"`           // MessageGroupId
	DelaySeconds   int               `json:"delay_seconds,omitempty"`   // 0 to 900
	IdempotencyKey string            `json:"idempotency_key,omitempty"` // made up where empty
	Attributes     map[string]string `json:"attributes,omitempty"`
}

// Error is an answer other than 202.
type Error struct {
	Status     int           // of HTTP
	Code       string        // stable, as too_large or spool_full
	Message    string        // for people
	Lines      []LineError   // of a batch
	RetryAfter time.Duration // for 429 and 503
}

// LineError is what was wrong with one order of a batch, counted from 1.
type LineError struct {
	Line  int    `json:"line"`
	Code  string `json:"code"`
	Error string `json:"error"`
}

func (e *Error) Error() string {
	msg := fmt.Sprintf("post order: %d %s: %s", e.Status, e.Code, e.Message)
	for _, l := range e.Lines {
		msg += fmt.Sprintf("\n  order %d: %s", l.Line, l.Error)
	}
	return msg
}

// Client posts over one socket. It is safe for concurrent use.
type Client struct {
	http *http.Client
}

// New returns a client for the socket at path.
func New(path string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true,
	}}}
}

// Close gives the connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Send returns the order's ID once the order is on the disk. While the spool is
// full or the service restarts it tries again until ctx ends; the idempotency
// key keeps that from making two orders of one.
func (c *Client) Send(ctx context.Context, o Order) (string, error) {
	ids, err := c.SendBatch(ctx, []Order{o})
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

// SendBatch posts up to 1000 orders at once: all are accepted, or none.
func (c *Client) SendBatch(ctx context.Context, orders []Order) ([]string, error) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	for _, o := range orders {
		if o.IdempotencyKey == "" {
			var key [16]byte
			rand.Read(key[:])
			o.IdempotencyKey = hex.EncodeToString(key[:])
		}
		if err := enc.Encode(o); err != nil {
			return nil, fmt.Errorf("post orders: %w", err)
		}
	}
	for n := 0; ; n++ {
		ids, err := c.post(ctx, body.Bytes(), len(orders))
		var e *Error
		wait := min(50*time.Millisecond<<min(n, 6), 2*time.Second)
		switch {
		case err == nil:
			return ids, nil
		case errors.As(err, &e) && e.Status != http.StatusTooManyRequests && e.Status != http.StatusServiceUnavailable && e.Status != http.StatusRequestTimeout:
			return nil, err
		case e != nil:
			wait = max(wait, min(e.RetryAfter, 5*time.Second))
		case errors.Is(err, ErrNoService) && n >= 5:
			return nil, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, err
		}
	}
}

// ErrNoService says that nobody listens, or that the caller may not connect.
var ErrNoService = errors.New("no answer from the socket: is lecafe-orders.socket running, and are you in its group?")

func (c *Client) post(ctx context.Context, body []byte, n int) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lecafe/v1/orders/batch", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("post orders: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" && !errors.Is(err, syscall.EAGAIN) { // that is a full queue of connections
			return nil, fmt.Errorf("%w (%w)", ErrNoService, op)
		}
		return nil, fmt.Errorf("post orders: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("post orders: %w", err)
	}
	if resp.StatusCode != http.StatusAccepted {
		e := &Error{Status: resp.StatusCode}
		var v struct {
			Code  string      `json:"code"`
			Error string      `json:"error"`
			Lines []LineError `json:"lines"`
		}
		if json.Unmarshal(answer, &v) == nil {
			e.Code, e.Message, e.Lines = v.Code, v.Error, v.Lines
		} else {
			e.Message = strings.TrimSpace(string(answer))
		}
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
			e.RetryAfter = time.Duration(s) * time.Second
		}
		return nil, e
	}
	var v struct {
		IDs []string `json:"ids"`
	}
	if err := json.Unmarshal(answer, &v); err != nil || len(v.IDs) != n {
		return nil, fmt.Errorf("post orders: the answer does not have %d IDs", n)
	}
	return v.IDs, nil
}

// Get returns the body of GET path, as /v1/status or /metrics.
func (c *Client) Get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lecafe"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s", path, resp.Status)
	}
	return b, nil
}
