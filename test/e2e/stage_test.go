package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/test/boots"
)

// inStages is user data that is held up in two stages of cloud-init's, until
// somebody writes to /run/go-on-STAGE.
const inStages = `Content-Type: multipart/mixed; boundary=b
MIME-Version: 1.0

--b
Content-Type: text/cloud-boothook

#cloud-boothook
#!/bin/sh
mkfifo /run/go-on-cloud-init-network && read word < /run/go-on-cloud-init-network
--b
Content-Type: text/x-shellscript
Content-Disposition: attachment; filename="part.sh"

#!/bin/bash
set -e
mkfifo /run/go-on-cloud-final
read -r word < /run/go-on-cloud-final
--b--
`

// following is lecafe watch, as it goes on.
type following struct {
	t    *testing.T
	cmd  *exec.Cmd
	seen chan fleet.Change
}

func (o *operator) follow(args ...string) *following {
	o.t.Helper()
	f := &following{t: o.t, seen: make(chan fleet.Change, 100)}
	f.cmd = exec.CommandContext(o.t.Context(), filepath.Join(o.bin, "lecafe"), append([]string{"watch", "--reports", "s3://lecafe-reports/lecafe-reports", "--interval", "1s"}, args...)...)
	f.cmd.Env, f.cmd.Stderr = o.env, boots.Writer(o.t)
	f.cmd.Cancel = func() error { return f.cmd.Process.Signal(os.Interrupt) }
	f.cmd.WaitDelay = time.Minute
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		o.t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	go f.read(out)
	return f
}

func (f *following) read(out io.Reader) {
	defer close(f.seen)
	for s := bufio.NewScanner(out); s.Scan(); {
		var line struct{ Change *fleet.Change }
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			f.t.Errorf("lecafe watch: %v: %s", err, s.Text())
		} else if line.Change != nil {
			f.seen <- *line.Change
		}
	}
}

// change waits for one that match accepts, and returns it and those before.
func (f *following) change(what string, match func(fleet.Change) bool) []fleet.Change {
	f.t.Helper()
	var all []fleet.Change
	end := time.After(boots.Deadline)
	for {
		select {
		case c, ok := <-f.seen:
			if !ok {
				f.t.Fatalf("lecafe watch ended without %s", what)
			}
			if all = append(all, c); match(c) {
				return all
			}
			if c.Verdict == fleet.Failure {
				f.t.Fatalf("no %s, but %+v", what, c.Cause)
			}
		case <-end:
			f.t.Fatalf("lecafe watch told no %s in %s: %+v", what, boots.Deadline, all)
		}
	}
}

// end interrupts it and returns its exit code.
func (f *following) end() int {
	f.t.Helper()
	if err := f.cmd.Process.Signal(os.Interrupt); err != nil {
		f.t.Fatal(err)
	}
	for range f.seen {
	}
	_ = f.cmd.Wait()
	return f.cmd.ProcessState.ExitCode()
}

// TestStageOfABootingInstance holds a boot up in three stages, and expects that
// lecafe watch shows each while it lasts, by the agent's own word.
func TestStageOfABootingInstance(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-13"}, func(o *lab.Options) { o.TimeScale = 20 })
	o := newOperator(t, l)
	image := o.bake("debian-13", "--set", "agent.bootstrap={deadline: 20m, ready: {tcp: [\"127.0.0.1:7777\"]}}").ImageID
	o.launchGroup(image, fleetGroup{name: "slow", userData: inStages, size: 1})
	f := o.follow("--asg", "slow")

	id, last := "", fleet.Change{}
	for _, stage := range []struct{ name, goOn string }{
		{"cloud-init-network", "echo on > /run/go-on-cloud-init-network"},
		{"cloud-final", "echo on > /run/go-on-cloud-final"},
		{"application", "systemd-run --quiet --unit=shop python3 -m http.server --directory /run/lecafe --bind 127.0.0.1 7777"},
	} {
		all := f.change("stage "+stage.name, func(c fleet.Change) bool { return c.Stage == stage.name })
		c := all[len(all)-1]
		id = c.ID
		if c.Verdict != fleet.Pending || c.StageAt == nil || c.StageAt.Before(c.LaunchedAt) || last.StageAt != nil && c.StageAt.Before(*last.StageAt) {
			t.Errorf("%+v", c)
		}
		// Nothing but what comes before is told before.
		for _, early := range all[:len(all)-1] {
			if early.Verdict != fleet.Pending || early.StageAt != nil || !slices.Contains([]string{"launching", "booting", "Pending"}, early.Stage) {
				t.Errorf("before %s: %s %q", stage.name, early.Verdict, early.Stage)
			}
		}
		last = c

		s, code := o.watch("--asg", "slow")
		if i := s.Instances[0]; code != 1 || i.ID != id || i.Verdict != fleet.Pending || i.Stage != stage.name || i.StageAt == nil || !i.StageAt.Equal(*c.StageAt) {
			t.Errorf("watch --once --json in %s: exit code %d, %+v", stage.name, code, i)
		}
		table, _, code := o.lecafe("watch", "--once", "--reports", "s3://lecafe-reports/lecafe-reports", "--asg", "slow")
		if row := regexp.MustCompile(`(?m)^slow +` + id + ` +pending .*` + stage.name + ` for [0-9ms.]+`); code != 1 || !row.MatchString(table) {
			t.Errorf("watch --once in %s: exit code %d\n%s", stage.name, code, table)
		}
		if marks := l.S3.Objects("lecafe-reports", "lecafe-reports/"); len(marks) != 1 || !strings.HasSuffix(marks[0], ":"+id+"/progress/"+stage.name) {
			t.Errorf("in S3 in %s: %q", stage.name, marks)
		}
		out, err := l.Machines.Exec(t.Context(), id, "sh", "-c", stage.goOn)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}

	f.change("success", func(c fleet.Change) bool {
		if c.Verdict == fleet.Pending {
			t.Errorf("after the last stage: %q", c.Stage)
		}
		return c.ID == id && c.From == fleet.Pending && c.Verdict == fleet.Success && c.Stage == ""
	})
	if code := f.end(); code != 0 {
		t.Errorf("lecafe watch: exit code %d", code)
	}
	if r := boots.ReportOf(t, l, id); r.Verdict != report.Success {
		t.Errorf("%s: %+v", r.Summary, r.Causes)
	}
	boots.Eventually(t, "end of the mark", func() bool {
		return !strings.Contains(strings.Join(l.S3.Objects("lecafe-reports", ""), " "), "/progress/")
	}, func() string { return boots.Console(l, id) })
}
