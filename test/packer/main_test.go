// Package packer runs the real Packer with lecafe's plugin. It owns what its
// tests alone share: Packer and its amazon plugin, built once from
// packer/tools, and the way to the sshd of an instance in the lab. Package
// boots says where and when they run.
package packer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/test/boots"
)

// tool returns the program of a module below packer/tools, building it at the
// first call ever: .cache keeps it, by what its module asks for.
func tool(module, pkg string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		dir := filepath.Join(boots.Root, "packer/tools", module)
		sum := sha256.New()
		for _, f := range []string{"go.mod", "go.sum"} {
			b, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil {
				return "", err
			}
			sum.Write(b)
		}
		sum.Write([]byte(runtime.Version()))
		out, err := filepath.Abs(filepath.Join(boots.Root, ".cache/packer", fmt.Sprintf("%s-%x", module, sum.Sum(nil)[:6]), module))
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(out); err == nil {
			return out, nil
		}
		// Built beside its place and renamed: a build that is cut short leaves
		// nothing that looks like a program.
		part := fmt.Sprintf("%s.%d", out, os.Getpid())
		if err := boots.Build(dir, "-o", part, pkg); err != nil {
			return "", err
		}
		return out, os.Rename(part, out)
	})
}

var (
	packerTool = tool("packer", "github.com/hashicorp/packer")
	amazonTool = tool("packer-plugin-amazon", "github.com/hashicorp/packer-plugin-amazon")
)

func TestMain(m *testing.M) { os.Exit(boots.Run(m)) }

// packer is a user's Packer with its own plugin directory.
type packer struct {
	t   *testing.T
	bin string // Packer
	own string // directory of lecafe's programs
	env []string
}

func newPacker(t *testing.T, l *lab.Lab) *packer {
	t.Helper()
	boots.NotShort(t, "the real Packer")
	bin := os.Getenv("LECAFE_PACKER") // another version, for a look
	if bin == "" {
		var err error
		if bin, err = packerTool(); err != nil {
			boots.Cannot(t, "the real Packer", err)
		}
	}
	own := boots.Programs(t)
	home := t.TempDir()
	p := &packer{t: t, bin: bin, own: own, env: append(os.Environ(),
		"HOME="+home, "PACKER_CONFIG_DIR="+home, "PACKER_PLUGIN_PATH="+filepath.Join(home, "plugins"),
		"PACKER_NO_COLOR=1", "CHECKPOINT_DISABLE=1",
		// The plugin is installed away from lecafe's programs.
		"PATH="+own+":"+os.Getenv("PATH"))}
	if l != nil {
		p.env = append(p.env, l.Env()...)
	}
	p.install("lecafe", boots.Plugin(t))
	return p
}

// install does what docs/packer says.
func (p *packer) install(name, path string) {
	p.t.Helper()
	owner := map[string]string{"lecafe": "lecafe", "amazon": "hashicorp"}[name]
	if out, code := p.run("plugins", "install", "--path", path, "github.com/"+owner+"/"+name); code != 0 {
		p.t.Fatalf("packer plugins install: exit code %d\n%s", code, out)
	}
}

// run returns what Packer wrote, and its exit code.
func (p *packer) run(args ...string) (string, int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*boots.Deadline)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, p.bin, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// write makes a directory of files, name by content, and returns its path.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// sshPort returns a port of the host's loopback that leads to the sshd of the
// seq-th machine that the lab starts: a machine's network is closed to the
// host, so connections are made from within.
func sshPort(t *testing.T, l *lab.Lab, seq int) int {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	ns := fmt.Sprintf("/run/netns/%s-%d-g", l.Machines.Name(), seq)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				g, err := dialWithin(ns, "127.0.0.1:22")
				if err != nil {
					return // not up yet; Packer tries again
				}
				defer g.Close()
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = io.Copy(g, c); _ = g.(*net.TCPConn).CloseWrite() })
				wg.Go(func() { _, _ = io.Copy(c, g); _ = c.(*net.TCPConn).CloseWrite() })
				wg.Wait()
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}

// dialWithin dials in a network namespace, in a thread that ends with it.
func dialWithin(ns, addr string) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread must not be used again
		var fd int
		if fd, err = unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
		if err != nil {
			return
		}
		c, err = net.DialTimeout("tcp4", addr, 10*time.Second)
	}()
	<-done
	return c, err
}
