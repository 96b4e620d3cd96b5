package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/lab/machine"
	"github.com/lecafe/lecafe/userdata"
)

// wrapBench boots stock images with wrapped payloads.
type wrapBench struct {
	*agentBench
	agent userdata.Object
}

func newWrapBench(t *testing.T, release string) *wrapBench {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	agent, err := os.ReadFile(filepath.Join(dir, "lecafe-agent"))
	if err != nil {
		t.Fatal(err)
	}
	b := &wrapBench{agentBench: &agentBench{bench: newBench(t, release, machine.Options{}), cloud: cloudtest.New(t, cloud.Options{})}}
	b.ports = []int{b.cloud.Port}
	for _, bucket := range []string{"reports", "assets"} {
		b.cloud.S3.CreateBucket(bucket, "us-east-1")
	}
	if err := b.cloud.PutRolePolicy("app", "all", rolePolicy); err != nil {
		t.Fatal(err)
	}
	b.agent = b.put("agent", agent)
	return b
}

func (b *wrapBench) put(key string, body []byte) userdata.Object {
	b.t.Helper()
	client := s3api.NewFromConfig(b.cloud.Config(), func(o *s3api.Options) { o.UsePathStyle = true })
	if _, err := client.PutObject(b.t.Context(), &s3api.PutObjectInput{Bucket: aws.String("assets"), Key: &key, Body: bytes.NewReader(body)}); err != nil {
		b.t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	return userdata.Object{Bucket: "assets", Key: key, SHA256: hex.EncodeToString(sum[:])}
}

func (b *wrapBench) wrap(payload string, agent userdata.Object) string {
	b.t.Helper()
	s := settings.Settings{}
	s.AWS.EndpointURL, s.Report.S3.Bucket = b.cloud.URL, "reports"
	out, err := userdata.Wrap(userdata.WrapInput{
		Payload: []byte(payload), Settings: &s, Agents: map[string]userdata.Object{"x86_64": agent, "aarch64": agent},
		Access: userdata.Access{Endpoint: b.cloud.URL},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return string(out)
}

const wrapMIME = `Content-Type: multipart/mixed; boundary=b
MIME-Version: 1.0

--b
Content-Type: text/cloud-config

#cloud-config
write_files:
  - {path: /var/lib/menu, content: espresso}
runcmd:
  - touch /var/lib/from-runcmd
--b
Content-Type: text/x-shellscript
Content-Disposition: attachment; filename="setup.sh"

#!/bin/bash
grep -q espresso /var/lib/menu
ls /nonexistent
touch /var/lib/ran
--b--
`

// TestWrappedIsWatchedBeforeAnythingRuns boots stock images from which the
// agent is kept for longer than cloud-init takes to its last stage: what the
// payload runs there is watched all the same.
func TestWrappedIsWatchedBeforeAnythingRuns(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		b := newWrapBench(t, release)
		slow := b.cloud.Inject(cloud.Fault{Service: "s3", Action: "GetObject", Resource: "arn:aws:s3:::assets/agent", Kind: cloud.Delay, Delay: 8 * time.Second})
		for _, c := range []struct {
			name, payload string
			verdict       report.Verdict
			code          report.Code
			file          string
			line          int
		}{
			{"runcmd goes on", "#cloud-config\nruncmd:\n  - ls /nonexistent\n  - touch /var/lib/ran\n", report.Degraded, report.CodeRuncmdFailed, "runcmd", 2},
			{"runcmd healthy", "#cloud-config\nruncmd:\n  - [touch, /var/lib/ran]\n", report.Success, "", "", 0},
			{"config and script", wrapMIME, report.Degraded, report.CodeCommandFailed, "setup.sh", 3},
		} {
			t.Run(c.name, func(t *testing.T) {
				id := b.boot("ami-base", b.wrap(c.payload, b.agent))
				r := b.report(id)
				t.Logf("%s: %s", r.Verdict, r.Summary)
				if r.Verdict != c.verdict {
					t.Fatalf("verdict %s, want %s: %+v", r.Verdict, c.verdict, r)
				}
				if c.code != "" {
					if got := r.Causes[0]; got.Code != c.code || got.File != c.file || got.Line != c.line {
						t.Errorf("cause %+v, want %s at %s:%d", got, c.code, c.file, c.line)
					}
				}
				b.sh(id, "test -e /var/lib/ran")
				// In this order, or the delay was too short to prove anything.
				if out := b.sh(id, "systemctl show -P ExecMainExitTimestampMonotonic lecafe-install.service; systemctl show -P ExecMainStartTimestampMonotonic cloud-final.service"); !ordered(out) {
					t.Errorf("the agent was installed, cloud-final started at (µs): %s", out)
				}
				if err := b.d.Terminate(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
		}
		if slow.Hits() == 0 {
			t.Error("nothing was delayed")
		}
	})
}

// ordered says that two lines hold numbers that grow.
func ordered(s string) bool {
	a, b, ok := strings.Cut(strings.TrimSpace(s), "\n")
	return ok && a != "" && (len(a) < len(b) || len(a) == len(b) && a <= b)
}

// TestWrappedWithoutTheAgent boots stock images that cannot have the agent:
// the console says why, the unit's exit code too, and the payload does what it
// does.
func TestWrappedWithoutTheAgent(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		b := newWrapBench(t, release)
		other := b.agent
		other.SHA256 = strings.Repeat("0", 64)
		for _, c := range []struct {
			name    string
			agent   userdata.Object
			change  func(*imds.Instance)
			console string
			exit    string
		}{
			{"not the pinned one", other, func(*imds.Instance) {}, "it is not what was pinned by SHA-256", "2"},
			{"no role", b.agent, func(i *imds.Instance) { i.Role, i.Credentials = "", nil }, "the instance has no role; give it an instance profile", "3"},
			{"not there", userdata.Object{Bucket: "assets", Key: "nowhere", SHA256: b.agent.SHA256}, func(*imds.Instance) {}, "S3 answered 404 NoSuchKey", "1"},
		} {
			t.Run(c.name, func(t *testing.T) {
				id := b.boot("ami-base", b.wrap(wrapMIME, c.agent), c.change)
				b.settled(id)
				b.sh(id, "test -e /var/lib/ran && test -e /var/lib/from-runcmd")
				b.eventually(id, "the reason on the console", func() bool {
					out, err := b.d.Console(id)
					return err == nil && strings.Contains(string(out), c.console)
				})
				if out := strings.Fields(b.sh(id, "systemctl show -P ExecMainStatus -P Result lecafe-install.service")); len(out) != 2 || (out[0] != c.exit && out[1] != c.exit) {
					t.Errorf("lecafe-install.service: %v, want exit code %s", out, c.exit)
				}
				if out := b.shAny(id, "systemctl is-active lecafe-agent.service"); strings.TrimSpace(out) == "active" {
					t.Error("an agent runs")
				}
				// The trap needs no agent: what failed is on record for it.
				if out := b.sh(id, "cat /run/lecafe/trap/setup.sh.*"); !strings.Contains(out, `ls\ /nonexistent`) {
					t.Errorf("records: %q", out)
				}
				if err := b.d.Terminate(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
		}
	})
}
