package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/lab/machine"
	"github.com/lecafe/lecafe/test/boots"
)

const marker = `#!/bin/bash
echo "user data of $(hostname) ran" | tee -a /var/lib/ran
`

// TestBoot follows one machine through its life: boot, reboot, stop, start,
// capture, an instance from the captured image, and poweroff from inside.
func TestBoot(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		b := newBench(t, release, machine.Options{})
		id := b.launch("ami-base", marker)
		b.settled(id)
		if got := b.sh(id, "cat /run/cloud-init/result.json"); !strings.Contains(got, "DataSourceEc2Local") || !strings.Contains(got, `"errors": []`) {
			t.Errorf("cloud-init's result: %s", got)
		}
		if got, want := b.sh(id, "cat /var/lib/ran"), "user data of ip-10-0-0-11 ran\n"; got != want {
			t.Errorf("user data left %q, want %q", got, want)
		}
		b.shown(id, "user data of ip-10-0-0-11 ran")
		identity := func(id string) string { return b.sh(id, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub") }
		first := identity(id)
		if state := strings.TrimSpace(b.shAny(id, "systemctl is-system-running --wait")); state != "running" {
			t.Errorf("system is %s: %s", state, b.shAny(id, "systemctl --failed --no-legend"))
		}

		bootID := b.sh(id, "cat /proc/sys/kernel/random/boot_id")
		if err := b.d.Reboot(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		b.eventually(id, "second boot", func() bool {
			out, err := b.d.Exec(t.Context(), id, "cat", "/proc/sys/kernel/random/boot_id")
			return err == nil && string(out) != bootID
		})
		b.settled(id)
		if got := identity(id); got != first {
			t.Errorf("a reboot changed machine-id or host keys:\n%s%s", first, got)
		}
		if got := b.sh(id, "wc -l < /var/lib/ran"); strings.TrimSpace(got) != "1" {
			t.Errorf("user data ran again at a reboot: %s", got)
		}

		b.sh(id, "echo espresso > /var/lib/baked; rm /etc/motd; rm -r /usr/share/doc/curl; mkdir /usr/share/doc/curl; : > /etc/machine-id; sync")
		if err := b.d.Stop(t.Context(), id, false); err != nil {
			t.Fatal(err)
		}
		if _, err := b.d.Exec(t.Context(), id, "true"); err == nil {
			t.Error("a stopped machine ran a command")
		}
		n, err := b.d.Capture(t.Context(), id, "ami-captured")
		if err != nil || n == 0 {
			t.Fatalf("capture: %d bytes, %v", n, err)
		}
		if err := b.d.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		b.settled(id)
		if got := b.sh(id, "cat /var/lib/baked"); got != "espresso\n" {
			t.Errorf("the machine lost what it was captured with: %q", got)
		}

		second := b.launch("ami-captured", marker)
		b.settled(second)
		if got := b.sh(second, "cat /var/lib/baked; test ! -e /etc/motd; ls -A /usr/share/doc/curl"); got != "espresso\n" {
			t.Errorf("instance of the captured image: %q", got)
		}
		if got, want := b.sh(second, "cat /var/lib/ran"), "user data of ip-10-0-0-11 ran\nuser data of ip-10-0-0-12 ran\n"; got != want {
			t.Errorf("user data of the second instance left %q, want %q", got, want)
		}
		for _, line := range strings.Split(strings.TrimSpace(identity(second)), "\n") {
			if strings.Contains(first, line) {
				t.Errorf("the second instance has the first one's identity: %s", line)
			}
		}
		if got := b.sh(second, "cloud-init query instance_id"); strings.TrimSpace(got) != second {
			t.Errorf("instance-id %s, want %s", got, second)
		}
		// An image may go while a machine stands on it.
		if err := b.d.DeleteImage("ami-captured"); err != nil {
			t.Error(err)
		}
		b.sh(second, "cat /var/lib/baked")
		layer := filepath.Join(b.d.Dir(), "images", "ami-captured")
		if _, err := os.Stat(layer); err != nil {
			t.Errorf("layer in use: %v", err)
		}

		b.shAny(second, "systemctl poweroff")
		select {
		case off := <-b.off:
			if off != second {
				t.Errorf("powered off: %s, want %s", off, second)
			}
		case <-time.After(boots.Deadline):
			t.Fatal("poweroff inside was not noticed")
		}
		for _, id := range []string{second, id} {
			if err := b.d.Terminate(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Stat(layer); err == nil {
			t.Error("layer of a deleted image is still there after its last user")
		}
		if out, err := b.d.Console(id); err != nil || len(out) == 0 {
			t.Errorf("console of a terminated machine: %d bytes, %v", len(out), err)
		}
		select {
		case off := <-b.off:
			t.Errorf("%s was said to have powered itself off", off)
		default:
		}
	})
}

// TestReach pins what a machine reaches: its metadata service, the ports it was
// given, its package archive, and nothing else.
func TestReach(t *testing.T) {
	boots.Require(t)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "cloud says %s", r.URL.Path) }))
	defer api.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	port := func(s *httptest.Server) int { return s.Listener.Addr().(*net.TCPAddr).Port }

	b := newBench(t, "debian-12", machine.Options{})
	s := imds.New(imds.Instance{InstanceID: "i-1", MAC: "02:00:00:00:00:01", PrivateIP: "10.0.0.11"})
	err := b.d.Launch(t.Context(), ec2.Machine{InstanceID: "i-1", ImageID: "ami-base", MAC: "02:00:00:00:00:01", PrivateIP: "10.0.0.11", Gateway: "10.0.0.1", IMDS: s, Ports: []int{port(api)}})
	if err != nil {
		t.Fatal(err)
	}
	b.settled("i-1")
	if got := b.sh("i-1", fmt.Sprintf("curl -sS http://127.0.0.1:%d/orders", port(api))); got != "cloud says /orders" {
		t.Errorf("cloud: %q", got)
	}
	for name, url := range map[string]string{
		"another port of the host": fmt.Sprintf("http://127.0.0.1:%d/", port(other)),
		"the gateway":              "http://10.0.0.1/",
		"the gateway's cloud":      fmt.Sprintf("http://10.0.0.1:%d/", port(api)),
		"an address out there":     "http://192.0.2.1/",
	} {
		if out, err := b.d.Exec(t.Context(), "i-1", "curl", "-sS", "--max-time", "20", url); err == nil {
			t.Errorf("%s is reachable: %s", name, out)
		}
	}
	if out := b.sh("i-1", "apt-get -q update && apt-get -qy install jq && echo '{\"cups\": 2}' | jq .cups"); !strings.HasSuffix(out, "\n2\n") {
		t.Errorf("jq from the archive: %s", out)
	}

	// Faults around a running machine.
	imdsUp := func() bool {
		_, err := b.d.Exec(t.Context(), "i-1", "curl", "-sS", "--max-time", "5", "-o", "/dev/null", "http://169.254.169.254/")
		return err == nil
	}
	cloudUp := func() bool {
		_, err := b.d.Exec(t.Context(), "i-1", "curl", "-sSf", "--max-time", "5", fmt.Sprintf("http://127.0.0.1:%d/", port(api)))
		return err == nil
	}
	for name, c := range map[string]struct {
		faults      machine.Faults
		imds, cloud bool
	}{
		"imds":  {machine.Faults{IMDSDown: true}, false, true},
		"ports": {machine.Faults{PortsDown: true}, true, false},
		"link":  {machine.Faults{LinkDown: true}, false, true},
		"none":  {machine.Faults{}, true, true},
	} {
		if err := b.d.SetFaults("i-1", c.faults); err != nil {
			t.Fatal(err)
		}
		if i, p := imdsUp(), cloudUp(); i != c.imds || p != c.cloud {
			t.Errorf("fault %s: metadata up %t, cloud up %t; want %t, %t", name, i, p, c.imds, c.cloud)
		}
		if err := b.d.SetFaults("i-1", machine.Faults{}); err != nil {
			t.Fatal(err)
		}
		if !imdsUp() || !cloudUp() {
			t.Errorf("fault %s does not end", name)
		}
	}
}

// TestFaultsAtLaunch boots a machine whose metadata service is late: cloud-init
// waits for it.
func TestFaultsAtLaunch(t *testing.T) {
	boots.Require(t)
	b := newBench(t, "debian-13", machine.Options{Faults: func(ec2.Machine) machine.Faults {
		return machine.Faults{IMDSDown: true, Tmpfs: map[string]string{"/var/lib/small": "64k"}}
	}})
	id := b.launch("ami-base", marker)
	b.shown(id, "/latest/api/token' failed")
	if out := b.shAny(id, "cat /var/lib/ran"); strings.Contains(out, "user data") {
		t.Error("user data ran without metadata")
	}
	if err := b.d.SetFaults(id, machine.Faults{}); err != nil {
		t.Fatal(err)
	}
	b.settled(id)
	b.sh(id, "cat /var/lib/ran")
	if out, err := b.d.Exec(t.Context(), id, "dd", "if=/dev/zero", "of=/var/lib/small/full", "bs=128k", "count=1"); err == nil || !strings.Contains(string(out), "No space left") {
		t.Errorf("128 KiB fit into 64: %v %s", err, out)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	boots.Require(t)
	b := newBench(t, "debian-12", machine.Options{})
	b.launch("ami-base", marker)
	id := b.launch("ami-base", marker)
	b.settled(id) // the other may be anywhere in its boot
	if got := boots.Leftovers(b.d.Name()); len(got) == 0 {
		t.Fatal("leftovers sees nothing of a living lab")
	}
	if err := b.d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := boots.Leftovers(b.d.Name()); len(got) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(got, "\n"))
	}
	if _, err := os.Stat(b.d.Dir()); err == nil {
		t.Errorf("%s is left behind", b.d.Dir())
	}
	if err := b.d.Launch(t.Context(), ec2.Machine{InstanceID: "i-late", ImageID: "ami-base"}); err == nil {
		t.Error("a closed lab launched a machine")
	}
}

// childEnv makes this test binary a lab of its own, to be killed.
const childEnv = "LECAFE_E2E_CHILD"

// child runs a lab in the directory named by the environment until it is
// killed, and prints its name once a machine boots.
func child() {
	dir, root, _ := strings.Cut(os.Getenv(childEnv), ":")
	err := func() error {
		d, err := machine.Open(context.Background(), machine.Options{Dir: dir})
		if err != nil {
			return err
		}
		if err := d.AddImage("ami-base", machine.Base{Root: root}); err != nil {
			return err
		}
		s := imds.New(imds.Instance{InstanceID: "i-1", MAC: "02:00:00:00:00:01", PrivateIP: "10.0.0.11"})
		m := ec2.Machine{InstanceID: "i-1", ImageID: "ami-base", MAC: "02:00:00:00:00:01", PrivateIP: "10.0.0.11", Gateway: "10.0.0.1", IMDS: s}
		if err := d.Launch(context.Background(), m); err != nil {
			return err
		}
		fmt.Println(d.Name())
		return nil
	}()
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	select {}
}

// TestKilledLab kills a lab and expects the next one to clean up after it, but
// to leave a third one alone that lives.
func TestKilledLab(t *testing.T) {
	dir := t.TempDir()
	img := boots.BaseImage(t, "debian-12")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir+":"+img.Root())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	dead := strings.TrimSpace(line)
	if err != nil || !strings.HasPrefix(dead, "lecafe-lab-") {
		t.Fatalf("child lab: %q, %v", line, err)
	}

	living := newBench(t, "debian-12", machine.Options{Dir: dir})
	id := living.launch("ami-base", marker)
	if got := boots.Leftovers(dead); len(got) == 0 {
		t.Error("a second lab took the first one's things while it lived")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := boots.Leftovers(dead); len(got) == 0 {
		t.Error("nothing is left of a lab that was killed: the test proves nothing")
	}
	next := newBench(t, "debian-12", machine.Options{Dir: dir})
	if got := boots.Leftovers(dead); len(got) > 0 {
		t.Errorf("left of the dead lab:\n%s", strings.Join(got, "\n"))
	}
	if _, err := os.Stat(filepath.Join(dir, dead)); err == nil {
		t.Error("the dead lab's directory is left")
	}
	living.settled(id)
	living.sh(id, "cat /var/lib/ran")
	if next.d.Name() == living.d.Name() {
		t.Error("two labs of one name")
	}
}
