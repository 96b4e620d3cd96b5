package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lecafe/lecafe/drill"
	"github.com/lecafe/lecafe/lab/image"
	"github.com/lecafe/lecafe/test/boots"
)

// drilled are the cases that the suite boots: what cloud-init is silent about
// or wrong about, and healthy boots. make drill boots all of them.
var drilled = []string{
	"healthy-multipart", "healthy-handled", "goes-on", "own-err-trap", "runcmd-middle", "in-function",
	"no-header", "invalid-yaml", "mime-type", "config-missing",
}

// foreign are payloads of others among them, from the table of that name.
var foreign = []string{"foreign-run-cmds", "foreign-yum-repo", "foreign-mesos-multipart", "foreign-disable-docker"}

const foreignTable = "../../drill/foreign.yaml"

func TestDrill(t *testing.T) {
	t.Parallel()
	boots.Require(t)
	dir := boots.Programs(t)
	args := []string{"drill", "--json", "--state-dir", filepath.Join(boots.StateDir(), "drill")}
	// Fetched before, so that a machine without a way to Debian's archive tests
	// the rest. CI has one.
	names := drilled
	mirror := cmp.Or(os.Getenv("LECAFE_LAB_MIRROR"), image.DefaultMirror)
	table, err := drill.ReadTable(foreignTable)
	if err != nil {
		t.Fatal(err)
	}
	switch err := table.Fetch(t.Context(), image.DefaultCache, mirror); {
	case err == nil:
		names = slices.Concat(drilled, foreign)
		args = append(args, "--payloads", foreignTable, "--cache", image.DefaultCache, "--mirror", mirror)
	case os.Getenv("CI") == "true":
		t.Error(err)
	default:
		t.Logf("NOT TESTED, payloads of others: %v", err)
	}
	for _, name := range names {
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
	if len(out.Cases) != len(names) {
		t.Errorf("%d cases, want %d", len(out.Cases), len(names))
	}
	for _, r := range out.Cases {
		t.Logf("%-24s cloud-init: %-14s lecafe: %-8s %5.1f s", r.Name, r.CloudInit, r.Verdict, r.Seconds)
		if r.Wrong != "" {
			t.Errorf("%s: %s", r.Name, r.Wrong)
		}
	}
	if err != nil {
		t.Error(err)
	}
}
