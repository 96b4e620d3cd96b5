package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// News is what a webhook is told: one POST a pass in which something changed.
// Text makes it readable to Slack and whoever speaks its language.
type News struct {
	Text    string          `json:"text"`
	Schema  string          `json:"schema,omitempty"` // lecafe.news/v1
	At      *time.Time      `json:"at,omitempty"`
	OK      bool            `json:"ok"`
	Counts  map[Verdict]int `json:"counts,omitempty"`
	Changes []Change        `json:"changes,omitempty"` // the first 50
	Actions []Action        `json:"actions,omitempty"`
	Refused []Refusal       `json:"refused,omitempty"`
	Brakes  []Brake         `json:"brakes,omitempty"`
	More    int             `json:"more,omitempty"` // changes that are left out
}

// NewsSchema is the value of News.Schema.
const NewsSchema = "lecafe.news/v1"

// Worth says whether there is anything to tell: a pending instance that is
// still pending at another stage is not.
func worth(c *Change) bool { return c.From != c.Verdict && c.Verdict != Pending }

// NewsOf puts together what a pass brought; ok is false for nothing.
func NewsOf(s *Snapshot, changes []Change, actions []Action, refused []Refusal, brakes []Brake) (n News, ok bool) {
	n = News{Schema: NewsSchema, At: &s.At, OK: s.OK, Counts: s.Counts, Actions: actions, Refused: refused}
	var lines []string
	if len(actions) > 0 {
		n.Brakes = brakes
	}
	for k := range actions {
		lines = append(lines, actions[k].Line())
	}
	for k := range changes {
		if !worth(&changes[k]) {
			continue
		}
		if len(n.Changes) == 50 {
			n.More++
			continue
		}
		n.Changes = append(n.Changes, changes[k])
		lines = append(lines, changes[k].Line())
	}
	for _, r := range refused {
		lines = append(lines, fmt.Sprintf("refused (%s): %s: %s", r.Reason, r.Name, r.Detail))
	}
	if n.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", n.More))
	}
	n.Text = strings.Join(lines, "\n")
	return n, len(lines) > 0
}

// Webhook posts news. Its URL may hold a secret and is in no error.
type Webhook struct {
	URL    string
	Slack  bool // post the text alone
	Client *http.Client
	Pause  time.Duration // before the second try, default 1s; doubled each time
}

// NewWebhook returns a webhook for an http or https URL. Slack's own hosts get
// Slack's form.
func NewWebhook(address string) (*Webhook, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("webhook: want an http:// or https:// URL")
	}
	return &Webhook{URL: address, Slack: u.Hostname() == "hooks.slack.com", Client: &http.Client{
		Timeout: 10 * time.Second,
		// A redirect would carry the news to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Post sends news, in three tries.
func (w *Webhook) Post(ctx context.Context, n News) error {
	var body any = n
	if w.Slack {
		body = map[string]string{"text": n.Text}
	}
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("webhook: %w", err)
	}
	pause := w.Pause
	if pause == 0 {
		pause = time.Second
	}
	for try := 1; ; try++ {
		status, err := w.post(ctx, b)
		if err == nil {
			return nil
		}
		// What the receiver refuses it refuses again.
		if try == 3 || status >= 400 && status < 500 && status != http.StatusTooManyRequests {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
		pause *= 2
	}
}

func (w *Webhook) post(ctx context.Context, body []byte) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(body))
	if err != nil {
		return 0, errors.New("webhook: its URL is not valid")
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.Client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // without the URL
		}
		return 0, fmt.Errorf("webhook: %w", err)
	}
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		return resp.StatusCode, fmt.Errorf("webhook: it answered %s", resp.Status)
	}
	return resp.StatusCode, nil
}
