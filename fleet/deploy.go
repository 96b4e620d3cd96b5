package fleet

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/lecafe/lecafe/rollout"
)

// Deploy rolls an image out and follows it through the agents' reports: it is
// complete only when every new instance has reported success, and goes back
// when the brake trips, the time is over, or the refresh fails.
type Deploy struct {
	Watcher  *Watcher // of the group
	Rollout  *rollout.Rollout
	Clients  rollout.Clients
	After    int           // failures of one fingerprint that trip the brake, default 3, at most half of the group
	Timeout  time.Duration // for the whole, default 2h
	Interval time.Duration // between two looks, default 10s
	Degraded bool          // take degraded for success
	Tell     func(Progress)
}

// Progress is one look at a deploy.
type Progress struct {
	At      time.Time       `json:"at"`
	Phase   string          `json:"phase"` // refresh, settle, rollback
	Refresh rollout.State   `json:"refresh"`
	Counts  map[Verdict]int `json:"counts"` // of the new version's instances
	Changes []Change        `json:"changes,omitempty"`
	Note    string          `json:"note,omitempty"`
}

// Outcome is how a deploy ended.
type Outcome struct {
	OK         bool             `json:"ok"`
	RolledBack bool             `json:"rolled_back"`
	Reason     string           `json:"reason,omitempty"`
	Rollout    *rollout.Rollout `json:"rollout"`
	Refresh    rollout.State    `json:"refresh"`
	Counts     map[Verdict]int  `json:"counts"`
	Failed     []Standing       `json:"failed"` // of the new version
}

// Run starts the refresh and follows it to its end. When ctx ends first, the
// refresh goes on by itself; running it again goes on from there.
func (d *Deploy) Run(ctx context.Context) (*Outcome, error) {
	if err := d.Rollout.Start(ctx, d.Clients); err != nil {
		return nil, err
	}
	end := d.Watcher.now().Add(cmp.Or(d.Timeout, 2*time.Hour))
	out := &Outcome{Rollout: d.Rollout}
	var last *Snapshot
	pause := time.Second
	for {
		state, err := d.Rollout.State(ctx, d.Clients)
		var snap *Snapshot
		if err == nil {
			snap, err = d.Watcher.Pass(ctx)
		}
		if err != nil {
			// One look that fails is no reason to go back, nor to go away.
			if ctx.Err() != nil {
				return out, ctx.Err()
			}
			if d.Watcher.now().After(end) {
				return out, fmt.Errorf("the deploy cannot be followed, its refresh %s goes on: %w", d.Rollout.RefreshID, err)
			}
			d.tell(Progress{At: d.Watcher.now(), Phase: "refresh", Note: err.Error()})
			if err := d.Watcher.sleep(ctx, pause); err != nil {
				return out, err
			}
			pause = min(2*pause, time.Minute)
			continue
		}
		pause = time.Second
		mine := d.mine(snap)
		out.Refresh, out.Counts, out.Failed = state, mine.Counts, failed(mine)
		phase := "refresh"
		if state.Ended() {
			phase = "settle"
		}
		d.tell(Progress{At: snap.At, Phase: phase, Refresh: state, Counts: mine.Counts, Changes: Changes(last, mine)})
		last = mine
		switch verdict, why := d.decide(state, mine, snap.At.After(end)); verdict {
		case forward:
			if err := d.Rollout.Complete(ctx, d.Clients); err != nil {
				return out, fmt.Errorf("every instance of version %s is up, but: %w; run it again to finish", d.Rollout.To, err)
			}
			out.OK = true
			return out, nil
		case back:
			out.Reason = why
			return out, d.back(ctx, out)
		}
		if err := d.Watcher.sleep(ctx, cmp.Or(d.Interval, 10*time.Second)); err != nil {
			return out, err
		}
	}
}

type decision int

const (
	wait decision = iota
	forward
	back
)

// decide is the whole judgement on one look.
func (d *Deploy) decide(state rollout.State, mine *Snapshot, late bool) (decision, string) {
	counts := map[Fingerprint]int{}
	for _, s := range failed(mine) {
		fp := FingerprintOf(&s)
		counts[fp]++
		if counts[fp] >= d.after() {
			return back, fmt.Sprintf("the brake tripped, %d failed the same way: %s", counts[fp], fp)
		}
	}
	switch {
	case state.Status == "Successful":
	case state.Ended(), state.Status == "RollbackInProgress":
		return back, fmt.Sprintf("the instance refresh ended as %s: %s", state.Status, state.Reason)
	case late:
		return back, fmt.Sprintf("the time is over, the refresh is at %d %%", state.Percent)
	default:
		return wait, ""
	}
	live, up := 0, 0
	for n := range mine.Instances {
		s := &mine.Instances[n]
		if s.gone() {
			continue
		}
		live++
		if s.Verdict == Success || s.Verdict == Degraded && d.Degraded {
			up++
		}
	}
	bad := failed(mine)
	switch {
	case len(bad) > 0:
		return back, fmt.Sprintf("the refresh is through, but %s is %s: %s", bad[0].ID, bad[0].Verdict, FingerprintOf(&bad[0]))
	case up == live && live >= d.Rollout.Desired:
		return forward, ""
	case late:
		return back, fmt.Sprintf("the time is over, %d of %d instances are up", up, d.Rollout.Desired)
	case mine.Counts[Degraded] > 0 && mine.Counts[Pending] == 0 && !d.Degraded:
		return back, fmt.Sprintf("%d instances came up degraded; --accept-degraded takes that for success", mine.Counts[Degraded])
	}
	return wait, ""
}

// after is the brake's count: a small group must not be replaced as a whole
// before it trips.
func (d *Deploy) after() int {
	return min(cmp.Or(d.After, 3), max(1, d.Rollout.Desired/2))
}

// failed are those of the new version that did not come up, also when they are
// gone by now.
func failed(s *Snapshot) []Standing {
	list := []Standing{}
	for n := range s.Instances {
		if v := s.Instances[n].Verdict; v == Failure || v == Silent || v == Terminated {
			list = append(list, s.Instances[n])
		}
	}
	return list
}

// mine is the snapshot of the new version's instances.
func (d *Deploy) mine(s *Snapshot) *Snapshot {
	m := &Snapshot{At: s.At, Counts: map[Verdict]int{}}
	for _, i := range s.Instances {
		if i.Group == d.Rollout.Group && i.TemplateVersion == d.Rollout.To && (i.TemplateID == "" || i.TemplateID == d.Rollout.TemplateID) {
			m.Instances = append(m.Instances, i)
			m.Counts[i.Verdict]++
		}
	}
	return m
}

// back takes the group back and follows that to its end.
func (d *Deploy) back(ctx context.Context, out *Outcome) error {
	if d.Rollout.From == d.Rollout.To {
		return fmt.Errorf("%s; the group was on version %s before, there is nothing to go back to", out.Reason, d.Rollout.From)
	}
	d.tell(Progress{At: d.Watcher.now(), Phase: "rollback", Refresh: out.Refresh, Counts: out.Counts, Note: out.Reason})
	if out.Refresh.Status != "RollbackSuccessful" {
		if err := d.Rollout.Rollback(ctx, d.Clients); err != nil {
			return fmt.Errorf("%s; and it could not be rolled back: %w", out.Reason, err)
		}
	}
	for {
		state, err := d.Rollout.State(ctx, d.Clients)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			d.tell(Progress{At: d.Watcher.now(), Phase: "rollback", Note: err.Error()})
		default:
			out.Refresh = state
			d.tell(Progress{At: d.Watcher.now(), Phase: "rollback", Refresh: state})
			if state.Ended() {
				out.RolledBack = state.Status == "RollbackSuccessful" || d.Rollout.Back != "" && state.Status == "Successful"
				if !out.RolledBack {
					return fmt.Errorf("%s; the way back ended as %s: %s", out.Reason, state.Status, state.Reason)
				}
				return nil
			}
		}
		if err := d.Watcher.sleep(ctx, cmp.Or(d.Interval, 10*time.Second)); err != nil {
			return err
		}
	}
}

func (d *Deploy) tell(p Progress) {
	if d.Tell != nil {
		d.Tell(p)
	}
}
