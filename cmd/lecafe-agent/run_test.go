package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/agent"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/internal/exitcode"
)

func call(args ...string) (code int, stdout, stderr string) { return command("", args...) }

func TestStatus(t *testing.T) {
	root := t.TempDir()
	socket := "--socket=" + filepath.Join(root, "none.sock")
	code, _, errOut := call("status", "--root", root, socket)
	if code != exitcode.NotReady || !strings.Contains(errOut, "systemctl status lecafe-agent") {
		t.Errorf("without an agent: %d %s", code, errOut)
	}
	state := agent.State{
		Judged: true, Verdict: report.Failure, Summary: "The script part-001 failed.", Instance: report.Instance{ID: "i-0abc1234def567890"},
		Stages: []report.Stage{{Name: report.StageCloudFinal, Status: "failure"}},
	}
	b, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "run/lecafe"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(agent.StatePath(root), b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, _ := call("status", "--root", root, socket)
	for _, want := range []string{"verdict   failure", "The script part-001 failed.", "i-0abc1234def567890", "cloud-final", "orders    the service does not answer"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if code != exitcode.Failed {
		t.Errorf("exit %d", code)
	}
	code, out, _ = call("status", "--json", "--root", root, socket)
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitcode.Done || got["verdict"] != "failure" || got["orders"] != nil {
		t.Errorf("%d, %v, %s", code, err, out)
	}
}

func TestInstallNowIsForThisSystem(t *testing.T) {
	if code, _, errOut := call("install", "--now", "--root", t.TempDir()); code != exitcode.BadRequest || !strings.Contains(errOut, "--now") {
		t.Errorf("%d %s", code, errOut)
	}
}

func TestVersionAndHelp(t *testing.T) {
	if code, out, _ := call("version"); code != exitcode.Done || strings.TrimSpace(out) == "" {
		t.Errorf("%d %q", code, out)
	}
	code, out, _ := call("--help")
	for _, want := range []string{"run", "install", "status", "orders", "send", "spool"} {
		if code != exitcode.Done || !strings.Contains(out, "   "+want+" ") {
			t.Errorf("%d, no %s in\n%s", code, want, out)
		}
	}
	if code, _, errOut := call("brew"); code != exitcode.BadRequest || !strings.Contains(errOut, `"brew"`) {
		t.Errorf("%d %s", code, errOut)
	}
}
