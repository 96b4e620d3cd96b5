package fleet_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
)

// Reports expire by the bucket's lifecycle rule, and buckets are emptied:
// instances that have run for long are not replaced for that.
func TestExpiredReportsReplaceNobody(t *testing.T) {
	f := newFakeAWS()
	list := f.add("app", 5, now.Add(-100*24*time.Hour))
	w, r := f.remedy(t, serve(t, f), fleet.Terminate)
	actions := act(t, w, r)
	if len(f.actions) != 0 || did(actions, "nothing") != len(list) || !strings.Contains(actions[0].Reason, "expired") {
		t.Errorf("calls %q, actions %+v", f.actions, actions)
	}
	if again := act(t, w, r); len(again) != 0 {
		t.Errorf("again: %+v", again)
	}
	// One that has just come up and says nothing is replaced all the same.
	young := f.add("app", 1, now.Add(-time.Hour))[0]
	if act(t, w, r); !slices.Equal(f.actions, []string{"TerminateInstances " + young.id}) {
		t.Errorf("calls %q", f.actions)
	}
}

func TestEmptiedBucketReplacesNobody(t *testing.T) {
	f := newFakeAWS()
	for _, i := range f.add("app", 5, now.Add(-time.Hour)) {
		f.put(i, report.Success, now.Add(-50*time.Minute))
	}
	w, r := f.remedy(t, serve(t, f), fleet.Terminate)
	if actions := act(t, w, r); len(actions) != 0 {
		t.Fatalf("actions %+v", actions)
	}
	f.mu.Lock()
	f.objects, f.order = map[string]fakeObject{}, nil
	f.mu.Unlock()
	if actions := act(t, w, r); len(f.actions) != 0 || did(actions, "nothing") != 5 {
		t.Errorf("calls %q, actions %+v", f.actions, actions)
	}
}

// Who stops an instance means it.
func TestStoppedInstancesAreLeftAlone(t *testing.T) {
	f := newFakeAWS()
	for n, i := range f.add("app", 4, now.Add(-time.Hour)) {
		i.state = []string{"stopped", "stopping"}[n%2]
		if n > 1 {
			f.put(i, report.Failure, now, exit3)
		}
	}
	w, r := f.remedy(t, serve(t, f), fleet.Terminate)
	if actions := act(t, w, r); len(actions) != 0 || len(f.actions) != 0 {
		t.Errorf("did %+v, calls %q", actions, f.actions)
	}
}

// A call that AWS puts off is made again, once the claim on the instance has
// run out; one that AWS refused is not.
func TestThrottledRemedyIsMadeAgain(t *testing.T) {
	f := newFakeAWS()
	i := f.add("app", 1, now.Add(-time.Minute))[0]
	f.put(i, report.Failure, now, exit3)
	var failing atomic.Bool
	failing.Store(true)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && failing.Load() {
			if err := r.ParseForm(); err == nil && r.PostForm.Get("Action") == "TerminateInstances" {
				w.WriteHeader(http.StatusBadRequest) // which the SDK does not repeat
				_, _ = w.Write([]byte(`<Response><Errors><Error><Code>ResourceContention</Code><Message>a pending update</Message></Error></Errors></Response>`))
				return
			}
			r.Body = io.NopCloser(strings.NewReader(r.PostForm.Encode()))
		}
		f.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	w, r := f.remedy(t, srv.URL, fleet.Terminate)
	if actions := act(t, w, r); len(actions) != 1 || actions[0].Error == "" {
		t.Fatalf("actions %+v", actions)
	}
	failing.Store(false)
	if act(t, w, r); len(f.actions) != 0 {
		t.Errorf("within the claim: %q", f.actions)
	}
	r.Now = func() time.Time { return now.Add(10 * time.Minute) }
	if actions := act(t, w, r); len(actions) != 1 || len(f.actions) != 1 {
		t.Errorf("actions %+v, calls %q", actions, f.actions)
	}
	if act(t, w, r); len(f.actions) != 1 {
		t.Errorf("acted twice: %q", f.actions)
	}
}

// A machine whose clock is an hour ahead does not find everybody silent.
func TestClockThatIsAhead(t *testing.T) {
	f := newFakeAWS()
	aws := func() time.Time { return time.Now().Add(-time.Hour) }
	young, old := f.add("app", 1, aws().Add(-time.Minute))[0], f.add("app", 1, aws().Add(-30*time.Minute))[0]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", aws().UTC().Format(http.TimeFormat))
		f.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	w := newWatcher(t, srv.URL, fleet.Selection{Groups: []string{"app"}})
	w.Now = nil
	s := pass(t, w)
	if find(t, s, young.id).Verdict != fleet.Pending || find(t, s, old.id).Verdict != fleet.Silent {
		t.Errorf("counts %v", s.Counts)
	}
	if notes := strings.Join(s.Notes, "\n"); !strings.Contains(notes, "clock is 1h0m") {
		t.Errorf("notes %q", notes)
	}
}
