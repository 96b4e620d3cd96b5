package loss

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// build makes the program under test.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "lecafe-agent")
	out, err := exec.Command("go", "build", "-o", bin, "github.com/lecafe/lecafe/cmd/lecafe-agent").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// service is the orders service as systemd runs it: the socket is handed over.
type service struct {
	t      *testing.T
	bin    string
	state  string
	socket string
	cloud  *cloudtest.Cloud
	log    *os.File

	l   *net.UnixListener
	cmd *exec.Cmd
}

// listen binds a new socket where the old one was.
func (s *service) listen() {
	s.t.Helper()
	_ = os.Remove(s.socket) // there is none the first time
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		s.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	s.l = l
}

func (s *service) start() {
	s.t.Helper()
	f, err := s.l.File()
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	// LISTEN_PID must be the program's own, which the shell's becomes.
	s.cmd = exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, s.bin, "orders", "--no-imds",
		"--state-dir", s.state, "--queue", queue, "--region", "us-east-1", "--endpoint-url", s.cloud.URL)
	s.cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test")
	s.cmd.ExtraFiles = []*os.File{f}
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	// Nothing may survive this test's own end.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

// kill ends the process without a warning, and with it every conversation:
// when it returns, whatever was answered has been answered.
func (s *service) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait() // "signal: killed"
	s.l.Close()      // resets those who were waiting to be accepted
}
