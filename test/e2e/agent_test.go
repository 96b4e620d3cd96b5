package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/lab/machine"
)

// agentBench boots instances of an image that has the agent.
type agentBench struct {
	*bench
	cloud *cloudtest.Cloud
	ports []int
}

const rolePolicy = `{"Version":"2012-10-17","Statement":[
	{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::reports/lecafe-reports/${aws:userid}/*"},
	{"Effect":"Allow","Action":["s3:GetObject","s3:ListBucket"],"Resource":["arn:aws:s3:::assets","arn:aws:s3:::assets/*"]},
	{"Effect":"Allow","Action":["sqs:GetQueueUrl","sqs:SendMessage"],"Resource":"*"}]}`

// newAgentBench makes the image ami-agent: the base image with the agent
// installed as its own command does it, cleaned as far as these tests need.
func newAgentBench(t *testing.T, release, settings string) *agentBench {
	t.Helper()
	requireBoot(t)
	bin := filepath.Join(t.TempDir(), "lecafe-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "github.com/lecafe/lecafe/cmd/lecafe-agent")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	files := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(bin))))
	t.Cleanup(files.Close)
	b := &agentBench{bench: newBench(t, release, machine.Options{}), cloud: cloudtest.New(t, cloud.Options{})}
	port := files.Listener.Addr().(*net.TCPAddr).Port
	b.ports = []int{b.cloud.Port, port}
	b.cloud.S3.CreateBucket("reports", "us-east-1")
	b.cloud.S3.CreateBucket("assets", "us-east-1")
	b.cloud.SQS.CreateQueue("boots", nil)
	if err := b.cloud.PutRolePolicy("app", "all", rolePolicy); err != nil {
		t.Fatal(err)
	}
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
systemd-analyze verify lecafe-agent.service lecafe-orders.service
cloud-init clean --logs >/dev/null
: > /etc/machine-id
sync`, port, b.cloud.URL, settings))
	if err := b.d.Stop(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	if _, err := b.d.Capture(t.Context(), id, "ami-agent"); err != nil {
		t.Fatal(err)
	}
	if err := b.d.Terminate(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *agentBench) boot(image, userData string, change ...func(*imds.Instance)) string {
	b.t.Helper()
	b.seq++
	id := fmt.Sprintf("i-%017x", b.seq)
	i := imds.Instance{
		InstanceID: id, ImageID: image, UserData: []byte(userData), Role: "app",
		Credentials: func(d time.Duration) wire.Credentials { return b.cloud.Vault.Vend("app", id, d) },
		MAC:         fmt.Sprintf("02:00:00:00:00:%02x", b.seq), PrivateIP: fmt.Sprintf("10.0.0.%d", 10+b.seq),
	}
	for _, f := range change {
		f(&i)
	}
	m := ec2.Machine{InstanceID: id, ImageID: image, MAC: i.MAC, PrivateIP: i.PrivateIP, Gateway: "10.0.0.1", IMDS: imds.New(i), Ports: b.ports}
	if err := b.d.Launch(b.t.Context(), m); err != nil {
		b.t.Fatal(err)
	}
	return id
}

// report waits for an instance's report.
func (b *agentBench) report(id string) *report.Report {
	b.t.Helper()
	var key string
	eventually(b.t, "report of "+id, func() bool {
		for _, k := range b.cloud.S3.Objects("reports", "") {
			if strings.Contains(k, ":"+id+"/") && strings.HasSuffix(k, ".json") {
				key = k
				return true
			}
		}
		return false
	}, func() string {
		console, _ := b.d.Console(id)
		return string(console[max(0, len(console)-6000):]) + "\n" + b.shAny(id, "journalctl -b -u lecafe-agent --no-pager | tail -40; systemctl status lecafe-agent --no-pager; cat /run/lecafe/status.json")
	})
	out, err := s3api.NewFromConfig(b.cloud.Config(), func(o *s3api.Options) { o.UsePathStyle = true }).GetObject(b.t.Context(), &s3api.GetObjectInput{Bucket: aws.String("reports"), Key: &key})
	if err != nil {
		b.t.Fatal(err)
	}
	doc, err := io.ReadAll(out.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	r, err := report.Decode(doc)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
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
