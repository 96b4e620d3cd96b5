package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Metrics serves what the passes found: /metrics in Prometheus's text format
// and /healthz, which is 200 while passes succeed. It holds the last snapshot
// alone; counters begin at the process's start.
type Metrics struct {
	Meter    *Meter
	Interval time.Duration // between passes: /healthz fails after three without one
	Now      func() time.Time

	mu      sync.Mutex
	last    *Snapshot
	lastOK  time.Time
	took    time.Duration
	passes  int
	errors  int
	refused map[Reason]int
	known   map[string]bool // refusals counted
	actions map[string]int
	brakes  int
}

// Pass records a pass: its snapshot, or its error.
func (m *Metrics) Pass(s *Snapshot, took time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.passes++
	if err != nil {
		m.errors++
		return
	}
	m.last, m.took, m.lastOK = s, took, m.now()
	for _, r := range s.Refused {
		m.refuse(r)
	}
}

// Refuse records a refusal from elsewhere than a snapshot.
func (m *Metrics) Refuse(r Refusal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse(r)
}

func (m *Metrics) refuse(r Refusal) {
	if m.refused == nil {
		m.refused, m.known = map[Reason]int{}, map[string]bool{}
	}
	if !m.known[r.Name] {
		if len(m.known) > 100_000 {
			clear(m.known)
		}
		m.known[r.Name] = true
		m.refused[r.Reason]++
	}
}

// Acted records actions and the brakes that are on.
func (m *Metrics) Acted(actions []Action, brakes []Brake) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.actions == nil {
		m.actions = map[string]int{}
	}
	for _, a := range actions {
		if !a.DryRun {
			m.actions[a.Did]++
		}
	}
	m.brakes = len(brakes)
}

func (m *Metrics) now() time.Time {
	if m.Now != nil {
		return m.Now()
	}
	return time.Now()
}

// ServeHTTP answers GET /metrics and GET /healthz.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "GET only", http.StatusMethodNotAllowed)
		return
	}
	switch r.URL.Path {
	case "/metrics":
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		fmt.Fprint(w, m.text())
	case "/healthz":
		m.mu.Lock()
		since := m.now().Sub(m.lastOK)
		ok := !m.lastOK.IsZero() && since < 3*max(m.Interval, 10*time.Second)+m.took
		m.mu.Unlock()
		if !ok {
			http.Error(w, "no pass has succeeded lately", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	default:
		http.NotFound(w, r)
	}
}

func (m *Metrics) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	head := func(name, kind, help string) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	if s := m.last; s != nil {
		type label struct {
			region, group string
			verdict       Verdict
		}
		counts := map[label]int{}
		for _, g := range s.Groups {
			for _, v := range Verdicts() {
				counts[label{g.Region, g.Name, v}] = 0
			}
		}
		for n := range s.Instances {
			i := &s.Instances[n]
			counts[label{i.Region, i.Group, i.Verdict}]++
		}
		head("lecafe_instances", "gauge", "Instances by verdict.")
		for _, l := range slices.SortedFunc(maps.Keys(counts), func(a, b label) int {
			return cmp.Or(cmp.Compare(a.region, b.region), cmp.Compare(a.group, b.group), cmp.Compare(a.verdict, b.verdict))
		}) {
			fmt.Fprintf(&b, "lecafe_instances{region=%s,auto_scaling_group=%s,verdict=%s} %d\n", quote(l.region), quote(l.group), quote(string(l.verdict)), counts[l])
		}
		head("lecafe_missing_instances", "gauge", "Instances a group desires and does not have.")
		for _, g := range s.Groups {
			fmt.Fprintf(&b, "lecafe_missing_instances{region=%s,auto_scaling_group=%s} %d\n", quote(g.Region), quote(g.Name), g.Short)
		}
		head("lecafe_fleet_ok", "gauge", "1 if every instance succeeded and no group lacks one.")
		fmt.Fprintf(&b, "lecafe_fleet_ok %d\n", bit(s.OK))
		head("lecafe_last_pass_timestamp_seconds", "gauge", "When the last pass succeeded.")
		fmt.Fprintf(&b, "lecafe_last_pass_timestamp_seconds %d\n", m.lastOK.Unix())
		head("lecafe_last_pass_duration_seconds", "gauge", "What it took.")
		fmt.Fprintf(&b, "lecafe_last_pass_duration_seconds %g\n", m.took.Seconds())
	}
	head("lecafe_passes_total", "counter", "Passes, failed ones included.")
	fmt.Fprintf(&b, "lecafe_passes_total %d\n", m.passes)
	head("lecafe_pass_errors_total", "counter", "Passes that failed.")
	fmt.Fprintf(&b, "lecafe_pass_errors_total %d\n", m.errors)
	head("lecafe_refused_reports_total", "counter", "Reports that were not believed.")
	for _, r := range []Reason{Forged, Malformed, Oversized, Replayed, Schema} {
		fmt.Fprintf(&b, "lecafe_refused_reports_total{reason=%s} %d\n", quote(string(r)), m.refused[r])
	}
	head("lecafe_actions_total", "counter", "What was done about failures.")
	for _, a := range slices.Sorted(maps.Keys(m.actions)) {
		fmt.Fprintf(&b, "lecafe_actions_total{did=%s} %d\n", quote(a), m.actions[a])
	}
	head("lecafe_brakes", "gauge", "Kinds of failure that nothing is replaced for any more.")
	fmt.Fprintf(&b, "lecafe_brakes %d\n", m.brakes)
	if m.Meter != nil {
		head("lecafe_aws_calls_total", "counter", "Calls to AWS, repeats included.")
		fmt.Fprintf(&b, "lecafe_aws_calls_total %d\n", m.Meter.Calls())
		head("lecafe_aws_throttled_total", "counter", "Calls AWS refused for their rate.")
		fmt.Fprintf(&b, "lecafe_aws_throttled_total %d\n", m.Meter.Throttled())
	}
	return b.String()
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

var labelEscapes = strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`)

func quote(s string) string { return `"` + labelEscapes.Replace(s) + `"` }
