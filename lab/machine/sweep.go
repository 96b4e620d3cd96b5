package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// namePrefix begins the name of every lab, and with it that of every namespace
// and cgroup that a lab makes.
const namePrefix = "lecafe-lab-"

// cgroupRoots are the hierarchies in which systemd tracks processes: the one
// of cgroup v2, or on a hybrid host that and version 1's name=systemd.
func cgroupRoots() []string {
	var roots []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
			roots = append(roots, root)
		}
	}
	return roots
}

// killCgroup kills every process in the cgroups and below them, and goes on
// until none is left: a process may fork while it is looked for.
func killCgroup(dirs []string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		left := 0
		for _, dir := range dirs {
			err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
				if err != nil || e.Name() != "cgroup.procs" {
					return nil //nolint:nilerr // what is gone needs no killing
				}
				f, err := os.Open(p)
				if err != nil {
					return nil //nolint:nilerr // as above
				}
				defer f.Close()
				for s := bufio.NewScanner(f); s.Scan(); {
					pid, err := strconv.Atoi(s.Text())
					// A process of another PID namespace above ours reads as 0.
					if err != nil || pid <= 1 || pid == os.Getpid() || zombie(pid) {
						continue
					}
					left++
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
						return fmt.Errorf("kill process %d of %s: %w", pid, dir, err)
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of %s survive SIGKILL", left, strings.Join(dirs, ", "))
		}
		time.Sleep(5 * time.Millisecond) // the kernel is at it
	}
}

// zombie tells whether a process is dead and waits for its parent only.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	rest := string(b)[strings.LastIndexByte(string(b), ')')+1:]
	return strings.HasPrefix(rest, " Z") || strings.HasPrefix(rest, " X")
}

// removeCgroup removes the cgroups and those below them. They must be empty.
func removeCgroup(dirs []string) error {
	for _, dir := range dirs {
		var all []string
		_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				all = append(all, p)
			}
			return nil
		})
		slices.Reverse(all) // children first
		for _, p := range all {
			err := os.Remove(p)
			// A cgroup whose last process has just died may be busy for a moment.
			for range 200 {
				if !errors.Is(err, syscall.EBUSY) {
					break
				}
				time.Sleep(5 * time.Millisecond)
				err = os.Remove(p)
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
		}
	}
	return nil
}

// deleteNetns removes a named network namespace, as ip netns delete does.
func deleteNetns(name string) error {
	path := nsPath(name)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// sweep removes all that a lab of that name has on the host: processes,
// cgroups, network namespaces, mounts and files.
func sweep(ctx context.Context, name, dir string) error {
	if !strings.HasPrefix(name, namePrefix) || filepath.Base(dir) != name {
		return fmt.Errorf("%s is no lab's directory", dir)
	}
	var cgroups []string
	for _, root := range cgroupRoots() {
		cgroups = append(cgroups, filepath.Join(root, name))
	}
	errs := []error{killCgroup(cgroups), removeCgroup(cgroups)}
	namespaces, err := filepath.Glob(nsPath(name + "-*"))
	errs = append(errs, err)
	for _, ns := range namespaces {
		errs = append(errs, deleteNetns(filepath.Base(ns)))
	}
	errs = append(errs, unmountBelow(ctx, dir), removeNspawnState(name))
	// Nothing is deleted through a mount that could not be removed.
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// removeNspawnState removes what systemd-nspawn keeps for each machine and
// leaves when it is killed.
func removeNspawnState(name string) error {
	var errs []error
	for _, glob := range []string{"/run/systemd/nspawn/propagate/", "/run/systemd/nspawn/unix-export/", "/run/systemd/nspawn/locks/"} {
		left, err := filepath.Glob(glob + name + "-*")
		errs = append(errs, err)
		for _, p := range left {
			// A directory that is still a mount point must not be emptied.
			if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
			}
			if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove what systemd-nspawn left: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// unmountBelow removes mounts below dir. The lab itself makes none in the
// host's mount namespace; a person who looked at a disk may have.
func unmountBelow(ctx context.Context, dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if out, err := exec.CommandContext(ctx, "umount", "--lazy", f[4]).CombinedOutput(); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w: %s", f[4], err, out))
			}
		}
	}
	return errors.Join(errs...)
}
