package userdata_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/userdata"
	"github.com/lecafe/lecafe/userdata/trap"
)

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func TestWrapKeepsWhatThePayloadDoes(t *testing.T) {
	payload := []byte("Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\nContent-Type: text/cloud-config\n\n#cloud-config\npackages: [jq]\n--b\nContent-Type: text/x-shellscript\n\n#!/bin/bash\nset -e\nfalse\n--b\nContent-Type: text/x-shellscript\nContent-Disposition: attachment; filename=\"z.sh\"\n\n#!/bin/sh\nfalse\ntrue\n--b\nContent-Type: text/x-shellscript\n\n#!/usr/bin/python3\nprint()\n--b--\n")
	object := userdata.Object{Bucket: "tools", Key: "lecafe-agent", SHA256: sum(nil)}
	out, err := userdata.Wrap(userdata.WrapInput{Payload: payload, Settings: &settings.Settings{}, Agents: map[string]userdata.Object{"x86_64": object}})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) > userdata.MaxBytes {
		t.Errorf("%d bytes", len(out))
	}
	if !bytes.HasPrefix(out, []byte("Content-Type: multipart/")) {
		t.Error("compressed although there is room")
	}
	t.Logf("%d bytes for a payload of %d", len(out), len(payload))
	p, err := userdata.Parse(out)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, part := range p.Parts {
		names = append(names, part.Name)
	}
	if diff := cmp.Diff([]string{settings.UserDataPart, "lecafe-install.sh", "part-001", "part-002", "z.sh", "part-004"}, names); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
	bash, sh, python := string(p.Parts[3].Body), string(p.Parts[4].Body), string(p.Parts[5].Body)
	if lines := strings.Split(bash, "\n"); !strings.HasPrefix(lines[1], ". "+trap.LibraryPath) || !strings.HasSuffix(lines[1], "set -e") || lines[2] != "false" {
		t.Errorf("bash script became %q", bash)
	}
	if lines := strings.Split(sh, "\n"); !strings.HasSuffix(lines[1], "; false") || !strings.HasSuffix(lines[2], "; true") {
		t.Errorf("sh script became %q", sh)
	}
	if python != "#!/usr/bin/python3\nprint()" {
		t.Errorf("python script became %q", python)
	}
	for _, f := range userdata.Lint(out, userdata.Options{}) {
		if f.Severity == userdata.Error {
			t.Errorf("lint: %+v", f)
		}
	}
}

// A payload that fills EC2's limit by itself leaves room for what wraps it.
func TestWrapLargePayload(t *testing.T) {
	payload := []byte("#!/bin/bash\nset -e\n" + strings.Repeat("install -D -m 644 /opt/menu/espresso.txt /srv/menu/espresso.txt\n", 240))
	out, err := userdata.Wrap(userdata.WrapInput{Payload: payload, Agents: map[string]userdata.Object{"x86_64": {Bucket: "tools", Key: "lecafe-agent", SHA256: sum(nil)}}})
	if err != nil || len(out) > userdata.MaxBytes {
		t.Fatalf("%d bytes, %v", len(out), err)
	}
	p, err := userdata.Parse(out)
	if err != nil || len(p.Parts) != 2 || !bytes.Contains(p.Parts[1].Body, bytes.TrimSpace(payload[len("#!/bin/bash\nset -e\n"):])) {
		t.Errorf("%d parts, %v", len(p.Parts), err)
	}
}

func TestWrapRefuses(t *testing.T) {
	good := userdata.Object{Bucket: "b", Key: "k", SHA256: sum(nil)}
	for name, in := range map[string]userdata.WrapInput{
		"no agent":       {Payload: []byte("#!/bin/sh\n")},
		"no digest":      {Payload: []byte("#!/bin/sh\n"), Agents: map[string]userdata.Object{"x86_64": {Bucket: "b", Key: "k"}}},
		"dropped part":   {Payload: []byte("echo hi\n"), Agents: map[string]userdata.Object{"x86_64": good}},
		"broken payload": {Payload: []byte{0x1f, 0x8b, 0}, Agents: map[string]userdata.Object{"x86_64": good}},
	} {
		if out, err := userdata.Wrap(in); err == nil {
			t.Errorf("%s: %q", name, out)
		}
	}
}

// instance runs the programs of a boothook as an instance would: against IMDS
// and S3, with its files below root.
type instance struct {
	t     *testing.T
	root  string
	cloud *cloudtest.Cloud
	imds  string
}

func newInstance(t *testing.T, policy string) *instance {
	c := cloudtest.New(t, cloud.Options{})
	c.S3.CreateBucket("tools", "us-east-1")
	if err := c.PutRolePolicy("app", "all", policy); err != nil {
		t.Fatal(err)
	}
	s := imds.New(imds.Instance{Role: "app", Credentials: func(d time.Duration) wire.Credentials {
		return c.Vault.Vend("app", "i-0123456789abcdef0", d)
	}})
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	root := t.TempDir()
	for _, dir := range []string{"var/lib/lecafe", "scripts", "boothooks"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &instance{t, root, c, server.URL}
}

const readTools = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::tools/*"}]}`

func (i *instance) put(key string, body []byte) userdata.Object {
	i.t.Helper()
	_, err := s3.NewFromConfig(i.cloud.Config(), func(o *s3.Options) { o.UsePathStyle = true }).PutObject(i.t.Context(), &s3.PutObjectInput{Bucket: aws.String("tools"), Key: &key, Body: bytes.NewReader(body)})
	if err != nil {
		i.t.Fatal(err)
	}
	return userdata.Object{Bucket: "tools", Key: key, SHA256: sum(body)}
}

// run executes the fetch program that stands in the boothook of payload, in
// the mode given, with the file of settings that stands there too.
func (i *instance) run(payload []byte, mode string) (output string, err error) {
	i.t.Helper()
	p, err := userdata.Parse(payload)
	if err != nil {
		i.t.Fatal(err)
	}
	hook := string(p.Parts[len(p.Parts)-1].Body)
	for _, part := range p.Parts {
		if part.Kind == userdata.KindBoothook {
			hook = string(part.Body)
		}
	}
	cut := func(name string) string {
		if _, rest, ok := strings.Cut(hook, "<<'LECAFE_END' | gzip -d > /usr/lib/lecafe/"+name+"\n"); ok {
			text, _, _ := strings.Cut(rest, "\nLECAFE_END\n")
			c := exec.CommandContext(i.t.Context(), "sh", "-c", "base64 -d | gzip -d")
			c.Stdin = strings.NewReader(text)
			out, err := c.Output()
			if err != nil {
				i.t.Fatalf("unpack %s: %v", name, err)
			}
			return string(out)
		}
		_, rest, ok := strings.Cut(hook, name+" <<'LECAFE_END'\n")
		text, _, ok2 := strings.Cut(rest, "\nLECAFE_END\n")
		if !ok || !ok2 {
			i.t.Fatalf("%s does not stand in %s", name, hook)
		}
		return text
	}
	program := strings.NewReplacer("http://169.254.169.254/", i.imds+"/", "/var/lib/lecafe", filepath.Join(i.root, "var/lib/lecafe")).Replace(cut("fetch.py"))
	spec := make(map[string]any)
	if err := json.Unmarshal([]byte(cut(".json")), &spec); err != nil {
		i.t.Fatal(err)
	}
	spec["instance"], spec["config"] = i.root, filepath.Join(i.root, "cloud.cfg")
	doc, err := json.Marshal(spec)
	if err != nil {
		i.t.Fatal(err)
	}
	for name, text := range map[string]string{"fetch.py": program, "spec.json": string(doc)} {
		if err := os.WriteFile(filepath.Join(i.root, name), []byte(text), 0o600); err != nil {
			i.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(i.t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "python3", filepath.Join(i.root, "fetch.py"), mode, filepath.Join(i.root, "spec.json")).CombinedOutput()
	return string(out), err
}

func TestWrappedPayloadInstallsTheAgent(t *testing.T) {
	i := newInstance(t, readTools)
	agent := i.put("bin/lecafe agent+1", []byte("#!/bin/sh\necho \"$@\" > "+i.root+"/installed\n"))
	in := userdata.WrapInput{Payload: []byte("#!/bin/bash\ntrue\n"), Agents: map[string]userdata.Object{"x86_64": agent, "aarch64": agent}, Access: userdata.Access{Endpoint: i.cloud.URL}}
	out, err := userdata.Wrap(in)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := i.run(out, "install"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(i.root, "installed"))
	if err != nil || string(got) != "install --root / --now\n" {
		t.Errorf("installed %q, %v", got, err)
	}

	// Another program at the same key is not run.
	i.put("bin/lecafe agent+1", []byte("#!/bin/sh\ntouch "+i.root+"/evil\n"))
	output, err := i.run(out, "install")
	if err == nil || !strings.Contains(output, "pinned by SHA-256") {
		t.Errorf("%v\n%s", err, output)
	}
	if _, err := os.Stat(filepath.Join(i.root, "evil")); err == nil {
		t.Error("a program that is not the pinned one ran")
	}
}

func TestPackedPayload(t *testing.T) {
	i := newInstance(t, readTools)
	big := "#!/bin/bash\necho big\n" + strings.Repeat("# a payload that is too large\n", 2000)
	original := []byte("Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\nContent-Type: text/cloud-config\n\n#cloud-config\npackages: [jq]\n--b\nContent-Type: text/cloud-boothook\nContent-Disposition: attachment; filename=\"lecafe-agent.sh\"\n\n" + settings.Render(settings.Settings{}) + "\n--b\nContent-Type: text/x-shellscript\n\n" + big + "\n--b\nContent-Type: text/cloud-boothook\n\n#cloud-boothook\n#!/bin/sh\ntouch " + i.root + "/hooked\n--b--\n")
	bundle, err := userdata.Pack(original)
	if err != nil {
		t.Fatal(err)
	}
	object := i.put("payloads/1", bundle)
	loader, err := userdata.Loader(userdata.LoaderInput{Payload: object, Access: userdata.Access{Endpoint: i.cloud.URL}, Original: original})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the loader has %d bytes", len(loader))
	if len(loader) > userdata.MaxBytes {
		t.Errorf("the loader has %d bytes", len(loader))
	}
	if _, ok, err := settings.FromUserData(loader); !ok || err != nil {
		t.Errorf("settings in the loader: %v, %v", ok, err)
	}
	if err := os.WriteFile(filepath.Join(i.root, "cloud.cfg"), []byte("datasource_list: [ Ec2 ]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if exec.CommandContext(t.Context(), "python3", "-c", "import yaml").Run() != nil {
		t.Skip("python3 has no yaml module here, which every image with cloud-init has")
	}
	if out, err := i.run(loader, "unpack"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(i.root, "scripts", "part-003")); err != nil || string(got) != big {
		t.Errorf("script: %v, %d bytes of %d", err, len(got), len(big))
	}
	if got, err := os.ReadFile(filepath.Join(i.root, "cloud.cfg")); err != nil || !strings.Contains(string(got), "jq") || !strings.Contains(string(got), "Ec2") {
		t.Errorf("config: %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(i.root, "hooked")); err != nil {
		t.Error("the boothook did not run")
	}
}

func TestPackedPayloadThatIsNotThereFails(t *testing.T) {
	i := newInstance(t, readTools)
	object := i.put("payloads/1", []byte("{}"))
	i.put("payloads/1", []byte(`{"scripts":[],"config":[],"hooks":["evil"]}`))
	loader, err := userdata.Loader(userdata.LoaderInput{Payload: object, Access: userdata.Access{Endpoint: i.cloud.URL}})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := i.run(loader, "unpack"); err == nil {
		t.Errorf("no error: %s", out)
	}
	// What cloud-init would only log, a script makes a failure of.
	c := exec.CommandContext(t.Context(), filepath.Join(i.root, "scripts", "000-lecafe-payload"))
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "could not be fetched") {
		t.Errorf("%v: %s", err, out)
	}
}
