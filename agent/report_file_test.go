package agent_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/lecafe/lecafe/agent"
	"github.com/lecafe/lecafe/agent/bootstrap"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab/cloud"
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

// TestNotRememberedAsJudgedWithoutTheReport pins that an instance whose disk
// would not take the report is judged again after a restart: its report would
// be lost otherwise, and nobody would know.
func TestNotRememberedAsJudgedWithoutTheReport(t *testing.T) {
	b := newBox(t, script)
	fault := b.cloud.Inject(cloud.Fault{Service: "s3", Action: "PutObject", Kind: cloud.Error5xx})
	b.start()
	outbox := filepath.Join(b.root, "var/lib/lecafe/outbox")
	if err := os.RemoveAll(outbox); err != nil {
		t.Fatal(err)
	}
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	b.eventually("the verdict", func() bool {
		s, err := agent.ReadState(b.root)
		return err == nil && s.Judged
	})
	b.eventually("attempts at S3", func() bool { return fault.Hits() > 0 })
	b.kill()
	m, err := bootstrap.LoadMemory(filepath.Join(b.root, "var/lib/lecafe"))
	if err != nil || m.Judged || m.InstanceID == "" {
		t.Errorf("remembered %+v, %v", m, err)
	}
	fault.Remove()
	b.start()
	if r := b.reports(1)[0]; r.Kind != report.KindBootstrap || r.Verdict != report.Success {
		t.Errorf("after the restart: %+v", r)
	}
}
