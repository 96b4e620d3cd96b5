package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
)

// aptLocks are taken by apt and dpkg as POSIX record locks. apt waits for
// dpkg's when told to (DPkg::Lock::Timeout), never for the lists'.
var aptLocks = []string{"var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock", "var/lib/apt/lists/lock", "var/cache/apt/archives/lock"}

const lockTimeout = 10 * time.Minute

// packages installs and removes with the image's own package manager.
func (b *Builder) packages(ctx context.Context, p *recipe.Packages, out *manifest.Step) error {
	var files []string
	for _, f := range p.Files {
		// Package managers tell files from names by the path and the suffix.
		path := b.bundled(f) + filepath.Ext(b.plan.Names[f])
		if err := os.Link(b.bundled(f), path); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		files = append(files, path)
	}
	if _, err := exec.LookPath("apt-get"); err == nil {
		return b.apt(ctx, p, files, out)
	}
	for _, tool := range []string{"dnf", "yum"} {
		if _, err := exec.LookPath(tool); err == nil {
			return b.dnf(ctx, tool, p, files, out)
		}
	}
	out.ExitCode, out.Output = 127, []string{"the image has neither apt-get nor dnf"}
	return errors.New("no package manager")
}

func (b *Builder) apt(ctx context.Context, p *recipe.Packages, files []string, out *manifest.Step) error {
	run := func(args ...string) error {
		// Another apt (unattended-upgrades, apt-daily) may slip in between the
		// look at the locks and the call: then apt fails at once, and is
		// called again. Any other failure is final.
		for try := 0; ; try++ {
			if err := b.waitForLocks(ctx); err != nil {
				return err
			}
			options := []string{"-y", "-q", "-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3", "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"}
			err := b.command(ctx, out, []string{"NEEDRESTART_MODE=a", "APT_LISTCHANGES_FRONTEND=none", "LC_ALL=C.UTF-8"}, "apt-get", append(options, args...)...)
			if err == nil || try == 9 || ctx.Err() != nil || !strings.Contains(strings.Join(out.Output, "\n"), "Could not get lock") {
				return err
			}
			out.ExitCode, out.Output = 0, nil
		}
	}
	if len(p.Install) > 0 || p.Upgrade {
		if err := run("update"); err != nil {
			return err
		}
	}
	if p.Upgrade {
		if err := run("dist-upgrade"); err != nil {
			return err
		}
	}
	if len(p.Remove) > 0 {
		if err := run(append([]string{"purge", "--"}, p.Remove...)...); err != nil {
			return err
		}
	}
	if names := append(append([]string{}, p.Install...), files...); len(names) > 0 {
		return run(append([]string{"install", "--"}, names...)...)
	}
	return nil
}

// waitForLocks returns when nobody holds a lock of apt's.
func (b *Builder) waitForLocks(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lockTimeout, fmt.Errorf("another program held apt's locks for %s", lockTimeout))
	defer cancel()
	for {
		held := ""
		for _, name := range aptLocks {
			if locked(filepath.Join(b.Root, name)) {
				held = name
			}
		}
		if held == "" {
			return nil
		}
		b.Log.Info("waiting for a lock", "path", "/"+held)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

func locked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false // not there: nobody holds it
	}
	defer func() { _ = f.Close() }()
	lk := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &lk); err != nil {
		return false
	}
	return lk.Type != syscall.F_UNLCK
}

// dnf waits for its own lock by itself.
func (b *Builder) dnf(ctx context.Context, tool string, p *recipe.Packages, files []string, out *manifest.Step) error {
	run := func(args ...string) error {
		return b.command(ctx, out, []string{"LC_ALL=C.UTF-8"}, tool, append([]string{"-y", "-q"}, args...)...)
	}
	if p.Upgrade {
		if err := run("upgrade"); err != nil {
			return err
		}
	}
	if len(p.Remove) > 0 {
		if err := run(append([]string{"remove"}, p.Remove...)...); err != nil {
			return err
		}
	}
	var names []string
	for _, n := range p.Install {
		names = append(names, strings.Replace(n, "=", "-", 1))
	}
	if names = append(names, files...); len(names) > 0 {
		return run(append([]string{"install"}, names...)...)
	}
	return nil
}
