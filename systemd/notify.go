package systemd

import (
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Notify tells the service manager how a program does, as sd_notify(3) has it.
// Without one (NOTIFY_SOCKET is not set) it does nothing.
type Notify struct{}

// Ready says that the program is up.
func (Notify) Ready() error { return send(daemon.SdNotifyReady) }

// Stopping says that it is going down.
func (Notify) Stopping() error { return send(daemon.SdNotifyStopping) }

// Alive feeds the watchdog.
func (Notify) Alive() error { return send(daemon.SdNotifyWatchdog) }

// Status is the line that systemctl status shows. Line breaks become spaces: what
// follows one would be another assignment, as MAINPID=.
func (Notify) Status(format string, args ...any) error {
	return send("STATUS=" + strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " "))
}

// Extend asks for so much more time to stop in than the unit says.
func (Notify) Extend(d time.Duration) error {
	return send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// Watchdog returns how often Alive has to be called at least, 0 for never.
func (Notify) Watchdog() (time.Duration, error) {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("read watchdog interval: %w", err)
	}
	return d, nil
}

func send(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
