package systemd

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/lecafe/lecafe/internal/atomicfile"
)

//go:embed lecafe-agent.service lecafe-orders.service lecafe-orders.socket lecafe-orders.sysusers lecafe.tmpfiles trap.conf
var files embed.FS

// Names of the units.
const (
	AgentUnit    = "lecafe-agent.service"
	OrdersUnit   = "lecafe-orders.service"
	OrdersSocket = "lecafe-orders.socket"
)

const (
	unitDir     = "usr/lib/systemd/system"
	enabledDir  = "etc/systemd/system"
	binaryPath  = "usr/bin/lecafe-agent"
	trapPath    = "usr/lib/lecafe/trap.sh"
	sysusersDir = "usr/lib/sysusers.d"
	tmpfilesDir = "usr/lib/tmpfiles.d"
)

// placed says where each embedded file goes.
var placed = []struct{ name, path string }{
	{AgentUnit, unitDir + "/" + AgentUnit},
	{OrdersUnit, unitDir + "/" + OrdersUnit},
	{OrdersSocket, unitDir + "/" + OrdersSocket},
	{"lecafe-orders.sysusers", sysusersDir + "/lecafe-orders.conf"},
	{"lecafe.tmpfiles", tmpfilesDir + "/lecafe.conf"},
}

// trapped are the units whose scripts the trap watches.
var trapped = []string{"cloud-final.service", "cloud-init-main.service"}

// enabled are the links that systemctl enable would make.
var enabled = []struct{ target, unit string }{
	{"multi-user.target", AgentUnit},
	{"multi-user.target", OrdersUnit},
	{"sockets.target", OrdersSocket},
}

// File is one more file to install, below root.
type File struct {
	Path string // absolute
	Data []byte
	Mode fs.FileMode
}

// Installation is what Install puts into an image.
type Installation struct {
	Root   string // "/" or the root directory of an image
	Binary string // the agent's program; the one at its place already stays
	Trap   string // the trap's library; empty installs no trap
	// Group may post orders; empty is DefaultGroup. Where it does not exist it is
	// made: a socket of a group that is unknown would not come up.
	Group string
	Extra []File
}

// Install writes program, units, drop-ins and directories below i.Root, makes
// the orders' user there and enables the units, as links: nothing is started
// and no systemd is asked, so an image that is not running can be installed to.
// Installing again replaces what is there.
func Install(i Installation) error {
	if i.Root == "" {
		return errors.New("install: no root directory")
	}
	if info, err := os.Stat(filepath.Join(i.Root, "usr")); err != nil || !info.IsDir() {
		return fmt.Errorf("install: %s is no root directory of a system: it has no usr", i.Root)
	}
	for _, dir := range []struct {
		path string
		mode fs.FileMode
	}{{"etc/lecafe", 0o755}, {"etc/lecafe/agent.d", 0o755}, {"var/lib/lecafe", 0o700}} {
		if err := makeDir(filepath.Join(i.Root, dir.path), dir.mode); err != nil {
			return err
		}
	}
	if err := copyProgram(i.Binary, filepath.Join(i.Root, binaryPath)); err != nil {
		return err
	}
	var out []File
	for _, p := range placed {
		data, err := files.ReadFile(p.name)
		if err != nil {
			return fmt.Errorf("install: %w", err)
		}
		out = append(out, File{"/" + p.path, data, 0o644})
	}
	if i.Trap != "" {
		dropIn, err := files.ReadFile("trap.conf")
		if err != nil {
			return fmt.Errorf("install: %w", err)
		}
		out = append(out, File{"/" + trapPath, []byte(i.Trap), 0o644})
		for _, u := range trapped {
			out = append(out, File{"/" + unitDir + "/" + u + ".d/50-lecafe-trap.conf", dropIn, 0o644})
		}
	}
	if g := i.Group; g != "" && g != DefaultGroup {
		out = append(out, File{"/" + unitDir + "/" + groupDropIn, groupConf(g), 0o644})
		if !numeric(g) {
			out = append(out, File{"/" + sysusersDir + "/" + groupSysusers, []byte("# The group that may post orders (orders.group).\ng " + g + " -\n"), 0o644})
		}
	} else {
		for _, path := range []string{unitDir + "/" + groupDropIn, sysusersDir + "/" + groupSysusers} {
			if err := os.Remove(filepath.Join(i.Root, path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("install: %w", err)
			}
		}
	}
	for _, f := range append(out, i.Extra...) {
		if err := place(i.Root, f); err != nil {
			return err
		}
	}
	for _, e := range enabled {
		if err := enable(i.Root, e.target, e.unit); err != nil {
			return err
		}
	}
	if err := makeUser(i.Root); err != nil {
		return err
	}
	return makeGroup(i.Root, i.Group)
}

func makeDir(path string, mode fs.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return nil
}

func place(root string, f File) error {
	path := filepath.Join(root, f.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("install %s: %w", f.Path, err)
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, f.Data) {
		return os.Chmod(path, f.Mode)
	}
	if err := atomicfile.WriteFile(path, f.Data, f.Mode); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return nil
}

// copyProgram copies from to to, by rename, so that one that runs from there
// goes on.
func copyProgram(from, to string) error {
	a, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("install program: %w", err)
	}
	if b, err := os.Stat(to); err == nil && os.SameFile(a, b) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("install program: %w", err)
	}
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("install program: %w", err)
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".lecafe-agent.*.tmp")
	if err != nil {
		return fmt.Errorf("install program: %w", err)
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(0o755)
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(out.Name(), to)
	}
	if err != nil {
		_ = os.Remove(out.Name()) // of no use
		return fmt.Errorf("install program: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(to))
}

func enable(root, target, unit string) error {
	link := filepath.Join(root, enabledDir, target+".wants", unit)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return fmt.Errorf("enable %s: %w", unit, err)
	}
	want := "/" + unitDir + "/" + unit
	if got, err := os.Readlink(link); err == nil && got == want {
		return nil
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("enable %s: %w", unit, err)
	}
	if err := os.Symlink(want, link); err != nil {
		return fmt.Errorf("enable %s: %w", unit, err)
	}
	return nil
}

// makeUser makes the orders' user now: systemd-sysusers runs at boot only when
// /etc is younger than /usr, which in an image made by changing a system it is
// not.
func makeUser(root string) error {
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // sysusers makes all users at the first boot
	}
	if err != nil {
		return fmt.Errorf("install user: %w", err)
	}
	if strings.HasPrefix(string(passwd), "lecafe-orders:") || strings.Contains(string(passwd), "\nlecafe-orders:") {
		return nil
	}
	var argv []string
	if path, err := exec.LookPath("systemd-sysusers"); err == nil {
		argv = []string{path, "--root=" + root, "lecafe-orders.conf"} // found in sysusers.d below root
	} else if path, err := exec.LookPath("useradd"); err == nil {
		argv = []string{path, "--root", root, "--system", "--user-group", "--home-dir", "/var/lib/lecafe-orders", "--shell", "/usr/sbin/nologin", "lecafe-orders"}
	} else {
		return errors.New("install user lecafe-orders: neither systemd-sysusers nor useradd is here; make the user and install again")
	}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("install user lecafe-orders: %s: %w: %s", argv[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}
