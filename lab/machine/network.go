package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Each machine has two network namespaces: its own, with eth0, and one for
// what EC2 has at the other end of the link. Nothing is routed out of the
// latter.
const (
	guestSide = "-g"
	hostSide  = "-h"
	// hostLink is the interface at the far end of the guest's eth0.
	hostLink = "link0"
	imdsAddr = "169.254.169.254"
)

func nsPath(name string) string { return "/run/netns/" + name }

// network is the link of one machine and all that answers on it.
type network struct {
	i     *instance
	guest string // namespace names
	host  string

	imds  *service
	dhcp  *dhcpServer
	ports []*service
	apt   *service
	down  bool
}

func newNetwork(ctx context.Context, i *instance) (*network, error) {
	n := &network{i: i, guest: i.name() + guestSide, host: i.name() + hostSide}
	gateway := i.m.Gateway
	commands := [][]string{
		{"netns", "add", n.host},
		{"netns", "add", n.guest},
		{"-n", n.host, "link", "add", hostLink, "type", "veth", "peer", "name", "eth0", "address", i.m.MAC, "netns", n.guest},
		{"-n", n.host, "link", "set", "lo", "up"},
		{"-n", n.host, "address", "add", gateway + "/24", "dev", hostLink},
		{"-n", n.host, "address", "add", imdsAddr + "/32", "dev", hostLink},
		{"-n", n.host, "link", "set", hostLink, "up"},
		// What the machine sends anywhere else is refused at once instead of
		// running into time-outs.
		{"-n", n.host, "route", "add", "unreachable", "default"},
		{"-n", n.guest, "link", "set", "lo", "up"},
	}
	for _, args := range commands {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out), n.close())
		}
	}
	if err := within(n.host, func() error {
		// Without forwarding the kernel drops silently what is not for it.
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	}); err != nil {
		return nil, errors.Join(err, n.close())
	}

	n.imds = httpService(n.host, imdsAddr+":80", i.m.IMDS, n)
	for _, p := range i.m.Ports {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
		n.ports = append(n.ports, &service{ns: n.guest, addr: addr, serve: func(l net.Listener) { forward(l, addr) }})
	}
	i.d.mu.Lock()
	apt := i.img.apt
	i.d.mu.Unlock()
	if apt != nil {
		n.apt = httpService(n.guest, net.JoinHostPort("127.0.0.1", strconv.Itoa(AptPort)), apt, n)
		if err := n.apt.open(); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	n.dhcp = &dhcpServer{ns: n.host, link: hostLink, mac: i.m.MAC, address: i.m.PrivateIP, gateway: gateway}
	return n, nil
}

// apply makes the network as broken as f says.
func (n *network) apply(f Faults) error {
	var errs []error
	set := func(broken bool, open, close func() error) {
		if broken {
			errs = append(errs, close())
		} else {
			errs = append(errs, open())
		}
	}
	set(f.IMDSDown, n.imds.open, n.imds.close)
	set(f.DHCPDown, n.dhcp.open, n.dhcp.close)
	for _, p := range n.ports {
		set(f.PortsDown, p.open, p.close)
	}
	if f.LinkDown != n.down {
		state := "up"
		if f.LinkDown {
			state = "down"
		}
		ctx, cancel := context.WithTimeout(context.Background(), ipTimeout)
		defer cancel()
		out, err := exec.CommandContext(ctx, "ip", "-n", n.host, "link", "set", hostLink, state).CombinedOutput()
		if err == nil && !f.LinkDown {
			// The kernel drops a link's routes with it, not its addresses.
			n.down = false
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set link %s: %w: %s", state, err, out))
		} else {
			n.down = f.LinkDown
		}
	}
	return errors.Join(errs...)
}

// ipTimeout bounds a clean-up call of ip(8).
const ipTimeout = 20 * time.Second

func (n *network) close() error {
	var errs []error
	for _, s := range append([]*service{n.imds, n.apt}, n.ports...) {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	if n.dhcp != nil {
		errs = append(errs, n.dhcp.close())
	}
	for _, ns := range []string{n.guest, n.host} {
		errs = append(errs, deleteNetns(ns))
	}
	return errors.Join(errs...)
}

// within runs f in a network namespace, in a thread of its own that ends with
// it: a thread that has been elsewhere must not be used again. Sockets opened
// by f stay in the namespace.
func within(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := unix.Open(nsPath(ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", ns, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// service is one listener in a namespace that can be closed and opened again.
type service struct {
	ns, addr string
	serve    func(net.Listener)

	mu sync.Mutex
	l  net.Listener
}

// trackingListener closes its connections with itself: a service that is down
// does not go on talking to old friends.
type trackingListener struct {
	net.Listener
	mu    sync.Mutex
	conns map[net.Conn]bool
}

func (t *trackingListener) Accept() (net.Conn, error) {
	c, err := t.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tc := &trackedConn{Conn: c, t: t}
	t.mu.Lock()
	t.conns[tc] = true
	t.mu.Unlock()
	return tc, nil
}

func (t *trackingListener) Close() error {
	err := t.Listener.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		c.(*trackedConn).Conn.Close()
	}
	return err
}

type trackedConn struct {
	net.Conn
	t *trackingListener
}

func (c *trackedConn) Close() error {
	c.t.mu.Lock()
	delete(c.t.conns, c)
	c.t.mu.Unlock()
	return c.Conn.Close()
}

// SyscallConn gives access to the socket's options.
func (c *trackedConn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return sc.SyscallConn()
}

func (c *trackedConn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

func (s *service) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.l != nil {
		return nil
	}
	var l net.Listener
	err := within(s.ns, func() (err error) {
		l, err = net.Listen("tcp4", s.addr)
		return err
	})
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.addr, err)
	}
	s.l = &trackingListener{Listener: l, conns: map[net.Conn]bool{}}
	go s.serve(s.l)
	return nil
}

func (s *service) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.l == nil {
		return nil
	}
	err := s.l.Close()
	s.l = nil
	return err
}

func httpService(ns, addr string, h http.Handler, n *network) *service {
	return &service{ns: ns, addr: addr, serve: func(l net.Listener) {
		srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
		if c, ok := h.(interface {
			ConnContext(context.Context, net.Conn) context.Context
		}); ok {
			srv.ConnContext = c.ConnContext // the metadata service limits its packets' hops
		}
		if err := srv.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			n.i.log.Warn("serve the machine", "address", addr, "error", err)
		}
	}}
}

// forward passes each connection on to the host's own address addr.
func forward(l net.Listener, addr string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		go func() {
			defer c.Close()
			// The dial needs no context: the address is this host's.
			out, err := net.DialTimeout("tcp4", addr, 10*time.Second)
			if err != nil {
				return // the machine sees its connection closed
			}
			defer out.Close()
			var wg sync.WaitGroup
			wg.Go(func() { pipe(out, c) })
			wg.Go(func() { pipe(c, out) })
			wg.Wait()
		}()
	}
}

// pipe copies until the source ends and passes the end on.
func pipe(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if cw, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		_ = cw.CloseWrite()
		return
	}
	dst.Close()
	src.Close()
}
