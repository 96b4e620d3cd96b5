package imds

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

type connKey struct{}

// ConnContext is for the http.Server that serves s: with it the answer that
// carries a token lives for as many hops as MetadataOptions say. At 1 a
// process on the instance receives it and a container behind a bridge does
// not.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
func (s *Server) ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// limitHops sets the TTL of what is still sent on the request's connection.
func limitHops(ctx context.Context, hops int) {
	control(ctx, func(fd int) {
		// Where this fails, on IPv6, the limit is not modelled.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hops)
	})
}

// Hops returns the TTL of a request's connection, 0 if it is not known: for
// tests.
func Hops(ctx context.Context) (hops int) {
	control(ctx, func(fd int) { hops, _ = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL) })
	return hops
}

func control(ctx context.Context, f func(fd int)) {
	sc, ok := ctx.Value(connKey{}).(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { f(int(fd)) }) // a closed connection sends nothing
}
