package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// Change is one instance whose standing is another than before.
type Change struct {
	At   time.Time `json:"at"`
	From Verdict   `json:"from,omitempty"` // empty for an instance that is new
	Standing
}

// Changes returns what b has that a has not, in b's order. A nil a has nothing.
func Changes(a, b *Snapshot) []Change {
	before := map[string]*Standing{}
	if a != nil {
		for n := range a.Instances {
			before[a.Instances[n].ID] = &a.Instances[n]
		}
	}
	var list []Change
	for n := range b.Instances {
		s := &b.Instances[n]
		old, ok := before[s.ID]
		switch {
		case !ok:
			list = append(list, Change{At: b.At, Standing: *s})
		case old.Verdict != s.Verdict || old.Stage != s.Stage || code(old) != code(s) || old.Refused != s.Refused:
			list = append(list, Change{At: b.At, From: old.Verdict, Standing: *s})
		}
	}
	return list
}

func code(s *Standing) string {
	if s.Cause == nil {
		return ""
	}
	return string(s.Cause.Code)
}

// firstLook is how long after a full pass has found new instances these are
// looked at again, and they alone: their agents tell the stage of a boot that
// has lasted five seconds.
const firstLook = 7 * time.Second

// unheard are the senders of pending instances that are new and have told no
// stage. Where the role is not known, neither is the sender.
func unheard(changes []Change) []string {
	var senders []string
	for n := range changes {
		if c := &changes[n]; c.From == "" && c.Verdict == Pending && c.StageAt == nil && c.RoleID != "" {
			senders = append(senders, c.RoleID+":"+c.ID)
		}
	}
	return senders
}

// Follow makes passes until ctx ends or each says to stop: a full one every
// interval, a delta when wake names senders (nil: any), when a pending
// instance falls due, and once soon after new ones came. An error of a pass is given to each with a nil snapshot,
// and the next pass comes after a growing pause; errors that stay (ErrSelection
// or a missing permission at the first pass) end it.
func (w *Watcher) Follow(ctx context.Context, interval time.Duration, wake <-chan []string, each func(*Snapshot, []Change, error) (stop bool)) error {
	interval = cmp.Or(interval, 15*time.Second)
	var last *Snapshot
	var senders []string
	var first []string // to be looked at, at firstAt
	var firstAt time.Time
	full := true
	pause := time.Second
	next := time.Now()
	for {
		var snap *Snapshot
		var err error
		if full {
			snap, err = w.Pass(ctx)
			next = time.Now().Add(interval)
		} else {
			snap, err = w.Delta(ctx, senders)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			if last == nil && (errors.Is(err, ErrSelection) || denied(err)) {
				return err
			}
			each(nil, nil, err)
			if err := w.sleep(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, time.Minute)
			full, senders = true, nil
			continue
		}
		pause = time.Second
		changes := Changes(last, snap)
		if each(snap, changes, nil) {
			return nil
		}
		last = snap
		if full {
			first, firstAt = unheard(changes), time.Now().Add(firstLook)
		}

		// What comes first: the interval, a wake-up, a deadline, or new ones' stage.
		full, senders = false, nil
		wait := time.Until(next)
		if d := w.untilDue(snap); d > 0 && d < wait {
			wait = d
		}
		if d := time.Until(firstAt); len(first) > 0 && d < wait {
			wait = d
		}
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
			full = !time.Now().Before(next)
			if !full && len(first) > 0 && !time.Now().Before(firstAt) {
				senders, first = first, nil
			}
		case s := <-wake:
			timer.Stop()
			senders = s
			if err := w.gather(ctx, wake, &senders); err != nil {
				return err
			}
			full = !time.Now().Before(next)
		}
	}
}

// gather takes what else wakes within a moment, so that a hundred reports of a
// scale-out make one delta.
func (w *Watcher) gather(ctx context.Context, wake <-chan []string, senders *[]string) error {
	t := time.NewTimer(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			return nil
		case s := <-wake:
			*senders = append(*senders, s...)
		}
	}
}

// untilDue is the time to the next deadline, 0 without one.
func (w *Watcher) untilDue(s *Snapshot) time.Duration {
	var first time.Time
	for n := range s.Instances {
		if d := s.Instances[n].Due; d != nil && (first.IsZero() || d.Before(first)) {
			first = *d
		}
	}
	if first.IsZero() {
		return 0
	}
	return max(first.Sub(w.now()), time.Millisecond)
}

func (w *Watcher) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Line is a change in words.
func (c *Change) Line() string {
	s := fmt.Sprintf("%s %s", c.ID, c.Verdict)
	if c.Group != "" {
		s = c.Group + " " + s
	}
	if c.Verdict == Pending && c.Stage != "" {
		s += " in " + c.Stage
	}
	if c.From != "" && c.From != c.Verdict {
		s += fmt.Sprintf(" (was %s)", c.From)
	}
	if c.Cause != nil {
		s += ": " + string(c.Cause.Code)
		if c.Cause.Message != "" {
			s += ": " + c.Cause.Message
		}
	}
	return s
}
