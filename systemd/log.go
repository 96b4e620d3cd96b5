package systemd

import (
	"context"
	"io"
	"log/slog"
	"os"

	"github.com/coreos/go-systemd/v22/journal"
)

// Log writes a service's log as the journal takes it: key=value without a time
// of its own, and where standard error is the journal, each line with its
// priority (sd-daemon(3)), so that journalctl -p err finds the errors.
func Log(w io.Writer) *slog.Logger {
	if into, err := journal.StderrIsJournalStream(); w == os.Stderr && err == nil && into {
		return slog.New(withPriorities(w))
	}
	return slog.New(plain(w))
}

func plain(w io.Writer) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
}

// priorities of slog's levels, as syslog(3) numbers them.
var priorities = [...]struct {
	from   slog.Level
	prefix string
}{{slog.LevelError, "<3>"}, {slog.LevelWarn, "<4>"}, {slog.LevelInfo, "<6>"}}

// prioritized has a handler for each of priorities.
type prioritized [len(priorities)]slog.Handler

func withPriorities(w io.Writer) slog.Handler {
	var p prioritized
	for i := range p {
		p[i] = plain(prefixed{w, priorities[i].prefix})
	}
	return p
}

func (p prioritized) Enabled(ctx context.Context, l slog.Level) bool { return p[0].Enabled(ctx, l) }

func (p prioritized) Handle(ctx context.Context, r slog.Record) error {
	for i, level := range priorities {
		if r.Level >= level.from {
			return p[i].Handle(ctx, r)
		}
	}
	return p[len(p)-1].Handle(ctx, r)
}

func (p prioritized) WithAttrs(as []slog.Attr) slog.Handler {
	for i, h := range p {
		p[i] = h.WithAttrs(as)
	}
	return p
}

func (p prioritized) WithGroup(name string) slog.Handler {
	for i, h := range p {
		p[i] = h.WithGroup(name)
	}
	return p
}

// prefixed writes a prefix before each line; a text handler writes a line at a time.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}
