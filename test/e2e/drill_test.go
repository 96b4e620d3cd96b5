package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lecafe/lecafe/drill"
)

// drilled are the cases that the suite boots: what cloud-init is silent about
// or wrong about, and healthy boots. make drill boots all of them.
var drilled = []string{
	"healthy-multipart", "healthy-handled", "goes-on", "own-err-trap", "runcmd-middle", "in-function",
	"no-header", "invalid-yaml", "mime-type", "config-missing",
}

func TestDrill(t *testing.T) {
	t.Parallel()
	requireBoot(t)
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"drill", "--json", "--state-dir", filepath.Join(stateDir(), "drill")}
	for _, name := range drilled {
		args = append(args, "--case", name)
	}
	c := exec.CommandContext(t.Context(), filepath.Join(dir, "lecafe"), append(args, filepath.Join(example, "recipe.yaml"))...)
	c.Env = append(os.Environ(), "AWS_EC2_METADATA_DISABLED=true")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err = c.Run()
	t.Log(stderr.String())
	var out struct {
		Cases []drill.Result `json:"cases"`
	}
	if jsonErr := json.Unmarshal(stdout.Bytes(), &out); jsonErr != nil {
		t.Fatalf("%v, %v: %s", err, jsonErr, stdout.String())
	}
	if len(out.Cases) != len(drilled) {
		t.Errorf("%d cases, want %d", len(out.Cases), len(drilled))
	}
	for _, r := range out.Cases {
		t.Logf("%-18s cloud-init: %-14s lecafe: %-8s %5.1f s", r.Name, r.CloudInit, r.Verdict, r.Seconds)
		if r.Wrong != "" {
			t.Errorf("%s: %s", r.Name, r.Wrong)
		}
	}
	if err != nil {
		t.Error(err)
	}
}
