package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/agent"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/test/boots"
)

// watchdogSeconds is WatchdogSec= of these tests' image: far below the time
// after which the agent looks at a boot in which nothing happens.
const watchdogSeconds = 5

var watchdogDropIn = fmt.Sprintf(`mkdir -p /etc/systemd/system/lecafe-agent.service.d
printf '[Service]\nWatchdogSec=%d\nTimeoutAbortSec=1\nRestartSec=100ms\n' > /etc/systemd/system/lecafe-agent.service.d/watchdog.conf`, watchdogSeconds)

// waitsFor is user data that goes on when somebody writes to /run/go-on, as
// goOn does, and fails if it is told to.
const waitsFor = `#!/bin/bash
set -e
mkfifo /run/go-on
read -r word < /run/go-on
test "$word" = well
`

func (b *agentBench) goOn(id, word string) {
	b.t.Helper()
	b.sh(id, "echo "+word+" > /run/go-on")
}

// waiting waits until user data of waitsFor runs.
func (b *agentBench) waiting(id string) {
	b.t.Helper()
	b.eventually(id, "user data that waits", func() bool {
		return strings.TrimSpace(b.shAny(id, "test -p /run/go-on && echo yes")) == "yes"
	})
}

func (b *agentBench) agentShows(id, property string) string {
	b.t.Helper()
	return strings.TrimSpace(b.sh(id, "systemctl show -P "+property+" lecafe-agent.service"))
}

// stall stops the agent's process for good, and waits until systemd's watchdog
// has ended it and started another.
func (b *agentBench) stall(id string) {
	b.t.Helper()
	timeouts := func() int {
		return strings.Count(b.sh(id, "journalctl -b --no-pager -u lecafe-agent.service"), "Watchdog timeout")
	}
	before, n := b.agentShows(id, "MainPID"), timeouts()
	b.sh(id, "kill -STOP "+before)
	b.eventually(id, "restart by the watchdog", func() bool {
		now := b.agentShows(id, "MainPID")
		return now != before && now != "0" && b.agentShows(id, "ActiveState") == "active"
	})
	if timeouts() == n {
		b.t.Errorf("the agent was restarted, and not by the watchdog\n%s", b.trouble(id))
	}
}

// lives waits until one process of the agent has fed its watchdog for longer
// than twice the interval.
func (b *agentBench) lives(id string) {
	b.t.Helper()
	b.eventually(id, "agent that lives", func() bool {
		var since, fed int
		if _, err := fmt.Sscan(b.agentShows(id, "ActiveEnterTimestampMonotonic")+" "+b.agentShows(id, "WatchdogTimestampMonotonic"), &since, &fed); err != nil {
			b.t.Fatal(err)
		}
		return fed-since > 2*watchdogSeconds*1e6 // µs
	})
}

// reported expects one report in S3, that many new messages of it in SQS and one
// verdict on the console, and that the agent knows them as its own.
func (b *agentBench) reported(id string, want report.Verdict, messages int) {
	b.t.Helper()
	r := b.report(id)
	if r.Kind != report.KindBootstrap || r.Verdict != want {
		b.t.Errorf("%s %s, want %s: %s %+v", r.Kind, r.Verdict, want, r.Summary, r.Causes)
	}
	var state agent.State
	b.eventually(id, "agent that knows its instance and has delivered to each sink", func() bool {
		state = agent.State{}
		return json.Unmarshal([]byte(b.sh(id, "cat /run/lecafe/status.json")), &state) == nil && state.Judged && len(state.Unsent) == 0 && state.Instance.ID == id
	})
	if state.Verdict != want || state.Report != r.ID {
		b.t.Errorf("the agent says %s, report %s; S3 has %s, report %s", state.Verdict, state.Report, want, r.ID)
	}
	if out := b.shAny(id, "lecafe-agent status; echo exit=$?"); !strings.HasSuffix(out, map[report.Verdict]string{report.Success: "exit=0\n", report.Failure: "exit=1\n"}[want]) {
		b.t.Errorf("lecafe-agent status: %s", out)
	}
	// What told how far the boot is goes too, also where another process put it.
	var keys []string
	b.eventually(id, "end of the progress marks", func() bool {
		keys = b.objects(id)
		return !strings.Contains(strings.Join(keys, " "), "/progress/")
	})
	if len(keys) != 1 {
		b.t.Fatalf("in S3: %q, want one report", keys)
	}
	if sent := b.announced(id); len(sent) != messages || messages == 1 && sent[0] != keys[0] {
		b.t.Errorf("in SQS: %q, want %d of %q", sent, messages, keys)
	}
	out, err := b.d.Console(id)
	if err != nil {
		b.t.Fatal(err)
	}
	if n := strings.Count(string(out), `"event":"verdict"`); n != 1 {
		b.t.Errorf("%d verdicts on the console:\n%s", n, b.console(id))
	}
}

// objects are the keys that an instance has in the reports' bucket.
func (b *agentBench) objects(id string) (keys []string) {
	for _, k := range b.cloud.S3.Objects("reports", "") {
		if strings.Contains(k, ":"+id+"/") {
			keys = append(keys, k)
		}
	}
	return keys
}

// announced empties the queue of reports and returns the keys that came of an
// instance.
func (b *agentBench) announced(id string) (keys []string) {
	b.t.Helper()
	api := sqs.NewFromConfig(b.cloud.Config())
	u, err := api.GetQueueUrl(b.t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("boots")})
	if err != nil {
		b.t.Fatal(err)
	}
	for {
		out, err := api.ReceiveMessage(b.t.Context(), &sqs.ReceiveMessageInput{QueueUrl: u.QueueUrl, MaxNumberOfMessages: 10, MessageAttributeNames: []string{"All"}})
		if err != nil {
			b.t.Fatal(err)
		}
		if len(out.Messages) == 0 {
			return keys
		}
		for _, m := range out.Messages {
			key := aws.ToString(m.MessageAttributes["lecafe-report-key"].StringValue)
			if strings.Contains(key, ":"+id+"/") {
				keys = append(keys, key)
			}
			if _, err := api.DeleteMessage(b.t.Context(), &sqs.DeleteMessageInput{QueueUrl: u.QueueUrl, ReceiptHandle: m.ReceiptHandle}); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

// TestAgentsWatchdog stops lecafe-agent's process at each point of a boot.
// systemd ends and restarts it, and whatever it had done or not: there is one
// verdict, and one report of it.
func TestAgentsWatchdog(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		b := newAgentBench(t, release, "bootstrap: {deadline: 10m}", watchdogDropIn)
		if err := b.cloud.PutRolePolicy("app", "progress", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::reports/lecafe-reports/${aws:userid}/progress/*"}]}`); err != nil {
			t.Fatal(err)
		}

		// Before the verdict: what comes after is judged.
		for word, want := range map[string]report.Verdict{"well": report.Success, "badly": report.Failure} {
			id := b.boot("ami-agent", waitsFor)
			b.waiting(id)
			b.stall(id)
			if want == report.Success { // once more, and long in between
				b.lives(id)
				b.stall(id)
			}
			var keys []string
			boots.Eventually(t, "mark of the stage, and nothing else, in S3", func() bool {
				keys = b.objects(id)
				return len(keys) == 1 && strings.HasSuffix(keys[0], "/progress/cloud-final")
			}, func() string { return strings.Join(keys, "\n") })
			b.goOn(id, word)
			b.reported(id, want, 1)
			if want == report.Failure {
				if r := b.report(id); r.Causes[0].Code != report.CodeScriptExit || r.Causes[0].Line != 5 {
					t.Errorf("cause %+v", r.Causes[0])
				}
			}

			// After it.
			b.stall(id)
			b.reported(id, want, 0)
			if err := b.d.Terminate(t.Context(), id); err != nil {
				t.Error(err)
			}
		}

		// Between the verdict and its arrival.
		away := b.cloud.Inject(cloud.Fault{Service: "s3", Action: "PutObject", Kind: cloud.Reset})
		id := b.boot("ami-agent", "#!/bin/sh\ntrue\n")
		b.told(id, `"event":"verdict"`, `"verdict":"success"`)
		b.eventually(id, "refused report", func() bool { return away.Hits() > 0 })
		b.stall(id)
		away.Remove()
		b.reported(id, report.Success, 1)
	})
}
