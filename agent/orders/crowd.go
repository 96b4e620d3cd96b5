package orders

import (
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxConns is how many connections there are at once: a fraction of the
	// unit's LimitNOFILE=, as files have to be opened besides.
	maxConns = 4096
	// maxPerProcess is how many of them one process may have: whoever leaks
	// connections must not take them from the others.
	maxPerProcess = 1024
)

// crowded is what surplus connections are told, whatever they ask for.
const crowded = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 84\r\n\r\n" +
	`{"code":"too_many_connections","error":"nothing was taken: use fewer connections"}` + "\r\n"

// crowd counts the connections that are open, by process.
type crowd struct {
	mu    sync.Mutex
	all   int
	byPID map[int32]int
}

// door is a listener that lets in as many as the crowd may be.
type door struct {
	net.Listener
	crowd *crowd
}

// guest is a connection that is counted until it is closed.
type guest struct {
	*net.UnixConn
	cred  unix.Ucred // of who connected, by the kernel's word
	leave func()
}

func (g *guest) Close() error {
	g.leave()
	return g.UnixConn.Close()
}

// Accept lets the next one in for whom there is room, and sends the others away.
func (d door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			return c, nil
		}
		cred, _ := peerOf(u) // all who cannot be told are one
		if d.crowd.enter(cred.Pid) {
			return &guest{u, cred, sync.OnceFunc(func() { d.crowd.leave(cred.Pid) })}, nil
		}
		_ = c.SetWriteDeadline(time.Now().Add(time.Second)) // its buffer is empty
		_, _ = c.Write([]byte(crowded))
		_ = c.Close()
	}
}

func (r *crowd) enter(pid int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all >= maxConns || r.byPID[pid] >= maxPerProcess {
		return false
	}
	if r.byPID == nil {
		r.byPID = map[int32]int{}
	}
	r.all++
	r.byPID[pid]++
	return true
}

func (r *crowd) leave(pid int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all--
	if r.byPID[pid]--; r.byPID[pid] <= 0 {
		delete(r.byPID, pid)
	}
}

// peerOf asks the kernel who connected (SO_PEERCRED).
func peerOf(u *net.UnixConn) (unix.Ucred, bool) {
	raw, err := u.SyscallConn()
	if err != nil {
		return unix.Ucred{}, false
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return unix.Ucred{}, false
	}
	return *cred, true
}
