package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// writeIndex makes a directory of .deb files a flat apt repository: Packages
// and Release. It carries no signature; sources.list says trusted=yes, and it
// is served over the machine's loopback only.
func writeIndex(ctx context.Context, dir string, r Release) error {
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	slices.Sort(debs)
	var index bytes.Buffer
	for _, deb := range debs {
		control, err := exec.CommandContext(ctx, "dpkg-deb", "--field", deb).Output()
		if err != nil {
			return fmt.Errorf("index %s: %w", filepath.Base(deb), err)
		}
		size, sum, err := digest(deb)
		if err != nil {
			return err
		}
		fmt.Fprintf(&index, "%s\nFilename: ./%s\nSize: %d\nSHA256: %x\n\n", bytes.TrimSpace(control), filepath.Base(deb), size, sum)
	}
	if err := os.WriteFile(filepath.Join(dir, "Packages"), index.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write package index: %w", err)
	}
	release := fmt.Sprintf("Origin: lecafe lab\nLabel: lecafe lab\nSuite: %s\nCodename: %[1]s\nDate: %s\nSHA256:\n %x %d Packages\n",
		r.Suite, time.Now().UTC().Format(time.RFC1123), sha256.Sum256(index.Bytes()), index.Len())
	if err := os.WriteFile(filepath.Join(dir, "Release"), []byte(release), 0o644); err != nil {
		return fmt.Errorf("write package index: %w", err)
	}
	return nil
}

func digest(path string) (int64, []byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return 0, nil, fmt.Errorf("read %s: %w", path, err)
	}
	return n, h.Sum(nil), nil
}

// ArchiveHandler serves the image's archive under ArchivePath.
func (i *Image) ArchiveHandler() http.Handler {
	return http.StripPrefix(ArchivePath, http.FileServer(http.Dir(i.Archive())))
}

// installed reads names and versions from a dpkg status file.
func installed(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	defer f.Close()
	all := map[string]string{}
	var name string
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if n, ok := strings.CutPrefix(s.Text(), "Package: "); ok {
			name = n
		}
		if v, ok := strings.CutPrefix(s.Text(), "Version: "); ok {
			all[name] = v
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	return all, nil
}
