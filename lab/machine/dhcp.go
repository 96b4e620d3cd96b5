package machine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dhcpServer gives its one client its one address, RFC 2131. It answers
// DISCOVER and REQUEST of the right MAC and ignores everything else.
type dhcpServer struct {
	ns, link         string
	mac              string
	address, gateway string

	mu   sync.Mutex
	conn net.PacketConn
}

// Message types and options that are used, RFC 2132.
const (
	dhcpDiscover, dhcpOffer, dhcpRequest, dhcpAck, dhcpNak = 1, 2, 3, 5, 6

	optMask, optRouter, optMTU, optBroadcast          = 1, 3, 26, 28
	optRequested, optLease, optType, optServer        = 50, 51, 53, 54
	optRenewal, optRebinding, optEnd, dhcpHeaderBytes = 58, 59, 255, 240
)

const leaseTime = time.Hour

var dhcpCookie = []byte{99, 130, 83, 99}

func (s *dhcpServer) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		return nil
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.BindToDevice(int(fd), s.link),
			)
		})
		return errors.Join(cerr, err)
	}}
	err := within(s.ns, func() (err error) {
		s.conn, err = lc.ListenPacket(context.Background(), "udp4", "0.0.0.0:67")
		return err
	})
	if err != nil {
		s.conn = nil
		return fmt.Errorf("listen for DHCP: %w", err)
	}
	go s.serve(s.conn)
	return nil
}

func (s *dhcpServer) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn = nil
	return err
}

func (s *dhcpServer) serve(conn net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		reply := s.answer(buf[:n])
		if reply == nil {
			continue
		}
		// A client without an address hears broadcasts only; one that renews
		// has asked from its address.
		to := &net.UDPAddr{IP: net.IPv4bcast, Port: 68}
		if u, ok := from.(*net.UDPAddr); ok && !u.IP.IsUnspecified() {
			to.IP = u.IP
		}
		_, _ = conn.WriteTo(reply, to) // a lost datagram: the client asks again
	}
}

// answer returns the reply to one message, nil for none.
func (s *dhcpServer) answer(msg []byte) []byte {
	mac, err := net.ParseMAC(s.mac)
	if err != nil || len(msg) < dhcpHeaderBytes || msg[0] != 1 || string(msg[236:240]) != string(dhcpCookie) || string(msg[28:34]) != string(mac) {
		return nil
	}
	opts := dhcpOptions(msg[dhcpHeaderBytes:])
	address, gateway := net.ParseIP(s.address).To4(), net.ParseIP(s.gateway).To4()
	if address == nil || gateway == nil || len(opts[optType]) != 1 {
		return nil
	}
	var typ byte
	switch opts[optType][0] {
	case dhcpDiscover:
		typ = dhcpOffer
	case dhcpRequest:
		typ = dhcpAck
		// A client may ask for what it had elsewhere: it is told to start anew.
		asked := net.IP(opts[optRequested])
		if len(asked) == 0 {
			asked = net.IP(msg[12:16])
		}
		if !asked.Equal(address) {
			typ = dhcpNak
		}
		if id := net.IP(opts[optServer]); len(id) == 4 && !id.Equal(gateway) {
			return nil // meant for another server
		}
	default:
		return nil
	}
	out := make([]byte, dhcpHeaderBytes, 300)
	copy(out, msg[:dhcpHeaderBytes])
	out[0] = 2       // reply
	clear(out[8:12]) // seconds, flags
	copy(out[10:12], msg[10:12])
	clear(out[16:28]) // yiaddr, siaddr, giaddr
	if typ != dhcpNak {
		copy(out[16:20], address)
	}
	clear(out[44:236]) // names
	add := func(code byte, value ...byte) { out = append(append(out, code, byte(len(value))), value...) }
	seconds := func(d time.Duration) []byte { return binary.BigEndian.AppendUint32(nil, uint32(d.Seconds())) }
	add(optType, typ)
	add(optServer, gateway...)
	if typ != dhcpNak {
		add(optLease, seconds(leaseTime)...)
		add(optRenewal, seconds(leaseTime/2)...)
		add(optRebinding, seconds(leaseTime*7/8)...)
		add(optMask, 255, 255, 255, 0)
		add(optBroadcast, address[0], address[1], address[2], 255)
		add(optRouter, gateway...)
		add(optMTU, binary.BigEndian.AppendUint16(nil, 1500)...)
	}
	out = append(out, optEnd)
	for len(out) < 300 { // BOOTP's minimum, which some clients insist on
		out = append(out, 0)
	}
	return out
}

// dhcpOptions reads code, length, value triples until the end or nonsense.
func dhcpOptions(b []byte) map[byte][]byte {
	opts := map[byte][]byte{}
	for len(b) > 0 && b[0] != optEnd {
		if b[0] == 0 { // padding
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			break
		}
		opts[b[0]] = b[2 : 2+int(b[1])]
		b = b[2+int(b[1]):]
	}
	return opts
}
