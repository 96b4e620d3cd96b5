package cleanup

import (
	"path"
	"slices"
	"strings"
)

// guidance: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/building-shared-amis.html
// and https://docs.aws.amazon.com/marketplace/latest/userguide/best-practices-for-building-your-amis.html

// rules returns all rules in the order in which they run: what writes files
// when others are cleaned comes last.
func rules() []rule {
	out := []rule{
		gone("ssh-host-keys", "instances of the image would share their ssh identity",
			"etc/ssh/ssh_host_*"),
		gone("ssh-keys", "whoever holds the key gets in, or gets out from here",
			homes(".ssh/authorized_keys", ".ssh/authorized_keys2", ".ssh/authorized_keys.*", ".ssh/known_hosts", ".ssh/known_hosts.old", ".ssh/id_*", ".ssh/*.pem", ".ssh/agent", ".ssh/environment")...),
		gone("cloud-credentials", "credentials in a home directory are everybody's once the image is shared",
			homes(".aws", ".azure", ".config/gcloud", ".boto", ".s3cfg", ".oci", ".config/doctl", ".terraform.d/credentials.tfrc.json", ".terraformrc", ".vault-token", ".kube", ".docker", ".config/containers/auth.json")...),
		gone("tool-credentials", "passwords and tokens that tools keep in home directories",
			homes(".netrc", ".git-credentials", ".config/git/credentials", ".config/gh", ".config/glab-cli", ".config/hub", ".npmrc", ".yarnrc", ".pypirc", ".gem/credentials", ".cargo/credentials", ".cargo/credentials.toml", ".m2/settings.xml", ".m2/settings-security.xml", ".gradle/gradle.properties", ".composer/auth.json", ".pgpass", ".my.cnf", ".mylogin.cnf", ".gnupg", ".password-store", ".config/op", ".local/share/keyrings", ".htpasswd", ".smbcredentials", ".cifs", ".ansible/vault_pass", ".vault_pass", ".vault_pass.txt")...),
		gone("histories", "what was typed on the builder, passwords included",
			homes(".*_history", ".history", ".histfile", ".zhistory", ".zsh_sessions", ".local/share/fish", ".lesshst", ".viminfo", ".vim/.netrwhist", ".local/state/lesshst", ".wget-hsts", ".sudo_as_admin_successful", ".rnd", ".Xauthority", ".ICEauthority", ".recently-used", ".local/share/recently-used.xbel")...),
		gone("caches", "left by tools that ran on the builder",
			homes(".cache", ".ansible/tmp", ".npm/_cacache", ".npm/_logs", ".local/share/Trash")...),
		{
			name: "cloud-init", why: "a new instance would take itself for the builder",
			clean: removeAll(cloudInit...), check: finds(cloudInit...),
		},
		{
			name: "cloud-init-network", why: "network settings rendered for the builder's own interface",
			clean: func(t *tree) error { return each(t, t.remove, rendered(t)...) },
			check: func(t *tree) []Finding { return listed(rendered(t)) },
		},
		gone("cloud-init-sudoers", "passwordless sudo that cloud-init gave on the builder; it gives it again where it should",
			"etc/sudoers.d/90-cloud-init-users"),
		cloudUser(),
		gone("dhcp-leases", "the builder's addresses would be asked for again",
			"var/lib/dhcp/*", "var/lib/dhclient/*", "var/lib/dhcpcd/*", "var/lib/NetworkManager/*lease*", "var/lib/NetworkManager/internal-*", "var/lib/systemd/network/*"),
		gone("network-identity", "keys and names that must be each instance's own",
			"var/lib/NetworkManager/secret_key", "var/lib/NetworkManager/seen-bssids", "var/lib/NetworkManager/timestamps",
			"etc/udev/rules.d/70-persistent-net.rules", "etc/udev/rules.d/75-persistent-net-generator.rules", "etc/udev/rules.d/70-persistent-cd.rules",
			"etc/nvme/hostid", "etc/nvme/hostnqn"),
		gone("random-seed", "instances of the image would start from the same entropy",
			"var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "var/lib/random-seed", "boot/loader/random-seed", "boot/efi/loader/random-seed", "efi/loader/random-seed"),
		gone("system-credentials", "the host secret under which systemd seals credentials",
			"var/lib/systemd/credential.secret"),
		gone("timer-stamps", "timers would think that they ran on this instance",
			"var/lib/systemd/timers/*", "var/lib/systemd/linger/*", "var/lib/systemd/rfkill/*", "var/lib/systemd/backlight/*"),
		gone("core-dumps", "memory of processes, with whatever secrets they held",
			"var/lib/systemd/coredump/*", "var/lib/systemd/pstore/*", "var/crash/*", "var/lib/apport/coredump/*", "var/spool/abrt/*", "core", "root/core"),
		gone("agent-registrations", "the instance would speak as the builder",
			"var/lib/amazon/ssm/*", "var/lib/amazon/ecs/data/*", "var/lib/ecs/data/*", "var/lib/ubuntu-advantage/private/*", "var/lib/ubuntu-pro/private/*", "etc/ubuntu-advantage/uaclient.conf.machine-token",
			"etc/pki/consumer/*", "etc/pki/entitlement/*", "var/lib/rhsm/*", "etc/sysconfig/rhn/systemid", "etc/insights-client/machine-id", "etc/krb5.keytab", "var/lib/landscape/client/*", "etc/chef/client.pem", "etc/chef/validation.pem", "etc/puppetlabs/puppet/ssl/*", "var/lib/puppet/ssl/*", "etc/salt/pki/minion/*", "var/lib/cloud-agent/*", "etc/opt/omi/ssl/*"),
		gone("directory-caches", "accounts, password hashes and machine keys of the directory that the builder had joined",
			"var/lib/sss/db/*", "var/lib/sss/mc/*", "var/lib/sss/secrets/*", "var/lib/samba/private/*"),
		gone("installer-leftovers", "answers given to installers, passwords included",
			"root/anaconda-ks.cfg", "root/original-ks.cfg", "root/initial-setup-ks.cfg", "root/install.log", "root/install.log.syslog", "var/log/anaconda", "var/log/installer", "preseed.cfg", "autoinst.xml"),
		gone("package-caches", "package files and lists: size, and old news on the first boot",
			"var/cache/apt/archives/*.deb", "var/cache/apt/archives/partial/*", "var/cache/apt/*.bin", "var/lib/apt/lists/*_*", "var/lib/apt/lists/partial/*", "var/lib/apt/periodic/*", "var/cache/dnf/*", "var/cache/yum/*", "var/cache/libdnf5/*", "var/lib/dnf/repos/*", "var/cache/PackageKit/*", "var/cache/zypp/*", "var/lib/yum/uuid"),
		gone("debconf", "answers to packages' questions, passwords included",
			"var/cache/debconf/*-old"),
		emptied("debconf-passwords", "answers to packages' questions, passwords included",
			"var/cache/debconf/passwords.dat"),
		gone("account-backups", "password hashes as they were before the last change",
			"etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "var/backups/passwd*", "var/backups/shadow*", "var/backups/group*", "var/backups/gshadow*"),
		passwords(),
		gone("mail", "mail to the builder's users",
			"var/mail/*", "var/spool/mail/*", "root/mbox", "root/dead.letter"),
		gone("spools", "jobs queued on the builder would run on every instance",
			"var/spool/at/*", "var/spool/cron/atjobs/*", "var/spool/postfix/deferred/*", "var/spool/postfix/maildrop/*", "var/spool/cups/*", "var/spool/clientmqueue/*"),
		gone("temporary-files", "left by what ran on the builder",
			"tmp/*", "tmp/.[!.]*", "var/tmp/*", "var/tmp/.[!.]*"),
		gone("lecafe-state", "the agent would take the builder's boot for its own",
			"var/lib/lecafe/*", "run/lecafe/*"),
		{
			name: "machine-id", why: "instances of the image would share their identity",
			// Emptied, never deleted: without the file systemd treats the next
			// boot as a first boot and applies all presets.
			clean: func(t *tree) error {
				if err := t.truncate("etc/machine-id"); err != nil {
					return err
				}
				if t.regular("var/lib/dbus/machine-id") {
					return t.remove("var/lib/dbus/machine-id")
				}
				return nil
			},
			check: func(t *tree) []Finding {
				var out []Finding
				info := t.lstat("etc/machine-id")
				switch {
				case info == nil:
					out = append(out, Finding{Path: "/etc/machine-id", Why: "the file is missing: the next boot would be a first boot to systemd; it must be there and empty"})
				case !info.Mode().IsRegular() || info.Size() > 0 && !slices.Equal(t.lines("etc/machine-id"), []string{"uninitialized"}):
					out = append(out, Finding{Path: "/etc/machine-id"})
				}
				if t.regular("var/lib/dbus/machine-id") {
					out = append(out, Finding{Path: "/var/lib/dbus/machine-id"})
				}
				return out
			},
		},
		hostname(),
		swap(),
		gone("journal", "the builder's log",
			"var/log/journal/*", "run/log/journal/*"),
		gone("login-records", "who logged in on the builder, from where",
			"var/lib/lastlog/*", "var/lib/wtmpdb/*", "var/run/faillock/*", "var/log/tallylog"),
		emptied("login-logs", "who logged in on the builder, from where",
			"var/log/wtmp", "var/log/btmp", "var/log/lastlog", "var/log/faillog", "run/utmp"),
		logs(),
	}
	return out
}

// Volatile names the rules whose paths a running system writes to all the
// time. On a live builder they are cleaned and proved by the last shutdown
// hook, when nothing runs any more; elsewhere they are rules like the others.
var Volatile = []string{"journal", "logs", "login-records", "login-logs", "temporary-files", "random-seed", "timer-stamps", "cloud-init", "lecafe-state"}

var cloudInit = []string{"var/lib/cloud/*", "run/cloud-init", "var/log/cloud-init*.log*", "etc/machine-info.cloud-init"}

// homes prefixes patterns with a marker that gone replaces by every home.
func homes(patterns ...string) []string {
	out := make([]string, len(patterns))
	for i, p := range patterns {
		out[i] = "~/" + p
	}
	return out
}

func expand(t *tree, patterns []string) []string {
	var out []string
	for _, p := range patterns {
		rest, inHome := strings.CutPrefix(p, "~/")
		if !inHome {
			out = append(out, t.glob(p)...)
			continue
		}
		for _, u := range t.users {
			out = append(out, t.glob(u.home+"/"+rest)...)
		}
		out = append(out, t.glob("etc/skel/"+rest)...)
	}
	return out
}

func each(_ *tree, do func(string) error, paths ...string) error {
	for _, p := range paths {
		if err := do(p); err != nil {
			return err
		}
	}
	return nil
}

func removeAll(patterns ...string) func(*tree) error {
	return func(t *tree) error { return each(t, t.remove, expand(t, patterns)...) }
}

func listed(paths []string) []Finding {
	var out []Finding
	for _, p := range paths {
		out = append(out, Finding{Path: "/" + p})
	}
	return out
}

func finds(patterns ...string) func(*tree) []Finding {
	return func(t *tree) []Finding { return listed(expand(t, patterns)) }
}

// gone is a rule whose paths must not exist.
func gone(name, why string, patterns ...string) rule {
	return rule{name: name, why: why, clean: removeAll(patterns...), check: finds(patterns...)}
}

// emptied is a rule whose files stay, without content.
func emptied(name, why string, patterns ...string) rule {
	return rule{
		name: name, why: why,
		clean: func(t *tree) error { return each(t, t.truncate, expand(t, patterns)...) },
		check: func(t *tree) []Finding {
			var out []Finding
			for _, p := range expand(t, patterns) {
				if info := t.lstat(p); info != nil && info.Mode().IsRegular() && info.Size() > 0 {
					out = append(out, Finding{Path: "/" + p})
				}
			}
			return out
		},
	}
}

// rendered lists network files that cloud-init wrote: by their name, or where
// the name is the distribution's own, by the header that cloud-init puts in.
func rendered(t *tree) []string {
	out := expand(t, []string{
		"etc/netplan/50-cloud-init.yaml", "etc/network/interfaces.d/50-cloud-init*", "etc/systemd/network/10-cloud-init-*",
		"etc/NetworkManager/system-connections/cloud-init-*", "etc/NetworkManager/conf.d/30-cloud-init-*", "etc/dhcp/dhclient-enter-hooks.d/*cloud-init*",
	})
	for _, p := range expand(t, []string{"etc/sysconfig/network-scripts/ifcfg-*", "etc/network/interfaces", "etc/sysconfig/network"}) {
		if lines := t.lines(p); len(lines) > 0 && strings.Contains(strings.ToLower(lines[0]), "created by cloud-init") {
			out = append(out, p)
		}
	}
	return out
}

// logs empties every file below /var/log and removes rotated ones. Names and
// modes stay: daemons that cannot create their log would fail on the instance.
func logs() rule {
	rotated := func(p string) bool {
		base := path.Base(p)
		for _, suffix := range []string{".gz", ".xz", ".bz2", ".zst", ".old", ".1", ".2", ".3", ".4", ".5", ".6", ".7", ".8", ".9"} {
			if strings.HasSuffix(base, suffix) {
				return true
			}
		}
		i := strings.LastIndexByte(base, '-') // messages-20261122
		return i > 0 && len(base)-i == 9 && strings.Trim(base[i+1:], "0123456789") == ""
	}
	files := func(t *tree) []string {
		return slices.DeleteFunc(t.glob("var/log/**"), func(p string) bool {
			return !t.regular(p) || path.Base(p) == "README" || strings.HasPrefix(p, "var/log/journal/")
		})
	}
	return rule{
		name: "logs", why: "the builder's logs",
		clean: func(t *tree) error {
			for _, p := range files(t) {
				act := t.truncate
				if rotated(p) {
					act = t.remove
				}
				if err := act(p); err != nil {
					return err
				}
			}
			return nil
		},
		check: func(t *tree) []Finding {
			var out []Finding
			for _, p := range files(t) {
				if info := t.lstat(p); info != nil && (info.Size() > 0 || rotated(p)) {
					out = append(out, Finding{Path: "/" + p})
				}
			}
			return out
		},
	}
}
