package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/systemd"
)

func newRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"usr/bin", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lecafe-agent")
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.Type() == os.ModeSymlink {
			to, err := os.Readlink(path)
			out[rel] = "-> " + to
			return err
		}
		b, err := os.ReadFile(path)
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInstall(t *testing.T) {
	root := newRoot(t)
	i := systemd.Installation{
		Root: root, Binary: program(t, "program"), Trap: "# trap\n",
		Extra: []systemd.File{{Path: "/etc/lecafe/bake-id", Data: []byte("b-1\n"), Mode: 0o644}},
	}
	if err := systemd.Install(i); err != nil {
		t.Fatal(err)
	}
	got := tree(t, root)
	for path, want := range map[string]string{
		"usr/bin/lecafe-agent":   "program",
		"usr/lib/lecafe/trap.sh": "# trap\n",
		"etc/lecafe/bake-id":     "b-1\n",
		"etc/systemd/system/multi-user.target.wants/lecafe-agent.service":  "-> /usr/lib/systemd/system/lecafe-agent.service",
		"etc/systemd/system/multi-user.target.wants/lecafe-orders.service": "-> /usr/lib/systemd/system/lecafe-orders.service",
		"etc/systemd/system/sockets.target.wants/lecafe-orders.socket":     "-> /usr/lib/systemd/system/lecafe-orders.socket",
	} {
		if got[path] != want {
			t.Errorf("%s is %q, want %q", path, got[path], want)
		}
	}
	for _, path := range []string{
		"usr/lib/systemd/system/lecafe-agent.service", "usr/lib/systemd/system/lecafe-orders.service", "usr/lib/systemd/system/lecafe-orders.socket",
		"usr/lib/systemd/system/cloud-final.service.d/50-lecafe-trap.conf", "usr/lib/systemd/system/cloud-init-main.service.d/50-lecafe-trap.conf",
		"usr/lib/sysusers.d/lecafe-orders.conf", "usr/lib/tmpfiles.d/lecafe.conf",
	} {
		if got[path] == "" {
			t.Errorf("%s is missing", path)
		}
	}
	if !strings.Contains(got["usr/lib/systemd/system/cloud-final.service.d/50-lecafe-trap.conf"], "BASH_ENV=/usr/lib/lecafe/trap.sh") {
		t.Error("the drop-in does not name the library")
	}
	if info, err := os.Stat(filepath.Join(root, "var/lib/lecafe")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v, %v", info, err)
	}
	if info, err := os.Stat(filepath.Join(root, "usr/bin/lecafe-agent")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("program: %v, %v", info, err)
	}

	// Again, with another program: replaced, nothing else changes.
	i.Binary = program(t, "newer")
	if err := systemd.Install(i); err != nil {
		t.Fatal(err)
	}
	again := tree(t, root)
	if again["usr/bin/lecafe-agent"] != "newer" || len(again) != len(got) {
		t.Errorf("%d files became %d", len(got), len(again))
	}
	// The installed program installs itself.
	i.Binary = filepath.Join(root, "usr/bin/lecafe-agent")
	if err := systemd.Install(i); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(i.Binary); string(b) != "newer" {
		t.Errorf("the program became %q", b)
	}
}

func TestInstallMakesTheUser(t *testing.T) {
	if _, err := exec.LookPath("systemd-sysusers"); err != nil {
		t.Skip("SKIPPED: no systemd-sysusers here")
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: not root")
	}
	root := newRoot(t)
	for path, text := range map[string]string{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n", "etc/shadow": "", "etc/gshadow": ""} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := systemd.Install(systemd.Installation{Root: root, Binary: program(t, "x"), Group: "baristas"}); err != nil {
			t.Fatal(err)
		}
	}
	got := tree(t, root)
	if n := strings.Count(got["etc/group"], "\nbaristas:"); n != 1 {
		t.Errorf("group %q", got["etc/group"])
	}
	if n := strings.Count(got["etc/passwd"], "\nlecafe-orders:"); n != 1 || !strings.Contains(got["etc/group"], "lecafe-orders:") {
		t.Errorf("passwd %q, group %q", got["etc/passwd"], got["etc/group"])
	}
	if _, ok := got["usr/lib/lecafe/trap.sh"]; ok {
		t.Error("a trap was installed that was not asked for")
	}
}

func TestInstallRefusesWhatIsNoRoot(t *testing.T) {
	dir := t.TempDir()
	if err := systemd.Install(systemd.Installation{Root: dir, Binary: program(t, "x")}); err == nil {
		t.Error("an empty directory was installed to")
	}
	if left := tree(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	root := newRoot(t)
	if err := systemd.Install(systemd.Installation{Root: root, Binary: "/nonexistent"}); err == nil {
		t.Error("a program that does not exist was installed")
	}
}

// TestUnitsVerify lets systemd read the installed units, and rate them.
func TestUnitsVerify(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: no systemd-analyze here")
	}
	dir := t.TempDir()
	for _, u := range []string{systemd.AgentUnit, systemd.OrdersUnit, systemd.OrdersSocket} {
		text, err := os.ReadFile(u)
		if err != nil {
			t.Fatal(err)
		}
		// The program is not installed where this runs.
		text = []byte(strings.ReplaceAll(string(text), "/usr/bin/lecafe-agent", "/bin/true"))
		if err := os.WriteFile(filepath.Join(dir, u), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, u := range []string{systemd.AgentUnit, systemd.OrdersUnit, systemd.OrdersSocket} {
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", filepath.Join(dir, u))
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), filepath.Base(u)) {
			t.Errorf("%s: %v\n%s", u, err, out)
		}
	}
	for unit, limit := range map[string]string{systemd.AgentUnit: "30", systemd.OrdersUnit: "15"} {
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--threshold="+limit, filepath.Join(dir, unit)).CombinedOutput()
		if err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			t.Errorf("%s is exposed more than %s tenths: %v\n%s", unit, limit, err, lines[len(lines)-1])
		}
	}
}

func TestInstallWithAGroup(t *testing.T) {
	root := newRoot(t)
	i := systemd.Installation{Root: root, Binary: program(t, "x"), Group: "baristas"}
	dropIn, users := "usr/lib/systemd/system/lecafe-orders.socket.d/50-lecafe-group.conf", "usr/lib/sysusers.d/lecafe-orders-group.conf"
	if err := systemd.Install(i); err != nil {
		t.Fatal(err)
	}
	got := tree(t, root)
	if !strings.Contains(got[dropIn], "[Socket]\nSocketGroup=baristas\n") || !strings.Contains(got[users], "\ng baristas -\n") {
		t.Errorf("%q, %q", got[dropIn], got[users])
	}
	if g := systemd.SocketGroup(root); g != "baristas" {
		t.Errorf("group %q", g)
	}
	if err := systemd.SetSocketGroup(root, "cooks"); err != nil {
		t.Fatal(err)
	}
	if g := systemd.SocketGroup(root); g != "cooks" {
		t.Errorf("group of this boot %q", g)
	}
	if err := os.RemoveAll(filepath.Join(root, "run")); err != nil {
		t.Fatal(err)
	}
	// A number needs no group to exist, and the default no drop-in.
	for group, want := range map[string]string{"4711": "4711", "": "lecafe-orders", "lecafe-orders": "lecafe-orders"} {
		i.Group = group
		if err := systemd.Install(i); err != nil {
			t.Fatal(err)
		}
		got := tree(t, root)
		if g := systemd.SocketGroup(root); g != want || (got[dropIn] == "") != (want == "lecafe-orders") {
			t.Errorf("installed with %q: %q, drop-in %q", group, g, got[dropIn])
		}
	}
	if _, ok := tree(t, root)[users]; ok {
		t.Error("the group of an earlier installation is made still")
	}
}
