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
// bus does. Root only.
type Manager struct{ conn *dbus.Conn }

// Connect connects to systemd.
func Connect(ctx context.Context) (*Manager, error) {
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w; run as root under systemd", err)
	}
	return &Manager{conn}, nil
}

// Close ends the connection.
func (m *Manager) Close() { m.conn.Close() }

// Connected says whether the connection still stands.
func (m *Manager) Connected() bool { return m.conn.Connected() }

// Units returns the named units, not-found ones among them, and every failed
// unit.
func (m *Manager) Units(ctx context.Context, names []string) ([]Unit, error) {
	named, err := m.conn.ListUnitsByNamesContext(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	failed, err := m.conn.ListUnitsFilteredContext(ctx, []string{"failed"})
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
			if p, err := m.conn.GetUnitTypePropertiesContext(ctx, u.Name, "Service"); err == nil {
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
	if err := m.conn.Subscribe(); err != nil {
		return nil, fmt.Errorf("subscribe to systemd: %w", err)
	}
	updates, errs := make(chan *dbus.PropertiesUpdate, 256), make(chan error, 16)
	m.conn.SetPropertiesSubscriber(updates, errs)
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
	return m.job(ctx, "reload", unit, m.conn.ReloadOrTryRestartUnitContext)
}

// Restart restarts a unit that runs and waits until it is up. One that does
// not run is left alone.
func (m *Manager) Restart(ctx context.Context, unit string) error {
	return m.job(ctx, "restart", unit, m.conn.TryRestartUnitContext)
}

// Start starts a unit and waits until it is up.
func (m *Manager) Start(ctx context.Context, unit string) error {
	return m.job(ctx, "start", unit, m.conn.StartUnitContext)
}

// ErrJob says that systemd could not do what was asked of a unit.
var ErrJob = errors.New("job failed")

func (m *Manager) job(ctx context.Context, verb, unit string, f func(context.Context, string, string, chan<- string) (int, error)) error {
	// Buffered, so that a late answer holds up nobody after ctx has ended.
	done := make(chan string, 1)
	if _, err := f(ctx, unit, "replace", done); err != nil {
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
	done := make(chan string, 1)
	if _, err := m.conn.StartTransientUnitContext(ctx, name, "replace", props, done); err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer func() {
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = m.conn.ResetFailedUnitContext(c, name) // forgets it; there is none after a success
	}()
	select {
	case r := <-done:
		if r == "done" {
			return nil
		}
		why := r
		if p, err := m.conn.GetUnitTypePropertiesContext(ctx, name, "Service"); err == nil {
			why = fmt.Sprintf("%v, status %v", p["Result"], p["ExecMainStatus"])
		}
		return fmt.Errorf("run %s: %w: %s; journalctl -u %s says more", strings.Join(argv, " "), ErrJob, why, name)
	case <-ctx.Done():
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = m.conn.StopUnitContext(c, name, "replace", nil)
		return fmt.Errorf("run %s: %w", argv[0], ctx.Err())
	}
}

// Reread lets systemd read its unit files again.
func (m *Manager) Reread(ctx context.Context) error {
	if err := m.conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("reread unit files: %w", err)
	}
	return nil
}
