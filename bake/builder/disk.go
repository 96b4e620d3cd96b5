package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// used returns the bytes that root's files take on its own file system, each
// inode once. The file system's own count would have what is under a mount,
// and in a container what is beside it.
func used(root string) int64 {
	var top syscall.Stat_t
	if err := syscall.Lstat(root, &top); err != nil {
		return 0
	}
	var total int64
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // what vanishes meanwhile takes no space
		}
		var st syscall.Stat_t
		if syscall.Lstat(path, &st) != nil {
			return nil
		}
		if d.IsDir() && st.Dev != top.Dev {
			return fs.SkipDir
		}
		if st.Nlink > 1 && !d.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		total += st.Blocks * 512
		return nil
	})
	return total
}

// overlayMagic is a container's root file system, see statfs(2).
const overlayMagic = 0x794c7630

// zeroFree fills the root file system with a file of zeros and removes it.
// Reserved blocks are filled too: the builder runs as root. An overlay is left
// alone: its free blocks are the host's, and no image is made of them.
func (b *Builder) zeroFree(ctx context.Context) (err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(b.Root, &st); err != nil {
		return fmt.Errorf("zero free space: %w", err)
	}
	if st.Type == overlayMagic {
		b.phase("clean", "no freed blocks to overwrite: the root is an overlay")
		b.Log.Warn("zero_free_space: the root file system is an overlay, which has no blocks of its own: nothing is overwritten")
		return nil
	}
	b.phase("clean", fmt.Sprintf("overwriting %.1f GiB of freed blocks", float64(st.Bfree)*float64(st.Bsize)/(1<<30)))
	path := filepath.Join(b.Root, ".lecafe-zero")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("zero free space: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	block := make([]byte, 4<<20)
	for {
		if _, err := f.Write(block); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				return errors.Join(fmt.Errorf("zero free space: %w", err), f.Close())
			}
			return errors.Join(f.Sync(), f.Close())
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("zero free space: %w", context.Cause(ctx)), f.Close())
		}
	}
}
