package systemd_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/lecafe/lecafe/systemd"
)

// TestUnitsAreNotGivenUp pins that a disk which is read-only for an hour does not
// leave orders on it, or an instance silent, for good: at the pace of RestartSec=
// the units' limit of starts is not reached. (With it the socket would go too.)
func TestUnitsAreNotGivenUp(t *testing.T) {
	root := newRoot(t)
	if err := systemd.Install(systemd.Installation{Root: root, Binary: program(t, "program")}); err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{systemd.AgentUnit, systemd.OrdersUnit} {
		text, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system", unit))
		if err != nil {
			t.Fatal(err)
		}
		number := func(key string) int {
			m := regexp.MustCompile(`(?m)^` + key + `=(\d+)$`).FindSubmatch(text)
			if m == nil {
				t.Fatalf("%s: no %s=", unit, key)
			}
			n, err := strconv.Atoi(string(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if starts, burst := number("StartLimitIntervalSec")/number("RestartSec"), number("StartLimitBurst"); starts >= burst {
			t.Errorf("%s: up to %d starts in the interval, given up after %d", unit, starts, burst)
		}
	}
}
