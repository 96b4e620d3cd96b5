package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/test/boots"
)

// TestOrdersServiceInTrouble is TestOrdersOnARealInstance's other half, on the
// other release: the group that may post, a process that stops making progress,
// a disk that is full.
func TestOrdersServiceInTrouble(t *testing.T) {
	t.Parallel()
	b := newAgentBench(t, "debian-13", "orders: {queue: cafe}")
	b.cloud.SQS.CreateQueue("cafe", map[string]string{"VisibilityTimeout": "600"})
	id := b.boot("ami-agent", payload("set -e\ngroupadd baristas\nuseradd -r -G baristas ada\nuseradd -r -G lecafe-orders eve\n", "orders: {group: baristas, max_bytes: 536870912}\n"))
	b.settled(id)
	show := func(what string) string {
		return strings.TrimSpace(b.sh(id, "systemctl show -P "+what+" lecafe-orders"))
	}
	socketGroup := func() string { return strings.TrimSpace(b.sh(id, "stat -c %G /run/lecafe/orders.sock")) }
	as := func(user string) string {
		return b.sh(id, "setpriv --reuid "+user+" --regid "+user+" --init-groups lecafe-agent send 'of "+user+"' 2>&1; echo exit=$?")
	}
	var posted []string

	// The group comes from user data, which makes it as well.
	b.eventually(id, "group of the orders' socket", func() bool { return socketGroup() == "baristas" })
	checkGroup := func(when string) {
		t.Helper()
		if out := as("ada"); !strings.HasSuffix(out, "exit=0\n") {
			t.Errorf("%s, a member of orders.group posts: %s", when, out)
		} else {
			posted = append(posted, strings.Fields(out)[0])
		}
		for _, other := range []string{"eve", "nobody"} {
			if out := strings.ReplaceAll(b.sh(id, "setpriv --reuid "+other+" --init-groups --regid nogroup lecafe-agent send x 2>&1; echo exit=$?"), "\n", " "); !strings.HasSuffix(out, "exit=3 ") {
				t.Errorf("%s, %s posts: %s", when, other, out)
			}
		}
	}
	checkGroup("after the boot")
	b.sh(id, "systemctl restart lecafe-orders.socket lecafe-orders.service")
	if g := socketGroup(); g != "baristas" {
		t.Errorf("after a restart the socket is of %s", g)
	}
	checkGroup("after a restart of the socket")
	ada := strings.TrimSpace(b.sh(id, "id -u ada"))
	if log := b.sh(id, "journalctl -b --no-pager -u lecafe-orders"); !strings.Contains(log, "process connected") || !strings.Contains(log, "uid="+ada+" ") {
		t.Errorf("who posted is not in the journal:\n%s", log)
	}
	b.eventually(id, "limit of the user data", func() bool {
		return strings.Contains(b.sh(id, "curl -sS --unix-socket /run/lecafe/orders.sock http://x/v1/status"), `"spool_limit_bytes":536870912`)
	})
	// The installer takes the group from the image's settings.
	b.sh(id, `echo 'orders: {group: ada}' > /etc/lecafe/agent.d/50-group.yaml
lecafe-agent install && rm -r /run/systemd/system/lecafe-orders.socket.d && systemctl daemon-reload && systemctl restart lecafe-orders.socket lecafe-orders.service`)
	if g := socketGroup(); g != "ada" {
		t.Errorf("installed with another group the socket is of %s", g)
	}
	b.sh(id, "rm /etc/lecafe/agent.d/50-group.yaml && lecafe-agent install && systemctl daemon-reload && systemctl restart lecafe-orders.socket lecafe-orders.service")

	// A process that makes no progress: systemd ends it, and who posts meanwhile
	// waits for the next one.
	b.sh(id, `mkdir -p /run/systemd/system/lecafe-orders.service.d
printf '[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\nRestartSec=100ms\n' > /run/systemd/system/lecafe-orders.service.d/watchdog.conf
systemctl daemon-reload && systemctl restart lecafe-orders`)
	before := show("MainPID")
	b.sh(id, "kill -STOP "+before)
	posted = append(posted, strings.Fields(b.sh(id, "lecafe-agent send 'while the service is stuck'"))...)
	if after := show("MainPID"); after == before {
		t.Error("the order was taken by a process that had stopped")
	}
	if log := b.sh(id, "journalctl -b --no-pager -u lecafe-orders"); !strings.Contains(log, "Watchdog timeout") || show("NRestarts") != "1" {
		t.Errorf("%s restarts, want one by the watchdog:\n%s", show("NRestarts"), log)
	}
	b.sh(id, "rm -r /run/systemd/system/lecafe-orders.service.d && systemctl daemon-reload && systemctl restart lecafe-orders")

	// A disk that is full: what was taken stays, who posts is told to wait, and
	// it goes on by itself.
	b.sh(id, `systemctl stop lecafe-orders.service
mkdir -p /var/lib/lecafe-orders/spool
mount -t tmpfs -o size=40m,mode=0700,uid=$(id -u lecafe-orders),gid=$(id -g lecafe-orders) none /var/lib/lecafe-orders/spool
systemctl start lecafe-orders.service`)
	away := b.cloud.Inject(cloud.Fault{Service: "sqs", Resource: "*cafe", Kind: cloud.Reset})
	out := b.sh(id, `head -c 200000 /dev/zero | tr '\0' x > /tmp/body
i=0; while [ $i -lt 400 ]; do
	code=$(curl -sS -o /tmp/answer -D /tmp/head -w '%{http_code}' --unix-socket /run/lecafe/orders.sock --data-binary @/tmp/body http://x/v1/orders)
	case $code in
	202) sed 's/.*"id":"\([^"]*\)".*/\1/' /tmp/answer;;
	429) grep -i '^retry-after' /tmp/head; cat /tmp/answer; df -B1 --output=avail /var/lib/lecafe-orders/spool | tail -1; echo full; exit;;
	*) echo "code $code"; cat /tmp/answer; exit;;
	esac
	i=$((i+1))
done`)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if !strings.HasSuffix(strings.TrimSpace(out), "full") || !strings.Contains(strings.ToLower(out), "retry-after: ") {
		t.Fatalf("a full disk is not told: %s", out[max(0, len(out)-500):])
	}
	taken := 0
	for _, l := range lines {
		if len(l) == 36 && strings.Count(l, "-") == 4 {
			posted = append(posted, l)
			taken++
		}
	}
	t.Logf("%d orders of 200 kB taken before the disk was full: %s", taken, strings.Join(lines[taken:], " | "))
	if taken < 50 {
		t.Errorf("only %d orders in 40 MB", taken)
	}
	pid := show("MainPID")
	// Killed while it is full, it comes back and has them all.
	b.sh(id, "systemctl kill -s KILL lecafe-orders; systemctl start lecafe-orders")
	if show("MainPID") == pid {
		t.Error("it was not killed")
	}
	away.Remove()
	b.arrive(id, posted)
	posted = strings.Fields(b.sh(id, "lecafe-agent send 'after the flood'"))
	b.arrive(id, posted)
}

// TestSealedOrdersAreReplayed ends an instance by scale-in while its queue is
// out of reach: what it could not send is sealed within its bound, and sent by
// the operator.
func TestSealedOrdersAreReplayed(t *testing.T) {
	t.Parallel()
	b := newAgentBench(t, "debian-13", "orders: {queue: cafe, seal_to: \"s3://left/over\", drain: 2s}")
	b.cloud.SQS.CreateQueue("cafe", map[string]string{"VisibilityTimeout": "600"})
	b.cloud.S3.CreateBucket("left", "us-east-1")
	if err := b.cloud.PutRolePolicy("app", "seal", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::left/over/${aws:userid}/*"}]}`); err != nil {
		t.Fatal(err)
	}
	meta := imds.New(b.instance("ami-agent", "#!/bin/sh\n"))
	id := b.start(meta.Instance(), meta)
	b.settled(id)
	first := strings.Fields(b.sh(id, "lecafe-agent send first"))
	b.arrive(id, first) // so that the queue is known
	away := b.cloud.Inject(cloud.Fault{Service: "sqs", Resource: "*cafe", Kind: cloud.Reset})
	left := strings.Fields(b.sh(id, "for n in 1 2 3; do lecafe-agent send left-$n; done"))
	meta.Update(func(i *imds.Instance) { i.TargetLifecycleState = "Terminated" })
	b.eventually(id, "sealed orders", func() bool { return len(b.cloud.S3.Objects("left", "")) == 1 })
	b.eventually(id, "empty spool", func() bool {
		return strings.Contains(b.sh(id, "curl -sS --unix-socket /run/lecafe/orders.sock http://x/v1/status"), `"spooled":0`)
	})
	if err := b.d.Terminate(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	away.Remove()
	cmd := exec.CommandContext(t.Context(), filepath.Join(boots.Programs(t), "lecafe"), "orders", "replay", "--queue", "cafe", "s3://left/over")
	cmd.Env = b.cloud.Env()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "1 objects, 3 orders sent") || len(b.cloud.S3.Objects("left", "")) != 0 {
		t.Errorf("%v, left %v", err, b.cloud.S3.Objects("left", ""))
	}
	b.arrive(id, left)
}
