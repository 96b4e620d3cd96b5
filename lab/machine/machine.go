// Package machine runs instances that really boot: each is a systemd-nspawn
// container with an overlay on its image's layers, a network link of its own
// whose far end holds nothing but DHCP and the instance's metadata service,
// and a console kept in a file. It owns the machines, their disks and the
// images captured from them, and leaves nothing behind: what a lab that was
// killed could not remove, the next Open removes.
//
// It knows no AWS call; lab/cloud/ec2 decides when a machine is started. It
// needs root on Linux. A guest shares the host's kernel and is no security
// boundary against hostile code; its network is closed, though: a machine
// reaches its metadata service, the ports it is given and nothing else of the
// host.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
)

// stopTimeout is how long a machine may take to power off by itself; EC2
// forces an instance off after some minutes.
const stopTimeout = 90 * time.Second

// ErrNotFound says that there is no such machine or image.
var ErrNotFound = errors.New("no such machine or image")

// Options select where a lab's machines live.
type Options struct {
	Dir string       // state of all labs of this host; each takes a directory in it
	Log *slog.Logger // nil discards
	// Faults, if set, is asked at each launch what is broken from the first
	// moment on; SetFaults changes it later.
	Faults func(ec2.Machine) Faults
	// BPF lets the machines' systemd load BPF programs, without which
	// IPAddressDeny= and, on a host with cgroup v2 alone, DevicePolicy= are
	// ignored. Root in such a machine can look into the host's kernel, so it is
	// for user data that is trusted as much as the lab itself.
	BPF bool
}

// Faults are what is broken around one machine. The zero value is healthy.
type Faults struct {
	LinkDown  bool // the network cable is out: no DHCP, no metadata
	DHCPDown  bool // nobody answers DHCP
	IMDSDown  bool // connections to the metadata service are refused
	PortsDown bool // connections to Machine.Ports are refused
	// Tmpfs gives directories a small file system of their own, as path → size
	// (64k, 1M): a disk that fills up. It is empty at each boot, and takes
	// effect with the next one.
	Tmpfs map[string]string
}

// Base is an image that was not captured here.
type Base struct {
	Root string       // directory with the root file system, never written to
	Apt  http.Handler // package archive, served to its machines at AptPort; nil for none
}

// AptPort is the port of a machine's own 127.0.0.1 where its image's package
// archive is served.
const AptPort = 4599

// Driver runs the machines of one lab. It implements ec2.Machines.
type Driver struct {
	name string
	dir  string
	lock *os.File
	log  *slog.Logger
	opts Options

	mu         sync.Mutex
	seq        int
	machines   map[string]*instance
	images     map[string]*image
	poweredOff func(string)
	closed     bool
}

// image is a chain of overlay layers, uppermost first.
type image struct {
	layers []string
	own    string // this image's own layer, empty for a base
	apt    http.Handler
	gone   bool // deleted; its layer goes with its last user
	users  int  // machines on it and images above it
	parent *image
}

var _ ec2.Machines = (*Driver)(nil)

// Open prepares a lab's directory below o.Dir and removes what dead labs left
// there. The caller must Close the Driver. Errors are *NotReadyError where the
// host lacks something.
func Open(ctx context.Context, o Options) (*Driver, error) {
	if err := Ready(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	name, dir, lock, err := claim(ctx, o.Dir, o.Log)
	if err != nil {
		return nil, fmt.Errorf("prepare lab directory in %s: %w", o.Dir, err)
	}
	d := &Driver{name: name, dir: dir, lock: lock, log: o.Log.With("lab", name), opts: o, machines: map[string]*instance{}, images: map[string]*image{}, poweredOff: func(string) {}}
	for _, sub := range []string{"machines", "images"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	if err := d.writeGuestFiles(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Name is the lab's name; whatever it makes on the host carries it.
func (d *Driver) Name() string { return d.name }

// Dir is the lab's directory.
func (d *Driver) Dir() string { return d.dir }

// AddImage makes a base image known as imageID.
func (d *Driver) AddImage(imageID string, b Base) error {
	if fi, err := os.Stat(filepath.Join(b.Root, "etc")); err != nil || !fi.IsDir() {
		return fmt.Errorf("image %s: %s holds no root file system", imageID, b.Root)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images[imageID] = &image{layers: []string{b.Root}, apt: b.Apt}
	return nil
}

// PoweredOff registers f; see ec2.Machines.
func (d *Driver) PoweredOff(f func(instanceID string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.poweredOff = f
}

// Launch makes the machine's disk and network and powers it on.
func (d *Driver) Launch(ctx context.Context, m ec2.Machine) error {
	d.mu.Lock()
	img := d.images[m.ImageID]
	_, exists := d.machines[m.InstanceID]
	switch {
	case d.closed:
		d.mu.Unlock()
		return fmt.Errorf("launch %s: the lab is closed", m.InstanceID)
	case img == nil || img.gone:
		d.mu.Unlock()
		return fmt.Errorf("launch %s: image %s: %w", m.InstanceID, m.ImageID, ErrNotFound)
	case exists:
		d.mu.Unlock()
		return fmt.Errorf("launch %s: it exists", m.InstanceID)
	}
	d.seq++
	i := &instance{
		d: d, m: m, img: img, seq: d.seq,
		dir: filepath.Join(d.dir, "machines", m.InstanceID),
		log: d.log.With("instance", m.InstanceID),
	}
	img.users++
	d.machines[m.InstanceID] = i
	d.mu.Unlock()

	if d.opts.Faults != nil {
		i.faults = d.opts.Faults(m)
	}
	err := i.create(ctx)
	if err == nil {
		err = i.powerOn()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("launch %s: %w", m.InstanceID, err), d.remove(i))
	}
	return nil
}

func (d *Driver) get(id string) (*instance, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.machines[id]
	if i == nil {
		return nil, fmt.Errorf("machine %s: %w", id, ErrNotFound)
	}
	return i, nil
}

// Start powers a stopped machine on again.
func (d *Driver) Start(_ context.Context, instanceID string) error {
	i, err := d.get(instanceID)
	if err != nil {
		return err
	}
	return i.powerOn()
}

// Stop powers a machine off and returns when it is off.
func (d *Driver) Stop(ctx context.Context, instanceID string, force bool) error {
	i, err := d.get(instanceID)
	if err != nil {
		return err
	}
	return i.powerOff(ctx, force)
}

// Reboot restarts a machine in place. It returns once the machine has been
// told, as the EC2 call does.
func (d *Driver) Reboot(_ context.Context, instanceID string) error {
	i, err := d.get(instanceID)
	if err != nil {
		return err
	}
	return i.reboot()
}

// Terminate powers a machine off and deletes its disk. Its console stays
// readable, as EC2 keeps it for a while.
func (d *Driver) Terminate(ctx context.Context, instanceID string) error {
	i, err := d.get(instanceID)
	if err != nil {
		return err
	}
	if err := i.powerOff(ctx, false); err != nil {
		return err
	}
	return d.remove(i)
}

// remove takes away what a powered-off machine has on the host, but for its
// console.
func (d *Driver) remove(i *instance) error {
	err := i.destroy()
	d.mu.Lock()
	defer d.mu.Unlock()
	if i.img != nil {
		err = errors.Join(err, d.release(i.img))
		i.img = nil
	}
	return err
}

// Console returns the console's end, at most consoleMax bytes.
func (d *Driver) Console(instanceID string) ([]byte, error) {
	i, err := d.get(instanceID)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(d.dir, "machines", instanceID+".console"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // nothing written yet
	}
	if err != nil {
		return nil, fmt.Errorf("console of %s: %w", i.m.InstanceID, err)
	}
	return b, nil
}

// Exec runs a command inside a running machine, for tests and drills; the
// cloud itself never does. Its output is stdout and stderr together.
func (d *Driver) Exec(ctx context.Context, instanceID string, argv ...string) ([]byte, error) {
	i, err := d.get(instanceID)
	if err != nil {
		return nil, err
	}
	return i.exec(ctx, nil, argv)
}

// ExecInput is Exec with standard input.
func (d *Driver) ExecInput(ctx context.Context, instanceID string, stdin io.Reader, argv ...string) ([]byte, error) {
	i, err := d.get(instanceID)
	if err != nil {
		return nil, err
	}
	return i.exec(ctx, stdin, argv)
}

// SetFaults changes what is broken around a machine.
func (d *Driver) SetFaults(instanceID string, f Faults) error {
	i, err := d.get(instanceID)
	if err != nil {
		return err
	}
	return i.setFaults(f)
}

// Close powers every machine off by force and removes all that the lab made.
func (d *Driver) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.poweredOff = func(string) {}
	var all []*instance
	for _, i := range d.machines {
		all = append(all, i)
	}
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var errs []error
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, i := range all {
		wg.Go(func() {
			err := errors.Join(i.powerOff(ctx, true), i.destroy())
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	errs = append(errs, sweep(ctx, d.name, d.dir), d.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close lab %s: %w", d.name, err)
	}
	return nil
}

// claim takes a name and a directory for a new lab and sweeps dead labs. A lab
// lives as long as its lock is held, and the kernel drops a lock with its
// process, however that ends.
func claim(ctx context.Context, base string, log *slog.Logger) (name, dir string, lock *os.File, err error) {
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", "", nil, err
	}
	// One lab at a time looks around and takes its place, so that nobody
	// mistakes a lab that is being made for a dead one.
	gate, err := os.OpenFile(filepath.Join(base, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "", "", nil, err
	}
	defer gate.Close()
	if err := unix.Flock(int(gate.Fd()), unix.LOCK_EX); err != nil {
		return "", "", nil, fmt.Errorf("lock %s: %w", gate.Name(), err)
	}
	dirs, err := filepath.Glob(filepath.Join(base, namePrefix+"*"))
	if err != nil {
		return "", "", nil, err
	}
	for _, dead := range dirs {
		f, err := os.OpenFile(filepath.Join(dead, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return "", "", nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			log.Info("removing what a dead lab left", "lab", filepath.Base(dead))
			if err := sweep(ctx, filepath.Base(dead), dead); err != nil {
				log.Warn("a dead lab could not be removed", "lab", filepath.Base(dead), "error", err)
			}
		} else if !errors.Is(err, syscall.EWOULDBLOCK) {
			log.Warn("lock of another lab", "lab", dead, "error", err)
		}
		f.Close()
	}
	dir, err = os.MkdirTemp(base, namePrefix)
	if err != nil {
		return "", "", nil, err
	}
	lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return "", "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return filepath.Base(dir), dir, lock, nil
}
