package programs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/packer/programs"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	program := func(name string, machine byte) string {
		t.Helper()
		header := make([]byte, 64)
		copy(header, "\x7fELF")
		header[18] = machine
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, header, 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := program("lecafe-agent", 62)
	arm := program("lecafe-agent-linux-arm64", 183)
	program("lecafe-builder-linux-amd64", 183) // its name lies
	for _, c := range []struct{ name, arch, want string }{
		{"lecafe-agent", "amd64", plain},
		{"lecafe-agent", "arm64", arm},
		{"lecafe-builder", "amd64", "lecafe-builder-linux-amd64 is for linux/arm64"},
		{"lecafe-other", "arm64", "no lecafe-other for linux/arm64 in " + dir},
	} {
		got, err := programs.Find(dir, c.name, c.arch)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) || (err != nil) == filepath.IsAbs(c.want) {
			t.Errorf("Find(%s, %s): %q, want %q", c.name, c.arch, got, c.want)
		}
	}
	t.Setenv("PATH", "/nowhere:"+dir)
	if got, err := programs.Find("", "lecafe-agent", "arm64"); err != nil || got != arm {
		t.Errorf("in PATH: %q, %v", got, err)
	}
}
