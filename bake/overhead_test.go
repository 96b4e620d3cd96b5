package bake_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/lecafe/lecafe/bake"
	cloudec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
)

// What a bake costs beside the cloud's own times, on a clock ten times as fast
// as AWS's and with polls ten times as often. Nothing is asserted of time; the
// number of calls is bounded, so that no wait begins to ask too often.
func TestOverhead(t *testing.T) {
	const faster = 10
	w := newWorldAt(t, faster)
	w.play(&player{})
	before := len(w.Calls())
	opts := w.options(w.recipe())
	opts.Poll, opts.Report = 2*time.Second/faster, nil
	began := time.Now()
	out, err := bake.Run(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	times := cloudec2.DefaultTimes
	own := times.Pending + times.Stopping + times.Image + times.ShuttingDown
	calls, all := map[string]int{}, 0
	for _, c := range w.Calls()[before:] {
		if !c.Presigned {
			calls[c.Service+" "+c.Action]++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		t.Logf("%3d %s", calls[name], name)
		all += calls[name]
	}
	t.Logf("the cloud's own times %s; in all %s scaled to a clock of 1; beside them at most %s; %d calls", own, took*faster, took*faster-own, all)
	for _, p := range out.Phases {
		t.Logf("%-10s %6.1f s scaled", p.Name, p.Seconds*faster)
	}
	if all > 65 {
		t.Errorf("%d calls", all)
	}
}
