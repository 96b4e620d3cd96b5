package boots

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Root is the module's directory as the packages below test see it.
const Root = "../.."

// Build builds packages of the module in dir; args begin with -o.
func Build(dir string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", "-s -w"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// scratch is the directory programs are built into, once there is one.
var scratch struct {
	sync.Mutex
	dir string
}

// Run runs a package's tests and removes the programs that they built. It
// returns the exit code; it is what TestMain calls.
func Run(m *testing.M) int {
	code := m.Run()
	scratch.Lock()
	defer scratch.Unlock()
	if scratch.dir != "" {
		if err := os.RemoveAll(scratch.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return code
}

// Programs returns the directory of lecafe, lecafe-agent and lecafe-builder:
// LECAFE_BIN, where make has just built them, or one they are built into.
func Programs(t *testing.T) string {
	t.Helper()
	return programs(t, "lecafe", func(dir string) error {
		return Build(Root, "-o", dir+"/", "./cmd/lecafe", "./cmd/lecafe-agent", "./cmd/lecafe-builder")
	})
}

// Plugin returns packer-plugin-lecafe's path, in the directory of Programs.
func Plugin(t *testing.T) string {
	t.Helper()
	const name = "packer-plugin-lecafe"
	return filepath.Join(programs(t, name, func(dir string) error {
		return Build(filepath.Join(Root, "packer"), "-o", filepath.Join(dir, name), ".")
	}), name)
}

// programs returns the directory that has a program, building it at the first
// call.
func programs(t *testing.T, name string, build func(dir string) error) string {
	t.Helper()
	if dir := os.Getenv("LECAFE_BIN"); dir != "" {
		return dir
	}
	scratch.Lock()
	defer scratch.Unlock()
	if scratch.dir == "" {
		dir, err := os.MkdirTemp("", "lecafe-boots-")
		if err != nil {
			t.Fatal(err)
		}
		scratch.dir = dir
	}
	_, err := os.Stat(filepath.Join(scratch.dir, name))
	if errors.Is(err, os.ErrNotExist) {
		err = build(scratch.dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return scratch.dir
}
