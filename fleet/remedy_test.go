package fleet_test

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
)

var exit3 = report.Cause{Code: report.CodeScriptExit, Stage: report.StageCloudFinal, Line: 7}

// remedy returns a watcher and its remedy, as one process has them.
func (f *fakeAWS) remedy(t *testing.T, endpoint string, mode fleet.OnFailure) (*fleet.Watcher, *fleet.Remedy) {
	w := newWatcher(t, endpoint, fleet.Selection{Groups: []string{"app"}})
	cfg := aws.Config{Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
	return w, &fleet.Remedy{OnFailure: mode, Bucket: "b", Prefix: "p", Regions: w.Regions, Now: w.Now,
		S3: s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true })}
}

func act(t *testing.T, w *fleet.Watcher, r *fleet.Remedy) []fleet.Action {
	t.Helper()
	actions, err := r.Act(t.Context(), pass(t, w))
	if err != nil {
		t.Fatal(err)
	}
	return actions
}

func did(actions []fleet.Action, what string) (n int) {
	for _, a := range actions {
		if a.Did == what {
			n++
		}
	}
	return n
}

func serve(t *testing.T, f *fakeAWS) string {
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestRemedyStopsAtTheBrake(t *testing.T) {
	f := newFakeAWS()
	for _, i := range f.add("app", 6, now.Add(-time.Minute)) {
		f.put(i, report.Failure, now, exit3)
	}
	w, r := f.remedy(t, serve(t, f), fleet.Unhealthy)
	actions := act(t, w, r)
	if did(actions, "unhealthy") != 2 || did(actions, "specimen") != 1 || did(actions, "brake") != 3 {
		t.Errorf("actions %+v", actions)
	}
	slices.Sort(f.actions)
	if len(f.actions) != 3 || !strings.HasPrefix(f.actions[0], "EnterStandby") || !strings.HasPrefix(f.actions[2], "SetInstanceHealth") {
		t.Errorf("calls %q", f.actions)
	}
	if b := r.Brakes(); len(b) != 1 || len(b[0].Instances) != 3 || b[0].Specimen == "" || !strings.HasSuffix(f.actions[0], b[0].Specimen) {
		t.Errorf("brakes %+v", b)
	}
	if again := act(t, w, r); len(again) != 0 || len(f.actions) != 3 {
		t.Errorf("second pass did %+v", again)
	}
	// A restarted watcher knows all of it from S3.
	w, r = f.remedy(t, serve(t, f), fleet.Unhealthy)
	if again := act(t, w, r); len(again) != 0 || len(f.actions) != 3 {
		t.Errorf("restarted: %+v, calls %q", again, f.actions)
	}
	// A new image is counted anew.
	i := f.add("app", 1, now)[0]
	i.image = "ami-2"
	f.put(i, report.Failure, now, exit3)
	if again := act(t, w, r); did(again, "unhealthy") != 1 {
		t.Errorf("new image: %+v", again)
	}
}

func TestTwoWatchersActOnce(t *testing.T) {
	f := newFakeAWS()
	const n = 12
	for k, i := range f.add("app", n, now.Add(-time.Minute)) {
		c := exit3
		c.Line = k / 2 // six fingerprints, two each: no brake
		f.put(i, report.Failure, now, c)
	}
	url := serve(t, f)
	var wg sync.WaitGroup
	for range 4 {
		w, r := f.remedy(t, url, fleet.Terminate)
		wg.Go(func() {
			for range 2 {
				snap, err := w.Pass(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := r.Act(t.Context(), snap); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(f.actions)
	if len(f.actions) != n || len(slices.Compact(slices.Clone(f.actions))) != n {
		t.Errorf("%d calls: %q", len(f.actions), f.actions)
	}
}

func TestTwoWatchersShareTheBrake(t *testing.T) {
	f := newFakeAWS()
	for _, i := range f.add("app", 10, now.Add(-time.Minute)) {
		f.put(i, report.Failure, now, exit3)
	}
	url := serve(t, f)
	var wg sync.WaitGroup
	for range 3 {
		w, r := f.remedy(t, url, fleet.Terminate)
		wg.Go(func() {
			snap, err := w.Pass(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := r.Act(t.Context(), snap); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	terminated, standby := 0, 0
	for _, a := range f.actions {
		if strings.HasPrefix(a, "TerminateInstances") {
			terminated++
		} else if strings.HasPrefix(a, "EnterStandby") {
			standby++
		}
	}
	if terminated != 2 || standby != 1 {
		t.Errorf("calls %q", f.actions)
	}
}

func TestRemedyLeavesTheOthersAlone(t *testing.T) {
	f := newFakeAWS()
	list := f.add("app", 6, now.Add(-time.Minute))
	f.put(list[0], report.Success, now)
	f.put(list[1], report.Degraded, now, exit3)
	// list[2] is pending
	list[3].state = "terminated"
	f.put(list[3], report.Failure, now, exit3)
	list[4].lifecycle = "Terminating:Wait"
	f.put(list[4], report.Failure, now, exit3)
	list[5].lifecycle = "Standby"
	f.put(list[5], report.Failure, now, exit3)
	w, r := f.remedy(t, serve(t, f), fleet.Terminate)
	if actions := act(t, w, r); len(actions) != 0 || len(f.actions) != 0 {
		t.Errorf("did %+v, calls %q", actions, f.actions)
	}
}

func TestRemedyAtTheLifecycleHook(t *testing.T) {
	f := newFakeAWS()
	list := f.add("app", 4, now.Add(-time.Minute))
	for k, i := range list {
		i.lifecycle = "Pending:Wait"
		if k == 3 {
			i.lifecycle = "InService"
		}
		f.put(i, report.Failure, now, exit3)
	}
	w, r := f.remedy(t, serve(t, f), fleet.Abandon)
	actions := act(t, w, r)
	want := []string{"CompleteLifecycleAction " + list[0].id, "CompleteLifecycleAction " + list[1].id, "RecordLifecycleActionHeartbeat " + list[2].id}
	if !slices.Equal(f.actions, want) || did(actions, "nothing") != 1 {
		t.Errorf("calls %q, actions %+v", f.actions, actions)
	}
	// The specimen's hook is kept from running out, pass by pass, also by a
	// watcher that comes later.
	act(t, w, r)
	w, r = f.remedy(t, serve(t, f), fleet.Abandon)
	act(t, w, r)
	act(t, w, r)
	if n := len(f.actions); n != 5 || f.actions[4] != "RecordLifecycleActionHeartbeat "+list[2].id {
		t.Errorf("calls %q", f.actions)
	}
}

func TestDryRunAndNoneDoNothing(t *testing.T) {
	f := newFakeAWS()
	for _, i := range f.add("app", 2, now.Add(-time.Minute)) {
		f.put(i, report.Failure, now, exit3)
	}
	objects := len(f.objects)
	w, r := f.remedy(t, serve(t, f), fleet.Unhealthy)
	r.DryRun = true
	if actions := act(t, w, r); did(actions, "unhealthy") != 2 || !actions[0].DryRun || !strings.HasPrefix(actions[0].Line(), "(dry run) "+actions[0].InstanceID) {
		t.Errorf("dry run: %+v", actions)
	}
	r.OnFailure = fleet.None
	if actions := act(t, w, r); len(actions) != 0 {
		t.Errorf("none: %+v", actions)
	}
	if len(f.actions) != 0 || len(f.objects) != objects {
		t.Errorf("calls %q, %d objects", f.actions, len(f.objects))
	}
}

func TestClaimOfADeadWatcherIsTakenOver(t *testing.T) {
	f := newFakeAWS()
	i := f.add("app", 1, now.Add(-time.Minute))[0]
	f.put(i, report.Failure, now, exit3)
	claim := func(at time.Time) {
		f.putRaw("p/_fleet/acted/"+i.id+".json", []byte(fmt.Sprintf(`{"at":%q,"instance_id":%q,"did":"terminate","slot":0,"acted":false}`, at.Format(time.RFC3339), i.id)), at)
	}
	claim(now.Add(-time.Minute))
	w, r := f.remedy(t, serve(t, f), fleet.Terminate)
	if act(t, w, r); len(f.actions) != 0 {
		t.Errorf("a fresh claim was not respected: %q", f.actions)
	}
	claim(now.Add(-time.Hour))
	if act(t, w, r); len(f.actions) != 1 {
		t.Errorf("an old claim was not taken over: %q", f.actions)
	}
	if act(t, w, r); len(f.actions) != 1 {
		t.Errorf("acted twice: %q", f.actions)
	}
}

func TestOldFailuresDoNotTripTheBrake(t *testing.T) {
	f := newFakeAWS()
	url := serve(t, f)
	for day := range 5 {
		i := f.add("app", 1, now.Add(-time.Minute))[0]
		f.put(i, report.Failure, now, exit3)
		w, r := f.remedy(t, url, fleet.Terminate)
		r.Now = func() time.Time { return now.Add(time.Duration(day) * 24 * time.Hour) }
		if actions := act(t, w, r); did(actions, "terminate") != 1 {
			t.Errorf("day %d: %+v", day, actions)
		}
		i.state = "terminated"
	}
}
