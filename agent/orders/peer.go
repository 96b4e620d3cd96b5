package orders

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// peers logs who posts, by the kernel's word (SO_PEERCRED): once for each
// process, not for each connection.
type peers struct {
	log  *slog.Logger
	mu   sync.Mutex
	seen map[int32]uint32 // pid → uid
}

func (p *peers) connContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return ctx
	}
	p.mu.Lock()
	uid, known := p.seen[cred.Pid]
	if len(p.seen) > 4096 {
		clear(p.seen)
	}
	p.seen[cred.Pid] = cred.Uid
	p.mu.Unlock()
	if !known || uid != cred.Uid {
		p.log.Info("orders: process connected", "pid", cred.Pid, "uid", cred.Uid, "gid", cred.Gid)
	}
	return ctx
}
