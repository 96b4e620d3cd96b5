package boots

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/bake/cleanup/secrets"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/lab"
)

// Merged mounts an image's layers read-only until the test ends, and returns
// the directory.
func Merged(t *testing.T, l *lab.Lab, imageID string) string {
	t.Helper()
	layers, err := l.Machines.Layers(imageID)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := unix.Mount("overlay", root, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(layers, ":")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	return root
}

// Inspect looks into an image before it has booted. It fails the test where
// that holds what must not be in an image, or anything of the builder; where it
// lacks the agent or a path of has; and where it has a path of not.
func Inspect(t *testing.T, l *lab.Lab, imageID string, has, not []string) {
	t.Helper()
	root := Merged(t, l, imageID)
	scanner, err := secrets.New()
	if err != nil {
		t.Fatal(err)
	}
	found, err := cleanup.Inspect(t.Context(), cleanup.Options{Root: root, Scanner: scanner})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("in the image: %s", f)
	}
	for _, p := range append([]string{manifest.Dir, manifest.LastHook, "/etc/systemd/system/" + manifest.Unit, "/etc/systemd/system/" + manifest.Deadline + ".timer"}, not...) {
		if _, err := os.Lstat(filepath.Join(root, p)); err == nil {
			t.Errorf("%s is left in the image", p)
		}
	}
	for _, p := range append([]string{"/usr/bin/lecafe-agent", "/etc/lecafe/agent.yaml"}, has...) {
		if _, err := os.Lstat(filepath.Join(root, p)); err != nil {
			t.Errorf("the image lacks %s: %v", p, err)
		}
	}
}
