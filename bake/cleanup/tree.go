package cleanup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// tree is a root directory. All paths are slash paths from the root, without
// a leading slash; no symbolic link is ever followed, so that nothing outside
// the root can be read or removed.
type tree struct {
	opts  Options
	root  string
	log   *slog.Logger
	users []user
	errs  []error
}

type user struct{ name, home string }

func openTree(o Options) (*tree, error) {
	root, err := filepath.Abs(o.Root)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return nil, fmt.Errorf("open root directory %q: %w", o.Root, err)
	}
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("open root directory %q: not a directory", o.Root)
	}
	t := &tree{opts: o, root: root, log: o.Log}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.users = append(t.users, user{"root", "root"})
	for _, line := range t.lines("etc/passwd") {
		f := strings.Split(line, ":")
		if len(f) < 7 || f[0] == "root" {
			continue
		}
		if home := strings.Trim(path.Clean(f[5]), "/"); home != "" && home != "." && !slices.ContainsFunc(t.users, func(u user) bool { return u.home == home }) {
			t.users = append(t.users, user{f[0], home})
		}
	}
	// Homes whose user is gone keep their secrets.
	for _, home := range t.glob("home/*") {
		if !slices.ContainsFunc(t.users, func(u user) bool { return u.home == home }) {
			t.users = append(t.users, user{path.Base(home), home})
		}
	}
	return t, nil
}

func (t *tree) abs(p string) string { return filepath.Join(t.root, filepath.FromSlash(p)) }

// lstat answers nil for what is not there, and for what lies behind a
// symbolic link.
func (t *tree) lstat(p string) fs.FileInfo {
	dir := t.root
	parts := strings.Split(p, "/")
	for i, part := range parts {
		dir = filepath.Join(dir, part)
		info, err := os.Lstat(dir)
		if err != nil {
			return nil
		}
		if i == len(parts)-1 {
			return info
		}
		if !info.IsDir() {
			return nil
		}
	}
	return nil
}

// glob matches a pattern of path.Match components; "**" as last component
// matches everything below, directories after their content.
func (t *tree) glob(pattern string) []string {
	matches := []string{""}
	parts := strings.Split(pattern, "/")
	for i, part := range parts {
		var next []string
		for _, m := range matches {
			if part == "**" {
				next = append(next, t.below(m)...)
				continue
			}
			if !strings.ContainsAny(part, `*?[\`) {
				p := path.Join(m, part)
				if info := t.lstat(p); info != nil && (i == len(parts)-1 || info.IsDir()) {
					next = append(next, p)
				}
				continue
			}
			entries, err := os.ReadDir(t.abs(m))
			if err != nil {
				continue
			}
			for _, e := range entries {
				if ok, _ := path.Match(part, e.Name()); ok && (i == len(parts)-1 || e.IsDir()) {
					next = append(next, path.Join(m, e.Name()))
				}
			}
		}
		matches = next
	}
	return matches
}

// below lists everything under dir, files before the directories they are in.
func (t *tree) below(dir string) []string {
	var out []string
	entries, err := os.ReadDir(t.abs(dir))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		if e.IsDir() {
			out = append(out, t.below(p)...)
		}
		out = append(out, p)
	}
	return out
}

func (t *tree) regular(p string) bool {
	info := t.lstat(p)
	return info != nil && info.Mode().IsRegular()
}

// remove deletes p and everything below it.
func (t *tree) remove(p string) error {
	if t.lstat(p) == nil {
		return nil
	}
	t.log.Debug("remove", "path", "/"+p)
	err := os.RemoveAll(t.abs(p))
	if errors.Is(err, syscall.EBUSY) { // a mount point; what is in it is gone
		return nil
	}
	return err
}

// truncate empties a regular file in place, keeping owner and mode.
func (t *tree) truncate(p string) error {
	if !t.regular(p) {
		return nil
	}
	t.log.Debug("truncate", "path", "/"+p)
	return os.Truncate(t.abs(p), 0)
}

// lines returns a regular file's lines, nil where it is not there.
func (t *tree) lines(p string) []string {
	if !t.regular(p) {
		return nil
	}
	f, err := os.Open(t.abs(p))
	if err != nil {
		t.errs = append(t.errs, err)
		return nil
	}
	defer func() { _ = f.Close() }()
	var out []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		out = append(out, sc.Text())
	}
	if err := sc.Err(); err != nil {
		t.errs = append(t.errs, fmt.Errorf("read /%s: %w", p, err))
	}
	return out
}

// rewrite replaces a file's lines in place (owner, mode and inode stay): edit
// returns the new line and whether it stays.
func (t *tree) rewrite(p string, edit func(string) (string, bool)) error {
	old := t.lines(p)
	if old == nil {
		return nil
	}
	var b strings.Builder
	changed := false
	for _, line := range old {
		now, keep := edit(line)
		changed = changed || !keep || now != line
		if keep {
			b.WriteString(now + "\n")
		}
	}
	if !changed {
		return nil
	}
	t.log.Debug("rewrite", "path", "/"+p)
	f, err := os.OpenFile(t.abs(p), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(b.String())
	return errors.Join(err, f.Sync(), f.Close())
}

// pseudo file systems and what is not part of an image.
var notInImage = []string{"proc", "sys", "dev", "run"}

// walk visits every regular file of the image that is on the root's own file
// system or, where root is a plain directory, below it.
func (t *tree) walk(ctx context.Context, visit func(p string, info fs.FileInfo) error) error {
	return filepath.WalkDir(t.root, func(abs string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		rel, _ := filepath.Rel(t.root, abs)
		p := filepath.ToSlash(rel)
		if d.IsDir() {
			if slices.Contains(notInImage, p) {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		return visit(p, info)
	})
}

func (t *tree) setuid(ctx context.Context) ([]string, error) {
	var out []string
	err := t.walk(ctx, func(p string, info fs.FileInfo) error {
		if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			out = append(out, "/"+p)
		}
		return nil
	})
	slices.Sort(out)
	return out, err
}
