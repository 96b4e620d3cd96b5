package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

// record is what the store remembers of the last good generation, and of one
// that failed. The order of writes is: the generation's content, the path, the
// record. A crash before the record leaves a path that is not the record's
// content; the next Sync finds that and fetches again.
type record struct {
	Source     string    `json:"source"`
	Generation int       `json:"generation"`
	SHA256     string    `json:"sha256"`
	ETag       string    `json:"etag"`
	VersionID  string    `json:"version_id,omitempty"`
	Pin        string    `json:"pin,omitempty"`      // the settings' checksum that it met
	Checksum   string    `json:"checksum,omitempty"` // what was verified, for people
	AppliedAt  time.Time `json:"applied_at"`
	Files      []member  `json:"files,omitempty"` // of a directory, by name
	BadETag    string    `json:"bad_etag,omitempty"`
	BadReason  string    `json:"bad_reason,omitempty"`
	// Settings is what BadETag failed with: others may have it succeed.
	Settings string `json:"settings,omitempty"`
}

// store is one object's directory in the state directory: record.json and the
// content of the last good generation.
type store struct {
	dir    string
	dest   string
	s      settings.Object
	record record
}

func openStore(dir, root string, s settings.Object) (store, error) {
	name := sha256.Sum256([]byte(s.Path))
	st := store{dir: filepath.Join(dir, hex.EncodeToString(name[:8])), dest: filepath.Join(root, s.Path), s: s}
	if err := os.MkdirAll(st.dir, 0o700); err != nil {
		return st, fmt.Errorf("open config store: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(st.dir, "record.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return st, fmt.Errorf("open config store: %w", err)
	}
	// A record that does not parse, or of another source, is none.
	if json.Unmarshal(b, &st.record) != nil || st.record.Source != s.Source {
		st.record = record{}
	}
	if st.record.Settings != st.settings() {
		st.record.BadETag, st.record.BadReason = "", ""
	}
	return st, nil
}

// settings tells whether they are those of before.
func (st *store) settings() string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%+v", st.s)))
	return hex.EncodeToString(sum[:8])
}

func (st *store) content() string { return filepath.Join(st.dir, "current") }

// intact says whether the path holds the record's content.
func (st *store) intact() bool {
	if st.record.Generation == 0 {
		return false
	}
	if st.s.Tree() {
		return st.intactTree()
	}
	b, err := os.ReadFile(st.dest)
	if err != nil {
		return false
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]) == st.record.SHA256
}

type staged struct {
	path string
	kept bool
}

func (s *staged) discard() {
	if !s.kept {
		_ = os.RemoveAll(s.path)
	}
}

// fileGeneration is one object's content.
type fileGeneration struct {
	st   *store
	data []byte
}

func (g fileGeneration) stage() (*staged, error)          { return g.st.stage(g.data) }
func (g fileGeneration) put(s *staged, next record) error { return g.st.put(s, g.data, next) }

// stage writes data beside the path, with the owner, mode and SELinux context
// it will have there.
func (st *store) stage(data []byte) (*staged, error) {
	dir := filepath.Dir(st.dest)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("write config %s: %w", st.s.Path, err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(st.dest)+".*.new")
	if err != nil {
		return nil, fmt.Errorf("write config %s: %w", st.s.Path, err)
	}
	out := &staged{path: f.Name()}
	_, err = f.Write(data)
	if err == nil {
		err = st.dress(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		out.discard()
		return nil, fmt.Errorf("write config %s: %w", st.s.Path, err)
	}
	return out, nil
}

// dress gives f what the path's file has and the settings say.
func (st *store) dress(f *os.File) error {
	mode, err := settings.FileMode(st.s.Mode)
	if err != nil {
		return err
	}
	return st.dressAs(f, st.dest, mode)
}

// dressAs gives f mode, the settings' owner and group, or those that like has,
// and like's SELinux context. Where there is none, the policy's default for a
// new file in the directory holds.
func (st *store) dressAs(f *os.File, like string, mode fs.FileMode) error {
	uid, gid := 0, 0
	if info, err := os.Stat(like); err == nil {
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(s.Uid), int(s.Gid)
		}
		label := make([]byte, 256)
		if n, err := unix.Getxattr(like, "security.selinux", label); err == nil && n > 0 {
			if err := unix.Fsetxattr(int(f.Fd()), "security.selinux", label[:n], 0); err != nil {
				return fmt.Errorf("keep SELinux context: %w", err)
			}
		}
	} else if os.Getuid() != 0 {
		uid, gid = os.Getuid(), os.Getgid()
	}
	var err error
	if st.s.Owner != "" {
		if uid, err = lookup(st.s.Owner, func(n string) (string, error) {
			u, err := user.Lookup(n)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		}); err != nil {
			return err
		}
	}
	if st.s.Group != "" {
		if gid, err = lookup(st.s.Group, func(n string) (string, error) {
			g, err := user.LookupGroup(n)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		}); err != nil {
			return err
		}
	}
	if err := f.Chown(uid, gid); err != nil {
		return err
	}
	return f.Chmod(mode)
}

func lookup(name string, find func(string) (string, error)) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	id, err := find(name)
	if err != nil {
		return 0, fmt.Errorf("%w; make it in the image or correct the config's owner and group", err)
	}
	return strconv.Atoi(id)
}

// put switches the path to the staged file. What was good before stays in the
// store until commit.
func (st *store) put(s *staged, data []byte, next record) error {
	if err := atomicfile.WriteFile(st.content()+".next", data, 0o600); err != nil {
		return fmt.Errorf("keep config generation %d: %w", next.Generation, err)
	}
	if err := os.Rename(s.path, st.dest); err != nil {
		return fmt.Errorf("write config %s: %w", st.s.Path, err)
	}
	s.kept = true
	return atomicfile.SyncDir(filepath.Dir(st.dest))
}

// commit makes next the good generation.
func (st *store) commit(next record) error {
	next.Source = st.s.Source
	if st.s.Tree() {
		if err := st.write(next); err != nil {
			return err
		}
		st.sweep()
		return nil
	}
	if err := os.Rename(st.content()+".next", st.content()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep config generation %d: %w", next.Generation, err)
	}
	return st.write(next)
}

func (st *store) write(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("remember config generation: %w", err)
	}
	if err := atomicfile.WriteFile(filepath.Join(st.dir, "record.json"), b, 0o600); err != nil {
		return err
	}
	st.record = r
	return nil
}

// condemn remembers that the object with this ETag does not work.
func (st *store) condemn(etag, why string) error {
	r := st.record
	r.Source, r.BadETag, r.BadReason, r.Settings = st.s.Source, etag, why, st.settings()
	return st.write(r)
}

// restore puts the good generation's content at the path.
func (st *store) restore() error {
	if st.s.Tree() {
		return st.restoreTree()
	}
	data, err := os.ReadFile(st.content())
	if err != nil {
		return fmt.Errorf("restore config generation %d: %w", st.record.Generation, err)
	}
	s, err := st.stage(data)
	if err != nil {
		return err
	}
	defer s.discard()
	if err := os.Rename(s.path, st.dest); err != nil {
		return fmt.Errorf("restore config %s: %w", st.s.Path, err)
	}
	s.kept = true
	return atomicfile.SyncDir(filepath.Dir(st.dest))
}
