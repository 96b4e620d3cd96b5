package orders

import (
	"context"
	"log/slog"
	"net"
	"sync"
)

// peers logs who posts, by the kernel's word (SO_PEERCRED): once for each
// process, not for each connection.
type peers struct {
	log  *slog.Logger
	mu   sync.Mutex
	seen map[int32]uint32 // pid → uid
}

func (p *peers) connContext(ctx context.Context, c net.Conn) context.Context {
	g, ok := c.(*guest)
	if !ok || g.cred.Pid == 0 {
		return ctx
	}
	cred := g.cred
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
