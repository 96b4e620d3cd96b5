package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/lecafe/lecafe/agent/bootstrap"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
)

const (
	checkTimeout = 5 * time.Second
	checkFirst   = 250 * time.Millisecond
	checkLast    = 5 * time.Second
)

// checksFromSettings lists what has to hold. Called with mu held.
func (a *Agent) checksFromSettings() {
	a.facts.checks = nil
	for _, c := range checksOf(a.facts.settings.Bootstrap.Ready) {
		a.facts.checks = append(a.facts.checks, bootstrap.Check{Name: c.name, Unit: c.unit, Why: "not asked yet"})
	}
}

type check struct {
	name, unit string
	http       settings.HTTP
	tcp        string
	command    settings.Command
}

func checksOf(r settings.Ready) []check {
	var out []check
	for _, u := range r.Units {
		out = append(out, check{name: "unit " + u, unit: u})
	}
	for _, h := range r.HTTP {
		out = append(out, check{name: "GET " + report.Redact(h.URL), http: h})
	}
	for _, t := range r.TCP {
		out = append(out, check{name: "connection to " + t, tcp: t})
	}
	for _, c := range r.Command {
		out = append(out, check{name: "command " + report.Redact(strings.Join(c, " ")), command: c})
	}
	return out
}

// readiness asks every check until all hold or ctx ends.
func (a *Agent) readiness(ctx context.Context) {
	wait := checkFirst
	for {
		a.mu.Lock()
		checks := checksOf(a.facts.settings.Bootstrap.Ready)
		known := a.facts.payload.Known
		a.mu.Unlock()
		states, all := a.askAll(ctx, checks)
		a.mu.Lock()
		// The settings may have come in between.
		if len(states) == len(a.facts.checks) {
			a.facts.checks = states
		}
		a.mu.Unlock()
		a.wake()
		if all && known || ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, checkLast)
	}
}

func (a *Agent) askAll(ctx context.Context, checks []check) (states []bootstrap.Check, all bool) {
	all = true
	for _, c := range checks {
		s := bootstrap.Check{Name: c.name, Unit: c.unit}
		final, err := a.ask(ctx, c)
		if err != nil {
			s.Why, s.Final, all = report.Redact(err.Error()), final, false
		} else {
			s.OK = true
		}
		states = append(states, s)
	}
	return states, all
}

// ask makes one check. final says that it will not come right by waiting.
func (a *Agent) ask(ctx context.Context, c check) (final bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	switch {
	case c.unit != "":
		return a.askUnit(ctx, c.unit)
	case c.http.URL != "":
		return false, askHTTP(ctx, c.http)
	case c.tcp != "":
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", c.tcp)
		if err != nil {
			return false, err
		}
		return false, conn.Close()
	}
	if a.systemd == nil {
		return true, errors.New("there is no systemd to run it")
	}
	return false, a.systemd.Run(ctx, c.command, checkTimeout)
}

func (a *Agent) askUnit(ctx context.Context, name string) (bool, error) {
	if a.systemd == nil {
		return true, errors.New("there is no systemd to ask")
	}
	us, err := a.systemd.Units(ctx, []string{name})
	if err != nil {
		return false, err
	}
	for _, u := range us {
		switch {
		case u.Name != name:
		case u.Active == "active":
			return false, nil
		case u.Active == "failed":
			return true, fmt.Errorf("it failed (%s %d)", u.Result, u.Code)
		case u.Load == "not-found" || u.Load == "masked":
			return true, fmt.Errorf("there is no such unit (%s)", u.Load)
		default:
			return false, fmt.Errorf("it is %s (%s)", u.Active, u.Sub)
		}
	}
	return false, errors.New("systemd does not know it")
}

func askHTTP(ctx context.Context, h settings.HTTP) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.URL, nil)
	if err != nil {
		return errors.New("its URL cannot be requested")
	}
	client := &http.Client{
		// A redirect is an answer, and its target somebody else's.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DisableKeepAlives: true},
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if len(h.Status) == 0 && resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return nil
	}
	for _, s := range h.Status {
		if s == resp.StatusCode {
			return nil
		}
	}
	return fmt.Errorf("it answered %s", resp.Status)
}

// ready waits until a unit works again after it took a new config: the unit is
// active, and what the settings await holds.
func (a *Agent) ready(ctx context.Context, unit string) error {
	a.mu.Lock()
	checks := checksOf(a.facts.settings.Bootstrap.Ready)
	booting := !a.facts.cloudInit
	a.mu.Unlock()
	if booting {
		// During the boot readiness is the judge's business.
		return nil
	}
	wait := checkFirst
	var last error
	for {
		last = nil
		for _, c := range append([]check{{name: "unit " + unit, unit: unit}}, checks...) {
			final, err := a.ask(ctx, c)
			if err != nil {
				last = fmt.Errorf("%s: %w", c.name, err)
				if final && c.unit == unit {
					return last
				}
				break
			}
		}
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(wait):
		}
		wait = min(2*wait, checkLast)
	}
}
