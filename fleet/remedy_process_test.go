package fleet_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
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

// A watcher that is killed has to be a process. It is told where the cloud is,
// what to do, and how much later than the others it lives.
const remedyEnv = "LECAFE_TEST_REMEDY"

func remedyProcess(what string) int {
	var url, mode, later string
	if _, err := fmt.Sscan(what, &url, &mode, &later); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	offset, err := time.ParseDuration(later)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx := context.Background()
	w := newWatcher(&testing.B{}, url, fleet.Selection{Groups: []string{"app"}})
	w.Now = func() time.Time { return now.Add(offset) }
	cfg := aws.Config{Region: "us-east-1", BaseEndpoint: &url, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
	r := &fleet.Remedy{OnFailure: fleet.OnFailure(mode), Bucket: "b", Prefix: "p", Regions: w.Regions, Now: w.Now,
		S3: s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true })}
	for range 2 {
		snap, err := w.Pass(ctx)
		if err == nil {
			_, err = r.Act(ctx, snap)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}

// killer serves one process, and kills it when the cloud has taken its nth
// call that changes something, before the answer.
type killer struct {
	next http.Handler
	at   int

	mu   sync.Mutex
	seen int
	kill func()
}

func (k *killer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := httptest.NewRecorder()
	k.mu.Lock()
	if k.at > 0 && k.seen >= k.at { // what a dead process sends does not arrive
		k.mu.Unlock()
		return
	}
	before := k.changes()
	k.next.ServeHTTP(rec, r)
	if r.Method == http.MethodPut || k.changes() != before {
		if k.seen++; k.seen == k.at {
			k.kill()
			k.mu.Unlock()
			return
		}
	}
	k.mu.Unlock()
	for name, v := range rec.Header() {
		w.Header()[name] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

func (k *killer) changes() int {
	f := k.next.(*fakeAWS)
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.actions)
}

// TestKilledWatchersActOnce lets two watchers remedy the same failures, kills
// one of them at each of its calls in turn, and lets a third one come later.
func TestKilledWatchersActOnce(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process := func(url string, mode fleet.OnFailure, later string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), remedyEnv+"="+strings.Join([]string{url, string(mode), later}, " "))
		cmd.Stderr = os.Stderr
		return cmd
	}
	for _, mode := range []fleet.OnFailure{fleet.Unhealthy, fleet.Terminate, fleet.Abandon} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			kills := 0
			for at := 1; ; at++ {
				f := newFakeAWS()
				for _, i := range f.add("app", 5, now.Add(-time.Minute)) {
					if mode == fleet.Abandon {
						i.lifecycle = "Pending:Wait"
					}
					f.put(i, report.Failure, now, exit3)
				}
				k := &killer{next: f, at: at}
				doomed := process(serveHandler(t, k), mode, "0s")
				other := process(serve(t, f), mode, "0s")
				k.mu.Lock()
				if err := doomed.Start(); err != nil {
					t.Fatal(err)
				}
				k.kill = func() { _ = doomed.Process.Kill() }
				k.mu.Unlock()
				if at%2 == 0 { // in turn beside the other and before it
					_ = doomed.Wait()
				}
				if err := other.Run(); err != nil {
					t.Fatal(err)
				}
				if at%2 != 0 {
					_ = doomed.Wait()
				}
				if err := process(serve(t, f), mode, "10m").Run(); err != nil {
					t.Fatal(err)
				}
				f.mu.Lock()
				actions := slices.Clone(f.actions)
				f.mu.Unlock()
				k.mu.Lock()
				seen := k.seen
				k.mu.Unlock()
				var acted []string
				kept := ""
				for _, a := range actions {
					if call, id, _ := strings.Cut(a, " "); call == "RecordLifecycleActionHeartbeat" || call == "EnterStandby" {
						if kept != "" && kept != id || call == "EnterStandby" && kept != "" {
							t.Errorf("killed at %d: a second specimen %s", at, a)
						}
						kept = id
					} else {
						acted = append(acted, id)
					}
				}
				distinct := slices.Compact(slices.Sorted(slices.Values(acted)))
				if len(acted) != 2 || len(distinct) != 2 || kept == "" || slices.Contains(distinct, kept) {
					t.Errorf("killed at %d: calls %q, want two replaced once and one kept", at, actions)
				}
				if seen < at && at%2 == 0 {
					break // it got through alone
				}
				if seen >= at {
					kills++
				}
			}
			if kills < 10 {
				t.Errorf("%d kills", kills)
			}
			t.Logf("%d kills", kills)
		})
	}
}

func serveHandler(t *testing.T, h http.Handler) string {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}
