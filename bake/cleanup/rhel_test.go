package cleanup_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/bake/cleanup"
)

// families are trees as Amazon Linux 2023, RHEL 9 and Fedora have them: what
// an image of each looks like when it is clean. None of them boots here.
var families = map[string]map[string]string{
	"amazon-linux-2023": {
		"etc/os-release":                     "NAME=\"Amazon Linux\"\nID=\"amzn\"\nID_LIKE=\"fedora\"\nVERSION_ID=\"2023\"\n",
		"etc/cloud/cloud.cfg":                "users:\n - default\nsystem_info:\n  default_user:\n    name: ec2-user\n    groups: [adm, wheel, systemd-journal]\n",
		"etc/sysconfig/network":              "NETWORKING=yes\nNOZEROCONF=yes\n",
		"etc/systemd/network/README":         "amazon-ec2-net-utils writes below /run\n",
		"etc/amazon/ssm/seelog.xml.template": "<seelog/>\n",
		"etc/update-motd.d/30-banner":        "#!/bin/bash\n",
		"var/lib/rpm/rpmdb.sqlite":           "SQLite format 3\x00",
		"var/log/amazon/ssm/.keep":           "",
	},
	"rhel-9": {
		"etc/os-release":      "NAME=\"Red Hat Enterprise Linux\"\nID=\"rhel\"\nID_LIKE=\"fedora\"\nVERSION_ID=\"9.6\"\n",
		"etc/cloud/cloud.cfg": "users:\n - default\nsystem_info:\n  default_user:\n    name: cloud-user\n",
		"etc/sysconfig/network-scripts/readme-ifcfg-rh.txt": "NetworkManager stores new network profiles in keyfile format\n",
		"etc/NetworkManager/NetworkManager.conf":            "[main]\n",
		"etc/selinux/config":                                "SELINUX=enforcing\n",
		"etc/rhsm/rhsm.conf":                                "[server]\n",
		"etc/sysconfig/sshd":                                "# OPTIONS=\n",
		"var/lib/rpm/rpmdb.sqlite":                          "SQLite format 3\x00",
		"var/log/tuned/tuned.log":                           "",
	},
	"fedora": {
		"etc/os-release":                    "NAME=\"Fedora Linux\"\nID=fedora\nVERSION_ID=43\n",
		"etc/cloud/cloud.cfg":               "system_info:\n  default_user:\n    name: fedora\n",
		"usr/lib/sysimage/rpm/rpmdb.sqlite": "SQLite format 3\x00",
	},
}

// familyTree is a clean image of a family, with the accounts of all.
func familyTree(t *testing.T, family string) string {
	t.Helper()
	root := t.TempDir()
	write(t, root, families[family])
	write(t, root, map[string]string{
		"etc/passwd":      "root:x:0:0:Super User:/root:/bin/bash\nbin:x:1:1:bin:/bin:/usr/sbin/nologin\nchrony:x:994:992::/var/lib/chrony:/sbin/nologin\n",
		"etc/shadow":      "root:*LOCK*:14600::::::\nbin:*:19000:0:99999:7:::\nchrony:!!:19700::::::\n",
		"etc/group":       "root:x:0:\nwheel:x:10:\nadm:x:4:\n",
		"etc/gshadow":     "root:::\nwheel:::\nadm:::\n",
		"etc/machine-id":  "",
		"etc/hosts":       "127.0.0.1   localhost localhost.localdomain localhost4 localhost4.localdomain4\n::1         localhost localhost.localdomain localhost6 localhost6.localdomain6\n",
		"var/log/dnf.log": "", "var/log/secure": "", "var/log/messages": "", "var/log/audit/audit.log": "",
		// Packages bring examples; rpm's database is binary, so /usr is trusted.
		"usr/share/doc/openssl/demo.pem": key("RSA PRIVATE KEY"),
	})
	return root
}

// plantedRHEL is what a builder of the family leaves: the path, what is in it,
// and the rule that must find it.
var plantedRHEL = []struct{ path, content, rule string }{
	{"etc/ssh/ssh_host_ecdsa_key", key("EC PRIVATE KEY"), "ssh-host-keys"},
	{"root/.ssh/authorized_keys", "no-port-forwarding,command=\"echo 'Please login as the user ec2-user'\" ssh-ed25519 AAAA", "ssh-keys"},
	{"etc/sudoers.d/90-cloud-init-users", "ec2-user ALL=(ALL) NOPASSWD:ALL", "cloud-init-sudoers"},
	{"etc/sysconfig/network-scripts/ifcfg-eth0", "# Created by cloud-init automatically, do not edit.\n#\nHWADDR=06:00:00:00:00:01\n", "cloud-init-network"},
	{"etc/NetworkManager/system-connections/cloud-init-eth0.nmconnection", "[connection]\n", "cloud-init-network"},
	{"etc/systemd/network/10-cloud-init-ens5.network", "[Match]\n", "cloud-init-network"},
	{"var/lib/dhclient/dhclient--eth0.lease", "lease {}", "dhcp-leases"},
	{"var/lib/NetworkManager/internal-0a-ens5.lease", "ADDRESS=10.0.0.7", "dhcp-leases"},
	{"var/lib/NetworkManager/secret_key", "nm-v2", "network-identity"},
	{"var/lib/NetworkManager/seen-bssids", "x", "network-identity"},
	{"var/lib/cloud/instance/vendor-data.txt", "x", "cloud-init"},
	{"var/log/cloud-init.log", "x", "cloud-init"},
	{"root/anaconda-ks.cfg", "rootpw --iscrypted $6$x", "installer-leftovers"},
	{"root/original-ks.cfg", "rootpw --iscrypted $6$x", "installer-leftovers"},
	{"var/log/anaconda/syslog", "x", "installer-leftovers"},
	{"var/cache/dnf/amazonlinux-0123/repodata/repomd.xml", "x", "package-caches"},
	{"var/cache/dnf/packages.db", "x", "package-caches"},
	{"var/cache/yum/x86_64/2/timedhosts", "x", "package-caches"},
	{"var/cache/libdnf5/fedora-0123/solv/fedora.solv", "x", "package-caches"},
	{"var/lib/amazon/ssm/Vault/Store/RegistrationKey", "x", "agent-registrations"},
	{"var/lib/amazon/ssm/i-0123/session/x", "x", "agent-registrations"},
	{"etc/pki/consumer/cert.pem", "x", "agent-registrations"},
	{"etc/pki/entitlement/1-key.pem", key("PRIVATE KEY"), "agent-registrations"},
	{"var/lib/rhsm/cache/installed_products.json", "x", "agent-registrations"},
	{"etc/sysconfig/rhn/systemid", "x", "agent-registrations"},
	{"etc/insights-client/machine-id", "x", "agent-registrations"},
	{"etc/krb5.keytab", "\x05\x02x", "agent-registrations"},
	{"var/lib/sss/db/cache_example.com.ldb", "x", "directory-caches"},
	{"var/lib/sss/secrets/secrets.ldb", "x", "directory-caches"},
	{"var/lib/systemd/random-seed", "x", "random-seed"},
	{"var/lib/systemd/coredump/core.httpd.zst", "x", "core-dumps"},
	{"var/crash/127.0.0.1-2026-11-22/vmcore", "x", "core-dumps"},
	{"var/spool/abrt/ccpp-2026-11-22/coredump", "x", "core-dumps"},
	{"var/spool/mail/ec2-user", "From x", "mail"},
	{"var/spool/at/a0001", "x", "spools"},
	{"var/spool/postfix/maildrop/x", "x", "spools"},
	{"etc/passwd-", "root:x:0:0", "account-backups"},
	{"etc/shadow-", "root:$6$x:1::::::", "account-backups"},
	{"var/log/secure", "sshd: Accepted publickey", "logs"},
	{"var/log/messages", "x", "logs"},
	{"var/log/maillog", "x", "logs"},
	{"var/log/cron", "x", "logs"},
	{"var/log/boot.log", "x", "logs"},
	{"var/log/dnf.log", "x", "logs"},
	{"var/log/dnf.rpm.log", "x", "logs"},
	{"var/log/hawkey.log", "x", "logs"},
	{"var/log/sa/sa22", "x", "logs"},
	{"var/log/chrony/tracking.log", "x", "logs"},
	{"var/log/amazon/ssm/amazon-ssm-agent.log", "x", "logs"},
	{"var/log/audit/audit.log.1", "x", "logs"},
	{"var/log/secure-20261122", "x", "logs"},
	{"var/log/tallylog", "x", "login-records"},
	{"var/log/btmp", "x", "login-logs"},
	{"var/log/lastlog", "x", "login-logs"},
	{"root/.bash_history", "subscription-manager register --password x", "histories"},
	{"home/ec2-user/.ssh/authorized_keys", "ssh-ed25519 AAAA", "ssh-keys"},
	{"usr/local/etc/app/tls.key", "", ""},
}

// What a builder of the dnf family leaves is found, and gone after cleaning;
// what its images need is not touched.
func TestRHELFamily(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			root := familyTree(t, family)
			o := cleanup.Options{Root: root, Scanner: scanner(t), SetuidBaseline: []string{}}
			if found := inspect(t, o); len(found) > 0 {
				t.Fatalf("a clean tree has findings: %v", found)
			}
			for _, p := range plantedRHEL {
				write(t, root, map[string]string{p.path: p.content})
			}
			// The user that cloud-init makes, under the family's name for it.
			user := map[string]string{"amazon-linux-2023": "ec2-user", "rhel-9": "cloud-user", "fedora": "fedora"}[family]
			for p, more := range map[string]string{
				"etc/passwd": user + ":x:1000:1000:EC2 Default User:/home/" + user + ":/bin/bash\n", "etc/shadow": user + ":!!:20000:0:99999:7:::\n",
				"etc/group": user + ":x:1000:\nsystemd-journal:x:190:" + user + "\n", "etc/gshadow": user + ":!::\nsystemd-journal:!::" + user + "\n",
				"etc/machine-id": "ec2b0123456789abcdef0123456789ab\n", "etc/hostname": "ip-172-31-0-7.ec2.internal\n",
				"home/" + user + "/.bash_profile": "# .bash_profile\n", "home/" + user + "/.ssh/authorized_keys": "ssh-ed25519 AAAA\n",
			} {
				old, err := os.ReadFile(filepath.Join(root, p))
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				write(t, root, map[string]string{p: string(old) + more})
			}
			found := inspect(t, o)
			for _, p := range plantedRHEL {
				if p.rule != "" && !slices.ContainsFunc(found, func(f cleanup.Finding) bool {
					return f.Rule == p.rule && (f.Path == "/"+p.path || strings.HasPrefix("/"+p.path, f.Path+"/"))
				}) {
					t.Errorf("/%s: no finding of rule %s", p.path, p.rule)
				}
			}
			for _, rule := range []string{"cloud-user", "machine-id", "hostname"} {
				if !slices.ContainsFunc(found, func(f cleanup.Finding) bool { return f.Rule == rule }) {
					t.Errorf("no finding of rule %s", rule)
				}
			}
			if err := cleanup.Clean(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			if left := inspect(t, o); len(left) > 0 {
				t.Errorf("left after cleaning: %v", left)
			}
			for p := range families[family] {
				if _, err := os.Stat(filepath.Join(root, p)); err != nil {
					t.Errorf("cleaning removed what an image needs: %v", err)
				}
			}
			for p, want := range map[string]string{"etc/machine-id": "", "etc/passwd": "chrony:x:994:992::/var/lib/chrony:/sbin/nologin\n", "etc/group": "systemd-journal:x:190:\n", "var/log/secure": ""} {
				if got, err := os.ReadFile(filepath.Join(root, p)); err != nil || !strings.HasSuffix(string(got), want) || want == "" && len(got) > 0 {
					t.Errorf("/%s is %q, %v; want %q at its end", p, got, err, want)
				}
			}

			// A key of ours is found where no package may have put it.
			write(t, root, map[string]string{"usr/local/etc/app/tls.key": key("PRIVATE KEY")})
			if found := inspect(t, o); len(found) != 1 || found[0].Rule != "private-keys" || found[0].Path != "/usr/local/etc/app/tls.key" {
				t.Errorf("found %v", found)
			}
		})
	}
}
