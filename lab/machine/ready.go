package machine

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// tools are the programs a lab runs and the Debian packages they come from.
var tools = map[string]string{
	"systemd-nspawn": "systemd-container",
	"ip":             "iproute2",
	"unshare":        "util-linux",
	"nsenter":        "util-linux",
	"mount":          "mount",
	"cp":             "coreutils",
}

// NotReadyError says what this host lacks.
type NotReadyError struct {
	NoRoot   bool
	Missing  []string // programs
	Packages []string // the Debian packages that have them
}

func (e *NotReadyError) Error() string {
	var parts []string
	if e.NoRoot {
		parts = append(parts, "instances that boot need root: run this as root")
	}
	if len(e.Missing) > 0 {
		parts = append(parts, fmt.Sprintf("%s missing: run apt-get install -y %s", strings.Join(e.Missing, ", "), strings.Join(e.Packages, " ")))
	}
	return strings.Join(parts, "; ")
}

// Ready returns a *NotReadyError if this host cannot run machines.
func Ready() error { return Require(tools) }

// Require returns a *NotReadyError unless this process is root and all the
// programs (name → Debian package) are there.
func Require(programs map[string]string) error {
	e := &NotReadyError{NoRoot: os.Geteuid() != 0}
	for p, pkg := range programs {
		if _, err := exec.LookPath(p); err != nil {
			e.Missing = append(e.Missing, p)
			if !slices.Contains(e.Packages, pkg) {
				e.Packages = append(e.Packages, pkg)
			}
		}
	}
	if !e.NoRoot && len(e.Missing) == 0 {
		return nil
	}
	slices.Sort(e.Missing)
	slices.Sort(e.Packages)
	return e
}
