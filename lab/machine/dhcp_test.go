package machine

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// request is a DHCP message of a client with that MAC.
func request(mac string, options ...[]byte) []byte {
	msg := make([]byte, dhcpHeaderBytes)
	msg[0], msg[1], msg[2] = 1, 1, 6
	copy(msg[4:], "\x01\x02\x03\x04") // transaction
	hw, _ := net.ParseMAC(mac)
	copy(msg[28:], hw)
	copy(msg[236:], dhcpCookie)
	for _, o := range options {
		msg = append(append(msg, o[0], byte(len(o)-1)), o[1:]...)
	}
	return append(msg, optEnd)
}

func TestDHCP(t *testing.T) {
	const mac = "02:00:00:00:00:01"
	s := &dhcpServer{mac: mac, address: "10.0.0.11", gateway: "10.0.0.1"}
	own, foreign := []byte{optRequested, 10, 0, 0, 11}, []byte{optRequested, 192, 0, 2, 7}
	for name, c := range map[string]struct {
		msg  []byte
		want byte // message type of the reply, 0 for none
	}{
		"discover":                   {request(mac, []byte{optType, dhcpDiscover}), dhcpOffer},
		"request":                    {request(mac, []byte{optType, dhcpRequest}, own), dhcpAck},
		"request of our offer":       {request(mac, []byte{optType, dhcpRequest}, own, []byte{optServer, 10, 0, 0, 1}), dhcpAck},
		"request of another's offer": {request(mac, []byte{optType, dhcpRequest}, own, []byte{optServer, 10, 0, 0, 9}), 0},
		"request of an old address":  {request(mac, []byte{optType, dhcpRequest}, foreign), dhcpNak},
		"release":                    {request(mac, []byte{optType, 7}), 0},
		"another machine":            {request("02:00:00:00:00:02", []byte{optType, dhcpDiscover}), 0},
		"no type":                    {request(mac), 0},
		"cut short":                  {request(mac, []byte{optType, dhcpDiscover})[:200], 0},
		"option cut short":           {append(request(mac)[:dhcpHeaderBytes], optType, 9, 1), 0},
		"a reply":                    {append([]byte{2}, request(mac, []byte{optType, dhcpDiscover})[1:]...), 0},
		"empty":                      {nil, 0},
	} {
		reply := s.answer(c.msg)
		var got byte
		if reply != nil {
			got = dhcpOptions(reply[dhcpHeaderBytes:])[optType][0]
		}
		if got != c.want {
			t.Errorf("%s: answered with type %d, want %d", name, got, c.want)
			continue
		}
		if reply == nil {
			continue
		}
		if !bytes.Equal(reply[4:8], c.msg[4:8]) || reply[0] != 2 || len(reply) < 300 {
			t.Errorf("%s: not an answer to the request: % x", name, reply[:12])
		}
		opts := dhcpOptions(reply[dhcpHeaderBytes:])
		if lease := got != dhcpNak; lease != net.IP(reply[16:20]).Equal(net.IPv4(10, 0, 0, 11)) || lease != (string(opts[optRouter]) == "\x0a\x00\x00\x01") {
			t.Errorf("%s: address %v, options %v", name, net.IP(reply[16:20]), opts)
		}
	}
}

func FuzzDHCP(f *testing.F) {
	const mac = "02:00:00:00:00:01"
	f.Add(request(mac, []byte{optType, dhcpDiscover}))
	f.Add(request(mac, []byte{optType, dhcpRequest}, []byte{optRequested, 10, 0, 0, 11}))
	f.Fuzz(func(t *testing.T, msg []byte) {
		s := &dhcpServer{mac: mac, address: "10.0.0.11", gateway: "10.0.0.1"}
		if reply := s.answer(msg); reply != nil && (reply[0] != 2 || len(reply) < 300) {
			t.Errorf("% x answered with % x", msg, reply)
		}
	})
}

func TestConsoleIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	c, err := openConsole(path)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 99) + "\n"
	for range 3 * consoleMax / len(line) {
		if _, err := c.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write([]byte("the end\r\n\n")); err != nil {
		t.Fatal(err)
	}
	if got := c.lastLine(); got != "the end" {
		t.Errorf("last line %q", got)
	}
	c.Close()
	b, err := os.ReadFile(path)
	if err != nil || len(b) > consoleMax || len(b) < consoleMax/2 || !bytes.HasSuffix(b, []byte(line+"the end\r\n\n")) {
		t.Errorf("console has %d bytes, %v, ends %q", len(b), err, b[max(0, len(b)-120):])
	}
	// A machine started again goes on where it was.
	c, err = openConsole(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("again")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if again, _ := os.ReadFile(path); !bytes.Equal(again, append(b, "again"...)) {
		t.Errorf("%d bytes became %d", len(b), len(again))
	}
}

func TestSweepRefusesStrangers(t *testing.T) {
	dir := t.TempDir()
	if err := sweep(t.Context(), filepath.Base(dir), dir); err == nil {
		t.Error("swept a directory that is no lab's")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

func TestRequire(t *testing.T) {
	err := Require(map[string]string{"no-such-program": "z-package", "nor-this": "a-package", "sh": "dash"})
	if err == nil || !strings.Contains(err.Error(), "no-such-program, nor-this missing: run apt-get install -y a-package z-package") {
		t.Error(err)
	}
}
