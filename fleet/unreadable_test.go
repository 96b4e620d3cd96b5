package fleet_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
)

// One instance that has encrypted its report with a key of its own does not
// blind the watcher for the others.
func TestUnreadableReportBlindsNobody(t *testing.T) {
	f := newFakeAWS()
	list := f.add("app", 3, now.Add(-time.Minute))
	secret := f.put(list[0], report.Failure, now, exit3)
	f.put(list[1], report.Failure, now, report.Cause{Code: report.CodeScriptExit, Stage: report.StageCloudFinal, Line: 9})
	f.put(list[2], report.Success, now)
	all := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Query().Get("list-type") == "" && (all || strings.HasSuffix(r.URL.Path, secret)) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`<Error><Code>AccessDenied</Code><Message>no</Message></Error>`))
			return
		}
		f.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	w := newWatcher(t, srv.URL, fleet.Selection{Groups: []string{"app"}})
	s := pass(t, w)
	if s.Counts[fleet.Failure] != 2 || s.Counts[fleet.Success] != 1 {
		t.Errorf("counts %v", s.Counts)
	}
	if c := find(t, s, list[0].id).Cause; c == nil || c.Code != report.CodeScriptExit {
		t.Errorf("cause %+v", c)
	}
	if c := find(t, s, list[1].id).Cause; c == nil || c.Line != 9 {
		t.Errorf("cause of the other %+v", c)
	}
	if notes := strings.Join(s.Notes, "\n"); !strings.Contains(notes, secret) {
		t.Errorf("notes %q", notes)
	}
	// A watcher that may read none of them says so.
	all = true
	if _, err := newWatcher(t, srv.URL, fleet.Selection{Groups: []string{"app"}}).Pass(t.Context()); err == nil || !strings.Contains(err.Error(), "AccessDenied") {
		t.Errorf("Pass: %v", err)
	}
}
