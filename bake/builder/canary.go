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
	verdict, err := b.verdict(ctx)
	if err != nil {
		return err
	}
	if verdict != report.Success {
		lines := b.agentLog(ctx)
		res.Report.Causes = append(res.Report.Causes, report.Cause{
			Stage: report.StageSystem, Code: report.CodeAppNotReady, Severity: report.SeverityFailure, Unit: "lecafe-agent.service",
			Message: fmt.Sprintf("The agent's report says %s.", verdict), Fix: "read its output, or keep the image with --keep-failed and boot it", Output: lines,
		})
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

// verdict reads what the agent remembers of its judgement.
func (b *Builder) verdict(ctx context.Context) (report.Verdict, error) {
	deadline := b.plan.Canary.Deadline
	ctx, cancel := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("no verdict of lecafe-agent within %s", deadline))
	defer cancel()
	path := filepath.Join(b.Root, settings.StateDir, "bootstrap.json")
	for {
		var m struct {
			Judged  bool           `json:"judged"`
			Verdict report.Verdict `json:"verdict"`
		}
		data, err := os.ReadFile(path)
		if err == nil && json.Unmarshal(data, &m) == nil && m.Judged {
			return m.Verdict, nil
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (b *Builder) agentLog(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "--output=cat", "--lines=30", "--unit=lecafe-agent.service").Output()
	if err != nil {
		return nil
	}
	return report.RedactLines(strings.Split(strings.TrimSpace(string(out)), "\n"))
}
