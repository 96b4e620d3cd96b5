package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lecafe/lecafe/agent/config"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/agent/sinks"
	"github.com/lecafe/lecafe/internal/atomicfile"
	"github.com/lecafe/lecafe/internal/version"
	"github.com/lecafe/lecafe/systemd"
)

// State is what `lecafe-agent status --json` prints: it only grows.
type State struct {
	Version   string          `json:"version"`
	At        time.Time       `json:"at"`
	Judged    bool            `json:"judged"`
	Verdict   report.Verdict  `json:"verdict,omitempty"`
	Report    string          `json:"report,omitempty"`
	Summary   string          `json:"summary"`
	CloudInit string          `json:"cloud_init,omitempty"`
	Stages    []report.Stage  `json:"stages"`
	Instance  report.Instance `json:"instance"`
	Sender    string          `json:"sender,omitempty"`
	Causes    []report.Cause  `json:"causes"` // troubles of now
	Config    []config.Status `json:"config"`
	Unsent    []sinks.Pending `json:"unsent"` // reports that have not arrived

	credentialsReady bool
	hook             *sinks.Hook
	objects          []*config.Object
	reloads          []chan struct{}
}

// StatePath is where the running agent keeps its State, below root.
func StatePath(root string) string {
	return filepath.Join(root, settings.RuntimeDir, "status.json")
}

// ReadState reads what the running agent has written.
func ReadState(root string) (State, error) {
	var s State
	b, err := os.ReadFile(StatePath(root))
	if err != nil {
		return s, fmt.Errorf("read the agent's state: %w; systemctl status lecafe-agent says whether it runs", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("read the agent's state: %w", err)
	}
	return s, nil
}

// ReportPath is where the report of the bootstrap stays, below root, whether
// it has arrived anywhere or not.
func ReportPath(root string) string {
	return filepath.Join(root, settings.StateDir, "report.json")
}

// ReadReport reads the report of the bootstrap. The error is fs.ErrNotExist
// while there is none.
func ReadReport(root string) (*report.Report, error) {
	b, err := os.ReadFile(ReportPath(root))
	if err != nil {
		return nil, fmt.Errorf("read the bootstrap's report: %w", err)
	}
	r, err := report.Decode(b)
	if err != nil {
		return nil, fmt.Errorf("read the bootstrap's report: %w", err)
	}
	return r, nil
}

// keepReport leaves the report where whoever has the instance, and no sink,
// finds it. That it cannot be kept keeps it from nobody else.
func (a *Agent) keepReport(r *report.Report) {
	doc, err := report.Encode(r)
	if err == nil {
		err = atomicfile.WriteFile(ReportPath(a.o.Root), append(doc, '\n'), 0o600)
	}
	if err != nil {
		a.log.Error("the report cannot be kept", "report", r.ID, "error", err)
	}
}

// publish writes the state for others to read.
func (a *Agent) publish() {
	a.mu.Lock()
	s := a.state
	s.Version, s.At = version.String(), time.Now().UTC().Truncate(time.Millisecond)
	s.Judged, s.Verdict, s.Report = a.state.Judged, a.memory.Verdict, a.memory.ReportID
	s.Instance, s.Sender = a.facts.instance, a.facts.sender
	s.Causes, s.Config = []report.Cause{}, []config.Status{}
	for _, subject := range sortedKeys(a.troubles) {
		s.Causes = append(s.Causes, a.troubles[subject].Cause)
	}
	objects := s.objects
	a.mu.Unlock()
	for _, o := range objects {
		s.Config = append(s.Config, o.Status())
	}
	s.Unsent = a.outbox.Pending()
	if s.Unsent == nil {
		s.Unsent = []sinks.Pending{}
	}
	if s.Stages == nil {
		s.Stages = []report.Stage{}
	}
	if a.o.Notify != nil {
		a.o.Notify(s)
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = atomicfile.WriteFile(StatePath(a.o.Root), b, 0o600)
	}
	if err != nil {
		a.log.Warn("the state cannot be written", "error", err)
	}
}

func (a *Agent) setJudged() {
	a.mu.Lock()
	a.state.Judged = true
	a.mu.Unlock()
	a.moved("")
	a.publish()
}

// watchdog feeds systemd's watchdog as long as the agent does its work: the
// observer looks regularly, or the boot is judged, and no lock is held.
func (a *Agent) watchdog(ctx context.Context) {
	var notify systemd.Notify
	every, err := notify.Watchdog()
	if err != nil {
		a.log.Warn("no watchdog", "error", err)
	}
	tick := 15 * time.Second
	if every > 0 {
		tick = min(tick, every/3)
	}
	t := time.NewTicker(tick)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.looked:
			last = time.Now()
			continue
		case <-t.C:
		}
		a.mu.Lock()
		judged, unkept := a.state.Judged, a.unkept
		a.mu.Unlock()
		if unkept {
			a.remember()
		}
		a.publish()
		// A boot in which nothing happens is looked at seldom, with a short
		// WatchdogSec= too seldom: the observer is asked to show that it is there.
		if every > 0 && !judged && time.Since(last) > every/2 {
			a.wake()
		}
		if every > 0 && (judged || time.Since(last) < every) {
			if err := notify.Alive(); err != nil {
				a.log.Warn("watchdog is not fed", "error", err)
			}
		}
	}
}
