package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
)

// canary waits for the verdict of this instance's agent and runs the recipe's
// tests. Nothing is cleaned: the instance is thrown away.
func (b *Builder) canary(ctx context.Context, res *manifest.Result) error {
	b.tell.phase("report", "waiting for the agent's verdict")
	m, err := b.verdict(ctx)
	if err != nil {
		return err
	}
	if m.Verdict != report.Success {
		res.Report.Causes = append(res.Report.Causes, b.causesOf(ctx, m)...)
		return errors.New("the agent's report is no success")
	}
	for i, t := range b.plan.Canary.Tests {
		name := t.Name
		if name == "" {
			name = b.plan.Names[t.Script]
		}
		if name == "" {
			name = fmt.Sprintf("test %d", i+1)
		}
		out := manifest.Step{Number: i + 1, Name: name}
		b.tell.phase("test", name)
		began := time.Now()
		err := b.timed(ctx, recipe.Step{Script: t.Script, Run: t.Run, Timeout: t.Timeout}, &out)
		out.Seconds = time.Since(began).Seconds()
		if err := errors.Join(err, b.ended(out)); err != nil {
			return errors.Join(errStep, err)
		}
	}
	return nil
}

// judged is what the agent remembers of its judgement.
type judged struct {
	Judged   bool           `json:"judged"`
	Verdict  report.Verdict `json:"verdict"`
	ReportID string         `json:"report_id"`
}

// verdict waits until the agent has judged. It has left its report by then.
func (b *Builder) verdict(ctx context.Context) (judged, error) {
	deadline := b.plan.Canary.Deadline
	ctx, cancel := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("no verdict of lecafe-agent within %s", deadline))
	defer cancel()
	path := filepath.Join(b.Root, settings.StateDir, "bootstrap.json")
	for {
		var m judged
		data, err := os.ReadFile(path)
		if err == nil && json.Unmarshal(data, &m) == nil && m.Judged {
			return m, nil
		}
		select {
		case <-ctx.Done():
			return m, b.lastWord(context.Cause(ctx))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// lastWord adds what an agent that has not judged was doing.
func (b *Builder) lastWord(err error) error {
	var state struct {
		Summary string         `json:"summary"`
		Causes  []report.Cause `json:"causes"`
	}
	data, readErr := os.ReadFile(filepath.Join(b.Root, settings.RuntimeDir, "status.json"))
	if readErr != nil || json.Unmarshal(data, &state) != nil {
		return fmt.Errorf("%w; it is not running: is lecafe-agent.service enabled in the image?", err)
	}
	words := state.Summary
	for _, c := range state.Causes {
		words += fmt.Sprintf("; %s in %s: %s", c.Code, c.Stage, c.Message)
	}
	return fmt.Errorf("%w; it says: %s", err, strings.TrimPrefix(words, "; "))
}

// causesOf are those of the agent's own report, or, where it has left none,
// that there was a verdict.
func (b *Builder) causesOf(ctx context.Context, m judged) []report.Cause {
	data, err := os.ReadFile(filepath.Join(b.Root, settings.StateDir, "report.json"))
	if err == nil {
		var r *report.Report
		if r, err = report.Decode(data); err == nil && r.ID == m.ReportID && len(r.Causes) > 0 {
			return r.Causes
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.Log.Warn("the agent's report cannot be read", "err", err)
	}
	return []report.Cause{{
		Stage: report.StageSystem, Code: report.CodeAppNotReady, Severity: report.SeverityFailure, Unit: "lecafe-agent.service",
		Message: fmt.Sprintf("The agent's report says %s.", m.Verdict), Fix: "read its output, or keep the image with --keep-failed and boot it", Output: b.agentLog(ctx),
	}}
}

func (b *Builder) agentLog(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "--output=cat", "--lines=30", "--unit=lecafe-agent.service").Output()
	if err != nil {
		return nil
	}
	return report.RedactLines(strings.Split(strings.TrimSpace(string(out)), "\n"))
}
