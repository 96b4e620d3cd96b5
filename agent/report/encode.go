package report

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// MaxOutput is the most lines of output a cause or the log tail carries.
const MaxOutput = 40

// NewID returns a random Report.ID.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Encode returns r as JSON the way it is sent: times in UTC with milliseconds,
// empty lists instead of null, every text redacted, outputs cut to their last
// MaxOutput lines. r itself is not changed.
func Encode(r *Report) ([]byte, error) {
	c := *r
	c.Schema = Schema
	c.BootedAt, c.JudgedAt = milli(r.BootedAt), milli(r.JudgedAt)
	c.Summary = Redact(r.Summary)
	c.Causes = make([]Cause, len(r.Causes))
	for i, cause := range r.Causes {
		cause.Message, cause.Fix, cause.Command = Redact(cause.Message), Redact(cause.Fix), Redact(cause.Command)
		cause.Output = tail(cause.Output)
		c.Causes[i] = cause
	}
	c.Stages = make([]Stage, len(r.Stages))
	for i, s := range r.Stages {
		s.StartedAt, s.FinishedAt = milliPtr(s.StartedAt), milliPtr(s.FinishedAt)
		c.Stages[i] = s
	}
	c.CloudInit.Errors, c.CloudInit.Warnings = tail(r.CloudInit.Errors), tail(r.CloudInit.Warnings)
	c.LogTail = tail(r.LogTail)
	b, err := json.Marshal(&c)
	if err != nil {
		return nil, fmt.Errorf("encode report %s: %w", r.ID, err)
	}
	return b, nil
}

// ErrSchema says that a document is no report of this schema.
var ErrSchema = errors.New("no report of " + Schema)

// Decode reads what Encode wrote, by this or a later version within Schema.
func Decode(b []byte) (*Report, error) {
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSchema, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("%w: schema is %q; use a lecafe that knows it", ErrSchema, r.Schema)
	}
	return &r, nil
}

func tail(lines []string) []string {
	lines = RedactLines(lines)
	if len(lines) > MaxOutput {
		lines = lines[len(lines)-MaxOutput:]
	}
	for i, l := range lines {
		lines[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
	return lines
}

func milli(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func milliPtr(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := milli(*t)
	return &u
}
