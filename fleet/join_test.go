package fleet_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const role = "AROAEXAMPLEEXAMPLE"

// object is a bootstrap report of an instance, as a listing shows it.
func object(sender, instance string, v report.Verdict, code report.Code, at time.Time) fleet.Object {
	k := report.Key{Prefix: "p", Sender: sender + ":" + instance, Time: at, Kind: report.KindBootstrap, Verdict: v, Code: code, ID: report.NewID()}
	return fleet.Object{Key: k, Name: k.String(), ModifiedAt: at.Add(time.Second)}
}

func running(id string, launched time.Time) fleet.Instance {
	return fleet.Instance{ID: id, Region: "us-east-1", State: "running", LaunchedAt: launched, ProfileARN: "arn:aws:iam::1:instance-profile/p", RoleID: role}
}

func TestVerdicts(t *testing.T) {
	i := running("i-00000001", now.Add(-5*time.Minute))
	old := running("i-00000001", now.Add(-20*time.Minute))
	with := func(i fleet.Instance, f func(*fleet.Instance)) fleet.Instance { f(&i); return i }
	for _, c := range []struct {
		name     string
		instance fleet.Instance
		objects  []fleet.Object
		deadline time.Duration
		verdict  fleet.Verdict
		code     report.Code
		refused  int
	}{
		{"success", i, []fleet.Object{object(role, i.ID, report.Success, "none", now)}, 0, fleet.Success, "", 0},
		{"failure", i, []fleet.Object{object(role, i.ID, report.Failure, report.CodeScriptExit, now)}, 0, fleet.Failure, report.CodeScriptExit, 0},
		{"degraded", i, []fleet.Object{object(role, i.ID, report.Degraded, report.CodeCommandFailed, now)}, 0, fleet.Degraded, report.CodeCommandFailed, 0},
		{"in time", i, nil, 0, fleet.Pending, "", 0},
		{"deadline passed", old, nil, 0, fleet.Silent, fleet.CodeNoReport, 0},
		{"own deadline", i, nil, 4 * time.Minute, fleet.Silent, fleet.CodeNoReport, 0},
		{"at the deadline", i, nil, 5 * time.Minute, fleet.Silent, fleet.CodeNoReport, 0},
		{"the image's deadline", with(i, func(i *fleet.Instance) { i.BootTime = 100 * time.Second }), nil, 0, fleet.Silent, fleet.CodeNoReport, 0},
		{"the image's deadline is long", with(old, func(i *fleet.Instance) { i.BootTime = time.Hour }), nil, 0, fleet.Pending, "", 0},
		{"a late report counts", old, []fleet.Object{object(role, i.ID, report.Success, "none", now)}, 0, fleet.Success, "", 0},
		{"no profile", with(old, func(i *fleet.Instance) { i.ProfileARN = "" }), nil, 0, fleet.Silent, report.CodeRoleMissing, 0},
		{"no metadata", with(old, func(i *fleet.Instance) { i.IMDSDisabled = true }), nil, 0, fleet.Silent, report.CodeIMDSUnreachable, 0},
		{"stopped", with(old, func(i *fleet.Instance) { i.State = "stopped" }), nil, 0, fleet.Silent, fleet.CodeStopped, 0},
		{"gone", with(i, func(i *fleet.Instance) { i.State = "terminated" }), nil, 0, fleet.Terminated, fleet.CodeTerminated, 0},
		{"gone after its report", with(i, func(i *fleet.Instance) { i.State = "shutting-down" }), []fleet.Object{object(role, i.ID, report.Success, "none", now)}, 0, fleet.Success, "", 0},
		{"another role's session named like it", i, []fleet.Object{object("AROAEVIL", i.ID, report.Success, "none", now)}, 0, fleet.Pending, "", 1},
		{"a forged one before the true one", i, []fleet.Object{object("AROAEVIL", i.ID, report.Success, "none", now.Add(-time.Minute)), object(role, i.ID, report.Failure, report.CodeScriptExit, now)}, 0, fleet.Failure, report.CodeScriptExit, 1},
		{"role not known", with(i, func(i *fleet.Instance) { i.RoleID = "" }), []fleet.Object{object("AROAANY", i.ID, report.Success, "none", now)}, 0, fleet.Success, "", 0},
		{"role not known, two senders", with(i, func(i *fleet.Instance) { i.RoleID = "" }), []fleet.Object{object("AROAANY", i.ID, report.Failure, "none", now), object("AROAEVIL", i.ID, report.Success, "none", now.Add(time.Second))}, 0, fleet.Failure, "", 1},
		{"judged once: the first stands", i, []fleet.Object{object(role, i.ID, report.Failure, report.CodeScriptExit, now.Add(-time.Minute)), object(role, i.ID, report.Success, "none", now)}, 0, fleet.Failure, report.CodeScriptExit, 0},
		{"unknown verdict", i, []fleet.Object{object(role, i.ID, "splendid", "none", now)}, 0, fleet.Pending, "", 1},
		{"after a restart the old report stands", with(i, func(i *fleet.Instance) { i.LaunchedAt = now }), []fleet.Object{object(role, i.ID, report.Success, "none", now.Add(-24*time.Hour))}, 0, fleet.Success, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, refusals := fleet.Join([]fleet.Instance{c.instance}, c.objects, fleet.Policy{Now: now, Deadline: c.deadline})
			if len(got) != 1 || got[0].Verdict != c.verdict || got[0].Refused != c.refused || len(refusals) != c.refused {
				t.Fatalf("got %+v, refusals %+v", got, refusals)
			}
			var code report.Code
			if got[0].Cause != nil {
				code = got[0].Cause.Code
			}
			if code != c.code {
				t.Errorf("cause %q, want %q", code, c.code)
			}
		})
	}
}

func TestOtherKindsAreNoVerdict(t *testing.T) {
	i := running("i-00000001", now)
	for _, kind := range []report.Kind{report.KindStart, report.KindConfig, report.KindOrders, report.KindBuild} {
		o := object(role, i.ID, report.Failure, "none", now)
		o.Key.Kind = kind
		if got, _ := fleet.Join([]fleet.Instance{i}, []fleet.Object{o}, fleet.Policy{Now: now}); got[0].Verdict != fleet.Pending {
			t.Errorf("%s: %s", kind, got[0].Verdict)
		}
	}
}

func TestCopiedReportIsRefused(t *testing.T) {
	a, b := running("i-00000001", now), running("i-00000002", now)
	first := object(role, a.ID, report.Success, "none", now)
	second := first
	second.Key.Sender = role + ":" + b.ID
	second.Name = second.Key.String()
	second.ModifiedAt = first.ModifiedAt.Add(time.Minute)
	for _, objects := range [][]fleet.Object{{first, second}, {second, first}} {
		got, refusals := fleet.Join([]fleet.Instance{a, b}, objects, fleet.Policy{Now: now})
		if got[0].Verdict != fleet.Success || got[1].Verdict != fleet.Pending || len(refusals) != 1 || refusals[0].Reason != fleet.Replayed {
			t.Errorf("got %s %s, %+v", got[0].Verdict, got[1].Verdict, refusals)
		}
	}
}

// Whatever the listing holds: every instance has one standing, the order of
// arguments and repeated objects change nothing, no forged report decides, and
// time only moves pending to silent.
func TestJoinProperties(t *testing.T) {
	verdicts := []report.Verdict{report.Success, report.Degraded, report.Failure, "odd"}
	kinds := []report.Kind{report.KindBootstrap, report.KindBootstrap, report.KindStart, report.KindOrders}
	roles := []string{role, role, "AROAOTHER"}
	states := []string{"pending", "running", "stopped", "terminated"}
	rapid.Check(t, func(t *rapid.T) {
		var instances []fleet.Instance
		for n := range rapid.IntRange(0, 6).Draw(t, "instances") {
			i := running(fmt.Sprintf("i-%08x", n), now.Add(-time.Duration(rapid.IntRange(0, 40).Draw(t, "age"))*time.Minute))
			i.State = rapid.SampledFrom(states).Draw(t, "state")
			if rapid.Bool().Draw(t, "role unknown") {
				i.RoleID = ""
			}
			instances = append(instances, i)
		}
		var objects []fleet.Object
		ids := []string{report.NewID(), report.NewID(), report.NewID()}
		for range rapid.IntRange(0, 12).Draw(t, "objects") {
			o := object(rapid.SampledFrom(roles).Draw(t, "sender"), fmt.Sprintf("i-%08x", rapid.IntRange(0, 8).Draw(t, "of")), rapid.SampledFrom(verdicts).Draw(t, "verdict"), "none",
				now.Add(time.Duration(rapid.IntRange(-3, 3).Draw(t, "at"))*time.Minute))
			o.Key.Kind = rapid.SampledFrom(kinds).Draw(t, "kind")
			if rapid.Bool().Draw(t, "known id") {
				o.Key.ID = rapid.SampledFrom(ids).Draw(t, "id")
			}
			o.Name = o.Key.String()
			objects = append(objects, o)
		}
		p := fleet.Policy{Now: now}
		got, refusals := fleet.Join(instances, objects, p)
		if len(got) != len(instances) {
			t.Fatalf("%d standings of %d instances", len(got), len(instances))
		}

		shuffledInstances, shuffled := append([]fleet.Instance(nil), instances...), append([]fleet.Object(nil), objects...)
		shuffled = append(shuffled, objects...) // each twice
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		r.Shuffle(len(shuffled), func(a, b int) { shuffled[a], shuffled[b] = shuffled[b], shuffled[a] })
		r.Shuffle(len(shuffledInstances), func(a, b int) {
			shuffledInstances[a], shuffledInstances[b] = shuffledInstances[b], shuffledInstances[a]
		})
		again, refusalsAgain := fleet.Join(shuffledInstances, shuffled, p)
		if !reflect.DeepEqual(got, again) || !reflect.DeepEqual(refusals, refusalsAgain) {
			t.Fatalf("order matters:\n%+v\n%+v\n%+v\n%+v", got, again, refusals, refusalsAgain)
		}

		byName := map[string]fleet.Object{}
		for _, o := range objects {
			byName[o.Name] = o
		}
		for _, s := range got {
			if s.Report == "" {
				continue
			}
			o := byName[s.Report]
			if o.Key.InstanceID() != s.ID || o.Key.Kind != report.KindBootstrap || s.RoleID != "" && o.Key.Sender != s.RoleID+":"+s.ID {
				t.Fatalf("%s judged by %s", s.ID, s.Report)
			}
		}

		later, _ := fleet.Join(instances, objects, fleet.Policy{Now: now.Add(time.Hour)})
		for n := range later {
			if a, b := got[n].Verdict, later[n].Verdict; a != b && (a != fleet.Pending || b != fleet.Silent) {
				t.Fatalf("%s became %s by time alone", a, b)
			}
		}
	})
}
