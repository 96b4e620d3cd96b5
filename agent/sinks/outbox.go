package sinks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

// maxEntries bounds the outbox: beyond it the oldest entries that were never
// sent anywhere make room, start records first. A judged bootstrap stays.
const maxEntries = 200

// later stands among the sinks of a report whose sinks are not known yet.
const later = "undecided"

// Undecided returns the reports that were added with undecided.
func (o *Outbox) Undecided() []string { return o.Waiting(later) }

// entry is one file of the outbox: a report and who still has to get it. Each
// change is a new file in place of the old, fsynced: a crash leaves the state
// before it, and the report is sent once more.
type entry struct {
	Report  json.RawMessage   `json:"report"`
	Waiting []string          `json:"waiting"`           // sinks
	Done    []string          `json:"done"`              //
	Refused map[string]string `json:"refused,omitempty"` // sink → reason
	Added   time.Time         `json:"added"`

	errors map[string]string // last error by sink, for status
	kind   report.Kind
	since  time.Time // held by this process; unlike Added no clock that is set moves it
	lost   bool      // the disk has not got it: a restart now would lose it
}

// Outbox is the reports that have not arrived everywhere, in a directory.
type Outbox struct {
	dir     string
	mu      sync.Mutex
	entries map[string]*entry
	changed chan struct{}
}

// OpenOutbox reads what is left in dir, making it if needed. Files that cannot
// be read are put aside with the ending .bad. The outbox can be used whatever
// the error says: an instance whose disk is full or read-only must report all
// the more, if need be from memory.
func OpenOutbox(dir string) (*Outbox, error) {
	o := &Outbox{dir: dir, entries: map[string]*entry{}, changed: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return o, fmt.Errorf("open outbox: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return o, fmt.Errorf("open outbox: %w", err)
	}
	var bad error
	for _, f := range files {
		e, err := readEntry(f)
		if err != nil {
			if rerr := os.Rename(f, f+".bad"); rerr != nil {
				err = errors.Join(err, rerr)
			}
			bad = errors.Join(bad, fmt.Errorf("put aside outbox entry: %w", err))
			continue
		}
		o.entries[strings.TrimSuffix(filepath.Base(f), ".json")] = e
	}
	return o, bad
}

func readEntry(path string) (*entry, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var e entry
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	r, err := report.Decode(e.Report)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	e.errors, e.kind, e.since = map[string]string{}, r.Kind, time.Now()
	return &e, nil
}

// Add keeps r durably for every sink named. It returns once the disk has it.
// A report that is there already is not added again: sinks it was not meant
// for yet are. With undecided the report stays although it has no sink, until
// it is added again: the settings that name the sinks are not read yet.
func (o *Outbox) Add(r *report.Report, sinks []string, undecided bool) error {
	doc, err := report.Encode(r)
	if err != nil {
		return fmt.Errorf("add to outbox: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if undecided {
		sinks = append(slices.Clone(sinks), later)
	}
	if e, ok := o.entries[r.ID]; ok {
		e.Waiting = slices.DeleteFunc(e.Waiting, func(s string) bool { return s == later })
		for _, s := range sinks {
			if _, refused := e.Refused[s]; !refused && !slices.Contains(e.Waiting, s) && !slices.Contains(e.Done, s) {
				e.Waiting = append(e.Waiting, s)
			}
		}
		o.wake()
		return o.finish(r.ID, e)
	}
	if len(sinks) == 0 {
		return nil
	}
	o.room()
	e := &entry{Report: doc, Waiting: slices.Clone(sinks), Added: time.Now().UTC(), errors: map[string]string{}, kind: r.Kind, since: time.Now()}
	// Even where the disk is full the report is sent from memory.
	o.entries[r.ID] = e
	o.wake()
	return o.save(r.ID, e)
}

// room makes space for one more.
func (o *Outbox) room() {
	if len(o.entries) < maxEntries {
		return
	}
	victim := ""
	for id, e := range o.entries {
		if e.kind == report.KindBootstrap {
			continue
		}
		if victim == "" || e.Added.Before(o.entries[victim].Added) {
			victim = id
		}
	}
	if victim != "" {
		delete(o.entries, victim)
		_ = os.Remove(o.path(victim)) // a file that stays is sent after a restart
	}
}

func (o *Outbox) path(id string) string { return filepath.Join(o.dir, id+".json") }

func (o *Outbox) save(id string, e *entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write outbox: %w", err)
	}
	err = atomicfile.WriteFile(o.path(id), b, 0o600)
	e.lost = err != nil
	return err
}

// Kept says whether a restart now would lose nothing: the report is on the
// disk, or has arrived everywhere. It tries once more where the disk would not
// take it before.
func (o *Outbox) Kept(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.entries[id]
	return !ok || !e.lost || o.save(id, e) == nil
}

func (o *Outbox) wake() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// Wake lets every sink try again now: credentials have come, say.
func (o *Outbox) Wake() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wake()
}

// Changed is closed when an entry is added or Wake called.
func (o *Outbox) Changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// Waiting returns the IDs of reports that wait for sink, the oldest first.
func (o *Outbox) Waiting(sink string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ids []string
	for id, e := range o.entries {
		if slices.Contains(e.Waiting, sink) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return o.entries[a].Added.Compare(o.entries[b].Added) })
	return ids
}

// Alone says whether no other sink than this one still has to get a report, or
// the others have had it for longer than patience.
func (o *Outbox) Alone(id, sink string, patience time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.entries[id]
	return !ok || time.Since(e.since) >= patience || !slices.ContainsFunc(e.Waiting, func(s string) bool { return s != sink })
}

// Report returns a report, completed by fill where it was not whole yet; what
// fill changed is kept, on the disk where it takes it.
func (o *Outbox) Report(id string, fill func(*report.Report) bool) (*report.Report, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.entries[id]
	if !ok {
		return nil, fmt.Errorf("report %s is not in the outbox", id)
	}
	r, err := report.Decode(e.Report)
	if err != nil {
		return nil, err
	}
	if fill == nil || !fill(r) {
		return r, nil
	}
	doc, err := report.Encode(r)
	if err != nil {
		return nil, err
	}
	e.Report = doc
	// A disk that is full must not keep the report from those who wait for it:
	// what it has is less complete, and save remembers that.
	_ = o.save(id, e)
	return r, nil
}

// Done remembers that sink has the report. The entry goes once all have it.
func (o *Outbox) Done(id, sink string) error {
	return o.settle(id, sink, func(e *entry) { e.Done = append(e.Done, sink) })
}

// Refused remembers that sink will not take the report. The file is kept.
func (o *Outbox) Refused(id, sink string, why error) error {
	return o.settle(id, sink, func(e *entry) {
		if e.Refused == nil {
			e.Refused = map[string]string{}
		}
		e.Refused[sink] = report.Redact(why.Error())
	})
}

func (o *Outbox) settle(id, sink string, f func(*entry)) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.entries[id]
	if !ok {
		return nil
	}
	f(e)
	e.Waiting = slices.DeleteFunc(e.Waiting, func(s string) bool { return s == sink })
	delete(e.errors, sink)
	return o.finish(id, e)
}

// finish saves an entry, or removes it once nobody waits for it.
func (o *Outbox) finish(id string, e *entry) error {
	if len(e.Waiting) > 0 || len(e.Refused) > 0 {
		return o.save(id, e)
	}
	delete(o.entries, id)
	if err := os.Remove(o.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear outbox: %w", err)
	}
	return atomicfile.SyncDir(o.dir)
}

// Note remembers an attempt's error for Pending.
func (o *Outbox) Note(id, sink string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok := o.entries[id]; ok {
		e.errors[sink] = report.Redact(err.Error())
	}
}

// Pending is a report and a sink that has not got it.
type Pending struct {
	Report  string `json:"report"`
	Sink    string `json:"sink"`
	Refused bool   `json:"refused,omitempty"`
	Error   string `json:"error,omitempty"` // of the last attempt
}

// Pending returns what has not arrived.
func (o *Outbox) Pending() []Pending {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []Pending
	for id, e := range o.entries {
		for _, s := range e.Waiting {
			out = append(out, Pending{Report: id, Sink: s, Error: e.errors[s]})
		}
		for s, why := range e.Refused {
			out = append(out, Pending{Report: id, Sink: s, Refused: true, Error: why})
		}
	}
	slices.SortFunc(out, func(a, b Pending) int { return strings.Compare(a.Report+a.Sink, b.Report+b.Sink) })
	return out
}
