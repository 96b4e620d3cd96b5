package fleet_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
)

// inMemory makes calls without a network, so that waiting is all that takes
// time, and time can be a bubble's.
type inMemory struct{ http.Handler }

func (m inMemory) Do(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	rec := httptest.NewRecorder()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	m.ServeHTTP(rec, r)
	return rec.Result(), nil
}

// TestOneCallASecond: AWS takes one call a second and refuses the others. The
// watcher is slower for it, says so, and is right.
func TestOneCallASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeAWS()
		var groups []string
		want := map[fleet.Verdict]int{}
		for g := range 20 {
			groups = append(groups, fmt.Sprintf("g%02d", g))
			for n, i := range f.add(groups[g], 50, now.Add(-30*time.Minute)) {
				switch {
				case n == 0 && g == 0:
					want[fleet.Silent]++
				case n == 1:
					f.put(i, report.Failure, now.Add(-25*time.Minute), exit3)
					want[fleet.Failure]++
				default:
					f.put(i, report.Success, now.Add(-25*time.Minute))
					want[fleet.Success]++
				}
			}
		}
		f.interval = time.Second
		w := newWatcherBy(t, inMemory{f}, "http://aws.invalid", fleet.Selection{Groups: groups})
		told := 0
		w.Meter.Throttling = func() { told++ }
		start := time.Now()
		s := pass(t, w)
		took := time.Since(start)
		for v, n := range want {
			if s.Counts[v] != n {
				t.Errorf("%d %s, want %d", s.Counts[v], v, n)
			}
		}
		calls := f.count()
		if took < time.Duration(calls-1)*time.Second {
			t.Errorf("%d calls in %s", calls, took)
		}
		if said := fmt.Sprintf("AWS throttled %d calls", w.Meter.Throttled()); w.Meter.Throttled() == 0 || !strings.Contains(strings.Join(s.Notes, "\n"), said) || told != 1 {
			t.Errorf("throttled %d times, told %d times, notes %q", w.Meter.Throttled(), told, s.Notes)
		}
		t.Logf("%d instances, %d calls answered and %d throttled in %s", len(s.Instances), calls, w.Meter.Throttled(), took)

		// Once AWS takes all of them again, nobody is told the old news.
		f.interval = 0
		if s = pass(t, w); strings.Contains(strings.Join(s.Notes, "\n"), "throttled") || s.Counts[fleet.Success] != want[fleet.Success] {
			t.Errorf("afterwards: %v, %q", s.Counts, s.Notes)
		}
	})
}
