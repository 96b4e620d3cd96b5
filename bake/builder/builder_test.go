package builder_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/builder"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
)

// stage plays S3 and a machine: a root directory, the tools of an image, and
// the objects that the CLI staged.
type stage struct {
	t       *testing.T
	root    string
	dir     string
	url     string
	plan    manifest.Plan
	files   map[string]string // of the bundle
	mu      sync.Mutex
	puts    map[string][]byte
	serials int
	refuse  int // answers 503 this often first
	onPut   func(path string, body []byte)
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, root: t.TempDir(), dir: t.TempDir(), files: map[string]string{}, puts: map[string][]byte{}}
	s.plan = manifest.Plan{BakeID: "bake-1", Recipe: "app", Names: map[string]string{}, Settings: "report: {console: true}\n"}
	srv := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(srv.Close)
	s.url = srv.URL
	s.file("var/lib/lecafe-builder-test", "")
	for path, content := range map[string]string{"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/passwd": "root:x:0:0:root:/root:/bin/bash\n", "etc/ssh/ssh_host_rsa_key": "key", "var/log/syslog": "old\n"} {
		s.file(path, content)
	}
	bin := t.TempDir()
	tools := map[string]string{
		"systemctl": `echo "systemctl $*" >>"$LECAFE_TEST_CALLS"` + "\n" + `case $1 in show) printf 'LoadState=loaded\nActiveState=active\nSubState=exited\n';; esac`,
		"apt-get":   `echo "apt-get $*" >>"$LECAFE_TEST_CALLS"` + "\n" + `case "$*" in *" nosuch"*) echo "E: Unable to locate package nosuch" >&2; exit 100;; esac`,
	}
	for name, body := range tools {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("LECAFE_TEST_CALLS", filepath.Join(s.dir, "calls"))
	if err := os.WriteFile(filepath.Join(s.dir, "url"), []byte(s.url+"/manifest?serial=0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stage) file(path, content string) {
	s.t.Helper()
	p := filepath.Join(s.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

const agentProgram = "#!/bin/sh\necho \"agent $*\" >>\"$LECAFE_TEST_CALLS\"\n"

func (s *stage) bundle() []byte {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	plan, err := json.Marshal(s.plan)
	if err != nil {
		s.t.Fatal(err)
	}
	files := map[string]string{manifest.PlanName: string(plan)}
	for k, v := range s.files {
		files[k] = v
	}
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(content))}); err != nil {
			s.t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		s.t.Fatal(err)
	}
	return buf.Bytes()
}

func (s *stage) entry(path string, data []byte) manifest.File {
	sum := sha256.Sum256(data)
	return manifest.File{URL: s.url + path, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(data))}
}

func (s *stage) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse > 0 {
		s.refuse--
		http.Error(w, "slow down", http.StatusServiceUnavailable)
		return
	}
	switch {
	case r.Method == http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			s.t.Error(err)
		}
		s.puts[r.URL.Path] = body
		if s.onPut != nil {
			s.onPut(r.URL.Path, body)
		}
	case r.URL.Path == "/manifest":
		s.serials++
		m := manifest.Manifest{
			Schema: manifest.Schema, BakeID: s.plan.BakeID, Serial: s.serials, Deadline: time.Now().Add(time.Hour),
			Self: s.url + "/manifest?serial=next", Agent: s.entry("/agent", []byte(agentProgram)), Bundle: s.entry("/bundle", s.bundle()),
			Progress: s.url + "/progress?sig=1", Result: s.url + "/result?sig=1",
		}
		if err := json.NewEncoder(w).Encode(m); err != nil {
			s.t.Error(err)
		}
	case r.URL.Path == "/agent":
		_, _ = io.WriteString(w, agentProgram)
	case r.URL.Path == "/bundle":
		_, _ = w.Write(s.bundle())
	default:
		http.NotFound(w, r)
	}
}

func (s *stage) run() error {
	b := &builder.Builder{Dir: s.dir, Root: s.root, IMDS: s.url + "/no-imds", HTTP: http.DefaultClient, Log: slog.New(slog.NewTextHandler(s.t.Output(), nil))}
	return b.Run(s.t.Context())
}

func (s *stage) result() manifest.Result {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var res manifest.Result
	if err := json.Unmarshal(s.puts["/result"], &res); err != nil {
		s.t.Fatalf("result %q: %v", s.puts["/result"], err)
	}
	return res
}

func (s *stage) calls() string {
	data, err := os.ReadFile(filepath.Join(s.dir, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	return string(data)
}

// bundled names a file of the recipe in the bundle.
func (s *stage) bundled(name, content string) string {
	in := "files/" + filepath.Base(name)
	s.files[in], s.plan.Names[in] = content, name
	return in
}

func TestProvision(t *testing.T) {
	s := newStage(t)
	s.refuse = 2 // S3 may be busy
	s.plan.Steps = []recipe.Step{
		{Packages: &recipe.Packages{Install: []string{"jq"}, Remove: []string{"nano"}}},
		{Files: []recipe.File{
			{Path: "/opt/app/config.env", Content: "APP=lecafe\n", Mode: "0640"},
			{Path: "/opt/app/run", Source: s.bundled("run", "#!/bin/sh\n"), Mode: "0755"},
		}},
		{Script: s.bundled("scripts/setup.sh", "#!/bin/bash\necho \"$GREETING\" >greeting\n"), Env: map[string]string{"GREETING": "bonjour"}},
		{Run: "false || true\necho inline >inline\n"},
		{Units: &recipe.Units{Enable: []string{"app.service"}, Mask: []string{"x.timer"}}},
	}
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	res := s.result()
	if res.Report.Verdict != report.Success || len(res.Steps) != 5 || res.BakeID != "bake-1" || res.Report.Kind != report.KindBuild {
		t.Fatalf("result %+v", res)
	}
	for path, want := range map[string]string{"greeting": "bonjour\n", "inline": "inline\n", "opt/app/config.env": "APP=lecafe\n", "etc/lecafe/agent.yaml": "report: {console: true}\n", "etc/machine-id": ""} {
		got, err := os.ReadFile(filepath.Join(s.root, path))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(s.root, "opt/app/run")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("run: %v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(s.root, "etc/ssh/ssh_host_rsa_key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host key is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(s.root, manifest.LastHook)); err != nil {
		t.Errorf("no last hook: %v", err)
	}
	for _, want := range []string{"update", "purge -- nano", "install -- jq", "systemctl enable -- app.service", "systemctl mask --now -- x.timer", "agent install --root " + s.root} {
		if !strings.Contains(s.calls(), want) {
			t.Errorf("no %q among the calls\n%s", want, s.calls())
		}
	}
	if err := s.run(); err != nil { // started again, it has nothing to do
		t.Error(err)
	}
}

func TestFailedStepSaysWhere(t *testing.T) {
	for name, c := range map[string]struct {
		step          func(s *stage) recipe.Step
		file, command string
		line, code    int
		output        string
	}{
		"script": {
			func(s *stage) recipe.Step {
				return recipe.Step{Name: "set up", Script: s.bundled("scripts/setup.sh", "#!/bin/bash\nf() {\n  ls /nonexistent-xyz\n}\nDB_PASSWORD=hunter2; echo \"DB_PASSWORD=$DB_PASSWORD\"\nf\necho never\n")}
			}, "scripts/setup.sh", "ls /nonexistent-xyz", 3, 2, "nonexistent-xyz",
		},
		"run": {
			func(*stage) recipe.Step { return recipe.Step{Run: "echo one\ntrue\n(exit 7)\n"} }, "run", "( exit 7 )", 3, 7, "one",
		},
		"sh": {
			func(s *stage) recipe.Step {
				return recipe.Step{Script: s.bundled("a.sh", "#!/bin/sh\necho plain\nfalse\necho never\n")}
			}, "a.sh", "", 0, 1, "plain",
		},
		"explicit exit": {
			func(*stage) recipe.Step { return recipe.Step{Run: "echo leaving\nexit 9\n"} }, "run", "", 0, 9, "leaving",
		},
		"python": {
			func(s *stage) recipe.Step {
				return recipe.Step{Script: s.bundled("a.py", "#!/usr/bin/env python3\nimport sys\nprint('snake')\nsys.exit(4)\n")}
			}, "a.py", "", 0, 4, "snake",
		},
		"package": {
			func(*stage) recipe.Step {
				return recipe.Step{Packages: &recipe.Packages{Install: []string{"nosuch"}}}
			}, "", "", 0, 100, "Unable to locate package nosuch",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.plan.Steps = []recipe.Step{{Run: "true"}, c.step(s), {Run: "touch after"}}
			if err := s.run(); err != nil {
				t.Fatal(err)
			}
			res := s.result()
			if res.Report.Verdict != report.Failure || len(res.Steps) != 2 {
				t.Fatalf("result %+v", res)
			}
			got := res.Steps[1]
			if got.File != c.file || got.Line != c.line || got.Command != c.command || got.ExitCode != c.code {
				t.Errorf("step %+v", got)
			}
			out := strings.Join(got.Output, "\n")
			if !strings.Contains(out, c.output) || strings.Contains(out, "hunter2") || strings.Contains(out, "never") {
				t.Errorf("output %q", out)
			}
			if cause := res.Report.Causes[0]; cause.Code != report.CodeBuildStep || *cause.ExitCode != c.code {
				t.Errorf("cause %+v", cause)
			}
			if _, err := os.Stat(filepath.Join(s.root, "after")); err == nil {
				t.Error("the step after the failed one ran")
			}
		})
	}
}

// A reboot step ends Run; in the next boot the builder goes on behind it.
func TestRebootResumes(t *testing.T) {
	s := newStage(t)
	s.plan.Steps = []recipe.Step{{Run: "echo 1 >>log"}, {Reboot: true}, {Run: "echo 2 >>log"}}
	if err := s.run(); !errors.Is(err, builder.ErrReboot) {
		t.Fatalf("Run: %v, want ErrReboot", err)
	}
	if !strings.Contains(s.calls(), "--no-block reboot") {
		t.Errorf("no reboot among the calls\n%s", s.calls())
	}
	s.otherBoot()
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(s.root, "log")); string(got) != "1\n2\n" {
		t.Errorf("steps left %q", got)
	}
	if res := s.result(); len(res.Steps) != 3 || res.Report.Verdict != report.Success {
		t.Errorf("result %+v", res)
	}
}

// otherBoot makes the state one of an earlier boot.
func (s *stage) otherBoot() {
	s.edit(func(state map[string]any) { state["boot_id"] = "another" })
}

func (s *stage) edit(f func(map[string]any)) {
	s.t.Helper()
	path := filepath.Join(s.dir, "state.json")
	data, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	state := map[string]any{}
	if err := json.Unmarshal(data, &state); err != nil {
		s.t.Fatal(err)
	}
	f(state)
	if data, err = json.Marshal(state); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// A step that was cut off is not done again: it may have done half its work.
func TestInterruptedStepFails(t *testing.T) {
	s := newStage(t)
	s.plan.Steps = []recipe.Step{{Reboot: true}, {Run: "touch twice"}}
	if err := s.run(); !errors.Is(err, builder.ErrReboot) {
		t.Fatal(err)
	}
	s.edit(func(state map[string]any) {
		state["running"] = 2
		state["steps"] = []any{map[string]any{"number": 1, "name": "reboot"}}
	})
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	res := s.result()
	if res.Report.Verdict != report.Failure || len(res.Steps) != 2 || !strings.Contains(res.Steps[1].Output[0], "interrupted") {
		t.Errorf("result %+v", res)
	}
	if _, err := os.Stat(filepath.Join(s.root, "twice")); err == nil {
		t.Error("the step ran again")
	}
}

func TestStepTimeout(t *testing.T) {
	s := newStage(t)
	s.plan.Steps = []recipe.Step{{Run: "echo waiting\nsleep 600 & wait\n", Timeout: 200 * time.Millisecond}}
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	step := s.result().Steps[0]
	if out := strings.Join(step.Output, "\n"); step.ExitCode == 0 || !strings.Contains(out, "timeout of 200ms") {
		t.Errorf("step %+v", step)
	}
}

func TestFindingsFailTheBake(t *testing.T) {
	s := newStage(t)
	s.plan.Steps = []recipe.Step{{Files: []recipe.File{{Path: "/opt/app/id_rsa", Content: "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7bq3\n-----END RSA PRIVATE KEY-----\n"}}}, {Run: "cp /bin/true ./opt/app/become && chmod 4755 ./opt/app/become"}}
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	res := s.result()
	var files []string
	for _, c := range res.Report.Causes {
		if c.Code != report.CodeBuildFindings || strings.Contains(c.Message, "MIIE") {
			t.Errorf("cause %+v", c)
		}
		files = append(files, c.File)
	}
	if res.Report.Verdict != report.Failure || !strings.Contains(strings.Join(files, " "), "/opt/app/id_rsa") || !strings.Contains(strings.Join(files, " "), "/opt/app/become") {
		t.Errorf("findings in %v", files)
	}
}

func TestLastCleansAgain(t *testing.T) {
	s := newStage(t)
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	s.file("var/lib/systemd/random-seed", "seed")
	s.file("var/log/wtmp", "record")
	if err := builder.Last(t.Context(), s.root, s.dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.root, "var/lib/systemd/random-seed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("random seed: %v", err)
	}
	if info, err := os.Stat(filepath.Join(s.root, "var/log/wtmp")); err == nil && info.Size() > 0 {
		t.Error("wtmp still has records")
	}
}

func TestProgressIsSent(t *testing.T) {
	s := newStage(t)
	s.plan.Steps = []recipe.Step{{Name: "wait for the progress", Run: "echo working\ncat seen\nrm seen\n"}}
	seen := filepath.Join(s.root, "seen")
	if err := syscall.Mkfifo(seen, 0o600); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	s.onPut = func(path string, body []byte) {
		var p manifest.Progress
		if path == "/progress" && json.Unmarshal(body, &p) == nil && p.Step == 1 && p.Steps == 1 && p.Name == "wait for the progress" && p.Phase == "provision" {
			once.Do(func() {
				go func() { // until the step reads
					if err := os.WriteFile(seen, nil, 0o600); err != nil {
						t.Error(err)
					}
				}()
			})
		}
	}
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	if res := s.result(); res.Report.Verdict != report.Success {
		t.Errorf("result %+v", res)
	}
}

// Images without apt have dnf.
func TestDnf(t *testing.T) {
	s := newStage(t)
	bin := t.TempDir()
	for _, tool := range []string{"sh", "bash", "env"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range map[string]string{
		"dnf":       `echo "dnf $*" >>"$LECAFE_TEST_CALLS"; case "$*" in *nosuch*) echo "No match for argument: nosuch"; exit 1;; esac`,
		"systemctl": `case $1 in show) printf 'LoadState=not-found\nActiveState=inactive\nSubState=dead\n';; esac`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	s.plan.Steps = []recipe.Step{
		{Packages: &recipe.Packages{Upgrade: true, Install: []string{"jq", "nginx=1.24.0"}, Remove: []string{"nano"}, Files: []string{s.bundled("own.rpm", "rpm")}}},
		{Packages: &recipe.Packages{Install: []string{"nosuch"}}},
	}
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	want := "dnf -y -q upgrade\ndnf -y -q remove nano\ndnf -y -q install jq nginx-1.24.0 " + filepath.Join(s.dir, "bundle/files/own.rpm") + ".rpm\ndnf -y -q install nosuch\n"
	if got := s.calls(); got != want {
		t.Errorf("calls\n%swant\n%s", got, want)
	}
	if step := s.result().Steps[1]; step.ExitCode != 1 || !strings.Contains(strings.Join(step.Output, "\n"), "No match") {
		t.Errorf("step %+v", step)
	}
}
