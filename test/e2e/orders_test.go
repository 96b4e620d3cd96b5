package e2e

import (
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/test/boots"
)

// TestOrdersOnARealInstance posts through systemd's socket to the service in
// its sandbox: while it restarts and is killed, with no queue to be reached, and
// at the machine's end.
func TestOrdersOnARealInstance(t *testing.T) {
	t.Parallel()
	b := newAgentBench(t, "debian-12", "orders: {queue: cafe, seal_to: \"s3://left/over\"}")
	b.cloud.SQS.CreateQueue("cafe", map[string]string{"VisibilityTimeout": "600"})
	b.cloud.S3.CreateBucket("left", "us-east-1")
	if err := b.cloud.PutRolePolicy("app", "seal", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::left/over/${aws:userid}/*"}]}`); err != nil {
		t.Fatal(err)
	}
	id := b.boot("ami-agent", "#!/bin/sh\n")
	b.settled(id)
	b.sh(id, "mkdir -p /var/log/journal && systemctl restart systemd-journald") // for what a stop logs
	b.sh(id, "systemctl is-active lecafe-orders.socket lecafe-orders.service")
	if got := strings.TrimSpace(b.sh(id, "stat -c '%a %U %G' /run/lecafe/orders.sock; stat -c '%a %U' /var/lib/lecafe-orders; systemctl show -P User lecafe-orders")); got != "660 root lecafe-orders\n700 lecafe-orders\nlecafe-orders" {
		t.Errorf("socket, state and user:\n%s", got)
	}
	exposure := b.sh(id, "systemd-analyze security --no-pager lecafe-orders.service | tail -1")
	t.Log(strings.TrimSpace(exposure))
	for i, w := range strings.Fields(exposure) {
		if w == "lecafe-orders.service:" {
			if n, err := strconv.ParseFloat(strings.Fields(exposure)[i+1], 64); err != nil || n > 1.5 {
				t.Errorf("exposure %v, %v", n, err)
			}
		}
	}
	if out := b.sh(id, "setpriv --reuid nobody --regid nogroup --clear-groups lecafe-agent send x 2>&1; echo exit=$?"); !strings.Contains(out, "exit=3") {
		t.Errorf("a stranger's post: %s", out)
	}
	b.sh(id, "useradd -r -G lecafe-orders barista && setpriv --reuid barista --regid barista --init-groups lecafe-agent send 'of the group' >/root/ids")

	// Three at a time post while the service is restarted and killed.
	b.sh(id, `for who in a b c; do
	( i=0; while [ $i -lt 40 ]; do lecafe-agent send "$who $i" || echo failed; i=$((i+1)); done > /root/ids.$who 2>&1 ) &
done
for i in 1 2 3; do
	systemctl restart lecafe-orders
	systemctl kill -s KILL lecafe-orders
	systemctl start lecafe-orders || { systemctl reset-failed lecafe-orders; systemctl start lecafe-orders; }
done
wait`)
	posted := strings.Fields(b.sh(id, "cat /root/ids /root/ids.?"))
	if len(posted) != 121 {
		t.Fatalf("%d orders posted: %v", len(posted), posted)
	}
	b.arrive(id, posted)
	t.Log(b.sh(id, "grep VmRSS /proc/$(systemctl show -P MainPID lecafe-orders)/status; systemctl status --no-pager lecafe-orders | head -12"))

	// The machine goes down with orders that could not be sent.
	away := b.cloud.Inject(cloud.Fault{Service: "sqs", Resource: "*cafe", Kind: cloud.Reset})
	left := strings.Fields(b.sh(id, "for i in 1 2 3; do lecafe-agent send left-$i; done"))
	if err := b.d.Stop(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	var sealed []string
	for _, key := range b.cloud.S3.Objects("left", "") {
		if !strings.HasPrefix(key, "over/"+b.cloud.Vault.RoleID("app")+":"+id+"/") {
			t.Errorf("sealed as %s", key)
		}
		out, err := b.s3().GetObject(t.Context(), &s3api.GetObjectInput{Bucket: aws.String("left"), Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		list, err := orders.ReadSealed(out.Body)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			sealed = append(sealed, o.ID.String())
		}
	}

	// It was a stop: at the next boot the instance sends them itself. And a
	// machine that goes down with its queue in reach leaves nothing.
	away.Remove()
	if err := b.d.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	b.arrive(id, left)
	if strings.Join(sealed, " ") != strings.Join(left, " ") {
		t.Errorf("sealed %v, left %v\n%s", sealed, left, b.shAny(id, "journalctl --no-pager -b -1 -u lecafe-orders | grep -v connected | tail -30"))
	}
	last := strings.Fields(b.sh(id, "for i in 1 2 3 4 5; do lecafe-agent send last-$i; done"))
	if err := b.d.Stop(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	b.arrive(id, last)
}

// arrive waits until all orders are received.
func (b *agentBench) arrive(id string, ids []string) {
	b.t.Helper()
	api := sqs.NewFromConfig(b.cloud.Config())
	u, err := api.GetQueueUrl(b.t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("cafe")})
	if err != nil {
		b.t.Fatal(err)
	}
	missing := map[string]bool{}
	for _, id := range ids {
		missing[id] = true
	}
	boots.Eventually(b.t, "arrival of all orders", func() bool {
		out, err := api.ReceiveMessage(b.t.Context(), &sqs.ReceiveMessageInput{QueueUrl: u.QueueUrl, MaxNumberOfMessages: 10, WaitTimeSeconds: 1, MessageAttributeNames: []string{"All"}})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, m := range out.Messages {
			delete(missing, aws.ToString(m.MessageAttributes[orders.IDAttribute].StringValue))
			if _, err := api.DeleteMessage(b.t.Context(), &sqs.DeleteMessageInput{QueueUrl: u.QueueUrl, ReceiptHandle: m.ReceiptHandle}); err != nil {
				b.t.Fatal(err)
			}
		}
		return len(missing) == 0
	}, func() string {
		return b.shAny(id, "journalctl -b --no-pager -u lecafe-orders | tail -40; lecafe-agent spool ls")
	})
}
