package bake_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/internal/exitcode"
)

// A second Ctrl-C ends the undoing at once, and says what gc will remove.
func TestAbortedUndo(t *testing.T) {
	w := newWorldAt(t, 10) // shutting down takes two seconds
	w.play(&player{Silent: true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	abort := make(chan struct{})
	opts := w.options(w.recipe())
	opts.Abort = abort
	inner := opts.Report
	opts.Report = func(e bake.Event) {
		inner(e)
		switch {
		case e.Kind == bake.EventPhase && e.Phase == "provision":
			cancel()
		case e.Kind == bake.EventPhase && e.Phase == "undo":
			close(abort)
		}
	}
	_, err := bake.Run(ctx, opts)
	if !errors.Is(err, bake.ErrAborted) || exitcode.Of(err) != exitcode.Interrupt {
		t.Fatalf("Run: %v", err)
	}
	left := w.leaked()
	if len(left) < 3 {
		t.Errorf("left behind: %q", left)
	}
	for _, l := range left { // "instance i-… running", "object lecafe-bakes/…"
		f := strings.Fields(l)
		switch f[0] {
		case "instance":
			if !strings.Contains(err.Error(), "instance "+f[1]) {
				t.Errorf("the error does not name %s: %v", l, err)
			}
		case "object":
			if !strings.Contains(err.Error(), "staging s3://"+bucket+"/"+f[1][:strings.LastIndexByte(f[1], '/')+1]) {
				t.Errorf("the error does not name %s: %v", l, err)
			}
		}
	}
	if !strings.Contains(err.Error(), "security group sg-") || !strings.Contains(err.Error(), "lecafe gc --yes removes") {
		t.Errorf("Run: %v", err)
	}
	// This process lives: its lease must run out first.
	later := func() time.Time { return time.Now().Add(2 * time.Minute) }
	if _, err := bake.GC(t.Context(), bake.GCOptions{Config: w.Config(), Remove: true, Poll: 20 * time.Millisecond, Now: later}); err != nil {
		t.Error(err)
	}
	w.nothingLeaked()
}
