package builder_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lecafe/lecafe/agent/report"
)

// disk is a file system of its own on a file.
type disk struct {
	t           *testing.T
	file, mount string
}

// cannot skips the test, or fails it in CI.
func cannot(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("a real file system must be there in CI: "+format, args...)
	}
	t.Skipf("SKIPPED a real file system: "+format, args...)
}

func newDisk(t *testing.T, size string) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		cannot(t, "not root")
	}
	d := &disk{t, filepath.Join(t.TempDir(), "disk"), t.TempDir()}
	for _, argv := range [][]string{{"truncate", "-s", size, d.file}, {"mkfs.ext4", "-q", "-F", d.file}} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			cannot(t, "%s: %v %s", argv[0], err, out)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop,nodiscard", d.file, d.mount).CombinedOutput(); err != nil {
		cannot(t, "no loop devices here: %v %s", err, out)
	}
	t.Cleanup(d.unmount)
	return d
}

func (d *disk) unmount() {
	if d.mount == "" {
		return
	}
	if out, err := exec.Command("umount", d.mount).CombinedOutput(); err != nil {
		d.t.Errorf("umount: %v %s", err, out)
	}
	d.mount = ""
}

func (d *disk) holds(text string) bool {
	d.t.Helper()
	data, err := os.ReadFile(d.file)
	if err != nil {
		d.t.Fatal(err)
	}
	return bytes.Contains(data, []byte(text))
}

// What was deleted can be read from the disk, unless its blocks were
// overwritten.
func TestZeroFreeSpace(t *testing.T) {
	const secret = "the bar's safe opens at 31-07-22"
	for _, zero := range []bool{false, true} {
		s := newStage(t)
		d := newDisk(t, "64M")
		if err := os.CopyFS(d.mount, os.DirFS(s.root)); err != nil {
			t.Fatal(err)
		}
		s.root = d.mount
		s.file("opt/note", strings.Repeat(secret+"\n", 40_000))
		if out, err := exec.CommandContext(t.Context(), "sync", "-f", d.mount).CombinedOutput(); err != nil {
			t.Fatalf("sync: %v %s", err, out)
		}
		if err := os.Remove(filepath.Join(s.root, "opt/note")); err != nil {
			t.Fatal(err)
		}
		s.plan.Clean.ZeroFreeSpace = zero
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		if res := s.result(); res.Report.Verdict != report.Success {
			t.Fatalf("zero %v: %+v", zero, res.Report)
		}
		if left, err := filepath.Glob(filepath.Join(s.root, ".lecafe*")); err != nil || len(left) > 0 {
			t.Errorf("left in the image: %v, %v", left, err)
		}
		d.unmount()
		if d.holds(secret) == zero {
			t.Errorf("zero_free_space %v: the deleted note is on the disk: %v", zero, !zero)
		}
	}
}

// An overlay's free blocks are the host's: filling them would fill the host.
func TestZeroFreeSpaceLeavesAnOverlayAlone(t *testing.T) {
	s := newStage(t)
	d := newDisk(t, "32M") // what an overlay must not fill
	for _, dir := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(d.mount, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "overlay", "-o", "lowerdir="+s.root+",upperdir="+d.mount+"/upper,workdir="+d.mount+"/work", "none", root).CombinedOutput(); err != nil {
		cannot(t, "overlay: %v %s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", root).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	}()
	lower := s.root
	s.root = root
	s.plan.Clean.ZeroFreeSpace = true
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	res := s.result()
	if res.Report.Verdict != report.Success {
		t.Fatalf("%+v", res.Report)
	}
	// Files of both layers count, the file system around them does not.
	if res.Used <= 0 || res.Used > 1<<20 {
		t.Errorf("%d bytes used of %s", res.Used, lower)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(d.file, &st); err != nil || st.Blocks*512 > 16<<20 {
		t.Errorf("the disk below was filled: %d bytes of its file are written, %v", st.Blocks*512, err)
	}
}
