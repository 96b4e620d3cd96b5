package lecafe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// machine answers a provisioner as a machine does.
type machine struct {
	packersdk.MockCommunicator // what is not called here

	uname    string
	findings string // what lecafe-builder writes to stdout
	stderr   string
	code     int // of lecafe-builder
	commands []string
	uploads  map[string]string
}

func (m *machine) Start(_ context.Context, c *packersdk.RemoteCmd) error {
	m.commands = append(m.commands, c.Command)
	out, errs, code := "", "", 0
	switch {
	case strings.Contains(c.Command, "uname"):
		out = m.uname
	case strings.Contains(c.Command, "lecafe-builder finish"):
		out, errs, code = m.findings, m.stderr, m.code
	}
	_, err := io.WriteString(c.Stdout, out)
	_, err2 := io.WriteString(c.Stderr, errs)
	c.SetExited(code)
	return errors.Join(err, err2)
}

func (m *machine) Upload(path string, r io.Reader, _ *os.FileInfo) error {
	data, err := io.ReadAll(r)
	if m.uploads == nil {
		m.uploads = map[string]string{}
	}
	m.uploads[filepath.Base(path)] = string(data)
	return err
}

// tools makes a directory of what passes for lecafe's programs.
func tools(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		header := make([]byte, 64)
		copy(header, "\x7fELF")
		header[18] = 62
		if strings.HasSuffix(name, "arm64") {
			header[18] = 183
		}
		if err := os.WriteFile(filepath.Join(dir, name), append(header, name...), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func provision(t *testing.T, m *machine, config map[string]any) (string, error) {
	t.Helper()
	p := new(Provisioner)
	if err := p.Prepare(config); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := p.Provision(t.Context(), &packersdk.BasicUi{Reader: new(bytes.Buffer), Writer: &out, ErrorWriter: &out}, m, nil)
	return out.String(), err
}

func TestProvision(t *testing.T) {
	both := tools(t, "lecafe-builder", "lecafe-agent", "lecafe-builder-linux-arm64", "lecafe-agent-linux-arm64")
	t.Run("amd64 with sudo", func(t *testing.T) {
		m := &machine{uname: "x86_64\n1000\n"}
		if out, err := provision(t, m, map[string]any{"programs": both, "settings_content": "orders: {queue: q}\n", "keep": []string{"swap", "hostname"}, "zero_free_space": true}); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		last := m.commands[len(m.commands)-1]
		for _, want := range []string{"sudo -n /tmp/lecafe-", "/lecafe-builder finish --agent /tmp/", "/agent.yaml", "--keep swap,hostname", "--zero-free-space"} {
			if !strings.Contains(last, want) {
				t.Errorf("the command lacks %q: %s", want, last)
			}
		}
		if m.uploads["agent.yaml"] != "orders: {queue: q}\n" || !strings.HasSuffix(m.uploads["lecafe-builder"], "lecafe-builder") {
			t.Errorf("uploads: %q", m.uploads)
		}
	})
	t.Run("arm64 of the RHEL family", func(t *testing.T) {
		m := &machine{uname: "aarch64\n1000\n"}
		if out, err := provision(t, m, map[string]any{"programs": both}); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if !strings.HasSuffix(m.uploads["lecafe-builder"], "lecafe-builder-linux-arm64") || !strings.HasSuffix(m.uploads["lecafe-agent"], "lecafe-agent-linux-arm64") {
			t.Errorf("uploads: %q", m.uploads)
		}
		// ec2-user may use sudo, and sudo finds no program of /tmp in secure_path:
		// programs are run by their whole path, after being made executable.
		if last := m.commands[len(m.commands)-1]; !strings.Contains(last, "chmod 0755 /tmp/lecafe-") || !strings.Contains(last, "sudo -n /tmp/lecafe-") {
			t.Errorf("command: %s", last)
		}
	})
	t.Run("arm64 as root, no agent", func(t *testing.T) {
		m := &machine{uname: "aarch64\n0\n"}
		if out, err := provision(t, m, map[string]any{"programs": both, "skip_agent": true}); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if last := m.commands[len(m.commands)-1]; strings.Contains(last, "sudo") || strings.Contains(last, "--agent") {
			t.Errorf("command: %s", last)
		}
		if len(m.uploads) != 1 || !strings.HasSuffix(m.uploads["lecafe-builder"], "arm64") {
			t.Errorf("uploads: %q", m.uploads)
		}
	})
	t.Run("findings", func(t *testing.T) {
		m := &machine{uname: "x86_64\n0\n", code: 1, findings: `{"path":"/opt/key.pem","line":1,"rule":"private-keys","why":"everybody's"}` + "\n"}
		out, err := provision(t, m, map[string]any{"programs": both})
		if err == nil || !strings.Contains(err.Error(), "1 finding:") || !strings.Contains(out, "/opt/key.pem:1: private-keys") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	for name, c := range map[string]struct {
		m    *machine
		dir  string
		want string
	}{
		"failure":      {&machine{uname: "x86_64\n0\n", code: 1, stderr: "no space left\n"}, both, "exit code 1: no space left"},
		"architecture": {&machine{uname: "riscv64\n0\n"}, both, "the machine is riscv64"},
		"no unix":      {&machine{uname: "what?\n"}, both, "it must be Linux"},
		"no program":   {&machine{uname: "aarch64\n0\n"}, tools(t, "lecafe-builder", "lecafe-agent"), "no lecafe-builder for linux/arm64"},
		"no agent": {
			&machine{uname: "aarch64\n0\n"}, tools(t, "lecafe-builder-linux-arm64", "lecafe-agent"),
			"lecafe-agent is for linux/amd64); build it with GOOS=linux GOARCH=arm64 as lecafe-agent-linux-arm64, and set programs to its directory",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := provision(t, c.m, map[string]any{"programs": c.dir}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if strings.HasPrefix(name, "no ") && len(c.m.uploads) > 0 {
				t.Errorf("uploaded %v to a machine that cannot run it", c.m.uploads)
			}
		})
	}
}
