package bake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lecafe/lecafe/bake/recipe"
)

// Garbage is what one bake has left in a region and in its staging.
type Garbage struct {
	BakeID    string    `json:"bake_id"`
	Recipe    string    `json:"recipe,omitempty"`
	Why       string    `json:"why"` // why it may be removed, or not
	Region    string    `json:"region"`
	Take      bool      `json:"take"`                // gc takes it
	Committed bool      `json:"committed,omitempty"` // its image stands: it is finished, not undone
	Expires   time.Time `json:"expires,omitzero"`
	Things    []string  `json:"things"` // "instance i-…", "image ami-… in eu-west-1"
	Removed   bool      `json:"removed"`
	Error     string    `json:"error,omitempty"`

	bake *bake
	left leftovers
}

// GCOptions say where to look.
type GCOptions struct {
	Config  aws.Config
	Regions []string // to look in for traces; default the config's alone. A bake found is removed in all of its regions
	Staging []string // s3://bucket/prefix: bakes that made nothing in EC2 are seen there alone
	Remove  bool     // false: only look
	// StateDir has the copies of journals that were begun on this machine:
	// their regions and staging are looked in too.
	StateDir string
	Report   func(Event)
	Poll     time.Duration
	Now      func() time.Time

	// Settle is how long after the last call of a bake that died what it made
	// may still be invisible; gc waits for it. Default 15s.
	Settle time.Duration
}

// GC finds bakes that nobody drives any more, by the tags of what they made
// and by their journals, and removes what they left, in each of their regions.
// A bake that lives is listed and left alone until it has expired.
func GC(ctx context.Context, o GCOptions) ([]*Garbage, error) {
	template := Options{Config: o.Config, StateDir: o.StateDir, Report: o.Report, Poll: o.Poll, Now: o.Now}
	found, err := findBakes(ctx, template, o)
	if err != nil {
		return nil, o.explain(err)
	}
	out := make([]*Garbage, 0, len(found))
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(found)) {
		g, err := judge(ctx, template, found[id])
		if err != nil && ctx.Err() != nil {
			return nil, o.explain(fmt.Errorf("%s: %w", id, err))
		}
		if err != nil { // one that cannot be read, or is forged, does not keep the others
			out = append(out, &Garbage{BakeID: id, Recipe: found[id].recipe, Expires: found[id].expires, Why: "it could not be looked at", Things: []string{"resources tagged with this bake"}, Error: err.Error()})
			errs = append(errs, fmt.Errorf("%s: %w", id, err))
			continue
		}
		if len(g.Things) == 0 {
			continue
		}
		out = append(out, g)
		if !o.Remove || !g.Take {
			continue
		}
		if wait := g.lastMade().Add(cmp.Or(o.Settle, 15*time.Second)).Sub(g.bake.now()); wait > 0 {
			if err := g.bake.pace.sleep(ctx, wait); err != nil {
				return out, err
			}
			if g.left, err = g.bake.leftovers(ctx, g.bake.store.known()); err != nil {
				return out, o.explain(err)
			}
		}
		if err := g.remove(ctx); err != nil {
			g.Error = err.Error()
			errs = append(errs, fmt.Errorf("%s: %w", id, err))
			continue
		}
		g.Removed = true
	}
	return out, o.explain(errors.Join(errs...))
}

// judge reads a bake's journal and lists what is left of it.
func judge(ctx context.Context, o Options, t *trace) (*Garbage, error) {
	b := newBake(o)
	b.id, b.recipe, b.resumed = t.id, &recipe.Recipe{Name: t.recipe}, true
	g := &Garbage{BakeID: t.id, Recipe: t.recipe, Expires: t.expires, bake: b, Things: []string{}}
	rest, ok := strings.CutPrefix(t.location, "s3://")
	bucket, key, _ := strings.Cut(rest, "/")
	if !ok || bucket == "" || path.Base(key) != journalName {
		g.Why, g.Things = "its tag "+tagJournal+" names no journal: not one of lecafe's", []string{"resources tagged with this bake"}
		return g, nil
	}
	if t.home != "" && t.home != b.cfg.Region {
		b.cloud = b.moved(t.home)
	}
	var (
		j    *journal
		etag string
	)
	now := b.now()
	err := b.inBucketsRegion(func() (err error) { j, etag, err = readJournal(ctx, b.s3, bucket, key); return err })
	b.store = &store{s3: b.s3, bucket: bucket, base: path.Dir(key), local: localJournal(o.StateDir, t.id), now: b.now, warn: b.warn}
	switch cause := errors.Unwrap(err); {
	case err == nil:
		b.store.j, b.store.etag = *j, etag
		g.Recipe, g.Expires, g.Committed = j.Recipe, j.Expires, j.Status == StatusCommitted
		if j.Region != b.cfg.Region {
			b.cloud = b.moved(j.Region)
		}
		switch {
		case now.After(j.Expires):
			g.Take, g.Why = true, "it has expired"
		case j.dead(now, o.Now == nil):
			g.Take, g.Why = true, "nobody drives it any more"
		default:
			g.Why = fmt.Sprintf("it is being driven, last seen %s ago", now.Sub(j.Beat).Round(time.Second))
		}
	case isCode(cause, "NoSuchKey", "NotFound", "NoSuchBucket"):
		// The journal goes last, and is there before anything else: without
		// it nobody drives the bake.
		b.store.j = journal{Schema: journalSchema, BakeID: t.id, Recipe: t.recipe, Region: b.cfg.Region, Created: now.UTC(), Expires: now.UTC(), Status: StatusUndoing, Owner: newOwner()}
		g.Take, g.Why = true, "it has no journal any more"
	case missing(cause):
		g.Take, g.Why = now.After(t.expires) && !t.expires.IsZero(), "its journal may not be read"
		if g.Take {
			g.Why += ", but it has expired"
		}
		b.store.j = journal{Schema: journalSchema, BakeID: t.id, Recipe: t.recipe, Region: b.cfg.Region, Expires: t.expires, Status: StatusUndoing, Owner: newOwner()}
	default:
		return nil, err
	}
	if err := b.stagedRecipe(ctx); err != nil {
		return nil, err
	}
	g.Region = b.cfg.Region
	known := b.store.known()
	for _, region := range uniq(slices.Concat(slices.Collect(maps.Keys(known.Copies)), t.regions)) {
		if region != b.cfg.Region && !slices.ContainsFunc(b.recipe.Image.Copies, func(c recipe.Copy) bool { return c.Region == region }) {
			b.recipe.Image.Copies = append(b.recipe.Image.Copies, recipe.Copy{Region: region})
		}
	}
	if g.left, err = b.leftovers(ctx, known); err != nil {
		return nil, err
	}
	g.Things = g.left.things(o.Config.Region, b.cfg.Region, b.store.bucket, g.Committed)
	return g, nil
}

// things says what is left in words, with the region where it is not the one
// that gc runs in.
func (l leftovers) things(here, home, bucket string, committed bool) []string {
	out := []string{}
	add := func(kind string, ids []string, region string) {
		for _, id := range ids {
			text := kind + " " + id
			if region != here {
				text += " in " + region
			}
			out = append(out, text)
		}
	}
	add("instance", l.Instances, home)
	add("volume", l.Volumes, home)
	add("security group", l.Groups, home)
	add("launch template", l.Templates, home)
	if !committed {
		for _, region := range slices.Sorted(maps.Keys(l.Images)) {
			add("image", l.Images[region], region)
		}
		for _, region := range slices.Sorted(maps.Keys(l.Snapshots)) {
			add("snapshot", l.Snapshots[region], region)
		}
	}
	for _, key := range l.Objects {
		out = append(out, "object s3://"+bucket+"/"+key)
	}
	return out
}

// lastMade is when the bake last began to make something.
func (g *Garbage) lastMade() time.Time {
	if g.bake.store.etag == "" {
		// It may have ended this moment, and EC2 not show yet that its image is
		// done.
		return g.bake.now()
	}
	var at time.Time
	for _, c := range g.bake.store.j.Calls {
		if slices.Contains([]string{"RunInstances", "CreateImage", "CopyImage", "CreateSecurityGroup", "CreateLaunchTemplate"}, c.Action) {
			at = c.At
		}
	}
	return at
}

// remove undoes a dead bake, or finishes one whose image stands.
func (g *Garbage) remove(ctx context.Context) error {
	b := g.bake
	if b.store.etag != "" {
		// From here on the bake is ours: whoever drove it stops at its next
		// writing.
		if err := b.store.update(ctx, func(j *journal) { j.Owner = newOwner() }); err != nil {
			return err
		}
	}
	if !g.Committed {
		if err := b.store.update(ctx, func(j *journal) { j.Status = StatusUndoing }); err != nil {
			return err
		}
		return b.removeLeftovers(ctx, g.left)
	}
	if err := b.crown(ctx); isCode(err, "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSnapshot.NotFound") {
		b.warn("%s: somebody has removed its image since: %v", b.id, err)
	} else if err != nil {
		return err
	}
	l := g.left
	l.Images, l.Snapshots = nil, nil
	return b.removeLeftovers(ctx, l)
}
