package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/test/boots"
)

// s3 is the operator's client.
func (b *agentBench) s3() *s3api.Client {
	return boots.S3(b.cloud.Config())
}

func (b *agentBench) put(key, text string) {
	b.t.Helper()
	if _, err := b.s3().PutObject(b.t.Context(), &s3api.PutObjectInput{Bucket: aws.String("assets"), Key: &key, Body: strings.NewReader(text)}); err != nil {
		b.t.Fatal(err)
	}
}

// reportOf waits for an instance's report that match accepts.
func (b *agentBench) reportOf(id, what string, match func(*report.Report) bool) *report.Report {
	b.t.Helper()
	var found *report.Report
	seen := map[string]bool{}
	boots.Eventually(b.t, what, func() bool {
		for _, k := range b.cloud.S3.Objects("reports", "") {
			if !strings.Contains(k, ":"+id+"/") || !strings.HasSuffix(k, ".json") || seen[k] {
				continue
			}
			seen[k] = true
			if r := boots.ReadReport(b.t, b.cloud.Config(), "reports", k); match(r) {
				found = r
				return true
			}
		}
		return false
	}, func() string {
		return b.console(id) + "\n" + strings.Join(b.cloud.S3.Objects("reports", ""), "\n") + b.trouble(id)
	})
	return found
}

// told waits for a line on an instance's console that has all of words.
func (b *agentBench) told(id string, words ...string) {
	b.t.Helper()
	boots.Eventually(b.t, strings.Join(words, ", ")+" on the console", func() bool {
		out, err := b.d.Console(id)
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(out)) {
			ok := strings.Contains(line, "lecafe-agent: ")
			for _, w := range words {
				ok = ok && strings.Contains(line, w)
			}
			if ok {
				return true
			}
		}
		return false
	}, func() string {
		return b.trouble(id)
	})
}

// trouble is what an instance knows of its agent.
func (b *agentBench) trouble(id string) string {
	return b.shAny(id, "cat /run/lecafe/status.json; systemctl status lecafe-agent --no-pager; journalctl -b --no-pager -t lecafe-agent | tail -40")
}

func payload(script, agent string) string {
	return "#!/bin/bash\n" + settings.UserDataBegin + "\n" + agent + settings.UserDataEnd + "\n" + script
}

// TestAgentLife follows an instance with a config and an application.
func TestAgentLife(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		b := newAgentBench(t, release, "bootstrap: {deadline: 120s}")
		b.put("app.txt", "good 1\n")
		id := b.boot("ami-agent", payload(`set -e
cat > /etc/systemd/system/app.service <<'UNIT'
[Service]
ExecStart=/bin/sleep infinity
ExecReload=/bin/sh -c '! grep -q poison /opt/app/app.txt'
UNIT
systemctl daemon-reload
systemctl start --no-block app.service
`, `config:
  - {source: s3://assets/app.txt, path: /opt/app/app.txt, validate: [/bin/grep, -q, good, "{}"], reload_unit: app.service}
bootstrap: {ready: {units: [app.service]}}
`))
		r := b.reportOf(id, "bootstrap report", func(r *report.Report) bool { return r.Kind == report.KindBootstrap })
		if r.Verdict != report.Success {
			t.Fatalf("%s: %+v", r.Summary, r.Causes)
		}
		content := func() string { return b.sh(id, "cat /opt/app/app.txt") }
		if content() != "good 1\n" {
			t.Errorf("config is %q", content())
		}

		reload := func(text string) {
			b.put("app.txt", text)
			b.sh(id, "systemctl reload lecafe-agent")
		}
		config := func(v report.Verdict, code report.Code) func(*report.Report) bool {
			return func(r *report.Report) bool {
				return r.Kind == report.KindConfig && r.Verdict == v && (code == "" || r.Causes[0].Code == code)
			}
		}
		reload("good 2\n")
		b.reportOf(id, "report of the new config", config(report.Success, ""))
		if content() != "good 2\n" {
			t.Errorf("config is %q", content())
		}
		reload("bad\n")
		b.reportOf(id, "report of the config that is not valid", config(report.Degraded, report.CodeConfigInvalid))
		reload("good, but poison\n")
		b.reportOf(id, "report of the config that was rolled back", config(report.Degraded, report.CodeConfigRolledBack))
		if content() != "good 2\n" {
			t.Errorf("after the rollback config is %q", content())
		}
		b.sh(id, "systemctl is-active app.service lecafe-agent.service")

		// Another boot is recorded, not judged.
		bootID := b.sh(id, "cat /proc/sys/kernel/random/boot_id")
		if err := b.d.Reboot(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		start := b.reportOf(id, "record of the start", func(r *report.Report) bool { return r.Kind == report.KindStart })
		if start.BootID == strings.TrimSpace(bootID) || start.Verdict != report.Success {
			t.Errorf("%+v", start)
		}
		n := 0
		for _, k := range b.cloud.S3.Objects("reports", "") {
			if strings.Contains(k, ".bootstrap.") {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d bootstrap reports", n)
		}
	})
}

// TestAgentInTrouble breaks the instance around the agent, not its user data.
func TestAgentInTrouble(t *testing.T) {
	t.Parallel()
	boots.Require(t)
	all := newAgentBench(t, "debian-12", "bootstrap: {deadline: 60s}")
	bench := func(t *testing.T) *agentBench {
		b := *all
		inner := *all.bench
		inner.t, b.bench = t, &inner
		t.Cleanup(func() { all.seq = inner.seq })
		return &b
	}

	t.Run("rebooted in mid-script", func(t *testing.T) {
		b := bench(t)
		id := b.boot("ami-agent", "#!/bin/bash\nsleep 3600\n")
		b.told(id, `"event":"stage"`, `"stage":"cloud-final"`)
		if err := b.d.Reboot(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		r := b.report(id)
		if r.Verdict != report.Failure || r.Causes[0].Code != report.CodeInterrupted || r.Causes[0].Stage != report.StageCloudFinal {
			t.Errorf("%s: %+v", r.Summary, r.Causes)
		}
	})
	t.Run("agent killed in mid-boot", func(t *testing.T) {
		b := bench(t)
		id := b.boot("ami-agent", "#!/bin/bash\nset -e\nsystemctl kill -s KILL lecafe-agent.service\nsleep 4\n")
		r := b.report(id)
		if r.Verdict != report.Success {
			t.Errorf("%s: %+v", r.Summary, r.Causes)
		}
		if n := strings.TrimSpace(b.sh(id, "systemctl show -P NRestarts lecafe-agent")); n != "1" {
			t.Errorf("%s restarts", n)
		}
	})
	t.Run("no role", func(t *testing.T) {
		b := bench(t)
		id := b.boot("ami-agent", "#!/bin/sh\necho hi\n", func(i *imds.Instance) { i.Role = "" })
		b.told(id, `"event":"verdict"`, `"verdict":"failure"`, `"code":"role_missing"`)
	})
	t.Run("no metadata service", func(t *testing.T) {
		b := bench(t)
		id := b.boot("ami-agent", "#!/bin/sh\necho hi\n", func(i *imds.Instance) { i.EndpointDisabled = true })
		b.told(id, `"event":"verdict"`, `"verdict":"failure"`, `"code":"imds_unreachable"`)
	})
	t.Run("denied", func(t *testing.T) {
		b := bench(t)
		id := b.boot("ami-agent", payload("echo hi\n", "config: [{source: s3://secrets/x, path: /opt/x}]\norders: {queue: nowhere}\n"))
		r := b.report(id)
		if r.Verdict != report.Failure || r.Causes[0].Code != report.CodeConfigMissing && r.Causes[0].Code != report.CodeConfigDenied {
			t.Errorf("%s: %+v", r.Summary, r.Causes)
		}
	})
	t.Run("small disk", func(t *testing.T) {
		b := bench(t)
		id := b.boot("ami-agent", "#!/bin/bash\nset -e\nmount -t tmpfs -o size=1m none /opt\ndd if=/dev/zero of=/opt/big bs=1M count=2\n")
		r := b.report(id)
		codes := fmt.Sprint(r.Causes)
		if r.Verdict != report.Failure || r.Causes[0].Code != report.CodeScriptExit || !strings.Contains(codes, string(report.CodeDiskFull)) {
			t.Errorf("%s: %+v", r.Summary, r.Causes)
		}
	})
}
