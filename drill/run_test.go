package drill_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/drill"
)

// ground answers by the case's name.
type ground struct {
	reports map[string]*report.Report
	open    atomic.Int32
	alone   atomic.Bool // a case that is to run alone saw another one open
}

type boot struct {
	g    *ground
	name string
}

func (g *ground) Boot(_ context.Context, c drill.Case, _ []byte) (drill.Instance, error) {
	if c.Name == "refused" {
		return nil, errors.New("no capacity")
	}
	if n := g.open.Add(1); n > 1 && c.Alone {
		g.alone.Store(true)
	}
	return &boot{g, c.Name}, nil
}

func (b *boot) Report(ctx context.Context) (*report.Report, string, error) {
	if r := b.g.reports[b.name]; r != nil {
		return r, "s3", nil
	}
	<-ctx.Done()
	return nil, "", drill.ErrSilent
}

// arrival is when reports of the test arrive.
var arrival = time.Date(2026, 11, 22, 12, 0, 2, 250e6, time.UTC)

func (b *boot) Arrived() time.Time { return arrival }

func (b *boot) CloudInit(context.Context) string { return "done" }

func (b *boot) Close(context.Context) error {
	b.g.open.Add(-1)
	return nil
}

func TestRunComparesAndCleansUp(t *testing.T) {
	cause := report.Cause{Stage: report.StageCloudFinal, Code: report.CodeScriptExit, File: "part-001", Line: 4}
	early, late := arrival.Add(-time.Minute), arrival.Add(-time.Second)
	g := &ground{reports: map[string]*report.Report{
		"right":  {Verdict: report.Failure, Causes: []report.Cause{cause}, Stages: []report.Stage{{FinishedAt: &early}, {FinishedAt: &late}}},
		"line":   {Verdict: report.Failure, Causes: []report.Cause{cause}},
		"wolf":   {Verdict: report.Failure, Causes: []report.Cause{cause}},
		"among":  {Verdict: report.Failure, Causes: []report.Cause{cause, {Code: report.CodeDiskFull}}},
		"faulty": {Verdict: report.Success},
	}}
	failed := drill.Expectation{Verdict: report.Failure, Stage: report.StageCloudFinal, Code: report.CodeScriptExit, Line: 4}
	other := failed
	other.Line = 5
	cases := []drill.Case{
		{Name: "right", Expect: failed}, {Name: "line", Expect: other}, {Name: "wolf", Expect: drill.Expectation{Verdict: report.Success}},
		{Name: "among", Expect: drill.Expectation{Verdict: report.Failure, Code: report.CodeDiskFull, Among: true}},
		{Name: "faulty", Fault: "f", Alone: true, Expect: drill.Expectation{Verdict: report.Success}},
		{Name: "refused", Expect: failed}, {Name: "silent", Waits: true, Expect: failed},
	}
	done := 0
	results, err := drill.Run(t.Context(), cases, g, drill.Options{Parallel: 3, Patience: time.Second, Done: func(drill.Result) { done++ }})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"right": "", "line": "line 4, want 5", "wolf": "verdict failure, want success", "among": "", "faulty": "", "refused": "no capacity", "silent": "no report"}
	for i, r := range results {
		if r.Name != cases[i].Name || (want[r.Name] == "") != (r.Wrong == "") || !strings.Contains(r.Wrong, want[r.Name]) {
			t.Errorf("%s: wrong %q, want %q", r.Name, r.Wrong, want[r.Name])
		}
	}
	if done != len(cases) || g.open.Load() != 0 || g.alone.Load() {
		t.Errorf("%d done, %d left open, fault not alone: %v", done, g.open.Load(), g.alone.Load())
	}
	if m, longest, n := drill.Lags(results, cases); m != 1 || longest != 1 || n != 1 {
		t.Errorf("lags of %d: %v, %v", n, m, longest)
	}
	var b strings.Builder
	if err := drill.WriteMatrix(&b, results); err != nil || !strings.Contains(b.String(), "script_exit (part-001:4)") || !strings.Contains(b.String(), "WRONG: line 4, want 5") {
		t.Errorf("%v\n%s", err, b.String())
	}
}
