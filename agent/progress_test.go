package agent_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab/cloud"
)

const ownMarks = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::reports/lecafe-reports/${aws:userid}/progress/*"}]}`

// marks returns the stages that are marked, and whether there is a report.
func (b *box) marks() (stages []report.StageName, reported bool) {
	for _, key := range b.cloud.S3.Objects("reports", "") {
		m, err := report.ParseMark(key)
		switch {
		case err != nil:
			reported = reported || strings.HasSuffix(key, ".json")
		case m.Sender == b.cloud.Vault.RoleID("app")+":"+instanceID && m.Prefix == "lecafe-reports":
			stages = append(stages, m.Stage)
		default:
			b.t.Errorf("a mark at %s", key)
		}
	}
	return stages, reported
}

func (b *box) marked(want ...report.StageName) {
	b.t.Helper()
	var got []report.StageName
	defer func() {
		if b.t.Failed() {
			b.t.Logf("marks %v, want %v", got, want)
		}
	}()
	b.eventually("marks", func() bool { got, _ = b.marks(); return slices.Equal(got, want) })
}

// newMarkingBox has an agent that marks at once, with a role that may remove its
// marks.
func newMarkingBox(t *testing.T) *box {
	t.Helper()
	b := newBox(t, script)
	if err := b.cloud.PutRolePolicy("app", "marks", ownMarks); err != nil {
		t.Fatal(err)
	}
	b.markAfter = time.Millisecond
	return b
}

// remembered waits until the agent's memory on disk has a text.
func (b *box) remembered(text string) {
	b.t.Helper()
	b.eventually("memory of "+text, func() bool {
		m, err := os.ReadFile(filepath.Join(b.root, "var/lib/lecafe/bootstrap.json"))
		return err == nil && strings.Contains(string(m), text)
	})
}

// TestProgress: one mark, of the stage that the boot is in, until the report
// has arrived.
func TestProgress(t *testing.T) {
	b := newMarkingBox(t)
	b.start()
	b.cloudInit("init", false)
	b.marked(report.StageCloudInitNetwork)
	b.ran("part-001")
	b.cloudInit("modules-final", false)
	b.marked(report.StageCloudFinal)

	// While the report cannot be sent, the mark stays.
	fault := b.cloud.Inject(cloud.Fault{Service: "s3", Action: "PutObject", Kind: cloud.Error5xx})
	b.cloudInit("modules-final", true)
	b.eventually("attempts at S3", func() bool { return fault.Hits() > 0 })
	b.marked(report.StageCloudFinal)
	fault.Remove()
	b.marked()
	if _, reported := b.marks(); !reported {
		t.Error("the mark went before the report was there")
	}
}

// TestProgressOfARestartedAgent: the mark of before the restart goes too.
func TestProgressOfARestartedAgent(t *testing.T) {
	b := newMarkingBox(t)
	b.start()
	b.cloudInit("modules-config", false)
	b.marked(report.StageCloudConfig)
	b.remembered("cloud-config")
	b.kill()
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", false)
	b.marked(report.StageCloudFinal)
	b.cloudInit("modules-final", true)
	b.eventually("report", func() bool { _, reported := b.marks(); return reported })
	b.marked()
}

// TestProgressOfAnAgentRestartedBetweenMarks: the agent is killed when the stage
// is another than the one marked, and again with its report undelivered.
func TestProgressOfAnAgentRestartedBetweenMarks(t *testing.T) {
	b := newMarkingBox(t)
	b.start()
	b.cloudInit("init", false)
	b.marked(report.StageCloudInitNetwork)
	fault := b.cloud.Inject(cloud.Fault{Service: "s3", Action: "PutObject", Kind: cloud.Error5xx})
	b.cloudInit("modules-config", false)
	b.remembered("cloud-config")
	b.kill()
	fault.Remove()
	b.start()
	b.marked(report.StageCloudConfig)

	fault = b.cloud.Inject(cloud.Fault{Service: "s3", Action: "PutObject", Kind: cloud.Error5xx})
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	b.remembered(`"judged":true`)
	b.kill()
	fault.Remove()
	b.start()
	b.eventually("report", func() bool { _, reported := b.marks(); return reported })
	b.marked()
}

// TestProgressWithoutPermission: a role that may not delete still boots and
// reports; watchers take the latest mark.
func TestProgressWithoutPermission(t *testing.T) {
	b := newBox(t, script)
	b.markAfter = time.Millisecond
	b.start()
	b.cloudInit("init", false)
	b.marked(report.StageCloudInitNetwork)
	b.ran("part-001")
	b.cloudInit("modules-final", false)
	b.marked(report.StageCloudFinal, report.StageCloudInitNetwork)
	b.cloudInit("modules-final", true)
	b.eventually("report", func() bool { _, reported := b.marks(); return reported })
}

// TestQuickBootSaysNothingOnItsWay: not one call more.
func TestQuickBootSaysNothingOnItsWay(t *testing.T) {
	b := newBox(t, script)
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	b.reports(1)
	puts := 0
	for _, c := range b.cloud.Calls() {
		if c.Action == "PutObject" || c.Action == "DeleteObject" {
			puts++
		}
	}
	if puts != 1 {
		t.Errorf("%d calls to S3 for one report", puts)
	}
}
