// Package procstatus reads what Linux says of a process in /proc/PID/status,
// for benchmarks of a program's memory. It knows Linux alone, and refuses a
// field that is no size.
package procstatus

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// MiB returns a size of /proc/PID/status in MiB: field is VmRSS, VmHWM or
// another that the kernel gives in kB, see proc_pid_status(5).
func MiB(pid int, field string) (float64, error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if name != field {
			continue
		}
		kB, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
		n, err := strconv.ParseFloat(kB, 64)
		if !ok || err != nil {
			return 0, fmt.Errorf("%s: %s is no size: %q", path, field, strings.TrimSpace(value))
		}
		return n / 1024, nil
	}
	return 0, fmt.Errorf("%s has no %s", path, field)
}
