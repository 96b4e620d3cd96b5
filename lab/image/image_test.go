package image

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	if r, err := Find("debian-13"); err != nil || r.Suite != "trixie" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Find("debian-11"); err == nil || !strings.Contains(err.Error(), "debian-12, debian-13") {
		t.Error(err)
	}
}

// TestHash pins what makes an image another one.
func TestHash(t *testing.T) {
	r, _ := Find("debian-12")
	o := Options{}
	o.defaults()
	base := hash(r, o)
	for name, c := range map[string]struct {
		change func(*Release, *Options)
		same   bool
	}{
		"another mirror":         {func(_ *Release, o *Options) { o.Mirror = "http://mirror.example/debian" }, true},
		"archive in other order": {func(_ *Release, o *Options) { o.Archive = append([]string{"zip"}, o.Archive[:len(o.Archive)-1]...) }, true},
		"another package": {func(r *Release, _ *Options) {
			r.packages = append(r.packages[:len(r.packages):len(r.packages)], "nano")
		}, false},
		"another archive": {func(_ *Release, o *Options) { o.Archive = []string{"jq"} }, false},
		"another release": {func(r *Release, _ *Options) { *r, _ = Find("debian-13") }, false},
	} {
		r, o := r, o
		c.change(&r, &o)
		if got := hash(r, o) == base; got != c.same {
			t.Errorf("%s: same %t, want %t", name, got, c.same)
		}
	}
}

func TestOpenUnbuilt(t *testing.T) {
	r, _ := Find("debian-12")
	_, err := Open(r, Options{Cache: t.TempDir()})
	if !errors.Is(err, ErrNotBuilt) || !strings.Contains(err.Error(), "lecafe lab image build debian-12") {
		t.Error(err)
	}
}

// TestFailedBuild leaves nothing in the cache.
func TestFailedBuild(t *testing.T) {
	if err := Ready(); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	cache := t.TempDir()
	r, _ := Find("debian-12")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := Build(ctx, r, Options{Cache: cache, Mirror: "file:///no/such/mirror"})
	if err == nil || !strings.Contains(err.Error(), "/no/such/mirror reachable") {
		t.Errorf("build from nowhere: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(cache, "*"))
	hidden, _ := filepath.Glob(filepath.Join(cache, ".*"))
	for _, p := range append(left, hidden...) {
		if filepath.Base(p) != "lock" {
			t.Errorf("left %s", p)
		}
	}
}

func TestCustomize(t *testing.T) {
	root := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		p := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(outside, []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	write("etc/cloud/cloud.cfg", "cloud_final_modules:\n - scripts-user\n - install-hotplug\n - power-state-change\n")
	write("etc/ssh/ssh_host_rsa_key", "secret")
	write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	write("var/log/dpkg.log", "x")
	if err := os.Symlink(outside, filepath.Join(root, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	r, _ := Find("debian-13")
	if err := customize(root, r); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"etc/cloud/cloud.cfg": "cloud_final_modules:\n - scripts-user\n - power-state-change\n",
		"etc/machine-id":      "", "etc/resolv.conf": "",
	} {
		if b, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	for _, path := range []string{"etc/ssh/ssh_host_rsa_key", "var/log/dpkg.log"} {
		if _, err := os.Stat(filepath.Join(root, path)); err == nil {
			t.Errorf("%s is in the image", path)
		}
	}
	if b, _ := os.ReadFile(outside); len(b) == 0 {
		t.Error("wrote through a symlink out of the image")
	}
}

// TestArchive makes a package, indexes it and reads it back over HTTP.
func TestArchive(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("SKIPPED: dpkg-deb is not installed")
	}
	src := t.TempDir()
	if err := os.MkdirAll(filepath.Join(src, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	control := "Package: espresso\nVersion: 1.0\nArchitecture: all\nMaintainer: Le Café <cafe@example.com>\nDescription: strong\n short, too\n"
	if err := os.WriteFile(filepath.Join(src, "DEBIAN/control"), []byte(control), 0o644); err != nil {
		t.Fatal(err)
	}
	img := &Image{Dir: t.TempDir()}
	if err := os.Mkdir(img.Archive(), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--build", "--root-owner-group", src, filepath.Join(img.Archive(), "espresso_1.0_all.deb")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r, _ := Find("debian-12")
	if err := writeIndex(t.Context(), img.Archive(), r); err != nil {
		t.Fatal(err)
	}
	get := func(path string) string {
		w := httptest.NewRecorder()
		img.ArchiveHandler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", ArchivePath+path, nil))
		return w.Body.String()
	}
	index := get("Packages")
	for _, want := range []string{"Package: espresso\n", " short, too\n", "Filename: ./espresso_1.0_all.deb\n", "SHA256: "} {
		if !strings.Contains(index, want) {
			t.Errorf("index lacks %q:\n%s", want, index)
		}
	}
	if got := get("espresso_1.0_all.deb"); !strings.HasPrefix(got, "!<arch>") {
		t.Errorf("no package served: %.20q", got)
	}
	if got := get("Release"); !strings.Contains(got, "Suite: bookworm") || !strings.Contains(got, " Packages\n") {
		t.Errorf("Release: %s", got)
	}
}
