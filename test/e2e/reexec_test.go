package e2e

import (
	"testing"

	"github.com/lecafe/lecafe/agent/report"
)

// TestSystemdReplacesItself follows an instance whose systemd replaces itself,
// as an upgrade of its package makes it, in mid-boot and later: it ends the
// connections of everybody who talks to it.
func TestSystemdReplacesItself(t *testing.T) {
	t.Parallel()
	b := newAgentBench(t, "debian-12", "bootstrap: {deadline: 120s}")
	b.put("app.txt", "good 1\n")
	id := b.boot("ami-agent", payload(`set -e
systemctl daemon-reexec
cat > /etc/systemd/system/app.service <<'UNIT'
[Service]
ExecStart=/bin/sleep infinity
ExecReload=/bin/true
UNIT
systemctl daemon-reload
systemctl start --no-block app.service
`, `config:
  - {source: s3://assets/app.txt, path: /opt/app/app.txt, validate: [/bin/grep, -q, good, "{}"], reload_unit: app.service}
bootstrap: {ready: {units: [app.service]}}
`))
	r := b.reportOf(id, "bootstrap report", func(r *report.Report) bool { return r.Kind == report.KindBootstrap })
	if r.Verdict != report.Success {
		t.Fatalf("%s: %+v\n%s", r.Summary, r.Causes, b.trouble(id))
	}
	b.sh(id, "systemctl daemon-reexec")
	b.put("app.txt", "good 2\n")
	b.sh(id, "systemctl reload lecafe-agent")
	c := b.reportOf(id, "report of the new config", func(r *report.Report) bool { return r.Kind == report.KindConfig })
	if c.Verdict != report.Success {
		t.Errorf("%s: %+v\n%s", c.Summary, c.Causes, b.trouble(id))
	}
}
