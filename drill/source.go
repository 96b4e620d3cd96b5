package drill

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/lecafe/lecafe/internal/atomicfile"
)

// maxFile bounds one file of a package: no payload is larger.
const maxFile = 1 << 20

// fetch returns the path of the package, downloading it with apt where cache
// has it not. apt works in a directory of its own, with Debian's own keys: the
// machine's sources and state play no part.
func (s Source) fetch(ctx context.Context, cache, mirror string) (string, error) {
	kept := filepath.Join(cache, "payloads", s.SHA256+".deb")
	switch err := s.check(kept); {
	case err == nil:
		return kept, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
		return "", fmt.Errorf("fetch %s: %w", s.Package, err)
	}
	dir, err := os.MkdirTemp("", "lecafe-drill-")
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", s.Package, err)
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", fmt.Errorf("fetch %s: %w", s.Package, err)
		}
	}
	list := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", mirror, s.Suite)
	for name, text := range map[string]string{"etc/sources.list": list, "status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", fmt.Errorf("fetch %s: %w", s.Package, err)
		}
	}
	apt := func(args ...string) error {
		c := exec.CommandContext(ctx, "apt-get", append([]string{
			"-o", "Dir::Etc=" + filepath.Join(dir, "etc"), "-o", "Dir::State=" + dir, "-o", "Dir::State::status=" + filepath.Join(dir, "status"),
			"-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none",
		}, args...)...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("fetch %s %s from %s: %w: %s", s.Package, s.Version, mirror, err, lastLine(out))
		}
		return nil
	}
	if err := apt("update"); err != nil {
		return "", err
	}
	if err := apt("download", s.Package+"="+s.Version); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("fetch %s: apt-get left %d packages, %w", s.Package, len(debs), err)
	}
	if err := s.check(debs[0]); err != nil {
		return "", err
	}
	b, err := os.ReadFile(debs[0])
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", s.Package, err)
	}
	return kept, atomicfile.WriteFile(kept, b, 0o644)
}

// check says whether file is the package that was pinned.
func (s Source) check(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read %s: %w", s.Package, err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != s.SHA256 {
		return fmt.Errorf("%w: %s %s has SHA-256 %x, not %s", ErrTable, s.Package, s.Version, sum, s.SHA256)
	}
	return nil
}

// unpack returns the regular files below a directory of a package.
func unpack(ctx context.Context, deb, under string) (map[string][]byte, error) {
	var out bytes.Buffer
	c := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	c.Stdout = &out
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("dpkg-deb: %w", err)
	}
	files := map[string][]byte{}
	for t := tar.NewReader(&out); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name, ok := strings.CutPrefix(path.Clean(h.Name), path.Clean(under)+"/")
		if !ok || h.Typeflag != tar.TypeReg || h.Size > maxFile {
			continue
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return nil, err
		}
		files[name] = b
	}
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
