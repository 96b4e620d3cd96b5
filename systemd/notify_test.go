package systemd_test

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/lecafe/lecafe/systemd"
)

// TestAStatusIsOneLine pins that a status cannot say anything else to the
// service manager: what an error repeats may have lines of its own.
func TestAStatusIsOneLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := (systemd.Notify{}).Status("booting: %s", "no answer:\nMAINPID=1\r\nREADY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := l.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b[:n]), "STATUS=booting: no answer: MAINPID=1 READY=1"; got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
}
