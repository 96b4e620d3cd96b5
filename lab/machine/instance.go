package machine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
)

// exitReboot is how systemd-nspawn --keep-unit says that the guest rebooted.
const exitReboot = 133

// Signals that systemd as PID 1 takes as requests, see systemd(1). Go has no
// names for real-time signals; glibc's first free one is 34.
const (
	sigPowerOff = syscall.Signal(34 + 4)
	sigReboot   = syscall.Signal(34 + 5)
)

// instance is one machine of a Driver.
type instance struct {
	d   *Driver
	m   ec2.Machine
	seq int
	dir string
	log *slog.Logger
	img *image // guarded by d.mu

	mu       sync.Mutex
	running  bool
	stopping bool // a power-off was asked for: it is no news
	gone     bool
	pid      int           // of systemd-nspawn
	off      chan struct{} // closed when powered off
	net      *network
	faults   Faults
}

// create makes the disk and the network.
func (i *instance) create(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, sub := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(i.dir, sub), 0o755); err != nil {
			return err
		}
	}
	net, err := newNetwork(ctx, i)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	i.net = net
	return net.apply(i.faults)
}

func (i *instance) setFaults(f Faults) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.net == nil {
		return fmt.Errorf("faults of %s: %w", i.m.InstanceID, ErrNotFound)
	}
	i.faults = f
	return i.net.apply(f)
}

// powerOn boots the machine and follows it until it is off.
func (i *instance) powerOn() error {
	i.d.mu.Lock()
	img := i.img
	i.d.mu.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.gone || img == nil:
		return fmt.Errorf("power on %s: %w", i.m.InstanceID, ErrNotFound)
	case i.running:
		return nil
	}
	console, err := openConsole(filepath.Join(i.d.dir, "machines", i.m.InstanceID+".console"))
	if err != nil {
		return err
	}
	argv := i.command(img.layers)
	started := make(chan error, 1)
	off := make(chan struct{})
	i.off = off
	go i.run(argv, console, started, off)
	if err := <-started; err != nil {
		i.running = false
		return fmt.Errorf("power on %s: %w", i.m.InstanceID, err)
	}
	i.running, i.stopping = true, false
	return nil
}

// run starts the machine, again after each reboot, until it is off.
func (i *instance) run(argv []string, console *console, started chan<- error, off chan struct{}) {
	// PR_SET_PDEATHSIG fires when the parent's thread ends: this goroutine
	// keeps its thread for as long as the machine lives. So a lab that is
	// killed takes its machines along at once.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for first := true; ; first = false {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = console, console
		// A session of its own: the terminal's Ctrl-C is for the lab alone.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		cmd.WaitDelay = 5 * time.Second
		err := cmd.Start()
		if err == nil {
			if !first {
				i.mu.Lock()
			}
			i.pid = cmd.Process.Pid
			if err := os.WriteFile(i.pidFile(), strconv.AppendInt(nil, int64(i.pid), 10), 0o600); err != nil {
				i.log.Warn("lecafe lab exec will not find the machine", "error", err)
			}
			if !first {
				i.mu.Unlock()
			}
		}
		if first {
			started <- err
		}
		if err != nil && first {
			close(off)
			console.Close()
			return
		}
		if err == nil {
			err = cmd.Wait()
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == exitReboot {
			i.mu.Lock()
			stopping := i.stopping
			i.mu.Unlock()
			if !stopping {
				i.log.Debug("machine rebooted")
				continue
			}
			err = nil
		}
		// Whatever the guest left running outside its PID namespace (commands
		// of exec) ends with it.
		if kerr := killCgroup(i.cgroup()); kerr != nil {
			i.log.Warn("kill what the machine left", "error", kerr)
		}
		i.mu.Lock()
		i.running, i.pid = false, 0
		_ = os.Remove(i.pidFile()) // the directory goes with the machine anyway
		stopping := i.stopping
		i.mu.Unlock()
		if err != nil && !stopping {
			i.log.Warn("machine ended abnormally", "error", err, "console", console.lastLine())
		}
		console.Close()
		close(off)
		if !stopping {
			i.d.mu.Lock()
			f := i.d.poweredOff
			i.d.mu.Unlock()
			f(i.m.InstanceID)
		}
		return
	}
}

// command is what runs the machine. The overlay is mounted in a mount
// namespace of the machine's own: it ends with the last process in it, also
// when nobody is left to unmount it. The caller holds i.mu.
func (i *instance) command(layers []string) []string {
	script := `set -e
layers=$1 dir=$2; shift 2
while [ "$1" != -- ]; do mkdir -p "$1"; echo $$ > "$1/cgroup.procs"; shift; done; shift
mount -t overlay -o "lowerdir=$layers,upperdir=$dir/upper,workdir=$dir/work,redirect_dir=off,metacopy=off,index=off" lecafe-lab "$dir/root"
exec "$@"`
	argv := []string{"unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, i.name(), strings.Join(layers, ":"), i.dir}
	argv = append(argv, i.cgroup()...)
	argv = append(argv, "--", "systemd-nspawn", "--quiet", "--boot", "-D", filepath.Join(i.dir, "root"),
		"--machine="+i.name(), "--register=no", "--keep-unit", "--network-namespace-path="+nsPath(i.name()+guestSide),
		// Without CAP_NET_ADMIN the guest could not configure eth0.
		"--capability=CAP_NET_ADMIN", "--resolv-conf=off", "--link-journal=no", "--timezone=off", "--console=read-only",
		"--kill-signal=SIGRTMIN+4",
	)
	if i.d.opts.BPF {
		argv = append(argv, "--system-call-filter=bpf")
	}
	for dir, size := range i.faults.Tmpfs {
		argv = append(argv, "--tmpfs="+dir+":mode=0755,size="+size)
	}
	for target, file := range guestFiles {
		argv = append(argv, "--bind-ro="+filepath.Join(i.d.dir, "guest", file)+":"+target)
	}
	return argv
}

// name is the machine's name on the host: it begins with the lab's.
func (i *instance) name() string { return i.d.name + "-" + strconv.Itoa(i.seq) }

// cgroup is the machine's directory in each cgroup hierarchy that systemd
// uses. Two guests in one cgroup would take each other's processes for theirs.
func (i *instance) cgroup() []string {
	var dirs []string
	for _, root := range cgroupRoots() {
		dirs = append(dirs, filepath.Join(root, i.d.name, i.name()))
	}
	return dirs
}

// powerOff ends the machine, by force at once, or when it does not end by
// itself in time, and waits for it to be off.
func (i *instance) powerOff(ctx context.Context, force bool) error {
	i.mu.Lock()
	if !i.running {
		i.mu.Unlock()
		return nil
	}
	off := i.off
	i.stopping = true
	leader, err := i.leader()
	i.mu.Unlock()
	if !force && err == nil {
		// An init that is not yet listening misses the signal, so it is told
		// again; told twice it does nothing new.
		again := time.NewTicker(2 * time.Second)
		defer again.Stop()
		t := time.NewTimer(stopTimeout)
		defer t.Stop()
		for waiting := true; waiting; {
			if err := syscall.Kill(leader, sigPowerOff); err != nil && !errors.Is(err, syscall.ESRCH) {
				i.log.Warn("power off", "error", err)
			}
			select {
			case <-off:
				return nil
			case <-again.C:
			case <-ctx.Done():
				waiting = false
			case <-t.C:
				i.log.Warn("machine did not power off in time; forcing it")
				waiting = false
			}
		}
	}
	if err := killCgroup(i.cgroup()); err != nil {
		return fmt.Errorf("force %s off: %w", i.m.InstanceID, err)
	}
	// SIGKILL cannot be ignored; the wait is for the kernel alone.
	t := time.NewTimer(stopTimeout)
	defer t.Stop()
	select {
	case <-off:
		return nil
	case <-t.C:
		return fmt.Errorf("force %s off: still there after %s", i.m.InstanceID, stopTimeout)
	}
}

func (i *instance) reboot() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.running {
		return fmt.Errorf("reboot %s: it is not running", i.m.InstanceID)
	}
	leader, err := i.leader()
	if err != nil {
		return fmt.Errorf("reboot %s: %w", i.m.InstanceID, err)
	}
	if err := syscall.Kill(leader, sigReboot); err != nil {
		return fmt.Errorf("reboot %s: %w", i.m.InstanceID, err)
	}
	return nil
}

// leader finds the guest's PID 1 on the host: the process below
// systemd-nspawn that is number 1 in a PID namespace of its own. The caller
// holds i.mu.
func (i *instance) leader() (int, error) {
	if i.pid == 0 {
		return 0, fmt.Errorf("%s is not running", i.m.InstanceID)
	}
	return initOf(i.pid, i.m.InstanceID)
}

// initOf finds a machine's init process below the process that runs the machine.
func initOf(pid int, instanceID string) (int, error) {
	queue := []int{pid}
	for len(queue) > 0 {
		pid := queue[0]
		queue = queue[1:]
		if pidInside(pid) == "1" {
			return pid, nil
		}
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		if err != nil {
			return 0, err
		}
		for _, t := range tasks {
			b, err := os.ReadFile(t)
			if err != nil {
				continue // it has ended meanwhile
			}
			for _, f := range strings.Fields(string(b)) {
				if n, err := strconv.Atoi(f); err == nil {
					queue = append(queue, n)
				}
			}
		}
	}
	return 0, fmt.Errorf("%s has no init process yet", instanceID)
}

// pidInside is a process's number in its innermost PID namespace, if that is
// not the host's.
func pidInside(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 2 && f[0] == "NSpid:" {
			return f[len(f)-1]
		}
	}
	return ""
}

func (i *instance) exec(ctx context.Context, stdin io.Reader, argv []string) ([]byte, error) {
	i.mu.Lock()
	leader, err := i.leader()
	i.mu.Unlock()
	if err != nil {
		return nil, err
	}
	cmd := inside(ctx, leader, argv)
	cmd.Stdin = stdin
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("run %s in %s: %w: %s", argv[0], i.m.InstanceID, err, bytes.TrimSpace(out))
	}
	return out, nil
}

// inside is a command to be run in a machine whose init process is leader.
func inside(ctx context.Context, leader int, argv []string) *exec.Cmd {
	args := append([]string{"-t", strconv.Itoa(leader), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--"}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"}
	return cmd
}

// pidFile tells other processes, as lecafe lab exec, which one runs the machine.
func (i *instance) pidFile() string { return filepath.Join(i.dir, "pid") }

// Enter is a command, not yet started, to be run as root in an instance of
// whichever lab keeps its state below stateDir. The error is ErrNotFound where
// no lab there has the instance running.
func Enter(ctx context.Context, stateDir, instanceID string, argv ...string) (*exec.Cmd, error) {
	files, err := filepath.Glob(filepath.Join(stateDir, namePrefix+"*", "machines", instanceID, "pid"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find instance %s: %w", instanceID, err)
		}
		pid, err := strconv.Atoi(string(b))
		if err != nil {
			return nil, fmt.Errorf("find instance %s: %s: %w", instanceID, f, err)
		}
		// A lab that was killed leaves the file, and another program may have
		// the number now. That one has no machine's init below it.
		leader, err := initOf(pid, instanceID)
		if err != nil {
			return nil, err
		}
		return inside(ctx, leader, argv), nil
	}
	return nil, fmt.Errorf("instance %s in a lab below %s: %w", instanceID, stateDir, ErrNotFound)
}

// destroy removes the machine's disk, network and cgroups. It must be off.
func (i *instance) destroy() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.gone = true
	var errs []error
	if i.net != nil {
		errs = append(errs, i.net.close())
		i.net = nil
	}
	errs = append(errs, os.RemoveAll(i.dir), removeCgroup(i.cgroup()))
	return errors.Join(errs...)
}
