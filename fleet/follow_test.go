package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
)

func TestFollowTellsChangesAlone(t *testing.T) {
	f := newFakeAWS()
	list := f.add("app", 2, now.Add(-time.Minute))
	w := f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	wake := make(chan []string, 1)
	pass := 0
	err := w.Follow(t.Context(), time.Hour, wake, func(s *fleet.Snapshot, changes []fleet.Change, err error) bool {
		if err != nil {
			t.Error(err)
			return true
		}
		pass++
		switch pass {
		case 1:
			if len(changes) != 2 || changes[0].From != "" || changes[0].Verdict != fleet.Pending {
				t.Errorf("first pass: %+v", changes)
			}
			f.put(list[1], report.Success, now)
			wake <- []string{role + ":" + list[1].id}
			return false
		default:
			if len(changes) != 1 || changes[0].ID != list[1].id || changes[0].From != fleet.Pending || changes[0].Verdict != fleet.Success {
				t.Errorf("after the wake-up: %+v", changes)
			}
			return true
		}
	})
	if err != nil || pass != 2 {
		t.Errorf("%v after %d passes", err, pass)
	}
}

func TestFollowNoticesTheDeadline(t *testing.T) {
	f := newFakeAWS()
	f.add("app", 1, now.Add(-time.Minute))
	w := f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	start := time.Now()
	w.Deadline = time.Minute + 300*time.Millisecond
	w.Now = func() time.Time { return now.Add(time.Since(start)) }
	var seen []fleet.Verdict
	err := w.Follow(t.Context(), time.Hour, nil, func(s *fleet.Snapshot, changes []fleet.Change, err error) bool {
		if err != nil {
			t.Error(err)
			return true
		}
		for _, c := range changes {
			seen = append(seen, c.Verdict)
		}
		return s.Counts[fleet.Silent] == 1
	})
	if err != nil || len(seen) != 2 || seen[1] != fleet.Silent {
		t.Errorf("%v, saw %v", err, seen)
	}
}

// An instance that is new is looked at once more before the interval is over,
// by one listing of its own directory.
func TestFollowLooksAtNewInstancesSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeAWS()
		f.add("app", 2, now.Add(-time.Hour)) // silent: nobody waits for a stage of theirs
		fresh := f.add("app", 1, now.Add(-time.Second))[0]
		w := newWatcherBy(t, inMemory{f}, "http://aws.invalid", fleet.Selection{Groups: []string{"app"}})
		start := time.Now()
		var at []time.Duration
		listings := 0
		err := w.Follow(t.Context(), time.Minute, nil, func(s *fleet.Snapshot, changes []fleet.Change, err error) bool {
			if err != nil {
				t.Error(err)
				return true
			}
			at = append(at, time.Since(start))
			switch len(at) {
			case 1:
				listings = f.calls["S3:List"]
				f.mark(role, fresh, report.StageCloudFinal, now)
			case 2:
				if len(changes) != 1 || changes[0].ID != fresh.id || changes[0].Stage != "cloud-final" || f.calls["S3:List"] != listings+1 {
					t.Errorf("%d listings, changes %+v", f.calls["S3:List"]-listings, changes)
				}
			}
			return len(at) == 4
		})
		// Once: the next ones are the interval's.
		if err != nil || len(at) != 4 || at[1] > 10*time.Second || at[2] < time.Minute || at[3] < 2*time.Minute {
			t.Errorf("passes at %s, %v", at, err)
		}
	})
}

func TestFollowOutlastsErrorsAndEndsOnWrongSelection(t *testing.T) {
	f := newFakeAWS()
	f.add("app", 1, now)
	w := f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	f.putRaw("p/x", nil, now)
	passes, failed := 0, 0
	err := w.Follow(t.Context(), time.Millisecond, nil, func(s *fleet.Snapshot, _ []fleet.Change, err error) bool {
		if err != nil {
			failed++
			f.mu.Lock()
			f.deny["DescribeInstances"] = false
			f.mu.Unlock()
			return false
		}
		passes++
		if passes == 1 {
			f.mu.Lock()
			f.deny["DescribeInstances"] = true
			f.mu.Unlock()
		}
		return failed > 0
	})
	if err != nil || failed != 1 {
		t.Errorf("%v, %d failed passes", err, failed)
	}
	w = f.watcher(t, fleet.Selection{Groups: []string{"none"}})
	if err := w.Follow(t.Context(), time.Hour, nil, func(*fleet.Snapshot, []fleet.Change, error) bool { t.Error("called"); return true }); !errors.Is(err, fleet.ErrSelection) {
		t.Errorf("wrong selection: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w = f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	if err := w.Follow(ctx, time.Hour, nil, func(*fleet.Snapshot, []fleet.Change, error) bool { cancel(); return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWebhook(t *testing.T) {
	var bodies []string
	answers := []int{500, 200}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		bodies = append(bodies, string(b))
		w.WriteHeader(answers[0])
		answers = answers[1:]
	}))
	defer srv.Close()
	f := newFakeAWS()
	list := f.add("app", 2, now.Add(-time.Minute))
	w := f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	first := pass(t, w)
	if _, ok := fleet.NewsOf(first, fleet.Changes(nil, first), nil, nil, nil); ok {
		t.Error("pending instances are no news")
	}
	f.put(list[0], report.Failure, now, exit3)
	second := pass(t, w)
	n, ok := fleet.NewsOf(second, fleet.Changes(first, second), nil, nil, nil)
	if !ok {
		t.Fatal("a failure is news")
	}
	hook, err := fleet.NewWebhook(srv.URL + "/secret-token")
	if err != nil {
		t.Fatal(err)
	}
	hook.Pause = time.Millisecond
	if err := hook.Post(t.Context(), n); err != nil || len(bodies) != 2 {
		t.Fatalf("%v after %d posts", err, len(bodies))
	}
	var got struct {
		Text    string
		Changes []struct {
			InstanceID string `json:"instance_id"`
			Verdict    string
		}
	}
	if err := json.Unmarshal([]byte(bodies[1]), &got); err != nil || len(got.Changes) != 1 || got.Changes[0].Verdict != "failure" || !strings.Contains(got.Text, list[0].id+" failure (was pending): script_exit") {
		t.Errorf("%v: %s", err, bodies[1])
	}
	answers = []int{404}
	if err := hook.Post(t.Context(), n); err == nil || strings.Contains(err.Error(), "secret") || len(bodies) != 3 {
		t.Errorf("refused: %v after %d posts", err, len(bodies))
	}
	srv.Close()
	if err := hook.Post(t.Context(), n); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("unreachable: %v", err)
	}
	for _, bad := range []string{"", "ftp://x/y", "hooks.slack.com/x", "http://"} {
		if _, err := fleet.NewWebhook(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// roundTrip stands in for a network.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWebhookOfSlack(t *testing.T) {
	hook, err := fleet.NewWebhook("https://hooks.slack.com/services/T/B/secret")
	if err != nil {
		t.Fatal(err)
	}
	var body string
	hook.Client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		b, err := io.ReadAll(r.Body)
		body = string(b)
		return &http.Response{StatusCode: 200, Body: http.NoBody}, err
	})
	if err := hook.Post(t.Context(), fleet.News{Schema: fleet.NewsSchema, Text: "web i-1 failure: script_exit"}); err != nil {
		t.Fatal(err)
	}
	if want := `{"text":"web i-1 failure: script_exit"}`; body != want {
		t.Errorf("Slack was sent %s, want %s", body, want)
	}
}

func TestMetrics(t *testing.T) {
	f := newFakeAWS()
	list := f.add("app", 3, now.Add(-time.Minute))
	f.groups["app"] = 4
	f.put(list[0], report.Success, now)
	f.put(list[1], report.Failure, now, exit3)
	w := f.watcher(t, fleet.Selection{Groups: []string{"app"}})
	clock := now
	m := &fleet.Metrics{Meter: w.Meter, Interval: 10 * time.Second, Now: func() time.Time { return clock }}
	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		m.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		return rec.Code, rec.Body.String()
	}
	if status, _ := get("/healthz"); status != 503 {
		t.Errorf("healthy before the first pass: %d", status)
	}
	m.Pass(pass(t, w), time.Second, nil)
	m.Pass(nil, 0, errors.New("x"))
	m.Acted([]fleet.Action{{Did: "unhealthy"}, {Did: "unhealthy", DryRun: true}}, []fleet.Brake{{}})
	m.Refuse(fleet.Refusal{Name: "m1", Reason: fleet.Forged})
	m.Refuse(fleet.Refusal{Name: "m1", Reason: fleet.Forged})
	_, text := get("/metrics")
	for _, want := range []string{
		`lecafe_instances{region="us-east-1",auto_scaling_group="app",verdict="success"} 1`,
		`lecafe_instances{region="us-east-1",auto_scaling_group="app",verdict="silent"} 0`,
		`lecafe_missing_instances{region="us-east-1",auto_scaling_group="app"} 1`,
		`lecafe_fleet_ok 0`, `lecafe_passes_total 2`, `lecafe_pass_errors_total 1`, `lecafe_refused_reports_total{reason="forged"} 1`,
		`lecafe_actions_total{did="unhealthy"} 1`, `lecafe_brakes 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	if status, _ := get("/healthz"); status != 200 {
		t.Errorf("health %d", status)
	}
	clock = clock.Add(time.Minute)
	if status, _ := get("/healthz"); status != 503 {
		t.Errorf("health long after the last pass: %d", status)
	}
	if status, _ := get("/"); status != 404 {
		t.Errorf("/: %d", status)
	}
}
