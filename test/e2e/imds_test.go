package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab/machine"
	"github.com/lecafe/lecafe/test/boots"
)

// documented returns the fenced block of docs/agent.md that has a text: what is
// tested is what users copy.
func documented(t *testing.T, text string) string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(boots.Root, "docs/agent.md"))
	if err != nil {
		t.Fatal(err)
	}
	for n, part := range strings.Split(string(doc), "\n```") {
		if n%2 == 1 && strings.Contains(part, text) {
			_, block, _ := strings.Cut(part, "\n") // after the language
			return block + "\n"
		}
	}
	t.Fatalf("docs/agent.md has no block with %q", text)
	return ""
}

// cgroupFilters says why this kernel cannot filter a cgroup's packets, which
// IPAddressDeny= needs; nil if it can.
func cgroupFilters() error {
	found := false
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		found = found || unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
	}
	if !found {
		return errors.New("no cgroup v2 is mounted")
	}
	// r0 = 1 (let it pass); exit
	program := [2]uint64{0x1_000000b7, 0x95}
	license := []byte("GPL\x00")
	attr := struct {
		kind, count             uint32
		program, license        uint64
		level, size             uint32
		buffer                  uint64
		version, flags          uint32
		name                    [16]byte
		ifindex, expectedAttach uint32
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_SKB, count: 2, program: uint64(uintptr(unsafe.Pointer(&program))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
		expectedAttach: unix.BPF_CGROUP_INET_EGRESS,
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&program)
	runtime.KeepAlive(license)
	if errno != 0 {
		return fmt.Errorf("load a BPF program for cgroups: %w", errno)
	}
	return unix.Close(int(fd))
}

// stand is an application's service that asks for what it must not have.
const stand = `set -e
useradd -r app
cat > /usr/local/bin/stand <<'SCRIPT'
#!/bin/sh
try() { curl -sS -o /dev/null --connect-timeout 3 "$@"; echo $? ; }
echo "v4 $(try -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)"
echo "v6 $(try 'http://[fd00:ec2::254]/')"
echo "dns $(try http://169.254.169.253/)"
lecafe-agent send "from the application"
SCRIPT
chmod +x /usr/local/bin/stand
cat > /etc/systemd/system/app.service <<'UNIT'
[Service]
Type=oneshot
User=app
SupplementaryGroups=lecafe-orders
ExecStart=/usr/local/bin/stand
StandardOutput=truncate:/run/stand
StandardError=journal
UNIT
# Metadata by IPv6 and Amazon's DNS, neither of which the lab has.
ip address add fd00:ec2::254/128 dev lo
ip address add 169.254.169.253/32 dev lo
systemd-run --quiet --unit=other6 python3 -m http.server --directory /run/lecafe --bind fd00:ec2::254 80
systemd-run --quiet --unit=other4 python3 -m http.server --directory /run/lecafe --bind 169.254.169.253 80
`

// TestApplicationKeptFromMetadata takes the two ways of docs/agent.md, word for
// word, to keep the application away from instance metadata, and looks whether
// they do, and whether agent and orders go on.
func TestApplicationKeptFromMetadata(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		rules, dropIn := documented(t, "table inet imds"), documented(t, "IPAddressDeny=")
		b := newCloudBench(t, release, machine.Options{BPF: true})
		// The rules hold from the start of the boot.
		b.bakeAgent("orders: {queue: cafe}\nconfig: [{source: s3://assets/menu, path: /opt/menu}]", "apt-get -q update\nDEBIAN_FRONTEND=noninteractive apt-get -qy install nftables\n"+
			"cat > /etc/nftables.conf <<'RULES'\n"+rules+"RULES\nsystemctl enable nftables")
		b.cloud.SQS.CreateQueue("cafe", map[string]string{"VisibilityTimeout": "600"})
		b.put("menu", "espresso\n")
		id := b.boot("ami-agent", "#!/bin/bash\n"+stand)
		if r := b.report(id); r.Verdict != report.Success {
			t.Fatalf("%s: %+v\n%s", r.Summary, r.Causes, b.shAny(id, "systemctl status nftables --no-pager; nft list ruleset"))
		}
		b.eventually(id, "the other services", func() bool {
			return strings.TrimSpace(b.shAny(id, "curl -sS -o /dev/null 'http://[fd00:ec2::254]/' && curl -sS -o /dev/null http://169.254.169.253/ && echo up")) == "up"
		})

		const refused, dropped = "7", "28" // curl's exit codes
		menu := 0
		// serves starts agent and orders anew, so that they ask IMDS again, and
		// has each of them use the role.
		serves := func(t *testing.T, when, v4, v6 string) {
			t.Helper()
			menu++
			text := fmt.Sprintf("espresso %d\n", menu)
			b.put("menu", text)
			b.sh(id, "systemctl restart lecafe-agent lecafe-orders")
			b.eventually(id, "new config "+when, func() bool { return b.sh(id, "cat /opt/menu") == text })
			b.sh(id, "systemctl daemon-reload; systemctl start app")
			lines := strings.Split(strings.TrimSpace(b.sh(id, "cat /run/stand")), "\n")
			if want := []string{"v4 " + v4, "v6 " + v6, "dns 0"}; len(lines) != 4 || strings.Join(lines[:3], ", ") != strings.Join(want, ", ") {
				t.Fatalf("%s the application found %q, want %q and an order's ID", when, lines, want)
			}
			b.arrive(id, lines[3:])
		}

		t.Run("nftables", func(t *testing.T) {
			if out := b.shAny(id, "nft list tables"); strings.Contains(out, "not supported") {
				t.Skipf("NOT TESTED: this kernel has no nf_tables: %s", out)
			}
			serves(t, "under the rules", refused, refused)
			if out := b.sh(id, "nft -a list table inet imds"); strings.Count(out, " reject") != 2 || strings.Contains(out, "packets 0 ") {
				t.Errorf("each rule should have rejected something:\n%s", out)
			}
			b.sh(id, "systemctl reload nftables")
			if out := b.sh(id, "nft list table inet imds"); strings.Count(out, " reject") != 2 {
				t.Errorf("loaded again the rules are\n%s", out)
			}
			serves(t, "under the rules loaded again", refused, refused)
			b.sh(id, "systemctl disable --now nftables")
			serves(t, "without rules", "0", "0")
		})
		t.Run("IPAddressDeny", func(t *testing.T) {
			if err := cgroupFilters(); err != nil {
				t.Skipf("NOT TESTED: this kernel does not enforce IPAddressDeny=: %v", err)
			}
			b.shAny(id, "nft flush ruleset")
			b.sh(id, "mkdir -p /etc/systemd/system/app.service.d; cat > /etc/systemd/system/app.service.d/imds.conf <<'INI'\n"+dropIn+"INI\n")
			serves(t, "with the drop-in", dropped, dropped)
			b.sh(id, "rm /etc/systemd/system/app.service.d/imds.conf")
			serves(t, "without the drop-in", "0", "0")
		})
	})
}
