package e2e

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/test/boots"
)

// asked lists what was asked of one instance's metadata service, by session:
// each program has its own token.
type asked struct {
	next http.Handler
	mu   sync.Mutex
	by   map[string][]string
}

func (a *asked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("X-Aws-Ec2-Metadata-Token")
	a.mu.Lock()
	a.by[token] = append(a.by[token], r.Method+" "+r.URL.Path)
	a.mu.Unlock()
	a.next.ServeHTTP(w, r)
}

// agents is the session of lecafe-agent.service: of the SDK's, the one that
// asked for credentials.
func (a *asked) agents() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for token, list := range a.by {
		if token != "" && strings.Contains(strings.Join(list, "\n"), "/iam/security-credentials/app") && !strings.Contains(strings.Join(list, "\n"), "/meta-data/network") {
			return append([]string(nil), list...)
		}
	}
	return nil
}

// TestConfigDirectoryOnARealInstance keeps a directory of an application as a
// prefix in S3 has it: with the first report, changed, refused, rolled back.
func TestConfigDirectoryOnARealInstance(t *testing.T) {
	t.Parallel()
	b := newAgentBench(t, "debian-13", "bootstrap: {deadline: 120s}")
	b.put("conf.d/main", "good 1\n")
	b.put("conf.d/sub/part", "1\n")
	i := b.instance("ami-agent", payload(`set -e
useradd -r app
cat > /etc/systemd/system/app.service <<'UNIT'
[Service]
User=app
ExecStart=/bin/sleep infinity
ExecReload=/bin/sh -c 'test -r /opt/app/conf.d/main && ! grep -qr poison /opt/app/conf.d/'
UNIT
systemctl daemon-reload
systemctl start --no-block app.service
`, `config:
  - {source: s3://assets/conf.d/, path: /opt/app/conf.d, mode: "0644", validate: [/bin/grep, -q, good, "{}/main"], reload_unit: app.service}
bootstrap: {ready: {units: [app.service]}}
`))
	calls := &asked{next: imds.New(i), by: map[string][]string{}}
	id := b.start(i, calls)
	r := b.reportOf(id, "bootstrap report", func(r *report.Report) bool { return r.Kind == report.KindBootstrap })
	if r.Verdict != report.Success {
		t.Fatalf("%s: %+v", r.Summary, r.Causes)
	}
	// The token's own call bears none.
	if got := calls.agents(); len(got) == 0 || len(got)+1 > 6 {
		t.Errorf("%d calls to IMDS before the first report: PUT /latest/api/token, %v", len(got)+1, got)
	} else {
		t.Logf("%d calls to IMDS before the first report: PUT /latest/api/token, %v", len(got)+1, got)
	}
	var rss string
	boots.Eventually(t, "agent with no more than 20 MiB", func() bool {
		rss = strings.Join(strings.Fields(b.sh(id, "grep -h ^Rss /proc/$(systemctl show -P MainPID lecafe-agent)/status; grep -h VmRSS /proc/$(systemctl show -P MainPID lecafe-agent)/status")), " ")
		words := strings.Fields(rss)
		kib, err := strconv.Atoi(words[len(words)-2])
		return err == nil && kib <= 20<<10
	}, func() string { return rss })
	t.Log("after the boot", rss)

	content := func() string {
		return b.sh(id, "cd /opt/app/conf.d/ && find . -type f | LC_ALL=C sort | while read f; do echo $f: $(cat $f); done")
	}
	is := "./main: good 1\n./sub/part: 1\n"
	if got := content(); got != is {
		t.Errorf("the directory has %q", got)
	}
	if got := b.sh(id, "stat -L -c '%a %U' /opt/app/conf.d /opt/app/conf.d/main /opt/app/conf.d/sub; systemctl is-active app"); got != "755 root\n644 root\n755 root\nactive\n" {
		t.Errorf("modes and owners: %s", got)
	}
	reload := func() { b.sh(id, "systemctl reload lecafe-agent") }
	config := func(v report.Verdict, code report.Code) func(*report.Report) bool {
		return func(r *report.Report) bool {
			return r.Kind == report.KindConfig && r.Verdict == v && (code == "" || r.Causes[0].Code == code)
		}
	}
	// Added, changed and removed: one generation.
	b.put("conf.d/main", "good 2\n")
	b.put("conf.d/new", "2\n")
	if _, err := b.s3().DeleteObject(t.Context(), &s3api.DeleteObjectInput{Bucket: aws.String("assets"), Key: aws.String("conf.d/sub/part")}); err != nil {
		t.Fatal(err)
	}
	reload()
	b.reportOf(id, "report of the new directory", config(report.Success, ""))
	is = "./main: good 2\n./new: 2\n"
	if got := content(); got != is {
		t.Errorf("the directory has %q", got)
	}
	b.put("conf.d/main", "bad\n")
	reload()
	b.reportOf(id, "report of the directory that is not valid", config(report.Degraded, report.CodeConfigInvalid))
	b.put("conf.d/main", "good 3\n")
	b.put("conf.d/new", "poison\n")
	reload()
	b.reportOf(id, "report of the directory that was rolled back", config(report.Degraded, report.CodeConfigRolledBack))
	if got := content(); got != is {
		t.Errorf("after the rollback the directory has %q", got)
	}
	b.sh(id, "systemctl is-active app.service lecafe-agent.service")
	// What S3 names is never written elsewhere.
	b.put("conf.d/new", "fine\n")
	b.put("conf.d/../../etc/cron.d/x", "* * * * * root true\n")
	reload()
	b.reportOf(id, "report of the path that leads elsewhere", func(r *report.Report) bool {
		return config(report.Degraded, report.CodeConfigInvalid)(r) && strings.Contains(r.Causes[0].Message, "leads elsewhere")
	})
	if got := content() + b.sh(id, "ls -R /etc/cron.d /opt/app 2>&1 || true"); strings.Contains(got, "\nx\n") || !strings.HasPrefix(got, is) {
		t.Errorf("%s", got)
	}
}
