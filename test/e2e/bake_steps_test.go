package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/test/boots"
)

// blocks is what the files below root take.
func blocks(t *testing.T, root string) (total int64) {
	t.Helper()
	seen := map[uint64]bool{}
	err := filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); !seen[st.Ino] {
			seen[st.Ino] = st.Nlink > 1 && !d.IsDir()
			total += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}

// TestRebootStepAndSize bakes with a reboot between two steps, into an image
// that is larger than the recipe wants: the builder goes on in the next boot,
// and says what the image's files take, not the host's disk.
func TestRebootStepAndSize(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-12"}, func(o *lab.Options) { o.TimeScale = 20 })
	o := newOperator(t, l)
	// boot_id is the host kernel's in a container; a systemd that has begun
	// anew tells boots apart.
	out := o.bakeRecipe("--set", "agent.aws.endpoint_url="+l.URL, recipeOf(t, "rebooted", `provision:
  - name: before
    run: |
      systemctl show --property=UserspaceTimestampMonotonic > /opt/first-boot
      echo volatile > /run/of-this-boot
      head -c 700M /dev/zero | tr '\\0' x > /opt/beans
  - {name: restart, reboot: true}
  - name: after
    run: |
      test ! -e /run/of-this-boot
      test "$(cat /opt/first-boot)" != "$(systemctl show --property=UserspaceTimestampMonotonic)"
      echo again > /opt/second-boot
clean: {zero_free_space: true, max_used: 1}
agent:
  report: {s3: {bucket: lecafe-reports}}
`))
	root := boots.Merged(t, l, out.ImageID)
	for path, want := range map[string]string{"opt/second-boot": "again\n"} {
		if got, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(got) != want {
			t.Errorf("/%s: %q, %v", path, got, err)
		}
	}
	took := blocks(t, root)
	t.Logf("used_bytes %d, the image's files take %d", out.UsedBytes, took)
	if off := out.UsedBytes - took; off < 0 || off > took/5 { // the builder's own program and the logs were still there
		t.Errorf("used_bytes %d, but the image's files take %d", out.UsedBytes, took)
	}
	warning := fmt.Sprintf("the image has %.1f GiB in use, more than the 1 GiB of clean.max_used", float64(out.UsedBytes)/(1<<30))
	if !strings.Contains(out.stderr, warning) {
		t.Errorf("no warning %q:\n%s", warning, out.stderr)
	}
	o.nothingLeft(out.ImageID)
}
