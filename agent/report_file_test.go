package agent_test

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/lecafe/lecafe/agent"
	"github.com/lecafe/lecafe/agent/report"
)

// TestReportStaysOnTheInstance pins that the bootstrap's report is found on the
// instance after it has been sent, and that it is what was sent.
func TestReportStaysOnTheInstance(t *testing.T) {
	b := newBox(t, script)
	if _, err := agent.ReadReport(b.root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the agent: %v", err)
	}
	b.start()
	b.write("var/log/cloud-init.log", "2026-11-22 02:07:01,123 - util.py[DEBUG]: Cloud-init v. 22.4.2 running 'init-local' at x\n"+
		"2026-11-22 02:07:09,323 - subp.py[DEBUG]: Unexpected error while running command.\nCommand: ['/var/lib/cloud/instance/scripts/part-001']\nExit code: 22\nReason: -\nStdout: -\nStderr: -\n")
	b.cloudInit("modules-final", true, "('scripts_user', RuntimeError('Runparts: 1 failures (part-001) in 1 attempted commands'))")
	sent := b.reports(1)[0]
	var kept *report.Report
	b.eventually("the report's file", func() bool {
		var err error
		kept, err = agent.ReadReport(b.root)
		return err == nil
	})
	if kept.ID != sent.ID || kept.Verdict != report.Failure || len(kept.Causes) != 1 || kept.Causes[0].Code != report.CodeScriptExit {
		t.Errorf("kept %+v, sent %s", kept, sent.ID)
	}
	if info, err := os.Stat(agent.ReportPath(b.root)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
