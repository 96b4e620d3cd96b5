package systemd

import (
	"bufio"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// pid1 answers on a socket as systemd's own does, as far as the tests ask.
type pid1 struct {
	mu         sync.Mutex
	conns      []net.Conn
	subscribed int
}

// serve speaks one connection: authentication, then calls without arguments
// that matter.
func (p *pid1) serve(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.Trim(line, "\x00\r\n")
		switch {
		case strings.HasPrefix(line, "AUTH EXTERNAL"):
			_, _ = c.Write([]byte("OK 0123456789abcdef0123456789abcdef\r\n"))
		case strings.HasPrefix(line, "AUTH"):
			_, _ = c.Write([]byte("REJECTED EXTERNAL\r\n"))
		case line == "BEGIN":
			p.calls(c, r)
			return
		default:
			_, _ = c.Write([]byte("ERROR\r\n"))
		}
	}
}

func (p *pid1) calls(c net.Conn, r *bufio.Reader) {
	for serial := uint32(1); ; serial++ {
		call, err := godbus.DecodeMessage(r)
		if err != nil {
			return
		}
		reply := &godbus.Message{Type: godbus.TypeMethodReply, Headers: map[godbus.HeaderField]godbus.Variant{godbus.FieldReplySerial: godbus.MakeVariant(call.Serial())}}
		switch member, _ := call.Headers[godbus.FieldMember].Value().(string); member {
		case "ListUnitsByNames":
			reply.Body = []any{[]dbus.UnitStatus{{Name: "app.service", LoadState: "loaded", ActiveState: "active", Path: "/u", JobPath: "/"}}}
		case "ListUnitsFiltered":
			reply.Body = []any{[]dbus.UnitStatus{}}
		case "Subscribe":
			p.mu.Lock()
			p.subscribed++
			p.mu.Unlock()
		}
		if len(reply.Body) > 0 {
			reply.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(reply.Body...))
		}
		if err := reply.EncodeTo(c, binary.LittleEndian); err != nil {
			return
		}
	}
}

// reexec ends every connection, as daemon-reexec does.
func (p *pid1) reexec() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// TestSystemdMayReplaceItself pins that an agent outlives systemctl
// daemon-reexec, as an upgrade of systemd by the user data makes it: without
// units the boot of a healthy instance is judged a failure.
func TestSystemdMayReplaceItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &pid1{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns = append(p.conns, c)
			p.mu.Unlock()
			go p.serve(c)
		}
	}()
	m, err := connect(func() (*dbus.Conn, error) {
		return dbus.NewConnection(func() (*godbus.Conn, error) {
			c, err := godbus.Dial("unix:path=" + path)
			if err != nil {
				return nil, err
			}
			return c, c.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Getuid()))})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Changes(t.Context(), func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	look := func() error {
		us, err := m.Units(t.Context(), []string{"app.service"})
		if err == nil && (len(us) != 1 || us[0].Active != "active") {
			t.Errorf("units %+v", us)
		}
		return err
	}
	if err := look(); err != nil {
		t.Fatal(err)
	}
	p.reexec()
	// The first looks may still meet the old connection.
	last := look()
	for end := time.Now().Add(20 * time.Second); last != nil && time.Now().Before(end); last = look() {
		time.Sleep(time.Millisecond)
	}
	if last != nil {
		t.Fatalf("for ever: %v", last)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.subscribed != 2 {
		t.Errorf("subscribed %d times, want once for each connection", p.subscribed)
	}
}
