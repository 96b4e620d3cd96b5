package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/lab/machine"
	"github.com/lecafe/lecafe/test/boots"
	"github.com/lecafe/lecafe/userdata"
)

// wrapBench boots stock images with wrapped payloads.
type wrapBench struct {
	*agentBench
	agent userdata.Object
}

func newWrapBench(t *testing.T, release string) *wrapBench {
	t.Helper()
	agent, err := os.ReadFile(filepath.Join(boots.Programs(t), "lecafe-agent"))
	if err != nil {
		t.Fatal(err)
	}
	b := &wrapBench{agentBench: newCloudBench(t, release, machine.Options{})}
	b.agent = b.object("agent", agent)
	return b
}

// object puts an asset that is pinned by its content.
func (b *wrapBench) object(key string, body []byte) userdata.Object {
	b.t.Helper()
	b.put(key, string(body))
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

// wrapped is a payload and what its report has to say.
type wrapped struct {
	name, payload string
	verdict       report.Verdict
	code          report.Code
	file          string
	line          int
}

// each boots each payload, wrapped; then, if not nil, looks at the instance.
func (b *wrapBench) each(t *testing.T, cases []wrapped, then func(t *testing.T, id string)) {
	for _, c := range cases {
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
			if then != nil {
				then(t, id)
			}
			if err := b.d.Terminate(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
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
		b.each(t, []wrapped{
			{"runcmd goes on", "#cloud-config\nruncmd:\n  - ls /nonexistent\n  - touch /var/lib/ran\n", report.Degraded, report.CodeRuncmdFailed, "runcmd", 2},
			{"runcmd healthy", "#cloud-config\nruncmd:\n  - [touch, /var/lib/ran]\n", report.Success, "", "", 0},
			{"config and script", wrapMIME, report.Degraded, report.CodeCommandFailed, "setup.sh", 3},
		}, func(t *testing.T, id string) {
			b.sh(id, "test -e /var/lib/ran")
			// In this order, or the delay was too short to prove anything.
			if out := b.sh(id, "systemctl show -P ExecMainExitTimestampMonotonic lecafe-install.service; systemctl show -P ExecMainStartTimestampMonotonic cloud-final.service"); !ordered(out) {
				t.Errorf("the agent was installed, cloud-final started at (µs): %s", out)
			}
		})
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
				b.shown(id, c.console)
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
