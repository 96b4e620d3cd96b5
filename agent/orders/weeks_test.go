package orders

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/agent/orders/client"
	"github.com/lecafe/lecafe/agent/spool"
)

// TestOneStuckOrderKeepsNoOther pins that orders that were sent are forgotten,
// although an older one is still tried: a disk too full to park it can last.
func TestOneStuckOrderKeepsNoOther(t *testing.T) {
	f := &Forwarder{Queue: "q"}
	f.init()
	l := &loop{f: f, groups: map[string][]*item{}}
	add := func() *item {
		it := &item{order: &Order{Body: "x"}, size: 1}
		l.held = append(l.held, it)
		l.count++
		l.bytes += it.size
		return it
	}
	stuck := add()
	for range 100_000 {
		l.finish(add())
	}
	if n := len(l.held); n > 4*heldOrders {
		t.Errorf("%d orders are in memory, one is not sent", n)
	}
	if l.held[0] != stuck || l.count != 1 {
		t.Error("the stuck order is not the oldest any more")
	}
}

// TestAClockSetBackDoesNotDelay pins that a delay is never longer than asked for.
func TestAClockSetBackDoesNotDelay(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		accepted time.Time
		want     int32
	}{{now, 5}, {now.Add(time.Hour), 5}, {now.Add(-3 * time.Second), 2}, {now.Add(-time.Hour), 0}} {
		e := entry(&Order{Body: "x", Delay: 5 * time.Second, Accepted: c.accepted}, 0, false, now)
		if e.DelaySeconds != c.want {
			t.Errorf("accepted %s from now: delay %d s, want %d", c.accepted.Sub(now), e.DelaySeconds, c.want)
		}
	}
}

// TestStoppingWaitsWithoutSpinning pins that a loop that only waits for its last
// answers is not woken for what it will not send.
func TestStoppingWaitsWithoutSpinning(t *testing.T) {
	f := &Forwarder{Queue: "q"}
	f.init()
	now := time.Now()
	l := &loop{f: f, limit: 16, inFlight: 1, ready: []*item{{since: now.Add(-time.Minute)}}}
	f.url = "http://q"
	if d := l.nextWake(now, true); d < time.Second {
		t.Errorf("woken again after %s", d)
	}
	if d := l.nextWake(now, false); d > time.Second {
		t.Errorf("while it sends it is woken after %s only", d)
	}
}

// TestOneProblemIsOneLine pins that a queue that is not there for a day is not
// told of at every try.
func TestOneProblemIsOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := &Service{Log: slog.New(slog.NewTextHandler(&log, nil))}
		n := 0
		s.Resolve = func(context.Context) (Target, error) {
			n++
			return Target{}, &smithy.OperationError{ServiceID: "ec2imds", OperationName: "GetUserData",
				Err: fmt.Errorf("request %d: %w", n, &smithy.GenericAPIError{Code: "Unavailable", Message: "Not now."})}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		s.resolve(ctx)
		if lines := strings.Count(log.String(), "\n"); lines != 1 || n < 10 {
			t.Errorf("%d tries, %d lines", n, lines)
		}
	})
}

// full listens at a path and lets nobody in: its queue is full.
func full(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		c, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			return path
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("its queue does not get full")
	return ""
}

// TestAFullQueueOfConnectionsIsNoAbsence pins that a service whose queue of
// connections is full is waited for, and its socket left in place.
func TestAFullQueueOfConnectionsIsNoAbsence(t *testing.T) {
	path := full(t)
	if l, err := ListenUnix(path, 0o600); err == nil {
		l.Close()
		t.Error("the socket of a busy service was replaced")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := client.New(path)
		defer c.Close()
		began := time.Now()
		_, err := c.Send(ctx, client.Order{Body: "x"})
		if took := time.Since(began); err == nil || errors.Is(err, client.ErrNoService) || took < 50*time.Second {
			t.Errorf("given up after %s: %v", took, err)
		}
	})
}

// TestTheServiceWaitsForTheSpool pins that a service that is started while a
// replay, or the process before it, has the spool open waits for it: failing
// at once, again and again, would use up the unit's restarts.
func TestTheServiceWaitsForTheSpool(t *testing.T) {
	dir := t.TempDir()
	sp, err := spool.Open(spool.Options{Dir: filepath.Join(dir, "spool")})
	if err != nil {
		t.Fatal(err)
	}
	closed := sync.OnceFunc(func() { sp.Close() })
	defer closed()
	var log lockedBuffer
	ready, done := make(chan struct{}), make(chan error, 1)
	s := &Service{Dir: dir, Ready: func() { close(ready) }, Log: slog.New(slog.NewTextHandler(&log, nil)), Resolve: func(ctx context.Context) (Target, error) {
		<-ctx.Done()
		return Target{}, ctx.Err()
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { done <- s.Run(ctx) }()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(log.String(), "in use"); time.Sleep(time.Millisecond) {
		select {
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		default:
		}
		if time.Now().After(end) {
			t.Fatal("it does not say what it waits for")
		}
	}
	closed()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("it ended: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
