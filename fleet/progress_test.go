package fleet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
)

// mark stores a mark as the agent of a role's session does.
func (f *fakeAWS) mark(role string, i *fakeInstance, stage report.StageName, at time.Time) string {
	return f.putRaw(report.MarkOf("p", role+":"+i.id, stage).String(), nil, at)
}

func TestPendingInstancesShowTheirStage(t *testing.T) {
	f := newFakeAWS()
	launched := now.Add(-3 * time.Minute)
	list := f.add("app", 7, launched)
	hanging, two, other, stopped, done, silent, quiet := list[0], list[1], list[2], list[3], list[4], list[5], list[6]
	hanging.lifecycle = "Pending:Wait"
	f.mark(role, hanging, report.StageCloudFinal, now.Add(-2*time.Minute))
	// A role that may not delete leaves the earlier ones; S3 tells seconds.
	f.mark(role, two, report.StageCloudInitNetwork, now.Add(-time.Minute))
	f.mark(role, two, report.StageCloudFinal, now.Add(-time.Minute))
	f.mark(role, two, report.StageApplication, now.Add(-time.Minute))
	// Another role's word about it; one of before its last start.
	f.mark("AROAEVIL", other, report.StageCloudFinal, now.Add(-time.Minute))
	f.mark(role, stopped, report.StageCloudFinal, launched.Add(-time.Hour))
	f.mark(role, done, report.StageCloudFinal, now.Add(-2*time.Minute))
	f.put(done, report.Success, now.Add(-time.Minute))
	silent.launched = now.Add(-time.Hour)
	f.mark(role, silent, report.StageConfig, now.Add(-50*time.Minute))

	w := f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	s := pass(t, w)
	for _, c := range []struct {
		i       *fakeInstance
		verdict fleet.Verdict
		stage   string
		told    bool
	}{
		{hanging, fleet.Pending, "cloud-final", true}, {two, fleet.Pending, "application", true}, {other, fleet.Pending, "booting", false},
		{stopped, fleet.Pending, "booting", false}, {done, fleet.Success, "", false}, {silent, fleet.Silent, "config", true}, {quiet, fleet.Pending, "booting", false},
	} {
		got := find(t, s, c.i.id)
		if got.Verdict != c.verdict || got.Stage != c.stage || (got.StageAt != nil) != c.told {
			t.Errorf("%s: %s in %q at %v, want %s in %q", got.ID, got.Verdict, got.Stage, got.StageAt, c.verdict, c.stage)
		}
	}
	if c := find(t, s, silent.id).Cause; c == nil || c.Stage != report.StageConfig {
		t.Errorf("cause of the silence: %+v", c)
	}
	if at := find(t, s, hanging.id).StageAt; at == nil || !at.Equal(now.Add(-2*time.Minute)) {
		t.Errorf("told at %v", at)
	}
	// The listing is enough, and a mark is no report that is refused.
	if f.calls["S3:GET"] != 0 || f.calls["S3:List"] != 1 || len(s.Refused) != 0 {
		t.Errorf("%d reads, %d listings, refused %+v", f.calls["S3:GET"], f.calls["S3:List"], s.Refused)
	}

	// A change of stage is a change, and a delta sees it.
	f.mark(role, quiet, report.StageCloudConfig, now)
	next, err := w.Delta(t.Context(), []string{role + ":" + quiet.id})
	if err != nil {
		t.Fatal(err)
	}
	changes := fleet.Changes(s, next)
	if len(changes) != 1 || changes[0].ID != quiet.id || changes[0].Stage != "cloud-config" || !strings.Contains(changes[0].Line(), "pending in cloud-config") {
		t.Errorf("changes %+v", changes)
	}
	f.put(quiet, report.Success, now)
	if next, err = w.Delta(t.Context(), []string{role + ":" + quiet.id}); err != nil || find(t, next, quiet.id).Stage != "" {
		t.Errorf("after its report: %+v, %v", find(t, next, quiet.id), err)
	}

	w = f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	w.NoVerify = true
	if got := find(t, pass(t, w), other.id).Stage; got != "cloud-final" {
		t.Errorf("without verification: %q", got)
	}
}
