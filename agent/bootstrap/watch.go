package bootstrap

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watched are the directories whose changes may mean that a stage has moved on
// or that the trap has recorded something. Files are replaced by rename, so
// directories are watched; those that are not there yet are found through
// their parents.
var watched = []string{
	"run", "run/cloud-init", "run/lecafe", "run/lecafe/trap",
	"var/lib", "var/lib/cloud", "var/lib/cloud/data",
}

// parents are watched only for the names of directories to come: everything
// else that happens there is somebody else's.
var parents = map[string][]string{
	"run":           {"cloud-init", "lecafe"},
	"run/lecafe":    {"trap"},
	"var/lib":       {"cloud"},
	"var/lib/cloud": {"data", "instance"},
}

// Watch tells when files that are evidence change, until ctx ends. Several
// changes may be told as one. The kernel wakes it; it polls nothing.
func Watch(ctx context.Context, root string) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch cloud-init: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	names := map[int32]string{}
	add := func() {
		for _, dir := range watched {
			// IN_MODIFY only where lines are appended: the trap's records.
			mask := uint32(unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE | unix.IN_ONLYDIR)
			if dir == "run/lecafe/trap" {
				mask |= unix.IN_MODIFY
			}
			// Adding one again changes nothing; one that is missing comes later.
			if wd, err := unix.InotifyAddWatch(fd, filepath.Join(root, dir), mask); err == nil {
				names[int32(wd)] = dir
			}
		}
	}
	add()
	context.AfterFunc(ctx, func() { _ = f.Close() }) // ends the read below
	out := make(chan struct{}, 1)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			if !relevant(buf[:n], names) {
				continue
			}
			add()
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, nil
}

// relevant says whether one of the events is about evidence.
func relevant(b []byte, names map[int32]string) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(b[0:]))
		mask := binary.NativeEndian.Uint32(b[4:])
		n := int(binary.NativeEndian.Uint32(b[12:]))
		end := min(len(b), unix.SizeofInotifyEvent+n)
		name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:end], "\x00"))
		b = b[end:]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			return true
		}
		if mask&unix.IN_IGNORED != 0 {
			continue
		}
		dir := names[wd]
		expected, parent := parents[dir]
		if !parent {
			return true
		}
		for _, e := range expected {
			if e == name {
				return true
			}
		}
	}
	return false
}
