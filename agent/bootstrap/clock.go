package bootstrap

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is one moment on the clocks that a boot is followed by.
type Clock struct {
	At     time.Time     // may be set while the boot goes on
	Uptime time.Duration // since the first process started: the boot's own age
	Kernel time.Duration // since the kernel started: what /proc/uptime says
}

// ticks is USER_HZ, in which Linux gives start times on every architecture Go
// runs on.
const ticks = 100

// Now reads the clocks. In a container the kernel is older than the boot, so
// the boot's age is that of process 1.
func Now() Clock {
	c := Clock{At: time.Now()}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err == nil {
		c.Kernel = time.Duration(ts.Nano())
	}
	c.Uptime = c.Kernel
	stat, err := os.ReadFile("/proc/1/stat")
	if err != nil {
		return c
	}
	if i := bytes.LastIndexByte(stat, ')'); i > 0 {
		if f := strings.Fields(string(stat[i+1:])); len(f) > 19 {
			if n, err := strconv.ParseInt(f[19], 10, 64); err == nil {
				c.Uptime = max(c.Kernel-time.Duration(n)*time.Second/ticks, 0)
			}
		}
	}
	return c
}
