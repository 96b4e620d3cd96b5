package sinks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lecafe/lecafe/agent/report"
)

// Prefix begins every line on the console, so that a watcher finds them among
// the others in GetConsoleOutput.
const Prefix = "lecafe-agent: "

const (
	maxLine  = 900 // bytes; consoles cut and mix longer ones
	maxLines = 120 // of one process: 64 KB is all that EC2 keeps
)

// Console writes structured lines, one JSON object each, behind Prefix. A
// console that takes nothing (a serial line nobody reads) holds up nobody:
// lines that do not fit its queue are counted and dropped.
type Console struct {
	lines   chan []byte
	mu      sync.Mutex
	written int
	dropped int
	done    chan struct{}
}

// Line is what a line says. Fields that are empty are left out.
type Line struct {
	Time     time.Time      `json:"time"`
	Event    string         `json:"event"` // start, identity, stage, trouble, verdict, sent
	Instance string         `json:"instance,omitempty"`
	Stage    string         `json:"stage,omitempty"`
	Verdict  report.Verdict `json:"verdict,omitempty"`
	Code     report.Code    `json:"code,omitempty"`
	File     string         `json:"file,omitempty"`
	Line     int            `json:"line,omitempty"`
	Exit     *int           `json:"exit_code,omitempty"`
	Report   string         `json:"report,omitempty"`
	Message  string         `json:"message,omitempty"`
}

// OpenConsole speaks on the console device at path, /dev/console on an
// instance.
func OpenConsole(path string) (*Console, error) {
	d := tty(path)
	if _, err := d.Write(nil); err != nil {
		return nil, err
	}
	return NewConsole(d), nil
}

// tty opens the device for each line: a getty that starts on it hangs up what
// others have open.
type tty string

func (t tty) Write(b []byte) (int, error) {
	// Never as controlling terminal: its hangup would end the agent.
	f, err := os.OpenFile(string(t), os.O_WRONLY|os.O_APPEND|syscall.O_NOCTTY, 0)
	if err != nil {
		return 0, fmt.Errorf("open console: %w", err)
	}
	n, err := f.Write(b)
	return n, errors.Join(err, f.Close())
}

func (tty) Close() error { return nil }

// NewConsole writes to w until Close.
func NewConsole(w io.WriteCloser) *Console {
	lines := make(chan []byte, 64)
	c := &Console{lines: lines, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for l := range lines { // Close takes c.lines away
			_, _ = w.Write(l) // a console that is gone tells nobody anyway
		}
		_ = w.Close()
	}()
	return c
}

// Write writes l, redacted and cut to one line. A nil Console writes nothing.
func (c *Console) Write(l Line) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// The verdict must come through, whatever was said before.
	if c.written >= maxLines && l.Event != "verdict" || c.lines == nil {
		c.dropped++
		return
	}
	l.Time = l.Time.UTC().Truncate(time.Millisecond)
	l.Message = report.Redact(l.Message)
	b, err := json.Marshal(l)
	for err == nil && len(b) > maxLine && len(l.Message) > 20 {
		// Cut runes, not bytes, until the escapes fit too.
		r := []rune(l.Message)
		l.Message = string(r[:len(r)*3/4]) + "..."
		b, err = json.Marshal(l)
	}
	if err != nil {
		c.dropped++
		return
	}
	line := Prefix + strings.Map(printable, string(b)) + "\r\n"
	for {
		select {
		case c.lines <- []byte(line):
			c.written++
			return
		default:
		}
		c.dropped++
		if l.Event != "verdict" {
			return
		}
		// Room is made for it at the others' expense.
		select {
		case <-c.lines:
		default:
		}
	}
}

// printable keeps escape sequences of an instance's text off the console.
func printable(r rune) rune {
	if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 {
		return ' '
	}
	return r
}

// Dropped returns how many lines did not fit.
func (c *Console) Dropped() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped
}

// Close writes what is queued, for at most a second, and ends.
func (c *Console) Close() {
	if c == nil {
		return
	}
	c.mu.Lock()
	if c.lines != nil {
		close(c.lines)
		c.lines = nil
	}
	c.mu.Unlock()
	select {
	case <-c.done:
	case <-time.After(time.Second):
	}
}
