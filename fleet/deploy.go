package fleet

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/lecafe/lecafe/bake/promote"
)

// Proof follows a promotion through the agents' reports: its Prove is for
// promote.Options. The version is proved when every instance of it has reported
// success, and refuted when the brake trips or one is left that did not come up.
type Proof struct {
	Watcher  *Watcher // of the group
	After    int      // failures of one fingerprint that trip the brake, default 3, at most half of the group
	Degraded bool     // take degraded for success
	Tell     func(Progress)

	Failed []Standing      // set by Prove: those of the new version that did not come up, also when they are gone by now
	Counts map[Verdict]int // set by Prove: of the new version's instances

	last *Snapshot
}

// Progress is one look at a deploy.
type Progress struct {
	At      time.Time       `json:"at"`
	Status  string          `json:"status"` // of the instance refresh
	Percent int             `json:"percent"`
	Counts  map[Verdict]int `json:"counts"` // of the new version's instances
	Changes []Change        `json:"changes,omitempty"`
}

// Prove looks once. Errors are promote.ErrUnproved, or troubles of looking.
func (p *Proof) Prove(ctx context.Context, now promote.Rollout) (bool, error) {
	snap, err := p.Watcher.Pass(ctx)
	if err != nil {
		return false, err
	}
	mine := versionOf(snap, now)
	p.Failed, p.Counts = failed(mine), mine.Counts
	if p.Tell != nil {
		p.Tell(Progress{At: snap.At, Status: now.Status, Percent: now.Percent, Counts: mine.Counts, Changes: Changes(p.last, mine)})
	}
	p.last = mine
	return p.decide(now, mine)
}

// decide is the whole judgement on one look.
func (p *Proof) decide(now promote.Rollout, mine *Snapshot) (proved bool, err error) {
	counts := map[Fingerprint]int{}
	for n := range p.Failed {
		fp := FingerprintOf(&p.Failed[n])
		counts[fp]++
		if counts[fp] >= p.after(now.Desired) {
			return false, fmt.Errorf("%w: the brake tripped, %d failed the same way: %s", promote.ErrUnproved, counts[fp], fp)
		}
	}
	if now.Status != "Successful" {
		return false, nil
	}
	// The refresh is through: nothing may be left that did not come up.
	if len(p.Failed) > 0 {
		s := &p.Failed[0]
		return false, fmt.Errorf("%w: the refresh is through, but %s is %s: %s", promote.ErrUnproved, s.ID, s.Verdict, FingerprintOf(s))
	}
	live, up := 0, 0
	for n := range mine.Instances {
		s := &mine.Instances[n]
		if s.gone() {
			continue
		}
		live++
		if s.Verdict == Success || s.Verdict == Degraded && p.Degraded {
			up++
		}
	}
	if mine.Counts[Degraded] > 0 && mine.Counts[Pending] == 0 && !p.Degraded {
		return false, fmt.Errorf("%w: %d came up degraded; --accept-degraded takes that for success", promote.ErrUnproved, mine.Counts[Degraded])
	}
	return up == live && live >= now.Desired, nil
}

// after is the brake's count: a small group must not be replaced as a whole
// before it trips.
func (p *Proof) after(desired int) int {
	return min(cmp.Or(p.After, 3), max(1, desired/2))
}

func failed(s *Snapshot) []Standing {
	list := []Standing{}
	for n := range s.Instances {
		if v := s.Instances[n].Verdict; v == Failure || v == Silent || v == Terminated {
			list = append(list, s.Instances[n])
		}
	}
	return list
}

// versionOf is the snapshot of the new version's instances.
func versionOf(s *Snapshot, now promote.Rollout) *Snapshot {
	m := &Snapshot{At: s.At, Counts: map[Verdict]int{}}
	for _, i := range s.Instances {
		if i.gone() && i.LaunchedAt.Before(now.Since) {
			continue // of an earlier try, which may have failed for want of what is there by now
		}
		if i.Group == now.Group && i.TemplateVersion == now.Version && (i.TemplateID == "" || i.TemplateID == now.TemplateID) {
			m.Instances = append(m.Instances, i)
			m.Counts[i.Verdict]++
		}
	}
	return m
}
