package fleet_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
)

func ptr[T any](v T) *T { return &v }

func TestPassOfEveryKind(t *testing.T) {
	f := newFakeAWS()
	young, old := now.Add(-2*time.Minute), now.Add(-30*time.Minute)
	good, bad, half := f.add("app", 1, old)[0], f.add("app", 1, old)[0], f.add("app", 1, old)[0]
	booting, silent, gone := f.add("app", 1, young)[0], f.add("app", 1, old)[0], f.add("app", 1, old)[0]
	gone.state = "terminated"
	f.groups["app"]--
	f.put(good, report.Success, old.Add(time.Minute))
	f.put(bad, report.Failure, old.Add(time.Minute), report.Cause{Code: report.CodeScriptExit, Stage: report.StageCloudFinal, Message: "part-001 ended with exit code 3", ExitCode: ptr(3), File: "part-001", Line: 7})
	f.put(half, report.Degraded, old.Add(time.Minute), report.Cause{Code: report.CodeCommandFailed, Message: "a command failed"})
	f.console[silent.id] = "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"

	w := f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	s := pass(t, w)
	for id, want := range map[string]fleet.Verdict{good.id: fleet.Success, bad.id: fleet.Failure, half.id: fleet.Degraded, booting.id: fleet.Pending, silent.id: fleet.Silent, gone.id: fleet.Terminated} {
		if got := find(t, s, id).Verdict; got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
	if c := find(t, s, bad.id).Cause; c == nil || c.Line != 7 || c.ExitCode == nil || *c.ExitCode != 3 || c.Stage != report.StageCloudFinal {
		t.Errorf("cause of the failure: %+v", c)
	}
	if c := find(t, s, silent.id).Cause; c == nil || c.Code != fleet.CodeKernelPanic || !strings.Contains(c.Message, "Unable to mount root") {
		t.Errorf("cause of the silence: %+v", c)
	}
	if s.OK || s.Settled() || s.Counts[fleet.Failure] != 1 {
		t.Errorf("ok %v settled %v counts %v", s.OK, s.Settled(), s.Counts)
	}
	if n := f.calls["S3:GET"]; n != 2 {
		t.Errorf("%d reports were read, want the two that are not success", n)
	}
	pass(t, w)
	if n := f.calls["S3:GET"]; n != 2 {
		t.Errorf("the second pass read reports again: %d", n)
	}
}

func TestAllWell(t *testing.T) {
	f := newFakeAWS()
	for _, i := range f.add("app", 3, now.Add(-time.Hour)) {
		f.put(i, report.Success, now.Add(-50*time.Minute))
	}
	if s := pass(t, f.watcher(t, fleet.Selection{Groups: []string{"app"}})); !s.OK || !s.Settled() || f.calls["S3:GET"] != 0 {
		t.Errorf("ok %v, settled %v, %d reads, notes %v", s.OK, s.Settled(), f.calls["S3:GET"], s.Notes)
	}
	f.groups["app"] = 4 // one could not be launched
	f.activity["app"] = "You have requested more vCPU capacity than your current vCPU limit"
	s := pass(t, f.watcher(t, fleet.Selection{Groups: []string{"app"}}))
	if s.OK || s.Settled() || s.Groups[0].Short != 1 || !strings.Contains(s.Groups[0].Message, "vCPU limit") {
		t.Errorf("a group that lacks an instance: ok %v, %+v", s.OK, s.Groups)
	}
}

func TestSelections(t *testing.T) {
	f := newFakeAWS()
	a, b := f.add("a", 1, now)[0], f.add("b", 1, now)[0]
	b.template = "lt-2"
	for name, c := range map[string]struct {
		sel  fleet.Selection
		want int
	}{
		"group":         {fleet.Selection{Groups: []string{"a"}}, 1},
		"template":      {fleet.Selection{Templates: []string{"lt-2"}}, 1},
		"tag":           {fleet.Selection{Tags: []string{"app=cafe"}}, 2},
		"instance":      {fleet.Selection{InstanceIDs: []string{a.id}}, 1},
		"all, as union": {fleet.Selection{Groups: []string{"a", "b"}, Templates: []string{"lt-1"}, InstanceIDs: []string{a.id, b.id}}, 2},
	} {
		if s := pass(t, f.watcher(t, c.sel)); len(s.Instances) != c.want {
			t.Errorf("%s: %d instances, want %d", name, len(s.Instances), c.want)
		}
	}
	w := f.watcher(t, fleet.Selection{Groups: []string{"a", "none"}})
	if _, err := w.Pass(t.Context()); !errors.Is(err, fleet.ErrSelection) || !strings.Contains(err.Error(), `"none"`) {
		t.Errorf("a group that does not exist: %v", err)
	}
	if s := pass(t, f.watcher(t, fleet.Selection{InstanceIDs: []string{"i-00000000000000fff"}})); s.Instances[0].Verdict != fleet.Terminated {
		t.Errorf("an instance that does not exist: %+v", s.Instances)
	}
	if s := pass(t, f.watcher(t, fleet.Selection{Templates: []string{"lt-9"}})); s.OK || len(s.Notes) == 0 {
		t.Errorf("no instances must not be well: %+v", s)
	}
}

func TestReportsThatAreNotBelieved(t *testing.T) {
	f := newFakeAWS()
	old := now.Add(-time.Hour)
	list := f.add("app", 6, old)
	key := func(sender, id string, v report.Verdict) report.Key {
		return report.Key{Prefix: "p", Sender: sender + ":" + id, Time: old.Add(time.Minute), Kind: report.KindBootstrap, Verdict: v, Code: "none", ID: report.NewID()}
	}
	body := func(k report.Key, change func(*report.Report)) []byte {
		r := &report.Report{ID: k.ID, Kind: k.Kind, Verdict: k.Verdict, Sender: k.Sender, Instance: report.Instance{ID: k.InstanceID()}, JudgedAt: k.Time}
		change(r)
		b, _ := report.Encode(r)
		return b
	}
	// Another role's session that bears the instance's name says success.
	k := key("AROAEVIL", list[0].id, report.Success)
	f.putRaw(k.String(), body(k, func(*report.Report) {}), old)
	// A body that speaks of another instance.
	k = key(role, list[1].id, report.Failure)
	f.putRaw(k.String(), body(k, func(r *report.Report) { r.Instance.ID = list[0].id }), old)
	// Not JSON; JSON of a schema to come; another verdict than the key's; too long.
	k = key(role, list[2].id, report.Failure)
	f.putRaw(k.String(), []byte("\x00\xff{"), old)
	k = key(role, list[3].id, report.Failure)
	f.putRaw(k.String(), []byte(`{"schema":"lecafe.report/v2"}`), old)
	k = key(role, list[4].id, report.Failure)
	f.putRaw(k.String(), body(k, func(r *report.Report) { r.Verdict = report.Success }), old)
	k = key(role, list[5].id, report.Failure)
	f.putRaw(k.String(), make([]byte, fleet.MaxReport+1), old)
	f.putRaw("p/stray.txt", nil, old)

	s := pass(t, f.watcher(t, fleet.Selection{Groups: []string{"app"}}))
	want := map[string]fleet.Reason{list[0].id: fleet.Forged, list[1].id: fleet.Forged, list[2].id: fleet.Malformed, list[3].id: fleet.Schema, list[4].id: fleet.Malformed, list[5].id: fleet.Oversized, "": fleet.Malformed}
	if len(s.Refused) != len(want) {
		t.Errorf("%d refused, want %d: %+v", len(s.Refused), len(want), s.Refused)
	}
	for _, r := range s.Refused {
		if want[r.InstanceID] != r.Reason {
			t.Errorf("%s: %s, want %s", r.Name, r.Reason, want[r.InstanceID])
		}
	}
	for _, i := range s.Instances {
		if i.Verdict != fleet.Silent || i.Refused != 1 {
			t.Errorf("%s: %s, %d refused", i.ID, i.Verdict, i.Refused)
		}
	}

	w := f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	w.NoVerify = true
	if got := find(t, pass(t, w), list[0].id).Verdict; got != fleet.Success {
		t.Errorf("without verification: %s", got)
	}
}

func TestRoleCheckWithoutPermissionIsSaid(t *testing.T) {
	f := newFakeAWS()
	i := f.add("app", 1, now)[0]
	f.put(i, report.Success, now)
	f.deny["GetInstanceProfile"] = true
	s := pass(t, f.watcher(t, fleet.Selection{Groups: []string{"app"}}))
	if s.Instances[0].Verdict != fleet.Success || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "iam:GetInstanceProfile") {
		t.Errorf("verdict %s, notes %v", s.Instances[0].Verdict, s.Notes)
	}
}

func TestDeadlineFromTheImage(t *testing.T) {
	f := newFakeAWS()
	f.bootTag = "60"
	f.add("app", 1, now.Add(-4*time.Minute))
	if s := pass(t, f.watcher(t, fleet.Selection{Groups: []string{"app"}})); s.Instances[0].Verdict != fleet.Silent {
		t.Errorf("%s, want silent three minutes after launch", s.Instances[0].Verdict)
	}
}

func TestDeltaReadsOnlyTheSendersNamed(t *testing.T) {
	f := newFakeAWS()
	list := f.add("app", 3, now)
	w := f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	pass(t, w)
	f.put(list[0], report.Success, now)
	f.put(list[1], report.Success, now)
	before := f.count()
	s, err := w.Delta(t.Context(), []string{role + ":" + list[0].id})
	if err != nil {
		t.Fatal(err)
	}
	if f.count()-before != 1 || s.Counts[fleet.Success] != 1 {
		t.Errorf("%d calls, %v", f.count()-before, s.Counts)
	}
	if s, err = w.Delta(t.Context(), nil); err != nil || s.Counts[fleet.Success] != 2 {
		t.Errorf("a delta of everyone: %v, %v", s.Counts, err)
	}
}

func TestTwoRegions(t *testing.T) {
	a, b := newFakeAWS(), newFakeAWS()
	one, two := a.add("here", 1, now)[0], b.add("there", 1, now)[0]
	two.id = "i-0000000000000beef"
	a.put(one, report.Success, now)
	a.put(two, report.Success, now) // the reports of both are in one bucket
	w := a.watcher(t, fleet.Selection{Groups: []string{"here", "there"}, InstanceIDs: []string{two.id}})
	other := b.watcher(t, fleet.Selection{}).Regions[0]
	other.Name = "eu-west-1"
	w.Regions = append(w.Regions, other)
	s := pass(t, w)
	if !s.OK || len(s.Instances) != 2 || find(t, s, two.id).Region != "eu-west-1" || find(t, s, one.id).Region != "us-east-1" {
		t.Errorf("%+v", s)
	}
	w.Selection.Groups = append(w.Selection.Groups, "nowhere")
	if _, err := w.Pass(t.Context()); !errors.Is(err, fleet.ErrSelection) || !strings.Contains(err.Error(), `no Auto Scaling group "nowhere" in us-east-1, eu-west-1`) {
		t.Errorf("a group that is in neither: %v", err)
	}
}
