package e2e

import (
	"strings"
	"testing"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/userdata"
)

// TestWrappedOnAStockImage boots images that lecafe did not bake: the payload
// alone brings the agent, and names the line that failed.
func TestWrappedOnAStockImage(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		b := newWrapBench(t, release)
		b.each(t, []wrapped{
			{"healthy", "#!/bin/bash\nset -e\necho espresso > /var/lib/cup\n", report.Success, "", "", 0},
			{"bash goes on", "#!/bin/bash\nls /nonexistent\necho espresso > /var/lib/cup\n", report.Degraded, report.CodeCommandFailed, "part-001", 2},
			{"sh goes on", "#!/bin/sh\necho a\nls /nonexistent\necho espresso\n", report.Degraded, report.CodeCommandFailed, "part-001", 3},
			{"left in the background", "#!/bin/bash\nset -e\nls /nonexistent &\nwhile kill -0 \"$!\" 2> /dev/null; do sleep 0.1; done\necho espresso\n", report.Degraded, report.CodeBackgroundFailed, "part-001", 3},
			{"debug trap", "#!/bin/bash\ntrap 'echo \"$BASH_COMMAND\" >> /var/log/steps' DEBUG\nls /nonexistent\necho espresso\n", report.Degraded, report.CodeCommandFailed, "part-001", 3},
			{"set -e", "#!/bin/bash\nset -e\necho a\nls /nonexistent\n", report.Failure, report.CodeScriptExit, "part-001", 4},
		}, nil)

		t.Run("packed", func(t *testing.T) {
			payload := "Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\nContent-Type: text/cloud-config\n\n#cloud-config\nwrite_files:\n  - {path: /var/lib/from-config, content: \"ok\"}\nruncmd:\n  - touch /var/lib/from-runcmd\n--b\nContent-Type: text/x-shellscript\n\n#!/bin/bash\n" + strings.Repeat("# a payload that EC2 would refuse\n", 1000) + "touch /var/lib/from-script\n--b--\n"
			bundle, err := userdata.Pack([]byte(payload))
			if err != nil {
				t.Fatal(err)
			}
			loader, err := userdata.Loader(userdata.LoaderInput{Payload: b.object("payload", bundle), Access: userdata.Access{Endpoint: b.cloud.URL}})
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
