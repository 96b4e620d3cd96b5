package agent_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/agent"
	"github.com/lecafe/lecafe/agent/bootstrap"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/systemd"
)

// deadline bounds the wait for what must come; it is not what is measured.
const deadline = 20 * time.Second

// box is an instance that runs nothing but the agent: its files are a
// directory, its cloud-init is the test, IMDS and AWS are the lab's.
type box struct {
	t     *testing.T
	root  string
	cloud *cloudtest.Cloud
	imds  *imds.Server
	meta  *httptest.Server
	calls *counter

	uptime atomic.Int64 // of the instance, in nanoseconds

	markAfter time.Duration // how long a stage lasts before it is told; long where 0

	stop context.CancelFunc
	done chan error
}

func (b *box) now() bootstrap.Clock {
	d := time.Duration(b.uptime.Load())
	return bootstrap.Clock{At: time.Now(), Uptime: d, Kernel: d}
}

// setUptime lets time pass, and wakes the agent with a change that says nothing.
func (b *box) setUptime(d time.Duration) {
	b.uptime.Store(int64(d))
	b.write("run/cloud-init/other", "")
}

// noUnits is a systemd in which nothing runs.
type noUnits struct{}

func (noUnits) Units(context.Context, []string) ([]systemd.Unit, error) { return nil, nil }
func (noUnits) Changes(context.Context, func(string) bool) (<-chan struct{}, error) {
	return nil, nil
}
func (noUnits) Run(context.Context, []string, time.Duration) error { return nil }
func (noUnits) Reload(context.Context, string) error               { return nil }
func (noUnits) Restart(context.Context, string) error              { return nil }

// counter counts requests to IMDS, by path.
type counter struct {
	mu    sync.Mutex
	paths []string
	next  http.Handler
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.paths = append(c.paths, r.Method+" "+r.URL.Path)
	if r.Method != http.MethodPut && r.Header.Get("X-Aws-Ec2-Metadata-Token") == "" {
		c.paths = append(c.paths, "IMDSv1 "+r.URL.Path)
	}
	c.mu.Unlock()
	c.next.ServeHTTP(w, r)
}

func (c *counter) list() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.paths...)
}

const instanceID = "i-0abc1234def567890"

func newBox(t *testing.T, userData string, change ...func(*imds.Instance)) *box {
	t.Helper()
	b := &box{t: t, root: t.TempDir(), cloud: cloudtest.New(t, cloud.Options{})}
	b.cloud.S3.CreateBucket("reports", "us-east-1")
	b.cloud.S3.CreateBucket("assets", "us-east-1")
	b.cloud.SQS.CreateQueue("boots", nil)
	b.cloud.SQS.CreateQueue("orders", nil)
	if err := b.cloud.PutRolePolicy("app", "all", `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::reports/*"},
		{"Effect":"Allow","Action":["s3:GetObject","s3:ListBucket"],"Resource":["arn:aws:s3:::assets","arn:aws:s3:::assets/*"]},
		{"Effect":"Allow","Action":["sqs:GetQueueUrl","sqs:SendMessage","sqs:GetQueueAttributes"],"Resource":"*"}]}`); err != nil {
		t.Fatal(err)
	}
	i := imds.Instance{
		InstanceID: instanceID, UserData: []byte(userData), Role: "app",
		Credentials: func(d time.Duration) wire.Credentials { return b.cloud.Vault.Vend("app", instanceID, d) },
	}
	for _, f := range change {
		f(&i)
	}
	b.imds = imds.New(i)
	b.calls = &counter{next: b.imds}
	b.meta = httptest.NewServer(b.calls)
	t.Cleanup(b.meta.Close)
	b.write("proc/sys/kernel/random/boot_id", "11111111-1111-4111-8111-111111111111\n")
	b.write("usr/bin/cloud-init", "")
	b.write("dev/console", "")
	b.write("etc/lecafe/agent.yaml", fmt.Sprintf("aws: {endpoint_url: %q}\nreport: {s3: {bucket: reports}, sqs: {queue: boots}}\nbootstrap: {deadline: 10m}\n", b.cloud.URL))
	b.mkdir("run/cloud-init")
	b.mkdir("var/lib/cloud/data")
	b.mkdir("var/log")
	b.mkdir("run/lecafe/trap")
	return b
}

func (b *box) mkdir(path string) {
	b.t.Helper()
	if err := os.MkdirAll(filepath.Join(b.root, path), 0o755); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) write(path, text string) {
	b.t.Helper()
	path = filepath.Join(b.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	// Replaced by rename, as cloud-init does it.
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		b.t.Fatal(err)
	}
}

// start runs the agent, until the test ends or kill is called.
func (b *box) start() {
	b.t.Helper()
	ctx, stop := context.WithCancel(b.t.Context())
	b.stop, b.done = stop, make(chan error, 1)
	a, err := agent.New(ctx, agent.Options{Root: b.root, IMDSEndpoint: b.meta.URL, Console: filepath.Join(b.root, "dev/console"), Systemd: noUnits{}, Now: b.now, MarkAfter: cmp.Or(b.markAfter, time.Hour)})
	if err != nil {
		stop()
		b.t.Fatal(err)
	}
	go func() { b.done <- a.Run(ctx) }()
	b.t.Cleanup(b.kill)
}

func (b *box) kill() {
	if b.stop == nil {
		return
	}
	b.stop()
	b.stop = nil
	select {
	case <-b.done:
	case <-time.After(deadline):
		b.t.Error("the agent did not stop")
	}
}

// cloudInit writes status.json as of a stage that runs, or that has ended with
// errors; the last one's end writes result.json too.
func (b *box) cloudInit(upTo string, ended bool, errs ...string) {
	b.t.Helper()
	now := float64(time.Now().Unix())
	v1 := map[string]any{"datasource": "DataSourceEc2Local", "stage": nil}
	for _, m := range []string{"init-local", "init", "modules-config", "modules-final"} {
		s := map[string]any{"errors": []string{}, "start": now, "finished": now}
		if m == upTo {
			s["errors"] = errs
			if errs == nil {
				s["errors"] = []string{}
			}
			if !ended {
				s["finished"] = nil
			}
		}
		v1[m] = s
		if m == upTo {
			break
		}
	}
	doc, err := json.Marshal(map[string]any{"v1": v1})
	if err != nil {
		b.t.Fatal(err)
	}
	b.write("run/cloud-init/status.json", string(doc))
	if upTo == "modules-final" && ended {
		b.write("run/cloud-init/result.json", `{"v1":{"datasource":"DataSourceEc2Local","errors":[]}}`)
	}
}

// ran is cloud-init's log of a script that it executed.
func (b *box) ran(script string) {
	b.write("var/log/cloud-init.log", "2026-11-22 02:07:01,123 - util.py[DEBUG]: Cloud-init v. 22.4.2 running 'init-local' at Sun, 22 Nov 2026 02:07:01 +0000. Up 3.21 seconds.\n"+
		"2026-11-22 02:07:09,123 - subp.py[DEBUG]: Running command ['/var/lib/cloud/instance/scripts/"+script+"'] with allowed return codes [0] (shell=False, capture=False)\n")
}

// reports waits for n reports in S3 and returns them in order of key.
func (b *box) reports(n int) []*report.Report {
	b.t.Helper()
	var keys []string
	b.eventually(fmt.Sprintf("%d reports in S3", n), func() bool {
		keys = b.cloud.S3.Objects("reports", "")
		return len(keys) >= n
	})
	var out []*report.Report
	for _, key := range keys {
		obj, err := s3.NewFromConfig(b.cloud.Config(), func(o *s3.Options) { o.UsePathStyle = true }).GetObject(b.t.Context(), &s3.GetObjectInput{Bucket: aws.String("reports"), Key: &key})
		if err != nil {
			b.t.Fatal(err)
		}
		doc, err := io.ReadAll(obj.Body)
		if err != nil {
			b.t.Fatal(err)
		}
		r, err := report.Decode(doc)
		if err != nil {
			b.t.Fatal(err)
		}
		if want := report.KeyOf("lecafe-reports", r).String(); key != want {
			b.t.Errorf("key %s, want %s", key, want)
		}
		out = append(out, r)
	}
	return out
}

func (b *box) eventually(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(deadline); !ok(); {
		if time.Now().After(end) {
			console, _ := os.ReadFile(filepath.Join(b.root, "dev/console"))
			state, _ := os.ReadFile(filepath.Join(b.root, "run/lecafe/status.json"))
			b.t.Fatalf("no %s\nconsole: %s\nstate: %s", what, console, state)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-b.t.Context().Done():
			b.t.Fatal("test is over")
		}
	}
}

func (b *box) messages(queue string) []string {
	b.t.Helper()
	api := sqs.NewFromConfig(b.cloud.Config())
	url, err := api.GetQueueUrl(b.t.Context(), &sqs.GetQueueUrlInput{QueueName: &queue})
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	b.eventually("message in "+queue, func() bool {
		got, err := api.ReceiveMessage(b.t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url.QueueUrl, MaxNumberOfMessages: 10, MessageAttributeNames: []string{"All"}})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, m := range got.Messages {
			out = append(out, aws.ToString(m.Body)+"|"+aws.ToString(m.MessageAttributes["lecafe-report-key"].StringValue))
		}
		return len(out) > 0
	})
	return out
}

const script = "#!/bin/sh\nset -e\necho hi\n"

func TestHealthyBoot(t *testing.T) {
	b := newBox(t, script)
	b.start()
	b.cloudInit("init-local", false)
	b.ran("part-001")
	b.cloudInit("modules-final", false)
	if got := b.cloud.S3.Objects("reports", ""); len(got) > 0 {
		t.Errorf("reported before the end: %v", got)
	}
	b.cloudInit("modules-final", true)
	r := b.reports(1)[0]
	if r.Verdict != report.Success || r.Kind != report.KindBootstrap || len(r.Causes) > 0 {
		t.Errorf("got %+v", r)
	}
	if r.Instance.ID != instanceID || r.Sender != b.cloud.Vault.RoleID("app")+":"+instanceID || r.Instance.Region != "us-east-1" {
		t.Errorf("instance %+v, sender %s", r.Instance, r.Sender)
	}
	if r.UserData.Format != "shell-script" || r.UserData.Size != len(script) || len(r.Stages) != 4 || r.CloudInit.Status != "done" || r.CloudInit.Version != "22.4.2" {
		t.Errorf("got %+v", r)
	}
	if m := b.messages("boots"); len(m) != 1 || !strings.Contains(m[0], r.ID) || !strings.HasSuffix(m[0], "|"+report.KeyOf("lecafe-reports", r).String()) {
		t.Errorf("messages: %v", m)
	}
	b.eventually("empty outbox", func() bool {
		left, err := filepath.Glob(filepath.Join(b.root, "var/lib/lecafe/outbox/*"))
		return err == nil && len(left) == 0
	})
}

func TestHealthyBootAsksIMDSAtMostSixTimesAndNeverV1(t *testing.T) {
	b := newBox(t, script)
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	b.reports(1)
	calls := b.calls.list()
	if len(calls) == 0 || len(calls) > 6 {
		t.Errorf("%d calls: %v", len(calls), calls)
	}
	for _, c := range calls {
		if strings.HasPrefix(c, "IMDSv1") {
			t.Errorf("a request without token: %s", c)
		}
	}
}

// TestNeverFallsBackToIMDSv1 gives no token, but would answer without one.
func TestNeverFallsBackToIMDSv1(t *testing.T) {
	b := newBox(t, script)
	var mu sync.Mutex
	var got []string
	b.meta.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Method+" "+r.URL.Path)
		if r.Method == http.MethodPut {
			http.Error(w, "no such thing", http.StatusNotFound)
			return
		}
		fmt.Fprint(w, `{"instanceId":"i-0v1","region":"us-east-1"}`)
	})
	b.start()
	b.eventually("three requests", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) >= 3
	})
	b.kill()
	mu.Lock()
	defer mu.Unlock()
	for _, r := range got {
		if !strings.HasPrefix(r, "PUT ") {
			t.Errorf("a request without token: %s", r)
		}
	}
}

func TestScriptThatFails(t *testing.T) {
	b := newBox(t, script)
	b.start()
	b.write("var/log/cloud-init.log", "2026-11-22 02:07:01,123 - util.py[DEBUG]: Cloud-init v. 22.4.2 running 'init-local' at x\n"+
		"2026-11-22 02:07:09,123 - subp.py[DEBUG]: Running command ['/var/lib/cloud/instance/scripts/part-001'] with allowed return codes [0] (shell=False, capture=False)\n"+
		"2026-11-22 02:07:09,323 - subp.py[DEBUG]: Unexpected error while running command.\nCommand: ['/var/lib/cloud/instance/scripts/part-001']\nExit code: 22\nReason: -\nStdout: -\nStderr: -\n")
	b.write("var/log/cloud-init-output.log", "curl: (22) The requested URL returned error: 404\nexport DB_PASSWORD=hunter2\n")
	b.write("run/lecafe/trap/1", "1\t1795312629\t300\t22\t3\t0\t1\t0\t/var/lib/cloud/instance/scripts/part-001\tcurl\\ -f\\ http://x\n")
	b.cloudInit("modules-final", true, "('scripts_user', RuntimeError('Runparts: 1 failures (part-001) in 1 attempted commands'))")
	r := b.reports(1)[0]
	if r.Verdict != report.Failure || len(r.Causes) != 1 {
		t.Fatalf("got %+v", r)
	}
	c := r.Causes[0]
	if c.Code != report.CodeScriptExit || *c.ExitCode != 22 || c.Line != 3 || c.Command != "curl -f http://x" || c.File != "part-001" || c.Stage != report.StageCloudFinal {
		t.Errorf("got %+v", c)
	}
	if doc, _ := json.Marshal(r); strings.Contains(string(doc), "hunter2") {
		t.Errorf("a password is in the report: %s", doc)
	}
	b.eventually("verdict on the console", func() bool {
		console, err := os.ReadFile(filepath.Join(b.root, "dev/console"))
		return err == nil && strings.Contains(string(console), `"event":"verdict"`) && strings.Contains(string(console), `"code":"script_exit"`)
	})
}

func TestSettingsInUserData(t *testing.T) {
	b := newBox(t, "")
	payload := "#!/bin/sh\n" + settings.UserDataBegin + "\nreport: {s3: {prefix: fleet/a}}\nconfig: [{source: s3://assets/app/config.txt, path: /opt/app/config.txt, mode: \"0644\"}]\norders: {queue: orders}\n" + settings.UserDataEnd + "\n"
	b.imds.Update(func(i *imds.Instance) { i.UserData = []byte(payload) })
	b.cloud.S3.Fill("assets", func(yield func(string, []byte) bool) { yield("app/config.txt", []byte("espresso=2\n")) })
	b.start()
	b.eventually("config file", func() bool {
		got, err := os.ReadFile(filepath.Join(b.root, "opt/app/config.txt"))
		return err == nil && string(got) == "espresso=2\n"
	})
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	b.eventually("report under the payload's prefix", func() bool { return len(b.cloud.S3.Objects("reports", "fleet/a/")) == 1 })
	var s agent.State
	b.eventually("state that says so", func() bool {
		var err error
		s, err = agent.ReadState(b.root)
		return err == nil && s.Judged
	})
	if s.Verdict != report.Success || len(s.Config) != 1 || s.Config[0].Generation != 1 || !s.Config[0].Fresh {
		t.Errorf("state %+v", s)
	}
}

func TestEnvFiles(t *testing.T) {
	env := "\nenv:\n  - {path: /opt/app/config.env, set: {AWS_REGION: \"${region}\", NAME: \"${tag:Name}\"}}\n"
	b := newBox(t, "#!/bin/sh\n"+settings.UserDataBegin+env+settings.UserDataEnd+"\n", func(i *imds.Instance) {
		i.Tags, i.TagsInMetadata = map[string]string{"Name": "web"}, true
	})
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	if r := b.reports(1)[0]; r.Verdict != report.Success {
		t.Errorf("got %+v", r)
	}
	got, err := os.ReadFile(filepath.Join(b.root, "opt/app/config.env"))
	if err != nil || !strings.Contains(string(got), "AWS_REGION=\"us-east-1\"\nNAME=\"web\"\n") {
		t.Errorf("%s, %v", got, err)
	}
}

func TestEnvFileWithoutItsTag(t *testing.T) {
	b := newBox(t, "#!/bin/sh\n"+settings.UserDataBegin+"\nenv: [{path: /opt/app/config.env, set: {NAME: \"${tag:Name}\"}}]\n"+settings.UserDataEnd+"\n")
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	r := b.reports(1)[0]
	if r.Verdict != report.Failure || r.Causes[0].Code != report.CodeConfigInvalid || r.Causes[0].File != "/opt/app/config.env" {
		t.Errorf("got %+v", r.Causes)
	}
	if _, err := os.Stat(filepath.Join(b.root, "opt/app/config.env")); err == nil {
		t.Error("half a file was written")
	}
}

func TestMissingConfigAndQueue(t *testing.T) {
	b := newBox(t, "#!/bin/sh\n"+settings.UserDataBegin+"\nconfig: [{source: s3://assets/nothing, path: /opt/x}]\norders: {queue: nowhere}\n"+settings.UserDataEnd+"\n")
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	r := b.reports(1)[0]
	codes := map[report.Code]bool{}
	for _, c := range r.Causes {
		codes[c.Code] = true
	}
	if r.Verdict != report.Failure || !codes[report.CodeConfigMissing] && !codes[report.CodeConfigDenied] || !codes[report.CodeQueueMissing] {
		t.Errorf("got %+v", r.Causes)
	}
}

func TestJudgedOncePerInstance(t *testing.T) {
	b := newBox(t, script)
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	first := b.reports(1)[0]
	b.kill()

	// The agent restarts in the same boot: nothing more to say.
	b.start()
	b.eventually("state that says so", func() bool {
		s, err := agent.ReadState(b.root)
		return err == nil && s.Judged && s.Report == first.ID
	})
	b.kill()

	// The instance boots again.
	b.write("proc/sys/kernel/random/boot_id", "22222222-2222-4222-8222-222222222222\n")
	b.start()
	rs := b.reports(2)
	kinds := map[report.Kind]int{}
	for _, r := range rs {
		kinds[r.Kind]++
	}
	if len(rs) != 2 || kinds[report.KindBootstrap] != 1 || kinds[report.KindStart] != 1 {
		t.Errorf("kinds %v", kinds)
	}
}

func TestInterruptedBootstrap(t *testing.T) {
	b := newBox(t, script)
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", false)
	b.eventually("memory of the running stage", func() bool {
		m, err := os.ReadFile(filepath.Join(b.root, "var/lib/lecafe/bootstrap.json"))
		return err == nil && strings.Contains(string(m), "cloud-final")
	})
	b.kill()
	b.write("proc/sys/kernel/random/boot_id", "22222222-2222-4222-8222-222222222222\n")
	b.start()
	b.cloudInit("modules-final", true)
	r := b.reports(1)[0]
	if r.Verdict != report.Failure || r.Causes[0].Code != report.CodeInterrupted || r.Causes[0].Stage != report.StageCloudFinal {
		t.Errorf("got %+v", r.Causes)
	}
}

func TestReportSurvivesARestartUntilItIsSent(t *testing.T) {
	b := newBox(t, script)
	fault := b.cloud.Inject(cloud.Fault{Service: "s3", Action: "PutObject", Kind: cloud.Error5xx})
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	b.messages("boots") // the other sink is not held up
	b.eventually("attempts at S3", func() bool { return fault.Hits() > 0 })
	b.kill()
	left, err := filepath.Glob(filepath.Join(b.root, "var/lib/lecafe/outbox/*.json"))
	if err != nil || len(left) != 1 {
		t.Fatalf("outbox holds %v, %v", left, err)
	}
	fault.Remove()
	b.start()
	r := b.reports(1)[0]
	if r.Kind != report.KindBootstrap || r.Verdict != report.Success {
		t.Errorf("got %+v", r)
	}
}

func TestCredentialsThatComeLate(t *testing.T) {
	b := newBox(t, script)
	b.imds.SetFaults(func(f *imds.Faults) { f.CredentialsMissing = 4 })
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	if r := b.reports(1)[0]; r.Verdict != report.Success {
		t.Errorf("got %+v", r)
	}
}

// TestHeartbeatsFollowStages lets a hang run into the hook's timeout.
func TestHeartbeatsFollowStages(t *testing.T) {
	b := newBox(t, script)
	b.write("etc/lecafe/agent.d/hook.yaml", "report: {lifecycle_hook: {name: boot, group: web}}\n")
	beats := func(action string) (n int) {
		for _, c := range b.cloud.Calls() {
			if c.Action == action {
				n++
			}
		}
		return n
	}
	b.start()
	b.eventually("credentials", func() bool { return beats("GetCallerIdentity") > 0 })
	b.cloudInit("init-local", false)
	b.eventually("first heartbeat", func() bool { return beats("RecordLifecycleActionHeartbeat") == 1 })
	looks := func() time.Time {
		s, err := agent.ReadState(b.root)
		if err != nil {
			return time.Time{}
		}
		return s.At
	}
	for range 3 {
		before := looks()
		b.cloudInit("init-local", false) // written again, no further
		b.eventually("another look", func() bool { return looks().After(before) })
	}
	b.cloudInit("modules-final", false)
	b.eventually("second heartbeat", func() bool { return beats("RecordLifecycleActionHeartbeat") >= 2 })
	if n := beats("RecordLifecycleActionHeartbeat"); n != 2 {
		t.Errorf("%d heartbeats for two steps", n)
	}
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	b.eventually("completion of the action", func() bool { return beats("CompleteLifecycleAction") > 0 })
}

func TestTagsFromCloudInitsCopy(t *testing.T) {
	b := newBox(t, script)
	b.write("run/cloud-init/instance-data-sensitive.json", `{"ds":{"meta_data":{"autoscaling":{"target-lifecycle-state":"InService"},"tags":{"instance":{
		"aws:autoscaling:groupName":"web","aws:ec2launchtemplate:id":"lt-1","aws:ec2launchtemplate:version":"7"}}}}}`)
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	i := b.reports(1)[0].Instance
	if i.AutoScalingGroup != "web" || i.LaunchTemplateID != "lt-1" || i.LaunchTemplateVersion != "7" || i.LifecycleState != "InService" {
		t.Errorf("got %+v", i)
	}
}

func TestNoUserData(t *testing.T) {
	b := newBox(t, "")
	b.start()
	b.cloudInit("modules-final", true)
	if r := b.reports(1)[0]; r.Verdict != report.Success || r.UserData.Format != "none" {
		t.Errorf("got %+v", r)
	}
}

// TestNoRole waits for no role any longer than an instance may take to get it.
func TestNoRole(t *testing.T) {
	for name, c := range map[string]struct {
		settings string
		verdict  report.Verdict
		code     string
	}{
		"needed":     {"report: {s3: {bucket: reports}}\nbootstrap: {deadline: 10s}\n", report.Failure, `"code":"role_missing"`},
		"not needed": {"bootstrap: {deadline: 10m}\n", report.Success, `"verdict":"success"`},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, script, func(i *imds.Instance) { i.Role = "" })
			b.write("etc/lecafe/agent.yaml", fmt.Sprintf("aws: {endpoint_url: %q}\n%s", b.cloud.URL, c.settings))
			b.start()
			b.ran("part-001")
			b.cloudInit("modules-final", true)
			b.eventually("trouble told", func() bool {
				console, err := os.ReadFile(filepath.Join(b.root, "dev/console"))
				return err == nil && strings.Contains(string(console), c.code)
			})
			b.setUptime(time.Minute)
			b.eventually("verdict", func() bool {
				s, err := agent.ReadState(b.root)
				return err == nil && s.Judged && s.Verdict == c.verdict
			})
		})
	}
}

func TestNoMetadataServiceAtAll(t *testing.T) {
	b := newBox(t, script)
	b.write("etc/lecafe/agent.yaml", fmt.Sprintf("aws: {endpoint_url: %q}\nreport: {s3: {bucket: reports}}\nbootstrap: {deadline: 10s}\n", b.cloud.URL))
	b.imds.SetFaults(func(f *imds.Faults) { f.Down = true })
	b.setUptime(time.Minute) // the deadline is over
	b.start()
	b.eventually("verdict on the console", func() bool {
		console, err := os.ReadFile(filepath.Join(b.root, "dev/console"))
		return err == nil && strings.Contains(string(console), `"code":"imds_unreachable"`) && strings.Contains(string(console), `"event":"verdict"`)
	})
	// When it comes back, the report is completed and sent.
	b.imds.SetFaults(func(f *imds.Faults) { f.Down = false })
	r := b.reports(1)[0]
	if r.Verdict != report.Failure || r.Causes[0].Code != report.CodeIMDSUnreachable || r.Instance.ID != instanceID {
		t.Errorf("got %+v", r)
	}
}
