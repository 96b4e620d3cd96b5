package builder

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// quiet stops what writes to disk behind the cleaning's back. Everything it
// does is undone by the next boot: units are stopped, not disabled, and the
// journal's setting is in /run.
func quiet(ctx context.Context, log *slog.Logger) {
	run := func(name string, args ...string) {
		if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
			log.Debug(name, "args", args, "err", err, "output", string(out))
		}
	}
	// auditd refuses systemctl stop by design; its own tool is asked first.
	// https://docs.redhat.com/ (auditd's unit has RefuseManualStop)
	if _, err := exec.LookPath("auditctl"); err == nil {
		run("auditctl", "--signal", "stop")
	}
	run("systemctl", "stop", "rsyslog.service", "syslog.socket", "unattended-upgrades.service", "apt-daily.timer", "apt-daily-upgrade.timer",
		"dnf-makecache.timer", "dnf-automatic.timer", "dnf-automatic-install.timer", "sysstat-collect.timer", "sysstat-summary.timer", "rhsmcertd.service", "insights-client.timer", "man-db.timer", "logrotate.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer", "amazon-ssm-agent.service", "lecafe-agent.service")
	drop := "/run/systemd/journald.conf.d"
	if err := os.MkdirAll(drop, 0o755); err == nil {
		if err := os.WriteFile(filepath.Join(drop, "lecafe-builder.conf"), []byte("[Journal]\nStorage=volatile\n"), 0o644); err == nil {
			run("systemctl", "restart", "systemd-journald.service")
		}
	}
	run("swapoff", "-a")
}

func lines(s string) []string {
	var out []string
	for _, l := range strings.Split(s, "\n") {
		if l != "" {
			out = append(out, l)
		}
	}
	return out
}
