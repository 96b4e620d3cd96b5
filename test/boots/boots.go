// Package boots is what tests share that boot real instances: whether this
// host can, the programs and base images (built once), labs that end with
// their test, and questions to an instance and its image. It owns no test and
// no opinion on what a test wants to see.
//
// Without root or the tools a test is skipped, and says so; with CI=true it
// fails instead.
package boots

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lecafe/lecafe/lab/image"
	"github.com/lecafe/lecafe/lab/machine"
)

// Deadline is generous: a boot takes seconds, but CI machines are shared.
const Deadline = 4 * time.Minute

// Cannot skips the test for what this host lacks, or fails it in CI.
func Cannot(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s must run in CI: %v", what, err)
	}
	t.Skipf("SKIPPED %s: %v", what, err)
}

// NotShort skips the test with -short, but for CI.
func NotShort(t *testing.T, what string) {
	t.Helper()
	if testing.Short() && os.Getenv("CI") != "true" {
		t.Skipf("SKIPPED %s: -short", what)
	}
}

// Require skips the test, or fails it in CI, where nothing can boot.
func Require(t *testing.T) {
	t.Helper()
	NotShort(t, "real boots")
	for _, err := range []error{machine.Ready(), image.Ready()} {
		if err != nil {
			Cannot(t, "real boots", err)
		}
	}
}

// StateDir is the same in each run, so that what a killed run left is removed
// by the next one.
func StateDir() string { return filepath.Join(os.TempDir(), "lecafe-boots") }

var images = struct {
	sync.Mutex
	built map[string]*image.Image
}{built: map[string]*image.Image{}}

// BaseImage returns the image of a release, building it at the first call.
func BaseImage(t *testing.T, release string) *image.Image {
	t.Helper()
	Require(t)
	images.Lock()
	defer images.Unlock()
	if img := images.built[release]; img != nil {
		return img
	}
	r, err := image.Find(release)
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Build(t.Context(), r, image.Options{Mirror: os.Getenv("LECAFE_LAB_MIRROR")})
	if err != nil {
		t.Fatal(err)
	}
	images.built[release] = img
	return img
}

// Eventually polls until ok, and fails the test with the diagnosis if that does
// not come within Deadline.
func Eventually(t *testing.T, what string, ok func() bool, diagnosis func() string) {
	t.Helper()
	end := time.Now().Add(Deadline)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("no %s after %s\n%s", what, Deadline, diagnosis())
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(context.Cause(t.Context()))
		}
	}
}

// Nothing is the diagnosis where there is none.
func Nothing() string { return "" }

// Writer writes to the test's log.
func Writer(t *testing.T) io.Writer { return writer{t} }

type writer struct{ t *testing.T }

func (w writer) Write(b []byte) (int, error) {
	w.t.Log(string(b))
	return len(b), nil
}
