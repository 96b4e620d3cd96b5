// Package e2e boots real instances. It owns what its tests alone share: the
// machines of a driver, instances with the agent, and the operator at a lab.
// Package boots says where and when they run.
package e2e

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/lab/machine"
	"github.com/lecafe/lecafe/test/boots"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	os.Exit(boots.Run(m))
}

// releases are the distributions that boot here.
var releases = []string{"debian-12", "debian-13"}

// eachRelease runs f once for each distribution.
func eachRelease(t *testing.T, f func(t *testing.T, release string)) {
	boots.Require(t)
	for _, r := range releases {
		t.Run(r, func(t *testing.T) { f(t, r) })
	}
}

// bench is a Driver of the test's own with a base image, for tests of the
// machines themselves.
type bench struct {
	t     *testing.T
	d     *machine.Driver
	off   chan string // IDs of machines that powered themselves off
	seq   int
	ports []int // of the host's loopback that instances reach
}

func newBench(t *testing.T, release string, o machine.Options) *bench {
	t.Helper()
	img := boots.BaseImage(t, release)
	if o.Dir == "" {
		o.Dir = boots.StateDir()
	}
	o.Log = slog.New(slog.NewTextHandler(boots.Writer(t), nil))
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

// instance is the next one's metadata.
func (b *bench) instance(imageID, userData string, change ...func(*imds.Instance)) imds.Instance {
	b.seq++
	i := imds.Instance{
		InstanceID: fmt.Sprintf("i-%017x", b.seq), ImageID: imageID, UserData: []byte(userData),
		MAC: fmt.Sprintf("02:00:00:00:00:%02x", b.seq), PrivateIP: fmt.Sprintf("10.0.0.%d", 10+b.seq),
	}
	for _, f := range change {
		f(&i)
	}
	return i
}

// start boots an instance that gets its metadata of meta and returns its ID.
func (b *bench) start(i imds.Instance, meta http.Handler) string {
	b.t.Helper()
	err := b.d.Launch(b.t.Context(), ec2.Machine{InstanceID: i.InstanceID, ImageID: i.ImageID, MAC: i.MAC, PrivateIP: i.PrivateIP, Gateway: "10.0.0.1", IMDS: meta, Ports: b.ports})
	if err != nil {
		b.t.Fatal(err)
	}
	return i.InstanceID
}

// launch boots an instance with user data and returns its ID.
func (b *bench) launch(imageID, userData string) string {
	b.t.Helper()
	i := b.instance(imageID, userData)
	return b.start(i, imds.New(i))
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
	boots.Eventually(b.t, what, ok, func() string { return b.console(id) })
}

// console is the end of an instance's console.
func (b *bench) console(id string) string {
	out, _ := b.d.Console(id)
	return string(out[max(0, len(out)-6000):])
}

// shown waits for a text on an instance's console.
func (b *bench) shown(id, text string) {
	b.t.Helper()
	b.eventually(id, "console line "+text, func() bool {
		out, err := b.d.Console(id)
		return err == nil && strings.Contains(string(out), text)
	})
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

// shAny is sh for commands whose exit code tells nothing.
func (b *bench) shAny(id, script string) string {
	out, _ := b.d.Exec(b.t.Context(), id, "sh", "-c", script)
	return string(out)
}
