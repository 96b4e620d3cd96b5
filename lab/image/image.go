// Package image builds the root file systems that the lab's base AMIs boot:
// plain Debian as a cloud image has it, made by mmdebstrap and kept in a cache
// under the hash of its recipe. It owns what is in them and how they are
// found again; it knows nothing of machines or AMI IDs.
//
// A machine of the lab has no way out to a package mirror, so each image comes
// with a small archive of packages, downloaded when it is built, that the lab
// serves to its machines. The image's sources.list names that archive alone.
package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/internal/atomicfile"
	"github.com/lecafe/lecafe/lab/machine"
)

// DefaultCache is where images are kept between labs.
const DefaultCache = "/var/cache/lecafe/images"

// DefaultMirror is Debian's own.
const DefaultMirror = "http://deb.debian.org/debian"

// Release is a Debian release that can be built.
type Release struct {
	Name     string // debian-12
	Suite    string // bookworm
	Version  string // 12
	packages []string
}

// packages are those of a cloud image, less the kernel, plus what a container
// needs to be one.
var packages = []string{
	"apt", "ca-certificates", "cloud-init", "curl", "dbus", "gpg", "ifupdown", "iproute2", "iputils-ping", "isc-dhcp-client",
	"kmod", "less", "locales", "login", "netbase", "openssh-server", "passwd", "procps", "python3", "sudo", "systemd",
	"systemd-sysv", "udev", "uuid-runtime",
}

// Releases lists what can be built.
func Releases() []Release {
	return []Release{
		{Name: "debian-12", Suite: "bookworm", Version: "12", packages: packages},
		{Name: "debian-13", Suite: "trixie", Version: "13", packages: packages},
	}
}

// Find returns the release of that name.
func Find(name string) (Release, error) {
	var names []string
	for _, r := range Releases() {
		if r.Name == name {
			return r, nil
		}
		names = append(names, r.Name)
	}
	return Release{}, fmt.Errorf("no image %q: choose from %s", name, strings.Join(names, ", "))
}

// DefaultArchive are the packages an image's archive has, besides what they
// depend on.
var DefaultArchive = []string{"htop", "jq", "nftables", "nginx-light", "rsync", "socat", "tree", "unzip", "zip"}

// Options select where and from what an image is built.
type Options struct {
	Cache   string    // default DefaultCache
	Mirror  string    // default DefaultMirror
	Archive []string  // default DefaultArchive
	Out     io.Writer // mmdebstrap's progress, nil for none
}

func (o *Options) defaults() {
	if o.Cache == "" {
		o.Cache = DefaultCache
	}
	if o.Mirror == "" {
		o.Mirror = DefaultMirror
	}
	if o.Archive == nil {
		o.Archive = DefaultArchive
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
}

// Image is a built image.
type Image struct {
	Release  Release
	Dir      string // holds root and archive
	Built    time.Time
	Packages map[string]string // name → version of what is installed
	Reused   bool              // it was in the cache
}

// Root is the root file system. It is never written to.
func (i *Image) Root() string { return filepath.Join(i.Dir, "root") }

// Archive is a flat apt repository of the packages that machines can install.
func (i *Image) Archive() string { return filepath.Join(i.Dir, "archive") }

// ErrNotBuilt says that an image is not in the cache.
var ErrNotBuilt = errors.New("image is not built")

// tools that Build needs besides root.
var tools = map[string]string{"mmdebstrap": "mmdebstrap", "dpkg-deb": "dpkg", "apt-get": "apt"}

// Ready returns a *machine.NotReadyError if this host cannot build images.
func Ready() error { return machine.Require(tools) }

// recipeVersion is raised when Build does something else with the same recipe.
const recipeVersion = 1

// hash is the recipe's content: what makes an image another one. The mirror
// is where packages come from, not what they are.
func hash(r Release, o Options) string {
	archive := slices.Clone(o.Archive)
	slices.Sort(archive)
	h := sha256.New()
	fmt.Fprintf(h, "%d\n%s\n%q\n%q\n", recipeVersion, r.Suite, r.packages, archive)
	for _, f := range files(r) {
		fmt.Fprintf(h, "%s %o %q\n", f.path, f.mode, f.content)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// Open returns an image of the cache, or ErrNotBuilt.
func Open(r Release, o Options) (*Image, error) {
	o.defaults()
	dir := filepath.Join(o.Cache, r.Name+"-"+hash(r, o))
	b, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; run lecafe lab image build %[1]s", r.Name, ErrNotBuilt)
	}
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	img := &Image{Release: r, Dir: dir, Reused: true}
	if err := json.Unmarshal(b, img); err != nil {
		return nil, fmt.Errorf("open image %s: %w", dir, err)
	}
	img.Dir, img.Reused = dir, true
	return img, nil
}

// Build returns the image from the cache or builds it. An image appears in
// the cache whole or not at all. Two builds of one image wait for each other.
func Build(ctx context.Context, r Release, o Options) (*Image, error) {
	o.defaults()
	if img, err := Open(r, o); !errors.Is(err, ErrNotBuilt) {
		return img, err
	}
	if err := Ready(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(o.Cache, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if img, err := Open(r, o); !errors.Is(err, ErrNotBuilt) {
		return img, err
	}
	// The lock is ours: what lies about was left by a build that was killed.
	stale, err := filepath.Glob(filepath.Join(o.Cache, ".build-*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range stale {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("remove an unfinished build: %w", err)
		}
	}
	tmp, err := os.MkdirTemp(o.Cache, ".build-")
	if err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	img, err := build(ctx, r, o, tmp)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build image %s: %w", r.Name, err), os.RemoveAll(tmp))
	}
	return img, nil
}

func build(ctx context.Context, r Release, o Options, tmp string) (*Image, error) {
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, err
	}
	img := &Image{Release: r, Dir: tmp, Built: time.Now().UTC().Truncate(time.Second)}
	if err := os.Mkdir(img.Archive(), 0o755); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--mode=root", "--variant=minbase",
		"--include="+strings.Join(r.packages, ","),
		// The archive holds what is not in the image already: apt resolves it
		// against the image's own package database.
		`--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes --download-only --no-install-recommends install `+strings.Join(o.Archive, " "),
		`--customize-hook=cp "$1"/var/cache/apt/archives/*.deb '`+img.Archive()+`'/`,
		`--customize-hook=rm -f "$1"/var/cache/apt/archives/*.deb`,
		r.Suite, img.Root(), o.Mirror)
	// A group of its own, so that a cancelled build ends with its children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	var tail bytes.Buffer
	cmd.Stdout, cmd.Stderr = o.Out, io.MultiWriter(o.Out, &tail)
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(tail.String()), "\n")
		return nil, fmt.Errorf("mmdebstrap: %w: %s; is the mirror %s reachable?", err, strings.Join(lines[max(0, len(lines)-8):], "\n"), o.Mirror)
	}
	if err := customize(img.Root(), r); err != nil {
		return nil, err
	}
	var err error
	if img.Packages, err = installed(filepath.Join(img.Root(), "var/lib/dpkg/status")); err != nil {
		return nil, err
	}
	if err := writeIndex(ctx, img.Archive(), r); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(struct {
		Built    time.Time
		Packages map[string]string
	}{img.Built, img.Packages}, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := atomicfile.WriteFile(filepath.Join(tmp, "image.json"), b, 0o644); err != nil {
		return nil, err
	}
	dir := filepath.Join(o.Cache, r.Name+"-"+hash(r, o))
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	img.Dir = dir
	return img, nil
}

// lock takes an exclusive lock on a file, waiting for whoever has it.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the image cache: %w", err)
	}
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock the image cache: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another build: %w", ctx.Err())
		case <-t.C:
		}
	}
}
