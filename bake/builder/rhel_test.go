package builder_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/bake/builder"
)

// TestFinishOnRHEL does the end of another tool's build on a tree of the RHEL
// family: SELinux contexts set, dnf's and subscription-manager's traces gone.
func TestFinishOnRHEL(t *testing.T) {
	s := newStage(t)
	for path, content := range map[string]string{
		"etc/os-release":                                   "NAME=\"Red Hat Enterprise Linux\"\nID=\"rhel\"\nID_LIKE=\"fedora\"\nVERSION_ID=\"9.4\"\n",
		"sys/fs/selinux/enforce":                           "1",
		"usr/lib/systemd/system/sshd.service":              "[Service]\nExecStart=/usr/sbin/sshd -D\n",
		"usr/bin/lecafe-agent":                             "program",
		"var/cache/dnf/packages.solv":                      "cache",
		"var/log/dnf.log":                                  "installed\n",
		"var/lib/dhclient/dhclient--eth0.lease":            "lease {}\n",
		"etc/sysconfig/network-scripts/ifcfg-lo":           "DEVICE=lo\n",
		"etc/yum.repos.d/redhat.repo":                      "[rhel-9]\n",
		"var/log/audit/audit.log":                          "type=LOGIN\n",
		"home/ec2-user/.ssh/authorized_keys":               "ssh-ed25519 AAAA\n",
		"etc/NetworkManager/NetworkManager.conf":           "[main]\n",
		"var/lib/NetworkManager/secret_key":                "secret",
		"etc/systemd/system/multi-user.target.wants/.keep": "",
	} {
		s.file(path, content)
	}
	bin := t.TempDir()
	for name, body := range map[string]string{
		"restorecon": `echo "restorecon $*" >>"$LECAFE_TEST_CALLS"`,
		"dnf":        `echo "dnf $*" >>"$LECAFE_TEST_CALLS"`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	agent := filepath.Join(bin, "agent")
	if err := os.WriteFile(agent, []byte(agentProgram), 0o755); err != nil {
		t.Fatal(err)
	}
	b := &builder.Builder{Dir: s.dir, Root: s.root, Log: slog.New(slog.DiscardHandler)}
	found, err := b.Finish(t.Context(), builder.Local{Agent: agent, Settings: "orders: {queue: q}\n"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("found: %s", f)
	}
	calls := s.calls()
	if !strings.Contains(calls, "agent install --root "+s.root) || !strings.Contains(calls, "restorecon -RF "+filepath.Join(s.root, "usr/bin/lecafe-agent")+" "+filepath.Join(s.root, "etc/lecafe")) {
		t.Errorf("calls:\n%s", calls)
	}
	for _, path := range []string{"var/cache/dnf/packages.solv", "var/log/dnf.log", "var/lib/dhclient/dhclient--eth0.lease", "var/log/audit/audit.log", "home/ec2-user/.ssh/authorized_keys", "var/lib/NetworkManager/secret_key"} {
		if data, err := os.ReadFile(filepath.Join(s.root, path)); err == nil && len(data) > 0 {
			t.Errorf("%s is left", path)
		}
	}
	for _, path := range []string{"etc/os-release", "usr/lib/systemd/system/sshd.service", "etc/yum.repos.d/redhat.repo"} {
		if _, err := os.Stat(filepath.Join(s.root, path)); err != nil {
			t.Errorf("%s is gone", path)
		}
	}
	// Without SELinux nobody asks for it.
	if err := os.Remove(filepath.Join(s.root, "sys/fs/selinux/enforce")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Finish(t.Context(), builder.Local{Agent: agent}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(s.calls(), "restorecon"); n != 1 {
		t.Errorf("restorecon ran %d times, want once", n)
	}
}
