package agent_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
)

// TestReportsFollowTheRole pins that an instance whose role is replaced while
// the agent runs reports under the new one: below the old one's prefix its
// policy lets it put nothing.
func TestReportsFollowTheRole(t *testing.T) {
	var role, first atomic.Value
	role.Store("app")
	b := newBox(t, script)
	b.imds.Update(func(i *imds.Instance) {
		// The first ones live so shortly that the others are asked for.
		i.Credentials = func(d time.Duration) wire.Credentials {
			if role.Load() == "other" {
				return b.cloud.Vault.Vend("other", instanceID, d)
			}
			c := b.cloud.Vault.Vend("app", instanceID, 2*time.Second)
			first.Store(c.Expiration)
			return c
		}
	})
	for _, r := range []string{"app", "other"} {
		if err := b.cloud.PutRolePolicy(r, "all", `{"Version":"2012-10-17","Statement":[
			{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::reports/lecafe-reports/${aws:userid}/*"},
			{"Effect":"Allow","Action":["sqs:GetQueueUrl","sqs:SendMessage"],"Resource":"*"}]}`); err != nil {
			t.Fatal(err)
		}
	}
	b.start()
	b.eventually("sender", func() bool {
		s, err := agent.ReadState(b.root)
		if s.Sender == "" { // it is published when something happens
			b.write("run/cloud-init/other", "")
		}
		return err == nil && s.Sender != ""
	})
	role.Store("other")
	b.imds.Rotate()
	b.eventually("end of the first role's credentials", func() bool { return time.Now().After(first.Load().(time.Time)) })
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	r := b.reports(1)[0]
	if want := b.cloud.Vault.RoleID("other") + ":" + instanceID; r.Sender != want || !strings.HasSuffix(r.Sender, r.Instance.ID) {
		t.Errorf("sender %s, want %s", r.Sender, want)
	}
}
