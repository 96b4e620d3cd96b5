package settings_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/strictyaml"
)

const whole = `aws:
  region: eu-west-1
  endpoint_url: http://127.0.0.1:4566
  role_id: AROAEXAMPLEEXAMPLE12
  ca_bundle: /etc/ssl/private-ca.pem
  proxy: http://proxy.internal:3128
bootstrap:
  deadline: 5m
  severity:
    script_command_failed: failure
    cloud_init_warning: ignore
  ready:
    units: [app.service]
    http: [{url: "http://127.0.0.1:8080/health", status: [200, 204]}]
    tcp: ["127.0.0.1:5432"]
    command: [[/usr/bin/test, -f, /opt/app/ready]]
report:
  s3: {bucket: acme-reports, prefix: fleet/reports, region: eu-central-1}
  sqs: {queue: boot-reports}
  webhook: {url: "https://hooks.example.com/x"}
  lifecycle_hook: {name: boot, group: web}
  console: false
config:
  - source: s3://lecafe-assets/app/config.txt
    path: /opt/lecafe/app-config.txt
    mode: "0644"
    poll: 1m
    validate: [/usr/bin/app, --check]
    reload_unit: app.service
env:
  - path: /opt/lecafe/config.env
    set: {APP_NAME: lecafe-app, AWS_REGION: "${region}", NAME: "${tag:Name}"}
orders:
  queue: lecafe-orders
  seal_to: s3://acme-sealed/orders
`

func TestDecodeWhole(t *testing.T) {
	s, err := settings.Decode(settings.Source{Name: "a.yaml", Data: []byte(whole)})
	if err != nil {
		t.Fatal(err)
	}
	if s.Bootstrap.Deadline != 5*time.Minute || *s.Report.Console || s.Config[0].Poll != time.Minute || s.AWS.RoleID != "AROAEXAMPLEEXAMPLE12" {
		t.Errorf("got %+v", s)
	}
}

func TestLaterSourcesWin(t *testing.T) {
	s, err := settings.Decode(
		settings.Source{Name: "agent.yaml", Data: []byte("report: {s3: {bucket: baked-bucket, prefix: p}}\nconfig: [{source: s3://baked/a, path: /a}]\nbootstrap: {severity: {disk_full: ignore}}\n")},
		settings.Source{Name: "10.yaml", Data: []byte("report: {s3: {bucket: dropin-bucket}}\nbootstrap: {severity: {unit_failed: failure}}\n")},
		settings.Source{Name: "user-data", Data: []byte("config: [{source: s3://other/b, path: /b}, {source: s3://other/c, path: /c}]\n")},
	)
	if err != nil {
		t.Fatal(err)
	}
	want := settings.Settings{
		Report:    settings.Report{S3: settings.S3Sink{Bucket: "dropin-bucket", Prefix: "p"}},
		Config:    []settings.Object{{Source: "s3://other/b", Path: "/b"}, {Source: "s3://other/c", Path: "/c"}},
		Bootstrap: settings.Bootstrap{Severity: map[string]string{"disk_full": "ignore", "unit_failed": "failure"}},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Error(d)
	}
}

func TestProblems(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"unknown key":    {"reprot: {}", `s.yaml:1:1: reprot: unknown key; did you mean "report"?`},
		"deadline":       {"bootstrap: {deadline: 1s}", `s.yaml:1:23: bootstrap.deadline: "1s": is out of bounds; 10s to 24h0m0s`},
		"severity code":  {"bootstrap: {severity: {nope: failure}}", `s.yaml:1:30: bootstrap.severity.nope: is no cause code; docs/report.schema.json lists the cause codes`},
		"severity":       {"bootstrap: {severity: {disk_full: bad}}", `s.yaml:1:35: bootstrap.severity.disk_full: "bad": is no severity; one of failure, degraded, ignore`},
		"bucket":         {"report: {s3: {bucket: s3://x}}", `s.yaml:1:23: report.s3.bucket: "s3://x": is no bucket name; 3 to 63 of a-z, 0-9, dot and hyphen, without s3://`},
		"missing bucket": {"report: {s3: {prefix: x}}", `s.yaml:1:14: report.s3.bucket: is missing; name the bucket, or leave report.s3 out`},
		"missing path":   {"config:\n  - source: s3://bucket/k\n", `s.yaml:2:5: config[0].path: is missing; write where the object is kept, as /opt/app/config.txt`},
		"source":         {"config: [{source: /etc/passwd, path: /x}]", `s.yaml:1:19: config[0].source: "/etc/passwd": is no S3 object; write it as s3://bucket/key, or s3://bucket/prefix/ for all below a prefix`},
		"relative path":  {"config: [{source: s3://bucket/k, path: ../x}]", `s.yaml:1:40: config[0].path: "../x": must be an absolute path of a file; write it in full, without . or ..`},
		"mode":           {"config: [{source: s3://bucket/k, path: /x, mode: rw}]", `s.yaml:1:50: config[0].mode: "rw": is no file mode; three or four octal digits in quotes, as "0640"`},
		"same path":      {"config: [{source: s3://bucket/k, path: /x}, {source: s3://bucket/l, path: /x}]", `s.yaml:1:75: config[1].path: "/x": is the path of config[0] too; give each object a path of its own`},
		"checksum":       {"config: [{source: s3://bucket/k, path: /x, checksum: abc}]", `s.yaml:1:54: config[0].checksum: "abc": is no checksum; write it as CRC64NVME:base64, as aws s3api head-object --checksum-mode ENABLED prints; or use sha256`},
		"dir's version":  {"config: [{source: s3://bucket/k/, path: /x, version_id: v}]", `s.yaml:1:57: config[0].version_id: "v": is of one object, and s3://bucket/k/ is all below a prefix; pin the directory with sha256, or name one object`},
		"file's files":   {"config: [{source: s3://bucket/k, path: /x, max_files: 3}]", `s.yaml:1:55: config[0].max_files: "3": is of a directory, and s3://bucket/k is one object; leave it out, or end source in a slash`},
		"files":          {"config: [{source: s3://bucket/k/, path: /x, max_files: 10001}]", `s.yaml:1:56: config[0].max_files: "10001": is out of bounds; 1 to 10000`},
		"in a directory": {"config: [{source: s3://bucket/k/, path: /x}, {source: s3://bucket/l, path: /x/y}]", `s.yaml:1:41: config[0].path: "/x": is a directory that is replaced as a whole, and /x/y is in it; keep the two apart`},
		"drain":          {"orders: {drain: 1h}", `s.yaml:1:17: orders.drain: "1h0m0s": is out of bounds; 1s to 15m0s`},
		"two actions":    {"config: [{source: s3://bucket/k, path: /x, reload_unit: a.service, restart_unit: a.service}]", `s.yaml:1:82: config[0].restart_unit: "a.service": stands beside reload_unit; keep one of the two`},
		"queue":          {"orders: {queue: my queue}", `s.yaml:1:17: orders.queue: "my queue": is no queue name; up to 80 of letters, digits, hyphen and underscore (FIFO: .fifo at the end), or the queue's URL`},
		"unit":           {"bootstrap: {ready: {units: [app]}}", `s.yaml:1:29: bootstrap.ready.units[0]: "app": is no unit name; write it with its type, as app.service`},
		"tcp":            {"bootstrap: {ready: {tcp: [\"5432\"]}}", `s.yaml:1:27: bootstrap.ready.tcp[0]: "5432": is no host:port; write it as 127.0.0.1:8080`},
		"command":        {"bootstrap: {ready: {command: [[ls]]}}", `s.yaml:1:32: bootstrap.ready.command[0][0]: "ls": must be an absolute path; commands run without a shell and without PATH`},
		"url":            {"aws: {endpoint_url: localhost}", `s.yaml:1:21: aws.endpoint_url: "localhost": is no http or https URL; write it as https://host/path`},
		"env fact":       {"env: [{path: /e, set: {A: \"${zone}\"}}]", `s.yaml:1:27: env[0].set.A: "${zone}": is nothing that the instance knows; one of region, availability_zone, instance_id, instance_type, image_id, account_id, architecture, tag:NAME`},
		"env name":       {"env: [{path: /e, set: {1A: x}}]", `s.yaml:1:28: env[0].set.1A: is no name of a variable; letters, digits and underscore, not starting with a digit`},
		"env of nothing": {"env: [{path: /e}]", `s.yaml:1:7: env[0].set: is missing; write the variables as NAME: value`},
		"secret in URL":  {"aws: {proxy: \"ftp://u:hunter2@p\"}", `s.yaml:1:14: aws.proxy: "ftp://[redacted]@p": is no http or https URL; write it as https://host/path`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := settings.Decode(settings.Source{Name: "s.yaml", Data: []byte(c.in)})
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

// TestChecksums are the forms of a pin, of every algorithm that S3 has.
func TestChecksums(t *testing.T) {
	decode := func(sum string) error {
		_, err := settings.Decode(settings.Source{Name: "s.yaml", Data: []byte("config: [{source: s3://bucket/k, path: /x, checksum: \"" + sum + "\"}]")})
		return err
	}
	for _, alg := range []string{"CRC32", "CRC32C", "CRC64NVME", "MD5", "SHA1", "SHA256", "SHA512", "XXHASH3", "XXHASH64", "XXHASH128", "xxhash3"} {
		for _, sum := range []string{"gpWjYMLp9XA=", "gpWjYMLp9XA=-3"} {
			if err := decode(alg + ":" + sum); err != nil {
				t.Errorf("%s: %v", alg, err)
			}
		}
		for _, sum := range []string{"", "gpWjYMLp9XA=-", "gp WjYMLp9XA=", "-2"} {
			if decode(alg+":"+sum) == nil {
				t.Errorf("%s:%s is taken", alg, sum)
			}
		}
	}
	if decode("XXHASH32:gpWjYA==") == nil {
		t.Error("an algorithm that S3 does not have is taken")
	}
}

func TestAllProblemsAtOnceEachInItsFile(t *testing.T) {
	_, err := settings.Decode(
		settings.Source{Name: "a.yaml", Data: []byte("orders: {queue: a b}\nx: 1\n")},
		settings.Source{Name: "b.yaml", Data: []byte("bootstrap: {deadline: never}\n")},
	)
	var ps strictyaml.Problems
	if !errors.As(err, &ps) || len(ps) != 3 {
		t.Fatalf("got %v", err)
	}
	if ps[0].File != "a.yaml" || ps[1].File != "b.yaml" || ps[2].File != "a.yaml" {
		t.Errorf("got %v", ps)
	}
}

func TestDefaults(t *testing.T) {
	in := settings.Settings{Report: settings.Report{S3: settings.S3Sink{Bucket: "b"}}, Config: []settings.Object{{Source: "s3://bucket/k", Path: "/k"}}}
	s := in.WithDefaults()
	if s.Bootstrap.Deadline != 10*time.Minute || s.Report.S3.Prefix != "lecafe-reports" || !*s.Report.Console ||
		s.Config[0].MaxBytes != 1<<20 || s.Config[0].Mode != "0640" || s.Orders.Group != "lecafe-orders" || s.Orders.MaxBytes != 1<<30 {
		t.Errorf("got %+v", s)
	}
	if in.Config[0].Mode != "" {
		t.Error("the input was changed")
	}
}

func TestFiles(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := settings.Files(root); err != nil || len(got) != 0 {
		t.Fatalf("an empty root gave %v, %v", got, err)
	}
	write("/etc/lecafe/agent.d/20-b.yaml", "b")
	write("/etc/lecafe/agent.d/10-a.yaml", "a")
	write("/etc/lecafe/agent.d/ignored.txt", "x")
	write("/etc/lecafe/agent.yaml", "first")
	got, err := settings.Files(root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range got {
		names = append(names, s.Name)
	}
	if d := cmp.Diff([]string{"/etc/lecafe/agent.yaml", "/etc/lecafe/agent.d/10-a.yaml", "/etc/lecafe/agent.d/20-b.yaml"}, names); d != "" {
		t.Error(d)
	}
}

func zip(b string) string {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write([]byte(b))
	_ = w.Close()
	return out.String()
}

func multipart(parts ...string) string {
	var b strings.Builder
	b.WriteString("Content-Type: multipart/mixed; boundary=\"XX\"\nMIME-Version: 1.0\n\n")
	for _, p := range parts {
		b.WriteString("--XX\n" + p + "\n")
	}
	b.WriteString("--XX--\n")
	return b.String()
}

func TestFromUserData(t *testing.T) {
	s, err := settings.Decode(settings.Source{Name: "whole", Data: []byte(whole)})
	if err != nil {
		t.Fatal(err)
	}
	part := settings.Render(s)
	const head = "Content-Type: text/cloud-boothook\nContent-Disposition: attachment; filename=\"lecafe-agent.sh\"\n"
	script := "Content-Type: text/x-shellscript\nContent-Disposition: attachment; filename=\"user.sh\"\n\n#!/bin/sh\necho hi"
	for name, payload := range map[string]string{
		"alone":             part,
		"multi-part":        multipart(script, head+"\n"+part),
		"CRLF":              strings.ReplaceAll(multipart(script, head+"\n"+part), "\n", "\r\n"),
		"gzip":              zip(multipart(script, head+"\n"+part)),
		"base64 part":       multipart(head+"Content-Transfer-Encoding: base64\n\n"+base64.StdEncoding.EncodeToString([]byte(part)), script),
		"gzip part":         multipart(head+"Content-Transfer-Encoding: base64\n\n"+base64.StdEncoding.EncodeToString([]byte(zip(part))), script),
		"nested":            multipart("Content-Type: multipart/mixed; boundary=YY\n\n--YY\n" + head + "\n" + part + "\n--YY--\n"),
		"no end boundary":   strings.TrimSuffix(multipart(script, head+"\n"+part+"\n--XX\nContent-Type: text/plain\n\nx"), "--XX--\n"),
		"in a plain script": "#!/bin/bash\necho first\n" + part,
	} {
		t.Run(name, func(t *testing.T) {
			yaml, ok, err := settings.FromUserData([]byte(payload))
			if err != nil || !ok {
				t.Fatalf("ok %v, %v", ok, err)
			}
			got, err := settings.Decode(settings.Source{Name: "u", Data: yaml})
			if err != nil {
				t.Fatalf("%v in\n%s", err, yaml)
			}
			if d := cmp.Diff(s, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestFromUserDataLine(t *testing.T) {
	payload := "#!/bin/sh\necho\n" + settings.UserDataBegin + "\norders: {queue: a b}\n" + settings.UserDataEnd + "\n"
	src, ok, err := settings.SourceFromUserData([]byte(payload))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	_, err = settings.Decode(src)
	if err == nil || !strings.HasPrefix(err.Error(), "user-data:4:17: orders.queue") {
		t.Errorf("got %v", err)
	}
}

func TestFromUserDataWithout(t *testing.T) {
	for _, payload := range []string{"", "#!/bin/sh\necho hi\n", "#cloud-config\nruncmd: [ls]\n", multipart("Content-Type: text/plain\n\nx"), "\x00\xff\xfe"} {
		if yaml, ok, err := settings.FromUserData([]byte(payload)); ok || err != nil {
			t.Errorf("%q gave %q, %v", payload, yaml, err)
		}
	}
}

func TestFromUserDataBroken(t *testing.T) {
	part := settings.Render(settings.Settings{})
	for name, payload := range map[string]string{
		"no end":      "#!/bin/sh\n" + settings.UserDataBegin + "\norders: {}\n",
		"broken gzip": "\x1f\x8bnot gzip",
		"two parts":   multipart("Content-Type: text/x-shellscript\n\n"+part, "Content-Type: text/x-shellscript\n\n"+part),
	} {
		if _, _, err := settings.FromUserData([]byte(payload)); !errors.Is(err, settings.ErrUserData) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestRenderIsABoothookThatDoesNothing(t *testing.T) {
	text := settings.Render(settings.Settings{Orders: settings.Orders{Queue: "q"}})
	if !strings.HasPrefix(text, "#cloud-boothook\n#!/bin/sh\n") || !strings.HasSuffix(text, "\n"+settings.UserDataEnd+"\n") {
		t.Errorf("got %s", text)
	}
}

func FuzzFromUserData(f *testing.F) {
	f.Add([]byte(multipart("Content-Type: text/x-shellscript\n\n" + settings.Render(settings.Settings{}))))
	f.Add([]byte(zip("#!/bin/sh\n" + settings.UserDataBegin + "\nx\n" + settings.UserDataEnd)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		src, ok, err := settings.SourceFromUserData(payload)
		if ok && err == nil {
			_, _ = settings.Decode(src)
		}
	})
}
