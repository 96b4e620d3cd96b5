// Package e2e boots real instances. It owns what its tests share: the check
// that this host can boot, and the base images, which are built once.
//
// Without root or the tools the tests are skipped, and say so; with CI=true
// they fail instead.
package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/image"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/lab/machine"
)

// bootDeadline is generous: a boot takes seconds, but CI machines are shared.
const bootDeadline = 4 * time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	os.Exit(m.Run())
}

// requireBoot skips the test, or fails it in CI, where nothing can boot.
func requireBoot(t *testing.T) {
	t.Helper()
	if testing.Short() && os.Getenv("CI") != "true" {
		t.Skip("SKIPPED real boots: -short")
	}
	for _, err := range []error{machine.Ready(), image.Ready()} {
		switch {
		case err == nil:
		case os.Getenv("CI") == "true":
			t.Fatalf("real boots must run in CI: %v", err)
		default:
			t.Skipf("SKIPPED real boots: %v", err)
		}
	}
}

// stateDir is the same in each run, so that what a killed run left is removed
// by the next one.
func stateDir() string { return filepath.Join(os.TempDir(), "lecafe-e2e") }

// releases are the distributions that boot here.
var releases = []string{"debian-12", "debian-13"}

var images = struct {
	sync.Mutex
	built map[string]*image.Image
}{built: map[string]*image.Image{}}

// baseImage returns the image of a release, building it at the first call.
func baseImage(t *testing.T, name string) *image.Image {
	t.Helper()
	requireBoot(t)
	images.Lock()
	defer images.Unlock()
	if img := images.built[name]; img != nil {
		return img
	}
	r, err := image.Find(name)
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Build(t.Context(), r, image.Options{Mirror: os.Getenv("LECAFE_LAB_MIRROR")})
	if err != nil {
		t.Fatal(err)
	}
	images.built[name] = img
	return img
}

// eachRelease runs f once for each distribution.
func eachRelease(t *testing.T, f func(t *testing.T, release string)) {
	requireBoot(t)
	for _, r := range releases {
		t.Run(r, func(t *testing.T) { f(t, r) })
	}
}

// bench is a Driver of the test's own with a base image, for tests of the
// machines themselves.
type bench struct {
	t   *testing.T
	d   *machine.Driver
	off chan string // IDs of machines that powered themselves off
	seq int
}

func newBench(t *testing.T, release string, o machine.Options) *bench {
	t.Helper()
	img := baseImage(t, release)
	if o.Dir == "" {
		o.Dir = stateDir()
	}
	o.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	d, err := machine.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{t: t, d: d, off: make(chan string, 16)}
	d.PoweredOff(func(id string) { b.off <- id })
	if err := d.AddImage("ami-base", machine.Base{Root: img.Root(), Apt: img.ArchiveHandler()}); err != nil {
		t.Fatal(err)
	}
	return b
}

// launch boots an instance with user data and returns its ID and metadata.
func (b *bench) launch(imageID, userData string, change ...func(*imds.Instance)) (string, *imds.Server) {
	b.t.Helper()
	b.seq++
	i := imds.Instance{
		InstanceID: fmt.Sprintf("i-%017x", b.seq), ImageID: imageID, UserData: []byte(userData),
		MAC: fmt.Sprintf("02:00:00:00:00:%02x", b.seq), PrivateIP: fmt.Sprintf("10.0.0.%d", 10+b.seq),
	}
	for _, f := range change {
		f(&i)
	}
	s := imds.New(i)
	err := b.d.Launch(b.t.Context(), ec2.Machine{InstanceID: i.InstanceID, ImageID: imageID, MAC: i.MAC, PrivateIP: i.PrivateIP, Gateway: "10.0.0.1", IMDS: s})
	if err != nil {
		b.t.Fatal(err)
	}
	return i.InstanceID, s
}

// settled waits until cloud-init has ended on an instance.
func (b *bench) settled(id string) {
	b.t.Helper()
	b.eventually(id, "cloud-init's result", func() bool {
		_, err := b.d.Exec(b.t.Context(), id, "test", "-e", "/run/cloud-init/result.json")
		return err == nil
	})
}

// eventually polls until ok, and shows the console if that never comes.
func (b *bench) eventually(id, what string, ok func() bool) {
	b.t.Helper()
	eventually(b.t, what, ok, func() string {
		out, _ := b.d.Console(id)
		return string(out[max(0, len(out)-4000):])
	})
}

func eventually(t *testing.T, what string, ok func() bool, diagnosis func() string) {
	t.Helper()
	deadline := time.Now().Add(bootDeadline)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("no %s after %s\n%s", what, bootDeadline, diagnosis())
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(context.Cause(t.Context()))
		}
	}
}

// sh runs a shell command in an instance.
func (b *bench) sh(id, script string) string {
	b.t.Helper()
	out, err := b.d.Exec(b.t.Context(), id, "sh", "-c", script)
	if err != nil {
		b.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(b))
	return len(b), nil
}
