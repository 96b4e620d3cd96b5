package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lecafe/lecafe/agent/report"
)

// SnapshotSchema is the value of Snapshot.Schema.
const SnapshotSchema = "lecafe.watch/v1"

// ErrSelection says that what shall be watched does not exist.
var ErrSelection = errors.New("nothing to watch")

// Snapshot is the whole fleet at one moment: what `lecafe watch --json` prints.
type Snapshot struct {
	Schema    string          `json:"schema"`
	At        time.Time       `json:"at"`
	OK        bool            `json:"ok"` // every instance succeeded, and no group lacks one
	Counts    map[Verdict]int `json:"counts"`
	Groups    []Group         `json:"groups"`
	Instances []Standing      `json:"instances"`
	Refused   []Refusal       `json:"refused"`
	Notes     []string        `json:"notes"` // what could not be checked, and why
	APICalls  int64           `json:"api_calls"`
}

// Settled says that nothing is pending and no group lacks an instance.
func (s *Snapshot) Settled() bool {
	if s.Counts[Pending] > 0 {
		return false
	}
	return !slices.ContainsFunc(s.Groups, func(g Group) bool { return g.Short > 0 })
}

// Options of a Watcher. The zero value is right for most.
type Options struct {
	Deadline         time.Duration // 0: by the image's boot time, else DefaultDeadline
	Details          int           // reports read in full at most in a pass, default 100; the others show their code alone
	Silent           int           // silent instances looked into at most in a pass, default 20
	IgnoreTerminated bool          // leave out instances that are gone
	RoleID           string        // believe this role's instances alone; empty: their profile's role
	NoVerify         bool          // believe reports of any sender, for emulators
	Now              func() time.Time
	Log              *slog.Logger
}

// Watcher joins instances with reports, pass by pass. Its fields are set
// before the first pass; passes are not made side by side.
type Watcher struct {
	Regions   []*Region
	Selection Selection
	Reports   *Reports
	Meter     *Meter // of the clients' calls; may be nil
	Options

	shelf     shelf
	throttled int64 // calls, told so far
	inventory []*Inventory
	details   map[string]*Cause          // by S3 key; nil for a report without causes
	disbelief map[string]Refusal         // by S3 key: read and not believed
	evidence  map[string][]Clue          // by instance: why it is silent
	sendsTo   map[templateVersion]string // where agents report by their user data, s3://bucket/prefix; empty where it does not say
	notes     map[string]struct{}        // told so far
	notesMu   sync.Mutex
}

// Pass reads instances and reports anew and judges them.
func (w *Watcher) Pass(ctx context.Context) (*Snapshot, error) {
	if err := w.readInstances(ctx); err != nil {
		return nil, err
	}
	if err := w.shelf.fill(ctx, w.Reports); err != nil {
		return nil, err
	}
	return w.judge(ctx)
}

// Delta judges with the instances of the last pass and the reports of the
// given senders read anew; of all, when that takes fewer calls.
func (w *Watcher) Delta(ctx context.Context, senders []string) (*Snapshot, error) {
	if w.inventory == nil {
		return w.Pass(ctx)
	}
	slices.Sort(senders)
	senders = slices.Compact(senders)
	if len(senders) == 0 || len(senders) > w.shelf.pages {
		if err := w.shelf.fill(ctx, w.Reports); err != nil {
			return nil, err
		}
		return w.judge(ctx)
	}
	for _, s := range senders {
		if err := w.shelf.refill(ctx, w.Reports, s); err != nil {
			return nil, err
		}
	}
	return w.judge(ctx)
}

// Check returns ErrSelection where something that was named does not exist.
func (w *Watcher) Check(ctx context.Context) error { return w.readInstances(ctx) }

func (w *Watcher) now() time.Time {
	if w.Now != nil {
		return w.Now().UTC()
	}
	now := time.Now().UTC()
	// Launch times are by AWS's clock. An answer says it to the second.
	if skew := w.Reports.skew; skew.Abs() > tolerableSkew {
		w.note(fmt.Sprintf("this machine's clock is %s off AWS's, whose is used", skew.Abs().Round(time.Second)))
		return now.Add(skew)
	}
	return now
}

// tolerableSkew of this machine's clock changes no verdict by more than a poll.
const tolerableSkew = 5 * time.Second

func (w *Watcher) note(s string) {
	w.notesMu.Lock()
	defer w.notesMu.Unlock()
	if w.notes == nil {
		w.notes = map[string]struct{}{}
	}
	w.notes[s] = struct{}{}
}

func (w *Watcher) readInstances(ctx context.Context) error {
	inventory := make([]*Inventory, len(w.Regions))
	g, ctx := errgroup.WithContext(ctx)
	for n, r := range w.Regions {
		g.Go(func() error {
			inv, err := r.Instances(ctx, w.Selection)
			inventory[n] = inv
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// What one region lacks another may have.
	lacking := map[string]int{}
	for _, inv := range inventory {
		for _, m := range inv.Missing {
			lacking[m]++
		}
	}
	var missing []string
	for _, m := range slices.Sorted(maps.Keys(lacking)) {
		if lacking[m] < len(w.Regions) {
			continue
		}
		if id, ok := strings.CutPrefix(m, "instance "); ok {
			// EC2 forgets an instance about an hour after its end.
			inventory[0].Instances = append(inventory[0].Instances, Instance{ID: id, Region: w.Regions[0].Name, State: "terminated", StateReason: "EC2 does not know it (any more)"})
			continue
		}
		missing = append(missing, m)
	}
	if len(missing) > 0 {
		var regions []string
		for _, r := range w.Regions {
			regions = append(regions, r.Name)
		}
		return fmt.Errorf("%w: no %s in %s", ErrSelection, strings.Join(missing, ", no "), strings.Join(regions, ", "))
	}
	w.inventory = inventory
	return nil
}

// judge joins what is known, reads the reports that need reading, and joins
// again where one of them was not to be believed.
func (w *Watcher) judge(ctx context.Context) (*Snapshot, error) {
	now := w.now()
	var instances []Instance
	snap := &Snapshot{Schema: SnapshotSchema, At: now, Groups: []Group{}, Refused: w.shelf.refusals(), Notes: []string{}}
	for _, inv := range w.inventory {
		for _, i := range inv.Instances {
			if w.IgnoreTerminated && i.gone() {
				continue
			}
			switch {
			case w.NoVerify:
				i.RoleID = ""
			case w.RoleID != "":
				i.RoleID = w.RoleID
			}
			instances = append(instances, i)
		}
		snap.Groups = append(snap.Groups, inv.Groups...)
	}
	if w.details == nil {
		w.details, w.disbelief, w.evidence = map[string]*Cause{}, map[string]Refusal{}, map[string][]Clue{}
	}
	objects := w.shelf.all()
	budget := cmp.Or(w.Details, 100)
	policy := Policy{Now: now, Deadline: w.Deadline}
	var standings []Standing
	var refusals []Refusal
	for {
		if len(w.disbelief) > 0 {
			objects = slices.DeleteFunc(objects, func(o Object) bool { _, no := w.disbelief[o.Name]; return no })
		}
		standings, refusals = Join(instances, objects, policy)
		read, doubted, err := w.readDetails(ctx, standings, budget)
		if err != nil {
			return nil, err
		}
		budget -= read
		if !doubted {
			break
		}
	}
	watched := make(map[string]int, len(standings))
	for n := range standings {
		watched[standings[n].ID] = n
	}
	for _, r := range w.disbelief {
		if n, ok := watched[r.InstanceID]; ok {
			standings[n].Refused++
			refusals = append(refusals, r)
		}
	}
	slices.SortFunc(refusals, func(a, b Refusal) int { return cmp.Compare(a.Name, b.Name) })
	snap.Refused = append(refusals, snap.Refused...)
	if snap.Refused == nil {
		snap.Refused = []Refusal{}
	}
	for n := range standings {
		s := &standings[n]
		if c := w.details[s.Report]; c != nil && s.Report != "" {
			s.Cause = c
		}
	}
	w.lookIntoSilent(ctx, standings)
	w.shelf.tellProgress(standings)
	w.lookIntoShort(ctx, snap.Groups)

	snap.Instances = standings
	snap.Counts = map[Verdict]int{}
	snap.OK = true
	for n := range standings {
		snap.Counts[standings[n].Verdict]++
		snap.OK = snap.OK && standings[n].Verdict == Success
	}
	for _, g := range snap.Groups {
		snap.OK = snap.OK && g.Short == 0
	}
	if len(standings) == 0 {
		snap.OK = false
		w.note("no instance was found")
	}
	for _, r := range w.Regions {
		for _, s := range r.notices() {
			w.note(s)
		}
	}
	if w.Meter != nil {
		snap.APICalls = w.Meter.Calls()
		if t := w.Meter.Throttled(); t > w.throttled {
			w.note(fmt.Sprintf("AWS throttled %d calls: this pass was slower for it", t-w.throttled))
			w.throttled = t
		}
	}
	w.notesMu.Lock()
	snap.Notes = append(snap.Notes, slices.Sorted(maps.Keys(w.notes))...)
	w.notes = nil
	w.notesMu.Unlock()
	return snap, nil
}

// readDetails reads reports of those that did not succeed, once each.
func (w *Watcher) readDetails(ctx context.Context, standings []Standing, budget int) (read int, doubted bool, err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	left := 0
	lost := map[string]error{}
	for n := range standings {
		s := &standings[n]
		if s.Report == "" || s.Verdict == Success {
			continue
		}
		mu.Lock()
		_, done := w.details[s.Report]
		mu.Unlock()
		if done {
			continue
		}
		if read >= budget {
			left++
			continue
		}
		read++
		g.Go(func() error {
			rep, err := w.Reports.Get(ctx, s.object)
			mu.Lock()
			defer mu.Unlock()
			if no, ok := asRefused(err); ok {
				w.disbelief[s.Report] = Refusal{Name: s.Report, InstanceID: s.ID, Reason: no.reason, Detail: no.detail}
				doubted = true
				return nil
			}
			if unreadable(err) {
				lost[s.Report] = err
				return nil
			}
			if err != nil {
				return err
			}
			w.details[s.Report] = causeOf(rep)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return read, false, err
	}
	for name, err := range lost {
		if len(w.details) == 0 && len(w.disbelief) == 0 {
			return read, false, err // none can be read: that is the watcher's own trouble
		}
		// Its sender may have encrypted it with a key of its own, or it has just
		// expired. Its key has the verdict and the code, and the others are read.
		w.note(err.Error())
		w.details[name] = nil
	}
	if left > 0 && !doubted {
		w.note(fmt.Sprintf("%d more reports are shown by their code alone; --details N reads more", left))
	}
	return read, doubted, nil
}

// unreadable says that S3 does not give this object out, whoever asks again.
func unreadable(err error) bool {
	code := apiCode(err)
	return code == "NoSuchKey" || code == "InvalidRequest" || code == "InvalidObjectState" || strings.HasPrefix(code, "KMS.") || denied(err)
}

// Report reads the report a standing was judged by; nil where there is none.
func (w *Watcher) Report(ctx context.Context, s *Standing) (*report.Report, error) {
	if s.Report == "" {
		return nil, nil
	}
	return w.Reports.Get(ctx, s.object)
}
