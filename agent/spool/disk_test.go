package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
)

// disk is a file system in memory that knows what a power cut would leave:
// writes and truncations that were not synced survive in any part, sector by
// sector, and names that were not synced in any prefix of their changes.
type disk struct {
	mu      sync.Mutex
	rng     *rand.Rand
	names   map[string]*inode // as processes see them
	durable map[string]*inode
	changes []func(map[string]*inode) // of names since SyncDir
	ops     int                       // changes of anything so far
	crashAt int                       // the power is cut in the middle of this one; 0 is never
	crashed bool
	room    int64 // bytes all files may have; 0 is no limit
	badSync int   // so many syncs from now on one fails; 0 is never
}

// inode is a file's content. What a failed sync leaves behind is either on the
// disk or lost, and no later sync says which.
type inode struct {
	data    []byte
	durable []byte
	pending []change
}

type change struct {
	off      int64
	data     []byte
	truncate bool
}

var errCrash = errors.New("the power is cut")

func newDisk(seed uint64) *disk {
	return &disk{rng: rand.New(rand.NewPCG(seed, 1)), names: map[string]*inode{}, durable: map[string]*inode{}}
}

// op counts a change; it reports errCrash from the crash on. half is true for
// the very change that the power is cut in.
func (d *disk) op() (half bool, err error) {
	if d.crashed {
		return false, errCrash
	}
	d.ops++
	if d.ops == d.crashAt {
		d.crashed = true
		return true, nil
	}
	return false, nil
}

func (d *disk) dead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.crashed
}

func (d *disk) rename(f func(map[string]*inode)) error {
	half, err := d.op()
	if err != nil {
		return err
	}
	f(d.names)
	d.changes = append(d.changes, f)
	if half {
		return errCrash
	}
	return nil
}

func (d *disk) Create(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, ok := d.names[name]
	if !ok {
		n = &inode{}
	}
	if err := d.rename(func(m map[string]*inode) { m[name] = n }); err != nil {
		return nil, err
	}
	n.data = nil
	n.pending = append(n.pending, change{truncate: true})
	return &handle{d, n}, nil
}

func (d *disk) Open(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed {
		return nil, errCrash
	}
	n, ok := d.names[name]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
	}
	return &handle{d, n}, nil
}

func (d *disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, ok := d.names[from]
	if !ok {
		return fs.ErrNotExist
	}
	return d.rename(func(m map[string]*inode) { delete(m, from); m[to] = n })
}

func (d *disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rename(func(m map[string]*inode) { delete(m, name) })
}

func (d *disk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed {
		return nil, errCrash
	}
	return slices.Collect(maps.Keys(d.names)), nil
}

func (d *disk) SyncDir() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if half, err := d.op(); err != nil || half {
		return errCrash
	}
	d.durable, d.changes = maps.Clone(d.names), nil
	return nil
}

// Room is what the limit leaves.
func (d *disk) Room() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.room == 0 {
		return 1 << 40, nil
	}
	left := d.room
	for _, n := range d.names {
		left -= int64(len(n.data))
	}
	return max(left, 0), nil
}

// restart returns the disk as the next boot finds it.
func (d *disk) restart() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := &disk{rng: d.rng, names: maps.Clone(d.durable)}
	for _, f := range d.changes[:d.rng.IntN(len(d.changes)+1)] {
		f(after.names)
	}
	for name, n := range after.names {
		c := &inode{data: slices.Clone(n.durable)}
		for _, p := range n.pending {
			c.torn(d.rng, p)
		}
		c.durable = slices.Clone(c.data)
		after.names[name] = c
	}
	after.durable = maps.Clone(after.names)
	return after
}

// torn applies any part of a change.
func (n *inode) torn(rng *rand.Rand, p change) {
	if p.truncate {
		if rng.IntN(2) == 0 {
			n.data = resize(n.data, p.off)
		}
		return
	}
	const sector = 512
	how := rng.IntN(4)
	for i := 0; i < len(p.data); {
		end := min(len(p.data), i+sector-int(p.off+int64(i))%sector)
		if how == 0 || how > 1 && rng.IntN(2) == 0 {
			n.data = write(n.data, p.data[i:end], p.off+int64(i))
		}
		i = end
	}
}

func resize(b []byte, size int64) []byte {
	if int64(len(b)) >= size {
		return b[:size:size]
	}
	return append(slices.Clone(b), make([]byte, size-int64(len(b)))...)
}

func write(b, p []byte, off int64) []byte {
	if need := off + int64(len(p)); int64(len(b)) < need {
		b = resize(b, need)
	}
	copy(b[off:], p)
	return b
}

type handle struct {
	d *disk
	n *inode
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.crashed {
		return 0, errCrash
	}
	if off >= int64(len(h.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	half, err := h.d.op()
	if err != nil {
		return 0, err
	}
	q := slices.Clone(p)
	short := false
	if grow := off + int64(len(p)) - int64(len(h.n.data)); h.d.room > 0 && grow > 0 {
		used := int64(0)
		for _, n := range h.d.names {
			used += int64(len(n.data))
		}
		if fit := max(0, h.d.room-used); grow > fit {
			q, short = q[:max(0, int64(len(p))-(grow-fit))], true
		}
	}
	h.n.data = write(slices.Clone(h.n.data), q, off)
	h.n.pending = append(h.n.pending, change{off: off, data: q})
	switch {
	case half:
		return 0, errCrash
	case short:
		return len(q), syscall.ENOSPC
	}
	return len(p), nil
}

func (h *handle) Sync() error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	half, err := h.d.op()
	if err != nil {
		return err
	}
	if h.d.badSync > 0 {
		if h.d.badSync--; h.d.badSync == 0 {
			c := &inode{data: h.n.durable}
			for _, p := range h.n.pending {
				c.torn(h.d.rng, p)
			}
			h.n.durable, h.n.pending = slices.Clone(c.data), nil
			return syscall.EIO
		}
	}
	if half {
		return errCrash
	}
	h.n.durable, h.n.pending = slices.Clone(h.n.data), nil
	return nil
}

func (h *handle) Truncate(size int64) error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	half, err := h.d.op()
	if err != nil {
		return err
	}
	h.n.data = resize(h.n.data, size)
	h.n.pending = append(h.n.pending, change{off: size, truncate: true})
	if half {
		return errCrash
	}
	return nil
}

func (h *handle) Size() (int64, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return int64(len(h.n.data)), nil
}

func (h *handle) Close() error { return nil }
