// Package systemd owns lecafe's units and how its programs talk to systemd:
// unit files and their installation, unit states and jobs over D-Bus, commands
// as transient units, readiness and watchdog. It decides nothing about when.
package systemd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// Unit is a unit's state. Result, Code are of failed services.
type Unit struct {
	Name, Load, Active, Sub string
	Result                  string // exit-code, signal, timeout, ...
	Code                    int    // exit code, or the signal's number
}

// Manager is a connection to systemd's own socket: it works before the message
// bus does. Root only. systemd ends its connections when it replaces itself,
// which an upgrade of its package does (systemctl daemon-reexec): the next call
// then makes a new one.
type Manager struct {
	dial func() (*dbus.Conn, error)

	mu      sync.Mutex
	conn    *dbus.Conn
	closed  bool
	updates chan *dbus.PropertiesUpdate // of Changes; nil where nobody asked
	errs    chan error
}

// Connect connects to systemd until ctx ends.
func Connect(ctx context.Context) (*Manager, error) {
	return connect(func() (*dbus.Conn, error) { return dbus.NewSystemdConnectionContext(ctx) })
}

func connect(dial func() (*dbus.Conn, error)) (*Manager, error) {
	conn, err := dial()
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w; run as root under systemd", err)
	}
	return &Manager{dial: dial, conn: conn}, nil
}

// Close ends the connection.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.conn.Close()
}

// live is the connection, a new one where systemd has ended the last.
func (m *Manager) live() (*dbus.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.conn.Connected() {
		return m.conn, nil
	}
	conn, err := m.dial()
	if err != nil {
		return nil, fmt.Errorf("connect to systemd again: %w", err)
	}
	m.conn.Close()
	m.conn = conn
	if m.updates != nil {
		if err := m.subscribe(); err != nil {
			return nil, err
		}
	}
	return conn, nil
}

// subscribe is called with mu held.
func (m *Manager) subscribe() error {
	if err := m.conn.Subscribe(); err != nil {
		return fmt.Errorf("subscribe to systemd: %w", err)
	}
	m.conn.SetPropertiesSubscriber(m.updates, m.errs)
	return nil
}

// Units returns the named units, not-found ones among them, and every failed
// unit.
func (m *Manager) Units(ctx context.Context, names []string) ([]Unit, error) {
	conn, err := m.live()
	if err != nil {
		return nil, err
	}
	named, err := conn.ListUnitsByNamesContext(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	failed, err := conn.ListUnitsFilteredContext(ctx, []string{"failed"})
	if err != nil {
		return nil, fmt.Errorf("list failed units: %w", err)
	}
	var out []Unit
	seen := map[string]bool{}
	for _, s := range append(named, failed...) {
		if seen[s.Name] {
			continue
		}
		seen[s.Name] = true
		u := Unit{Name: s.Name, Load: s.LoadState, Active: s.ActiveState, Sub: s.SubState}
		if u.Active == "failed" && strings.HasSuffix(u.Name, ".service") {
			// Only says more; a unit that has gone meanwhile says nothing.
			if p, err := conn.GetUnitTypePropertiesContext(ctx, u.Name, "Service"); err == nil {
				u.Result, _ = p["Result"].(string)
				if n, ok := p["ExecMainStatus"].(int32); ok {
					u.Code = int(n)
				}
			}
		}
		out = append(out, u)
	}
	return out, nil
}

// Changes tells of every change of a unit's state whose name interesting
// accepts, until ctx ends. Several changes may be told as one.
func (m *Manager) Changes(ctx context.Context, interesting func(unit string) bool) (<-chan struct{}, error) {
	if _, err := m.live(); err != nil {
		return nil, err
	}
	updates, errs := make(chan *dbus.PropertiesUpdate, 256), make(chan error, 16)
	m.mu.Lock()
	m.updates, m.errs = updates, errs
	err := m.subscribe()
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	out := make(chan struct{}, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-errs: // a full channel: a change was told anyway
			case u, ok := <-updates:
				if !ok {
					return
				}
				if !interesting(u.UnitName) {
					continue
				}
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, nil
}

// Reload asks a unit that runs to reload, or restarts it where it cannot, and
// waits. One that does not run is left alone.
func (m *Manager) Reload(ctx context.Context, unit string) error {
	return m.job(ctx, "reload", unit, (*dbus.Conn).ReloadOrTryRestartUnitContext)
}

// Restart restarts a unit that runs and waits until it is up. One that does
// not run is left alone.
func (m *Manager) Restart(ctx context.Context, unit string) error {
	return m.job(ctx, "restart", unit, (*dbus.Conn).TryRestartUnitContext)
}

// Start starts a unit and waits until it is up.
func (m *Manager) Start(ctx context.Context, unit string) error {
	return m.job(ctx, "start", unit, (*dbus.Conn).StartUnitContext)
}

// ErrJob says that systemd could not do what was asked of a unit.
var ErrJob = errors.New("job failed")

func (m *Manager) job(ctx context.Context, verb, unit string, f func(*dbus.Conn, context.Context, string, string, chan<- string) (int, error)) error {
	conn, err := m.live()
	if err != nil {
		return fmt.Errorf("%s unit %s: %w", verb, unit, err)
	}
	// Buffered, so that a late answer holds up nobody after ctx has ended.
	done := make(chan string, 1)
	if _, err := f(conn, ctx, unit, "replace", done); err != nil {
		var de godbus.Error
		if verb != "start" && errors.As(err, &de) && de.Name == "org.freedesktop.systemd1.NoSuchUnit" {
			return nil // one that does not exist yet does not run
		}
		return fmt.Errorf("%s unit %s: %w", verb, unit, err)
	}
	select {
	case r := <-done:
		if r != "done" {
			return fmt.Errorf("%s unit %s: %w: %s; journalctl -u %s says more", verb, unit, ErrJob, r, unit)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s unit %s: %w", verb, unit, ctx.Err())
	}
}

// Run runs argv as a transient unit, outside the caller's sandbox, and waits
// for its end. Output goes to the journal. It is killed after timeout.
func (m *Manager) Run(ctx context.Context, argv []string, timeout time.Duration) error {
	var b [6]byte
	_, _ = rand.Read(b[:])
	name := "lecafe-run-" + hex.EncodeToString(b[:]) + ".service"
	props := []dbus.Property{
		dbus.PropDescription("lecafe: " + argv[0]),
		dbus.PropExecStart(argv, false),
		dbus.PropType("oneshot"),
		{Name: "TimeoutStartUSec", Value: godbus.MakeVariant(uint64(timeout.Microseconds()))},
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive")},
	}
	conn, err := m.live()
	if err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	done := make(chan string, 1)
	if _, err := conn.StartTransientUnitContext(ctx, name, "replace", props, done); err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer func() {
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = conn.ResetFailedUnitContext(c, name) // forgets it; there is none after a success
	}()
	select {
	case r := <-done:
		if r == "done" {
			return nil
		}
		why := r
		if p, err := conn.GetUnitTypePropertiesContext(ctx, name, "Service"); err == nil {
			why = fmt.Sprintf("%v, status %v", p["Result"], p["ExecMainStatus"])
		}
		return fmt.Errorf("run %s: %w: %s; journalctl -u %s says more", strings.Join(argv, " "), ErrJob, why, name)
	case <-ctx.Done():
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = conn.StopUnitContext(c, name, "replace", nil)
		return fmt.Errorf("run %s: %w", argv[0], ctx.Err())
	}
}

// Reread lets systemd read its unit files again.
func (m *Manager) Reread(ctx context.Context) error {
	conn, err := m.live()
	if err != nil {
		return fmt.Errorf("reread unit files: %w", err)
	}
	if err := conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("reread unit files: %w", err)
	}
	return nil
}
