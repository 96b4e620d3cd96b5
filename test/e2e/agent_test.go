package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/lab/machine"
	"github.com/lecafe/lecafe/test/boots"
)

// agentBench boots instances of an image that has the agent.
type agentBench struct {
	*bench
	cloud *cloudtest.Cloud
}

const rolePolicy = `{"Version":"2012-10-17","Statement":[
	{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::reports/lecafe-reports/${aws:userid}/*"},
	{"Effect":"Allow","Action":["s3:GetObject","s3:ListBucket"],"Resource":["arn:aws:s3:::assets","arn:aws:s3:::assets/*"]},
	{"Effect":"Allow","Action":["sqs:GetQueueUrl","sqs:SendMessage"],"Resource":"*"}]}`

// newCloudBench has a cloud for instances whose role is app, with buckets for
// reports and assets.
func newCloudBench(t *testing.T, release string, o machine.Options) *agentBench {
	t.Helper()
	b := &agentBench{bench: newBench(t, release, o), cloud: cloudtest.New(t, cloud.Options{})}
	b.ports = []int{b.cloud.Port}
	b.cloud.S3.CreateBucket("reports", "us-east-1")
	b.cloud.S3.CreateBucket("assets", "us-east-1")
	if err := b.cloud.PutRolePolicy("app", "all", rolePolicy); err != nil {
		t.Fatal(err)
	}
	return b
}

// newAgentBench has an image with the agent.
func newAgentBench(t *testing.T, release, settings string, more ...string) *agentBench {
	t.Helper()
	b := newCloudBench(t, release, machine.Options{})
	b.bakeAgent(settings, more...)
	return b
}

// bakeAgent makes the image ami-agent: the base image with the agent installed
// as its own command does it, and what more commands make, cleaned as far as
// these tests need.
func (b *agentBench) bakeAgent(settings string, more ...string) {
	t := b.t
	t.Helper()
	files := httptest.NewServer(http.FileServer(http.Dir(boots.Programs(t))))
	t.Cleanup(files.Close)
	port := files.Listener.Addr().(*net.TCPAddr).Port
	b.ports = append(b.ports, port)
	b.cloud.SQS.CreateQueue("boots", nil)
	id := b.boot("ami-base", "#!/bin/sh\n")
	b.settled(id)
	b.sh(id, fmt.Sprintf(`set -e
curl -sSf -o /root/a http://127.0.0.1:%d/lecafe-agent
chmod +x /root/a
/root/a install --root /
rm /root/a
cat > /etc/lecafe/agent.yaml <<'YAML'
aws: {endpoint_url: %q}
report: {s3: {bucket: reports}, sqs: {queue: boots}}
%s
YAML
%s
systemd-analyze verify lecafe-agent.service lecafe-orders.service
cloud-init clean --logs >/dev/null
: > /etc/machine-id
sync`, port, b.cloud.URL, settings, strings.Join(more, "\n")))
	if err := b.d.Stop(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	if _, err := b.d.Capture(t.Context(), id, "ami-agent"); err != nil {
		t.Fatal(err)
	}
	if err := b.d.Terminate(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// instance has the role app.
func (b *agentBench) instance(image, userData string, change ...func(*imds.Instance)) imds.Instance {
	role := func(i *imds.Instance) {
		id := i.InstanceID
		i.Role, i.Credentials = "app", func(d time.Duration) wire.Credentials { return b.cloud.Vault.Vend("app", id, d) }
	}
	return b.bench.instance(image, userData, append([]func(*imds.Instance){role}, change...)...)
}

func (b *agentBench) boot(image, userData string, change ...func(*imds.Instance)) string {
	b.t.Helper()
	i := b.instance(image, userData, change...)
	return b.start(i, imds.New(i))
}

// report waits for an instance's first report.
func (b *agentBench) report(id string) *report.Report {
	b.t.Helper()
	return b.reportOf(id, "report of "+id, func(*report.Report) bool { return true })
}

// TestAgentJudges boots one instance for each of the ways to fail that
// cloud-init says "done" or "running" to, and a healthy one.
func TestAgentJudges(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		b := newAgentBench(t, release, "bootstrap: {deadline: 45s}")
		for _, c := range []struct {
			name, userData string
			verdict        report.Verdict
			code           report.Code
			stage          report.StageName
		}{
			{"healthy", "#!/bin/bash\nset -e\necho espresso > /var/lib/cup\n", report.Success, "", ""},
			{"script exit", "#!/bin/bash\nset -e\nls /nonexistent\necho never\n", report.Failure, report.CodeScriptExit, report.StageCloudFinal},
			{"no header", "echo espresso > /var/lib/cup\n", report.Failure, report.CodeUserDataNoHeader, report.StageUserData},
			{"invalid YAML", "#cloud-config\nruncmd:\n  - [ls\npackages: x\n", report.Failure, report.CodeUserDataInvalidYAML, report.StageUserData},
			{"failure in mid-script", "#!/bin/bash\nls /nonexistent\necho espresso > /var/lib/cup\n", report.Degraded, report.CodeCommandFailed, report.StageCloudFinal},
			{"failure in mid-runcmd", "#cloud-config\nruncmd:\n  - [ls, /nonexistent]\n  - [ls, /]\n", report.Degraded, report.CodeRuncmdFailed, report.StageCloudFinal},
			{"background", "#!/bin/bash\nset -e\n(sleep 0.2; ls /nonexistent) &\nsleep 0.5\n", report.Degraded, report.CodeBackgroundFailed, report.StageCloudFinal},
			{"misspelt key", "#cloud-config\nruncmds:\n  - [ls, /]\n", report.Degraded, report.CodeUserDataUnknownKey, report.StageUserData},
			{"wrong type", "#cloud-config\nruncmd: ls /\n", report.Failure, report.CodeUserDataWrongType, report.StageUserData},
			{"syntax", "#!/bin/bash\necho a\nif true; then\n", report.Failure, report.CodeScriptSyntax, report.StageCloudFinal},
			{"interpreter", "#!/usr/bin/fish\necho a\n", report.Failure, report.CodeScriptInterpreter, report.StageCloudFinal},
			{"killed", "#!/bin/bash\nkill -9 $$\n", report.Failure, report.CodeScriptSignal, report.StageCloudFinal},
			{"exit of its own", "#!/bin/bash\necho a\nexit 7\n", report.Failure, report.CodeScriptExit, report.StageCloudFinal},
			{"healthy cloud-config", "#cloud-config\nwrite_files:\n  - {path: /var/lib/cup, content: espresso}\nruncmd:\n  - [ls, /]\n", report.Success, "", ""},
			{"package that does not exist", "#cloud-config\npackages: [nginxx]\n", report.Failure, report.CodePackageFailed, report.StageCloudFinal},
			{"bad base64", "#cloud-config\nwrite_files:\n  - {path: /x, encoding: b64, content: abc}\n", report.Failure, report.CodeUserDataBadValue, report.StageUserData},
			{"boothook that hangs", "#cloud-boothook\n#!/bin/sh\nsleep infinity\n", report.Failure, report.CodeDeadline, report.StageCloudInitNetwork},
			{"nothing", "", report.Success, "", ""},
			{"hang", "#!/bin/bash\nsleep infinity\n", report.Failure, report.CodeDeadline, report.StageCloudFinal},
		} {
			t.Run(c.name, func(t *testing.T) {
				start := time.Now()
				id := b.boot("ami-agent", c.userData)
				r := b.report(id)
				t.Logf("%s after %s: %s", r.Verdict, time.Since(start).Round(100*time.Millisecond), r.Summary)
				t.Log(b.shAny(id, `test ! -e /run/cloud-init/result.json || echo "result.json to now: $(( ($(date +%s%N) - $(date -r /run/cloud-init/result.json +%s%N)) / 1000000 )) ms"
pid=$(systemctl show -P MainPID lecafe-agent); awk '{print ($14+$15)*10 " ms of CPU"}' /proc/$pid/stat; grep -h Rss /proc/$pid/status`))
				if r.Verdict != c.verdict {
					t.Fatalf("verdict %s, want %s: %+v", r.Verdict, c.verdict, r)
				}
				if c.code != "" && (r.Causes[0].Code != c.code || r.Causes[0].Stage != c.stage) {
					t.Errorf("cause %+v, want %s in %s", r.Causes[0], c.code, c.stage)
				}
				if r.Instance.ID != id || r.Sender != b.cloud.Vault.RoleID("app")+":"+id {
					t.Errorf("instance %s, sender %s", r.Instance.ID, r.Sender)
				}
				if err := b.d.Terminate(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
		}
	})
}
