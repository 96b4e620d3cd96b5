package builder

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// labelled is what an installation of the agent has written.
var labelled = []string{
	"usr/bin/lecafe-agent", "usr/lib/lecafe", "etc/lecafe", "var/lib/lecafe", "usr/lib/systemd/system/lecafe-agent.service",
	"usr/lib/systemd/system/lecafe-orders.service", "usr/lib/systemd/system/lecafe-orders.socket", "usr/lib/sysusers.d/lecafe-orders.conf", "usr/lib/tmpfiles.d/lecafe.conf",
}

// relabel gives the agent's files the contexts of the image's SELinux policy:
// files that were moved into place keep those of /tmp, from which systemd
// refuses to start a program under RHEL's enforcing policy. Without SELinux it
// does nothing.
func (b *Builder) relabel(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(b.Root, "sys/fs/selinux/enforce")); err != nil {
		return nil
	}
	tool, err := exec.LookPath("restorecon")
	if err != nil {
		return fmt.Errorf("SELinux is on and there is no restorecon: install policycoreutils in an earlier step")
	}
	args := []string{"-RF"}
	for _, p := range labelled {
		if path := filepath.Join(b.Root, p); exists(path) {
			args = append(args, path)
		}
	}
	if len(args) == 1 {
		return nil
	}
	if out, err := exec.CommandContext(ctx, tool, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("restorecon: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
