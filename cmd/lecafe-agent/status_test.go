package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/internal/exitcode"
)

// TestStatusHasTheReport pins that status --json has the whole report of the
// bootstrap once there is one, and not before.
func TestStatusHasTheReport(t *testing.T) {
	root := t.TempDir()
	write := func(path string, b []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	status := func() *report.Report {
		t.Helper()
		code, out, errOut := call("status", "--json", "--root", root, "--socket="+filepath.Join(root, "none.sock"))
		var got struct {
			Bootstrap *report.Report `json:"bootstrap"`
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitcode.Done {
			t.Fatalf("exit %d, %v\n%s%s", code, err, out, errOut)
		}
		return got.Bootstrap
	}
	write(agent.StatePath(root), []byte(`{"judged":false}`))
	if r := status(); r != nil {
		t.Errorf("before the verdict: %+v", r)
	}
	doc, err := report.Encode(&report.Report{
		ID: report.NewID(), Kind: report.KindBootstrap, Verdict: report.Failure, Summary: "X.", JudgedAt: time.Now(), BootedAt: time.Now(),
		Causes: []report.Cause{{Stage: report.StageCloudFinal, Code: report.CodeScriptExit, Severity: report.SeverityFailure, Message: "X."}},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(agent.ReportPath(root), doc)
	if r := status(); r == nil || r.Verdict != report.Failure || r.Causes[0].Code != report.CodeScriptExit {
		t.Errorf("after the verdict: %+v", r)
	}
}
