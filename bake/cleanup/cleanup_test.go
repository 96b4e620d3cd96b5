package cleanup_test

import (
	"crypto/md5"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/bake/cleanup/secrets"
)

const passwd = "root:x:0:0:root:/root:/bin/bash\nadmin:x:1000:1000:Debian:/home/admin:/bin/bash\ncafe:x:1001:1001::/home/cafe:/bin/bash\n"

// key is a private key's form with a body that is no key.
func key(kind string) string {
	return "-----BEGIN " + kind + "-----\n" + strings.Repeat("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=", 4) + "\n-----END " + kind + "-----\n"
}

// cleanTree is what an image's root may look like.
func cleanTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	write(t, root, map[string]string{
		"etc/passwd":               passwd,
		"etc/shadow":               "root:*:19000:0:99999:7:::\nadmin:!:19000:0:99999:7:::\ncafe:!*:19000:0:99999:7:::\n",
		"etc/group":                "root:x:0:\nadmin:x:1000:\nsudo:x:27:admin,cafe\n",
		"etc/gshadow":              "root:*::\nsudo:!::admin,cafe\nusers:::\n",
		"etc/machine-id":           "",
		"etc/hostname":             "localhost\n",
		"etc/hosts":                "127.0.0.1 localhost\n",
		"etc/cloud/cloud.cfg":      "users: [default]\nsystem_info:\n  default_user:\n    name: admin\n",
		"etc/network/interfaces":   "source-directory /etc/network/interfaces.d\n",
		"etc/ssh/sshd_config":      "PermitRootLogin no\n",
		"home/cafe/app.conf":       "port: 8080\n",
		"home/cafe/.bashrc":        "alias ll='ls -l'\n",
		"var/log/README":           "See journalctl\n",
		"var/log/dpkg.log":         "",
		"var/cache/debconf/x.dat":  "Name: tzdata\n",
		"usr/share/doc/keys.txt":   "A key starts with -----BEGIN RSA PRIVATE KEY----- and so on.\n",
		"opt/lecafe/app.py":        "password = os.environ['PASSWORD']\n",
		"var/lib/dhcp/.keep-empty": "",
	})
	if err := os.Remove(filepath.Join(root, "var/lib/dhcp/.keep-empty")); err != nil {
		t.Fatal(err)
	}
	return root
}

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for p, content := range files {
		name := filepath.Join(root, p)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// planted is one kind of leftover a line: the path, what is in it, and the
// rule that must find it.
var planted = []struct{ path, content, rule string }{
	{"etc/ssh/ssh_host_rsa_key", key("OPENSSH PRIVATE KEY"), "ssh-host-keys"},
	{"etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA", "ssh-host-keys"},
	{"root/.ssh/authorized_keys", "ssh-rsa AAAA packer", "ssh-keys"},
	{"home/cafe/.ssh/authorized_keys2", "ssh-rsa AAAA", "ssh-keys"},
	{"home/cafe/.ssh/id_ed25519", key("OPENSSH PRIVATE KEY"), "ssh-keys"},
	{"home/cafe/.ssh/known_hosts", "github.com ssh-rsa AAAA", "ssh-keys"},
	{"home/gone/.ssh/id_rsa", key("RSA PRIVATE KEY"), "ssh-keys"},
	{"root/.aws/credentials", "[default]\n", "cloud-credentials"},
	{"home/cafe/.aws/sso/cache/x.json", "{}", "cloud-credentials"},
	{"root/.config/gcloud/access_tokens.db", "x", "cloud-credentials"},
	{"root/.azure/msal_token_cache.json", "{}", "cloud-credentials"},
	{"root/.kube/config", "apiVersion: v1", "cloud-credentials"},
	{"root/.docker/config.json", "{}", "cloud-credentials"},
	{"root/.vault-token", "hvs.x", "cloud-credentials"},
	{"root/.netrc", "machine x login y password z", "tool-credentials"},
	{"home/cafe/.git-credentials", "https://u:p@example.com", "tool-credentials"},
	{"home/cafe/.npmrc", "//registry/:_authToken=x", "tool-credentials"},
	{"home/cafe/.pypirc", "[pypi]", "tool-credentials"},
	{"home/cafe/.pgpass", "h:5432:d:u:p", "tool-credentials"},
	{"root/.my.cnf", "[client]", "tool-credentials"},
	{"root/.gnupg/private-keys-v1.d/x.key", "x", "tool-credentials"},
	{"etc/skel/.netrc", "machine x", "tool-credentials"},
	{"root/.bash_history", "export TOKEN=x", "histories"},
	{"home/cafe/.python_history", "x", "histories"},
	{"home/cafe/.psql_history", "x", "histories"},
	{"home/cafe/.viminfo", "x", "histories"},
	{"root/.cache/pip/x", "x", "caches"},
	{"var/lib/cloud/instances/i-1/user-data.txt", "#!/bin/sh", "cloud-init"},
	{"var/log/cloud-init-output.log", "x", "cloud-init"},
	{"run/cloud-init/result.json", "{}", "cloud-init"},
	{"etc/netplan/50-cloud-init.yaml", "network: {}", "cloud-init-network"},
	{"etc/sysconfig/network-scripts/ifcfg-eth0", "# Created by cloud-init on instance boot\nHWADDR=x", "cloud-init-network"},
	{"etc/sudoers.d/90-cloud-init-users", "admin ALL=(ALL) NOPASSWD:ALL", "cloud-init-sudoers"},
	{"home/admin/.bashrc", "", "cloud-user"},
	{"var/lib/dhcp/dhclient.eth0.leases", "lease {}", "dhcp-leases"},
	{"var/lib/NetworkManager/internal-x-eth0.lease", "x", "dhcp-leases"},
	{"var/lib/NetworkManager/secret_key", "x", "network-identity"},
	{"etc/udev/rules.d/70-persistent-net.rules", "SUBSYSTEM", "network-identity"},
	{"var/lib/systemd/random-seed", "x", "random-seed"},
	{"var/lib/systemd/credential.secret", "x", "system-credentials"},
	{"var/lib/systemd/timers/stamp-apt-daily.timer", "", "timer-stamps"},
	{"var/lib/systemd/coredump/core.x.zst", "x", "core-dumps"},
	{"var/crash/x.crash", "x", "core-dumps"},
	{"var/lib/amazon/ssm/i-1/registration", "x", "agent-registrations"},
	{"var/lib/ubuntu-advantage/private/machine-token.json", "{}", "agent-registrations"},
	{"etc/pki/consumer/key.pem", key("PRIVATE KEY"), "agent-registrations"},
	{"root/anaconda-ks.cfg", "rootpw x", "installer-leftovers"},
	{"var/cache/apt/archives/jq.deb", "x", "package-caches"},
	{"var/lib/apt/lists/deb.example_dists_bookworm_InRelease", "x", "package-caches"},
	{"var/cache/dnf/x.solv", "x", "package-caches"},
	{"var/cache/debconf/config.dat-old", "x", "debconf"},
	{"var/cache/debconf/passwords.dat", "Name: x", "debconf-passwords"},
	{"etc/shadow-", "root:$6$x:1::::::", "account-backups"},
	{"var/mail/root", "From x", "mail"},
	{"var/spool/cron/atjobs/a0001", "x", "spools"},
	{"tmp/build.sh", "x", "temporary-files"},
	{"var/tmp/.hidden", "x", "temporary-files"},
	{"var/lib/lecafe/boots.json", "{}", "lecafe-state"},
	{"var/lib/dbus/machine-id", "0123", "machine-id"},
	{"var/log/journal/0123/system.journal", "x", "journal"},
	{"var/log/wtmp", "x", "login-logs"},
	{"var/log/btmp", "x", "login-logs"},
	{"var/log/lastlog", "x", "login-logs"},
	{"var/log/syslog", "x", "logs"},
	{"var/log/syslog.1", "", "logs"},
	{"var/log/messages-20261122", "", "logs"},
	{"var/log/apt/term.log", "x", "logs"},
	{"var/log/audit/audit.log", "x", "logs"},
}

// edited are leftovers in files that every image has.
var edited = []struct{ path, content, rule string }{
	{"etc/machine-id", "0123456789abcdef0123456789abcdef\n", "machine-id"},
	{"etc/hostname", "ip-10-0-0-7\n", "hostname"},
	{"etc/hosts", "127.0.0.1 localhost\n127.0.1.1 ip-10-0-0-7.ec2.internal ip-10-0-0-7\n", "hostname"},
	{"etc/shadow", "root:$6$salt$hash:19000:0:99999:7:::\nadmin:!:19000::::::\ncafe::19000::::::\n", "passwords"},
	{"etc/fstab", "/swapfile none swap sw 0 0\n", ""},
	{"swapfile", strings.Repeat("\x00", 4086) + "SWAPSPACE2" + strings.Repeat("secret", 1000), "swap"},
}

func scanner(t *testing.T) cleanup.Scanner {
	t.Helper()
	s, err := secrets.New()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func inspect(t *testing.T, o cleanup.Options) []cleanup.Finding {
	t.Helper()
	found, err := cleanup.Inspect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestCleanTreeHasNoFindings(t *testing.T) {
	if found := inspect(t, cleanup.Options{Root: cleanTree(t), Scanner: scanner(t), SetuidBaseline: []string{}}); len(found) > 0 {
		t.Errorf("a clean tree has findings: %v", found)
	}
}

func TestEveryLeftoverIsFoundAndThenGone(t *testing.T) {
	root := cleanTree(t)
	for _, p := range slices.Concat(planted, edited) {
		write(t, root, map[string]string{p.path: p.content})
	}
	o := cleanup.Options{Root: root, Scanner: scanner(t)}
	found := inspect(t, o)
	for _, p := range slices.Concat(planted, edited) {
		ok := slices.ContainsFunc(found, func(f cleanup.Finding) bool {
			return f.Rule == p.rule && (f.Path == "/"+p.path || strings.HasPrefix("/"+p.path, f.Path+"/"))
		})
		if p.rule != "" && !ok {
			t.Errorf("/%s: no finding of rule %s", p.path, p.rule)
		}
	}
	if kinds := len(planted) + len(edited); kinds < 40 {
		t.Errorf("only %d kinds planted", kinds)
	}
	if err := cleanup.Clean(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if left := inspect(t, o); len(left) > 0 {
		t.Errorf("left after cleaning: %v", left)
	}

	// What an image needs is still there.
	for _, p := range []string{"etc/machine-id", "etc/hostname", "var/log/wtmp", "var/log/syslog", "home/cafe/app.conf", "home/cafe/.bashrc", "opt/lecafe/app.py", "etc/ssh/sshd_config", "usr/share/doc/keys.txt"} {
		if _, err := os.Stat(filepath.Join(root, p)); err != nil {
			t.Errorf("cleaning removed what an image needs: %v", err)
		}
	}
	for p, want := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\ncafe:x:1001:1001::/home/cafe:/bin/bash\n",
		"etc/group":  "root:x:0:\nsudo:x:27:cafe\n",
		"etc/shadow": "root:!*:19000:0:99999:7:::\ncafe:!*:19000::::::\n",
		"etc/hosts":  "127.0.0.1 localhost\n",
	} {
		if got, err := os.ReadFile(filepath.Join(root, p)); err != nil || string(got) != want {
			t.Errorf("/%s is %q, %v; want %q", p, got, err, want)
		}
	}
	swap, err := os.ReadFile(filepath.Join(root, "swapfile"))
	if err != nil || !strings.HasSuffix(string(swap[:4096]), "SWAPSPACE2") || strings.Contains(string(swap), "secret") || len(swap) != 4096+6000 {
		t.Errorf("the swap file lost its header or kept its memory (%d bytes, %v)", len(swap), err)
	}
}

// Secrets that no rule may remove by itself end a bake.
func TestSecretsAreFoundAndNeverShown(t *testing.T) {
	awsKey := "AKIA" + "QWERTYUIOP234567"
	token := "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
	for _, c := range []struct{ path, content, rule, detail string }{
		{"opt/app/tls.key", "x\n" + key("EC PRIVATE KEY"), "private-keys", ""},
		{"srv/backup/key.ppk", "PuTTY-User-Key-File-3: ssh-ed25519\n", "private-keys", ""},
		{"etc/app/pgp.asc", "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: 1\n\n" + strings.Repeat("ab12", 9) + "\n", "private-keys", ""},
		{"etc/app/env", "AWS_ACCESS_KEY_ID=" + awsKey + "\n", "secrets", "aws-access-token"},
		{"opt/app/ci.yaml", "a: 1\ntoken: " + token + "\n", "secrets", "github-pat"},
		{"var/www/.ssh/authorized_keys", "ssh-rsa AAAA\n", "authorized-keys", ""},
	} {
		root := cleanTree(t)
		write(t, root, map[string]string{c.path: c.content})
		o := cleanup.Options{Root: root, Scanner: scanner(t)}
		if err := cleanup.Clean(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		found := inspect(t, o)
		if !slices.ContainsFunc(found, func(f cleanup.Finding) bool {
			return f.Path == "/"+c.path && f.Rule == c.rule && (c.detail == "" || f.Detail == c.detail)
		}) {
			t.Errorf("/%s: want rule %s %s, found %v", c.path, c.rule, c.detail, found)
		}
		for _, f := range found {
			if s := f.String(); strings.Contains(s, awsKey) || strings.Contains(s, token) || strings.Contains(s, "QUJDREVGR0h") {
				t.Errorf("a finding shows the secret: %s", s)
			}
		}
		if len(inspect(t, cleanup.Options{Root: root, Scanner: scanner(t), Keep: []string{c.rule}})) > 0 {
			t.Errorf("/%s: found although rule %s is kept", c.path, c.rule)
		}
	}
}

func TestPackagedFilesAreTrustedOnlyUnchanged(t *testing.T) {
	root := cleanTree(t)
	content := key("RSA PRIVATE KEY")
	sum := md5.Sum([]byte(content))
	write(t, root, map[string]string{
		"usr/share/pkg/example.key":        content,
		"usr/share/pkg/changed.key":        content + "#",
		"var/lib/dpkg/info/pkg.md5sums":    hex.EncodeToString(sum[:]) + "  usr/share/pkg/example.key\n" + hex.EncodeToString(sum[:]) + "  usr/share/pkg/changed.key\n",
		"usr/share/pkg/not-a-packages.key": content,
	})
	var paths []string
	for _, f := range inspect(t, cleanup.Options{Root: root}) {
		paths = append(paths, f.Path)
	}
	if want := []string{"/usr/share/pkg/changed.key", "/usr/share/pkg/not-a-packages.key"}; !slices.Equal(paths, want) {
		t.Errorf("found %v, want %v", paths, want)
	}
}

func TestSetuidAgainstBaseline(t *testing.T) {
	root := cleanTree(t)
	write(t, root, map[string]string{"usr/bin/sudo": "x", "usr/local/bin/door": "x"})
	chmod := func(p string, mode os.FileMode) {
		if err := os.Chmod(filepath.Join(root, p), mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod("usr/bin/sudo", 0o755|os.ModeSetuid)
	baseline, err := cleanup.Setuid(t.Context(), root)
	if err != nil || !slices.Equal(baseline, []string{"/usr/bin/sudo"}) {
		t.Fatalf("baseline %v, %v", baseline, err)
	}
	chmod("usr/local/bin/door", 0o755|os.ModeSetuid)
	found := inspect(t, cleanup.Options{Root: root, SetuidBaseline: baseline})
	if len(found) != 1 || found[0].Path != "/usr/local/bin/door" || found[0].Rule != "setuid" {
		t.Errorf("found %v", found)
	}
}

// A link in the tree must not lead the cleaner out of it.
func TestLinksAreNotFollowed(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, map[string]string{"authorized_keys": "ssh-rsa AAAA", "machine-id": "0123", "lists/a_b": "x"})
	root := cleanTree(t)
	for link, target := range map[string]string{"root/.ssh": outside, "var/lib/apt": outside, "var/log/journal": outside, "tmp": outside} {
		name := filepath.Join(root, link)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := cleanup.Clean(t.Context(), cleanup.Options{Root: root}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"authorized_keys", "machine-id", "lists/a_b"} {
		if data, err := os.ReadFile(filepath.Join(outside, p)); err != nil || len(data) == 0 {
			t.Errorf("cleaning reached %s outside the root: %v", p, err)
		}
	}
}

func TestKeepExemptsARule(t *testing.T) {
	root := cleanTree(t)
	write(t, root, map[string]string{"root/.bash_history": "x", "tmp/x": "x"})
	o := cleanup.Options{Root: root, Keep: []string{"histories"}}
	if err := cleanup.Clean(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "root/.bash_history")); err != nil {
		t.Errorf("a kept rule cleaned: %v", err)
	}
	if _, err := os.Stat(filepath.Join(root, "tmp/x")); err == nil {
		t.Error("keeping one rule kept another")
	}
	if found := inspect(t, o); len(found) > 0 {
		t.Errorf("a kept rule found %v", found)
	}
	if err := cleanup.CheckKeep([]string{"histories", "history"}); err == nil || !strings.Contains(err.Error(), `"history"`) {
		t.Errorf("CheckKeep: %v", err)
	}
}

func TestMissingMachineIDIsAFinding(t *testing.T) {
	root := cleanTree(t)
	if err := os.Remove(filepath.Join(root, "etc/machine-id")); err != nil {
		t.Fatal(err)
	}
	if found := inspect(t, cleanup.Options{Root: root}); len(found) != 1 || found[0].Rule != "machine-id" {
		t.Errorf("found %v", found)
	}
}

func TestRootMustBeADirectory(t *testing.T) {
	if _, err := cleanup.Inspect(t.Context(), cleanup.Options{Root: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a root that is not there was proved clean")
	}
}

func TestRulesSayWhy(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range cleanup.Rules() {
		if r.Name == "" || r.Why == "" || seen[r.Name] {
			t.Errorf("rule %+v has no name, no reason, or stands twice", r)
		}
		seen[r.Name] = true
	}
	for _, name := range cleanup.Volatile {
		if !seen[name] {
			t.Errorf("Volatile names %s, which is no rule", name)
		}
	}
}
