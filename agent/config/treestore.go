package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

// A directory's path is a symbolic link into a directory beside it, .NAME.lecafe,
// that has one directory for each generation: switching is one rename, on every
// file system, and who has resolved the path goes on seeing one whole
// generation. The contents are kept in the state directory too, by their
// SHA-256, so that a generation can come back without S3.

func (st *store) generations() string {
	return filepath.Join(filepath.Dir(st.dest), "."+filepath.Base(st.dest)+".lecafe")
}

func (st *store) blob(sum string) string { return filepath.Join(st.dir, "blobs", sum) }

func (st *store) hasBlob(sum string) bool {
	if sum == "" {
		return false
	}
	b, err := os.ReadFile(st.blob(sum))
	if err != nil {
		return false
	}
	got := sha256.Sum256(b)
	return hex.EncodeToString(got[:]) == sum
}

func (st *store) addBlob(data []byte) (string, error) {
	digest := sha256.Sum256(data)
	sum := hex.EncodeToString(digest[:])
	if err := os.MkdirAll(filepath.Dir(st.blob(sum)), 0o700); err != nil {
		return "", fmt.Errorf("keep config: %w", err)
	}
	return sum, atomicfile.WriteFile(st.blob(sum), data, 0o600)
}

// treeGeneration is a directory whose contents are in the store.
type treeGeneration struct {
	st    *store
	files []member
}

func (g treeGeneration) put(s *staged, _ record) error { return g.st.link(s) }

func (g treeGeneration) stage() (*staged, error) {
	out, err := g.st.stageTree(g.files)
	if err != nil {
		return nil, fmt.Errorf("write config %s: %w", g.st.s.Path, err)
	}
	return out, nil
}

func (st *store) stageTree(files []member) (*staged, error) {
	if err := st.mayLink(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(st.generations(), 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(st.generations(), "g*") // 0700: nobody looks in before it is whole
	if err != nil {
		return nil, err
	}
	out := &staged{path: dir}
	if err := st.fill(dir, files); err != nil {
		out.discard()
		return nil, err
	}
	return out, nil
}

// fill writes the files below dir and dresses them, dir itself at last.
func (st *store) fill(dir string, files []member) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	mode, err := settings.FileMode(st.s.Mode)
	if err != nil {
		return err
	}
	dirs := []string{"."}
	for _, f := range files {
		if parent := filepath.Dir(f.Name); parent != "." && !slices.Contains(dirs, parent) {
			if err := root.MkdirAll(parent, 0o700); err != nil {
				return err
			}
			for p := parent; p != "." && !slices.Contains(dirs, p); p = filepath.Dir(p) {
				dirs = append(dirs, p)
			}
		}
		data, err := os.ReadFile(st.blob(f.SHA256))
		if err != nil {
			return err
		}
		w, err := root.OpenFile(f.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		if err == nil {
			err = st.dressAs(w, filepath.Join(st.dest, f.Name), mode)
		}
		if err = errors.Join(err, w.Close()); err != nil {
			return err
		}
	}
	// Whoever may read the files may search the directories.
	mode |= mode & 0o444 >> 2
	for _, d := range slices.Backward(dirs) {
		f, err := root.Open(d)
		if err != nil {
			return err
		}
		err = st.dressAs(f, filepath.Join(st.dest, d), mode)
		if d == "." && err == nil {
			// One call for all that was written instead of one for each file.
			err = unix.Syncfs(int(f.Fd()))
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// linked is the generation that the path points to, "" where it does not.
func (st *store) linked() string {
	to, err := os.Readlink(st.dest)
	if err != nil || filepath.Dir(to) != filepath.Base(st.generations()) {
		return ""
	}
	return filepath.Base(to)
}

// mayLink refuses to replace what the agent did not make. An empty directory,
// as images have for a mount point or a package's config, gives way.
func (st *store) mayLink() error {
	info, err := os.Lstat(st.dest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.linked() != "":
		return nil
	case info.IsDir():
		if entries, err := os.ReadDir(st.dest); err != nil || len(entries) == 0 {
			return err
		}
	}
	return fmt.Errorf("%w: %s is there already and was not made by the agent; remove it from the image, or choose another path", ErrInvalid, st.s.Path)
}

// link switches the path to a staged directory.
func (st *store) link(s *staged) error {
	if info, err := os.Lstat(st.dest); err == nil && info.IsDir() {
		if err := os.Remove(st.dest); err != nil { // it is empty
			return fmt.Errorf("write config %s: %w", st.s.Path, err)
		}
	}
	tmp := s.path + ".link"
	to := filepath.Join(filepath.Base(st.generations()), filepath.Base(s.path))
	if err := os.Symlink(to, tmp); err != nil {
		return fmt.Errorf("write config %s: %w", st.s.Path, err)
	}
	if err := os.Rename(tmp, st.dest); err != nil {
		return errors.Join(fmt.Errorf("write config %s: %w", st.s.Path, err), os.Remove(tmp))
	}
	s.kept = true
	return atomicfile.SyncDir(filepath.Dir(st.dest))
}

// intactTree says whether the path has the record's files. Others beside them
// are the application's, until the next generation.
func (st *store) intactTree() bool {
	if st.linked() == "" {
		return false
	}
	root, err := os.OpenRoot(st.dest)
	if err != nil {
		return false
	}
	defer root.Close()
	for _, f := range st.record.Files {
		// The application may own the directory: whatever it put there, this
		// neither follows it out nor waits for it.
		r, err := root.OpenFile(f.Name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			return false
		}
		h := sha256.New()
		info, err := r.Stat()
		if err == nil && info.Mode().IsRegular() && info.Size() == f.Size {
			_, err = io.Copy(h, io.LimitReader(r, f.Size))
		}
		if err := errors.Join(err, r.Close()); err != nil || hex.EncodeToString(h.Sum(nil)) != f.SHA256 {
			return false
		}
	}
	return true
}

func (st *store) restoreTree() error {
	s, err := st.stageTree(st.record.Files)
	if err != nil {
		return fmt.Errorf("restore config generation %d: %w", st.record.Generation, err)
	}
	defer s.discard()
	if err := st.link(s); err != nil {
		return err
	}
	st.sweep()
	return nil
}

// sweep removes generations but for the one that the path points to and the
// one before it, which somebody may still be reading, and contents that no
// generation has. What cannot be removed now is removed the next time.
func (st *store) sweep() {
	current := st.linked()
	entries, _ := os.ReadDir(st.generations())
	var newest string
	var at int64
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && e.IsDir() && e.Name() != current && info.ModTime().UnixNano() > at {
			newest, at = e.Name(), info.ModTime().UnixNano()
		}
	}
	for _, e := range entries {
		if n := e.Name(); n != current && n != newest {
			_ = os.RemoveAll(filepath.Join(st.generations(), n))
		}
	}
	blobs, _ := os.ReadDir(filepath.Join(st.dir, "blobs"))
	for _, b := range blobs {
		if strings.HasPrefix(b.Name(), ".") || !slices.ContainsFunc(st.record.Files, func(f member) bool { return f.SHA256 == b.Name() }) {
			_ = os.Remove(filepath.Join(st.dir, "blobs", b.Name()))
		}
	}
}
