package agent_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent"
)

type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// TestSecretsReachNeitherJournalNorState pins what the redaction of reports does
// not cover: the log, the state file, the console and the status line.
func TestSecretsReachNeitherJournalNorState(t *testing.T) {
	b := newBox(t, script)
	b.write("etc/lecafe/agent.d/50-secrets.yaml", "aws: {proxy: [http://proxy:hunter2@10.0.0.1]}\n"+
		"report:\n  webhook: {url: 'ftp://hooks.example.com/?token=hunter2'}\n"+
		"bootstrap:\n  ready: {http: [{url: 'htp://user:hunter2@localhost/'}], command: [['curl', '--password=hunter2']]}\n"+
		"env: [{path: /x, set: {A: \"PASSWORD=hunter2 ${nonsense}\", B: [PASSWORD=hunter2]}}]\n")
	var log journal
	var status journal
	ctx, stop := context.WithCancel(t.Context())
	b.stop, b.done = stop, make(chan error, 1)
	a, err := agent.New(ctx, agent.Options{
		Root: b.root, IMDSEndpoint: b.meta.URL, Console: filepath.Join(b.root, "dev/console"), Systemd: noUnits{}, Now: b.now, MarkAfter: time.Hour,
		Log: slog.New(slog.NewTextHandler(&log, nil)),
		Notify: func(s agent.State) {
			_, _ = status.Write([]byte(s.Summary))
			for _, c := range s.Causes {
				_, _ = status.Write([]byte(c.Message))
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { b.done <- a.Run(ctx) }()
	t.Cleanup(b.kill)
	b.ran("part-001")
	b.cloudInit("modules-final", true, "('scripts_user', OSError('cannot get it with DB_PASSWORD=hunter2 from https://me:hunter2@example.com/'))")
	b.eventually("verdict in the log", func() bool { return strings.Contains(log.String(), "msg=verdict") })
	state, err := os.ReadFile(filepath.Join(b.root, "run/lecafe/status.json"))
	if err != nil {
		t.Fatal(err)
	}
	console, err := os.ReadFile(filepath.Join(b.root, "dev/console"))
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"the log": log.String(), "the state": string(state), "the console": string(console), "the status": status.String()} {
		for line := range strings.Lines(text) {
			if strings.Contains(line, "hunter2") {
				t.Errorf("%s has a secret: %s", where, line)
			}
		}
	}
}
