package bake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lecafe/lecafe/bake/recipe"
)

// Options are what Run needs. Zero fields have defaults.
type Options struct {
	Config    aws.Config
	Recipe    *recipe.Recipe
	Programs  Programs // from FindPrograms
	GitCommit string   // of the recipe's work tree, for name templates
	StateDir  string   // for copies of journals; empty: none

	KeepBuilder bool // leave the builder of a failed bake
	KeepFailed  bool // leave an image whose canary failed, tagged as failed
	Force       bool // bake although nothing has changed

	// ExpiredPatience is how long calls wait for the provider's new
	// credentials when the old have expired; default 1m.
	ExpiredPatience time.Duration

	// Abort, when closed, ends at once what a bake that failed, was cancelled
	// or is done still removes. The error is then an ErrAborted.
	Abort <-chan struct{}

	Report func(Event)      // called from several goroutines, one at a time
	Poll   time.Duration    // of waits; default 2s
	Now    func() time.Time // default time.Now
}

// Outcome is what a bake made. It is the CLI's JSON.
type Outcome struct {
	BakeID      string            `json:"bake_id,omitempty"` // empty when nothing was baked
	ImageID     string            `json:"image_id"`
	ImageName   string            `json:"image_name"`
	SnapshotIDs []string          `json:"snapshot_ids"`
	SourceImage string            `json:"source_image_id"`
	ContentHash string            `json:"content_hash"`
	Region      string            `json:"region"`
	Unchanged   bool              `json:"unchanged"` // an earlier image is as good
	Copies      map[string]string `json:"copies,omitempty"`
	UsedBytes   int64             `json:"used_bytes,omitempty"`
	Canary      string            `json:"canary,omitempty"` // passed
	Seconds     float64           `json:"seconds"`
	Phases      []Phase           `json:"phases"`
}

// bake is one run over one journal.
type bake struct {
	cloud
	id      string
	opts    Options
	recipe  *recipe.Recipe
	store   *store
	pace    pace
	now     func() time.Time
	resumed bool
	cancel  context.CancelCauseFunc
	began   time.Time

	mu         sync.Mutex
	current    string
	manifests  int
	signedBy   string
	signedLife time.Duration
}

func newBake(o Options) *bake {
	now := o.Now
	if now == nil {
		now = time.Now
	}
	if report := o.Report; report != nil {
		var mu sync.Mutex
		o.Report = func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			report(e)
		}
	}
	return &bake{cloud: connect(o.Config, cmp.Or(o.ExpiredPatience, time.Minute)), opts: o, recipe: o.Recipe, now: now, began: now(), pace: pace{poll: cmp.Or(o.Poll, 2*time.Second), sleep: realSleep}}
}

// resumable is an error after which the bake stands as it was: resuming it
// goes on, gc removes it.
type resumable struct {
	id, staging string
	err         error
}

func (e *resumable) Error() string {
	return fmt.Sprintf("%v\nthe bake goes on with: lecafe bake --resume %s --staging %s; lecafe gc removes what it made", e.err, e.id, e.staging)
}
func (e *resumable) Unwrap() error { return e.err }

// margin is added to the builder's timeout for the image to be made, proved and
// copied, before gc may take a bake that still has an owner.
const margin = stopTimeout + 2*imageTimeout + 4*time.Hour

func (b *bake) expires() time.Time {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	return b.store.j.Expires
}

// Run bakes an image, or finds that an earlier one is as good. Whatever
// happens, it leaves nothing but the image, the builder that was asked to be
// kept, or what its error names.
func Run(ctx context.Context, o Options) (*Outcome, error) {
	b := newBake(o)
	source, err := resolve(ctx, b.cloud, b.recipe)
	if err != nil {
		return nil, b.explain(err)
	}
	hash, err := contentHash(b.recipe, o.Programs, aws.ToString(source.ImageId))
	if err != nil {
		return nil, err
	}
	if !o.Force {
		im, err := unchanged(ctx, b.cloud, hash, b.recipe.MaxAge, b.now())
		if err != nil {
			return nil, b.explain(err)
		}
		if im != nil {
			out := &Outcome{
				ImageID: aws.ToString(im.ImageId), ImageName: aws.ToString(im.Name), SnapshotIDs: snapshotsOf(im), SourceImage: aws.ToString(source.ImageId),
				ContentHash: hash, Region: b.cfg.Region, Unchanged: true, Phases: []Phase{}, Seconds: b.now().Sub(b.began).Seconds(),
			}
			out.BakeID, _ = tagOf(im.Tags, tagBake)
			return out, nil
		}
	}
	b.id = "bake-" + randomHex(8)
	created := b.now().UTC()
	naming := recipe.Naming{Name: b.recipe.Name, Time: created.Format(recipe.TimeLayout), GitCommit: cmp.Or(o.GitCommit, "none"), Hash: hash[:12]}
	f := facts{SourceImage: aws.ToString(source.ImageId), RootDevice: aws.ToString(source.RootDeviceName), Hash: hash, Copies: map[string]string{}}
	f.ImageName, err = b.recipe.Image.RenderName(naming)
	if err == nil {
		f.Description, err = b.recipe.Image.RenderDescription(naming)
	}
	if err == nil {
		f.ImageTags, err = b.recipe.Image.RenderTags(naming)
	}
	if err != nil {
		return nil, fmt.Errorf("name image: %w", err)
	}
	if err := b.begin(ctx, created, f); err != nil {
		return nil, b.explain(fmt.Errorf("%w; check staging.bucket in the recipe", err))
	}
	b.emit(Event{Kind: EventInfo, Text: fmt.Sprintf("%s from %s", b.id, f.SourceImage)})
	return b.drive(ctx)
}

// begin opens the journal of a new bake.
func (b *bake) begin(ctx context.Context, created time.Time, f facts) error {
	b.store = &store{s3: b.s3, bucket: b.recipe.Staging.Bucket, base: path.Join(b.recipe.Staging.Prefix, b.id), local: localJournal(b.opts.StateDir, b.id), now: b.now, warn: b.warn}
	return b.store.update(ctx, func(j *journal) {
		*j = journal{
			Schema: journalSchema, BakeID: b.id, Recipe: b.recipe.Name, Region: b.cfg.Region, Staging: b.staging(), Status: StatusRunning, Owner: newOwner(),
			Created: created, Expires: created.Add(b.recipe.Builder.Timeout + margin), Facts: f,
		}
	})
}

func (b *bake) staging() string { return "s3://" + b.store.bucket + "/" + path.Dir(b.store.base) }

func localJournal(dir, id string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, id+".json")
}

// drive runs the phases from wherever the journal stands, and undoes the bake
// when one fails.
func (b *bake) drive(ctx context.Context) (*Outcome, error) {
	work, cancel := context.WithCancelCause(ctx)
	b.cancel = cancel
	defer cancel(nil)
	err := b.forward(work)
	if err == nil {
		err = b.end(ctx)
	} else {
		if cause := context.Cause(work); cause != nil && errors.Is(err, context.Canceled) {
			err = cause
		}
		err = b.fallBack(ctx, err)
	}
	if err != nil {
		return nil, b.explain(err)
	}
	return b.outcome(), nil
}

// fail ends the bake from another goroutine.
func (b *bake) fail(err error) { b.cancel(err) }

func (b *bake) forward(ctx context.Context) error {
	if b.store.status() == StatusCommitted {
		return nil
	}
	stopRenewing := func() {}
	defer func() { stopRenewing() }()
	defer b.beat(ctx)()
	var userData []byte
	phases := []struct {
		name string
		run  func(context.Context) error
	}{
		{"stage", func(ctx context.Context) error {
			if f := b.store.known(); f.Deadline.IsZero() {
				b.store.learn(func(f *facts) { f.Deadline = b.now().Add(b.recipe.Builder.Timeout).UTC().Truncate(time.Second) })
			}
			if err := b.stage(ctx); err != nil {
				return err
			}
			if f := b.store.known(); f.Provisioned {
				return nil
			}
			self, life, err := b.writeManifest(ctx, "")
			if err != nil {
				return err
			}
			stopRenewing = b.renew(ctx, "", life)
			userData, err = b.userData(self)
			return err
		}},
		{"network", b.network},
		{"launch", func(ctx context.Context) error { return b.launch(ctx, userData) }},
		{"provision", b.provision},
		{"stop", b.stop},
		{"image", b.create},
		{"canary", b.canary}, // before anything is copied or shared
		{"copy", b.copies},
		{"share", b.share},
		{"settle", b.settle},
	}
	for _, p := range phases {
		if err := b.phase(ctx, p.name, p.run); err != nil {
			return err
		}
	}
	return nil
}

// phase runs one phase; those with nothing to do are not shown.
func (b *bake) phase(ctx context.Context, name string, run func(context.Context) error) error {
	if !b.has(name) {
		return nil
	}
	b.mu.Lock()
	b.current = name
	b.mu.Unlock()
	b.emit(Event{Kind: EventPhase, Phase: name})
	began := b.now()
	err := run(ctx)
	seconds := b.now().Sub(began).Seconds()
	if err != nil {
		return err
	}
	b.store.learn(func(f *facts) { f.Phases = append(slices.Clip(f.Phases), Phase{name, seconds}) })
	b.emit(Event{Kind: EventDone, Phase: name, Seconds: seconds})
	return nil
}

func (b *bake) has(phase string) bool {
	if b.store.known().Given && !b.proves(phase) {
		return false
	}
	switch phase {
	case "network":
		return len(b.recipe.Builder.SecurityGroups) == 0
	case "copy":
		return len(b.recipe.Image.Copies) > 0
	case "canary":
		return b.recipe.Canary != nil
	case "share":
		im := b.recipe.Image
		return im.Public || !im.Share.Empty() || im.DeprecateAfter > 0
	}
	return true
}

// end removes what is needed no longer. The image stands: trouble here is
// said, and does not undo it.
func (b *bake) end(ctx context.Context) error {
	clean, cancel := b.cleaning(ctx)
	defer cancel()
	err := b.phase(clean, "clean up", func(ctx context.Context) error { return b.finish(ctx, false) })
	if err != nil {
		b.warn("not everything was removed: %v; lecafe gc does it", err)
	}
	return nil
}

var errUndoTime = fmt.Errorf("not done after %s", undoTimeout)

// fallBack undoes a failed bake, on time of its own: ctx may be over.
func (b *bake) fallBack(ctx context.Context, cause error) error {
	if errors.Is(cause, ErrTakenOver) {
		return cause
	}
	if expired(cause) || b.store.status() == StatusCommitted {
		return &resumable{b.id, b.staging(), cause}
	}
	clean, cancel := b.cleaning(ctx)
	defer cancel()
	known := b.store.known()
	if b.opts.KeepBuilder && known.Instance != "" && known.Image == "" {
		b.emit(Event{Kind: EventInfo, Text: fmt.Sprintf("the builder %s is kept until its deadline; lecafe gc removes it afterwards", known.Instance)})
		if err := b.store.update(clean, func(*journal) {}); err != nil {
			return errors.Join(cause, err)
		}
		return cause
	}
	if errors.Is(cause, context.Canceled) {
		b.emit(Event{Kind: EventInfo, Text: "interrupted: undoing " + b.id + "; a second Ctrl-C stops at once and leaves the rest to lecafe gc"})
	}
	var failed *CanaryError
	if b.opts.KeepFailed && errors.As(cause, &failed) {
		if err := b.keepFailed(clean); err != nil {
			b.warn("%v", err)
		} else {
			how := "kept for study, tagged as failed"
			if known.Given {
				how = "tagged as failed"
			}
			b.emit(Event{Kind: EventInfo, Text: "image " + failed.Image + " is " + how})
		}
	}
	b.emit(Event{Kind: EventPhase, Phase: "undo"})
	began := b.now()
	if err := b.undo(clean); err != nil && errors.Is(context.Cause(clean), ErrAborted) {
		return b.aborted(cause)
	} else if err != nil {
		return fmt.Errorf("%w\nnot everything could be undone: %w; remove the rest with: lecafe gc --yes", cause, err)
	}
	b.emit(Event{Kind: EventDone, Phase: "undo", Seconds: b.now().Sub(began).Seconds()})
	return cause
}

func (b *bake) outcome() *Outcome {
	f := b.store.known()
	out := &Outcome{
		BakeID: b.id, ImageID: f.Image, ImageName: f.ImageName, SnapshotIDs: f.Snapshots, SourceImage: f.SourceImage, ContentHash: f.Hash, Region: b.cfg.Region,
		UsedBytes: f.Used, Phases: f.Phases, Seconds: b.now().Sub(b.began).Seconds(),
	}
	if len(f.Copies) > 0 {
		out.Copies = f.Copies
	}
	if f.CanaryPassed {
		out.Canary = "passed"
	}
	if out.SnapshotIDs == nil {
		out.SnapshotIDs = []string{}
	}
	return out
}
