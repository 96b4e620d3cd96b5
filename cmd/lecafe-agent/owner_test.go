package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// TestMain lets a test run the program as a process of its own.
func TestMain(m *testing.M) {
	if args := os.Getenv("LECAFE_AGENT_TEST_ARGS"); args != "" {
		os.Exit(run(strings.Split(args, "\n"), os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestReplayLeavesNothingThatTheServiceCannotRead pins that root may replay: the
// service, a user of its own, must be able to start again afterwards.
func TestReplayLeavesNothingThatTheServiceCannotRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	const owner = 65534
	dir := t.TempDir()
	socket, stop := nowhere(t, dir)
	if code, _, stderr := command("", "send", "--socket", socket, "2 × espresso"); code != 0 {
		t.Fatal(stderr)
	}
	stop()
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, owner, owner)
	}); err != nil {
		t.Fatal(err)
	}
	// The way there, which t.TempDir keeps for root.
	for up := filepath.Dir(dir); up != os.TempDir(); up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := cloudtest.New(t, cloud.Options{})
	c.SQS.CreateQueue("q", nil)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, extra := range [][]string{nil, {"--parked"}} {
		args := append([]string{"lecafe-agent", "spool", "replay", "--state-dir", dir, "--no-imds", "--queue", "q", "--region", "us-east-1", "--endpoint-url", c.URL}, extra...)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "LECAFE_AGENT_TEST_ARGS="+strings.Join(args, "\n"), "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != owner || st.Gid != owner {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
