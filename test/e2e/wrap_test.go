package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/machine"
	"github.com/lecafe/lecafe/userdata"
)

// TestWrappedOnAStockImage boots images that lecafe did not bake: the payload
// alone brings the agent, and names the line that failed.
func TestWrappedOnAStockImage(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		dir, err := programs()
		if err != nil {
			t.Fatal(err)
		}
		agent, err := os.ReadFile(filepath.Join(dir, "lecafe-agent"))
		if err != nil {
			t.Fatal(err)
		}
		b := &agentBench{bench: newBench(t, release, machine.Options{}), cloud: cloudtest.New(t, cloud.Options{})}
		b.ports = []int{b.cloud.Port}
		for _, bucket := range []string{"reports", "assets"} {
			b.cloud.S3.CreateBucket(bucket, "us-east-1")
		}
		b.cloud.SQS.CreateQueue("boots", nil)
		if err := b.cloud.PutRolePolicy("app", "all", rolePolicy); err != nil {
			t.Fatal(err)
		}
		client := s3api.NewFromConfig(b.cloud.Config(), func(o *s3api.Options) { o.UsePathStyle = true })
		if _, err := client.PutObject(t.Context(), &s3api.PutObjectInput{Bucket: aws.String("assets"), Key: aws.String("agent"), Body: bytes.NewReader(agent)}); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(agent)
		object := userdata.Object{Bucket: "assets", Key: "agent", SHA256: hex.EncodeToString(sum[:])}
		s := settings.Settings{}
		s.AWS.EndpointURL, s.Report.S3.Bucket = b.cloud.URL, "reports"

		for _, c := range []struct {
			name, payload string
			verdict       report.Verdict
			code          report.Code
			file          string
			line          int
		}{
			{"healthy", "#!/bin/bash\nset -e\necho espresso > /var/lib/cup\n", report.Success, "", "", 0},
			{"bash goes on", "#!/bin/bash\nls /nonexistent\necho espresso > /var/lib/cup\n", report.Degraded, report.CodeCommandFailed, "part-001", 2},
			{"sh goes on", "#!/bin/sh\necho a\nls /nonexistent\necho espresso\n", report.Degraded, report.CodeCommandFailed, "part-001", 3},
			{"left in the background", "#!/bin/bash\nset -e\nls /nonexistent &\nwhile kill -0 \"$!\" 2> /dev/null; do sleep 0.1; done\necho espresso\n", report.Degraded, report.CodeBackgroundFailed, "part-001", 3},
			{"debug trap", "#!/bin/bash\ntrap 'echo \"$BASH_COMMAND\" >> /var/log/steps' DEBUG\nls /nonexistent\necho espresso\n", report.Degraded, report.CodeCommandFailed, "part-001", 3},
			{"set -e", "#!/bin/bash\nset -e\necho a\nls /nonexistent\n", report.Failure, report.CodeScriptExit, "part-001", 4},
		} {
			t.Run(c.name, func(t *testing.T) {
				out, err := userdata.Wrap(userdata.WrapInput{
					Payload: []byte(c.payload), Settings: &s, Agents: map[string]userdata.Object{"x86_64": object, "aarch64": object},
					Access: userdata.Access{Endpoint: b.cloud.URL},
				})
				if err != nil {
					t.Fatal(err)
				}
				id := b.boot("ami-base", string(out))
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
				if err := b.d.Terminate(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
		}

		t.Run("packed", func(t *testing.T) {
			payload := "Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\nContent-Type: text/cloud-config\n\n#cloud-config\nwrite_files:\n  - {path: /var/lib/from-config, content: \"ok\"}\nruncmd:\n  - touch /var/lib/from-runcmd\n--b\nContent-Type: text/x-shellscript\n\n#!/bin/bash\n" + strings.Repeat("# a payload that EC2 would refuse\n", 1000) + "touch /var/lib/from-script\n--b--\n"
			bundle, err := userdata.Pack([]byte(payload))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.PutObject(t.Context(), &s3api.PutObjectInput{Bucket: aws.String("assets"), Key: aws.String("payload"), Body: bytes.NewReader(bundle)}); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(bundle)
			loader, err := userdata.Loader(userdata.LoaderInput{Payload: userdata.Object{Bucket: "assets", Key: "payload", SHA256: hex.EncodeToString(sum[:])}, Access: userdata.Access{Endpoint: b.cloud.URL}})
			if err != nil {
				t.Fatal(err)
			}
			id := b.boot("ami-base", string(loader))
			b.settled(id)
			if out := b.shAny(id, "ls /var/lib/from-config /var/lib/from-runcmd /var/lib/from-script"); strings.Contains(out, "No such file") || !strings.Contains(out, "from-script") {
				t.Errorf("what the payload does was not done: %s\n%s", out, b.shAny(id, "cloud-init status --long; tail -30 /var/log/cloud-init-output.log"))
			}
			if err := b.d.Terminate(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	})
}
