package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/lecafe/lecafe/internal/atomicfile"
)

// DefaultGroup may post orders where no other was installed.
const DefaultGroup = "lecafe-orders"

const (
	groupDropIn   = OrdersSocket + ".d/50-lecafe-group.conf"
	groupSysusers = "lecafe-orders-group.conf"
	// runtimeDir is above unitDir for systemd, and gone with the boot.
	runtimeDir = "run/systemd/system"
)

func groupConf(group string) []byte {
	return []byte("# The group that may post orders: orders.group in the agent's settings.\n[Socket]\nSocketGroup=" + group + "\n")
}

// SocketGroup is the group that the orders' socket is set up for below root:
// that of this boot where there is one, else the installed one.
func SocketGroup(root string) string {
	for _, dir := range []string{runtimeDir, unitDir} {
		text, err := os.ReadFile(filepath.Join(root, dir, groupDropIn))
		if err != nil {
			continue
		}
		if _, rest, ok := strings.Cut(string(text), "\nSocketGroup="); ok {
			return strings.TrimSpace(rest)
		}
	}
	return DefaultGroup
}

// SetSocketGroup sets the group for this boot: the next start of the socket
// takes it, once systemd has read its units again.
func SetSocketGroup(root, group string) error {
	path := filepath.Join(root, runtimeDir, groupDropIn)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("set the socket's group: %w", err)
	}
	return atomicfile.WriteFile(path, groupConf(group), 0o644)
}

// makeGroup makes the group that Install was told, where it does not exist.
func makeGroup(root, group string) error {
	if group == "" || group == DefaultGroup || numeric(group) {
		return nil
	}
	have, err := os.ReadFile(filepath.Join(root, "etc/group"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // sysusers makes it at the first boot
	}
	if err != nil {
		return fmt.Errorf("install group: %w", err)
	}
	if strings.HasPrefix(string(have), group+":") || strings.Contains(string(have), "\n"+group+":") {
		return nil
	}
	var argv []string
	if path, err := exec.LookPath("systemd-sysusers"); err == nil {
		argv = []string{path, "--root=" + root, groupSysusers}
	} else if path, err := exec.LookPath("groupadd"); err == nil {
		argv = []string{path, "--root", root, "--system", group}
	} else {
		return fmt.Errorf("install group %s: neither systemd-sysusers nor groupadd is here; make the group and install again", group)
	}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("install group %s: %s: %w: %s", group, argv[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

func numeric(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
