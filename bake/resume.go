package bake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/bake/recipe"
)

// ErrAlive says that the process that drives a bake lives.
var ErrAlive = errors.New("the bake is being driven by a process that lives")

// ErrUnknown says that there is no such bake where it was looked for.
var ErrUnknown = errors.New("no such bake")

// Resume goes on with a bake whose process died, from any machine. The bake
// is looked for below staging (s3://bucket/prefix); when that is empty, below
// the recipe's, or where this machine's copy of the journal says. What the dead process began is found by client token,
// name and tag before anything is made again.
func Resume(ctx context.Context, o Options, id, staging string) (*Outcome, error) {
	b := newBake(o)
	b.id, b.resumed = id, true
	if staging == "" && o.Recipe == nil {
		var err error
		if staging, err = localStaging(o.StateDir, id); err != nil {
			return nil, err
		}
	}
	bucket, prefix, err := stagingOf(o.Recipe, staging)
	if err != nil {
		return nil, err
	}
	b.store = &store{s3: b.s3, bucket: bucket, base: path.Join(prefix, id), local: localJournal(o.StateDir, id), now: b.now, warn: b.warn}
	if err := b.takeOver(ctx); err != nil {
		return nil, b.explain(err)
	}
	if err := b.stagedRecipe(ctx); err != nil {
		return nil, b.explain(err)
	}
	switch b.store.status() {
	case StatusUndoing:
		clean, cancel := context.WithTimeoutCause(ctx, undoTimeout, errUndoTime)
		defer cancel()
		if err := b.undo(clean); err != nil {
			return nil, b.explain(err)
		}
		return nil, fmt.Errorf("%s had failed and was being undone; that is finished now, bake again", id)
	case StatusCommitted:
		if err := b.crown(ctx); err != nil {
			return nil, b.explain(err)
		}
	default:
		if err := b.reconcile(ctx); err != nil {
			return nil, b.explain(err)
		}
	}
	return b.drive(ctx)
}

// localStaging reads the staging of a bake that was begun on this machine.
func localStaging(dir, id string) (string, error) {
	data, err := os.ReadFile(localJournal(dir, id))
	var j journal
	if err == nil {
		err = json.Unmarshal(data, &j)
	}
	if err != nil || j.Staging == "" {
		return "", fmt.Errorf("%w: %s was not begun on this machine, or has ended; name its recipe, or its --staging s3://BUCKET/PREFIX", ErrUnknown, id)
	}
	return j.Staging, nil
}

func stagingOf(r *recipe.Recipe, staging string) (bucket, prefix string, err error) {
	if staging == "" {
		return r.Staging.Bucket, r.Staging.Prefix, nil
	}
	rest, ok := strings.CutPrefix(staging, "s3://")
	bucket, prefix, _ = strings.Cut(strings.Trim(rest, "/"), "/")
	if !ok || bucket == "" || prefix == "" {
		return "", "", fmt.Errorf("--staging %q is not s3://BUCKET/PREFIX", staging)
	}
	return bucket, prefix, nil
}

// takeOver makes this process the owner of a dead one's journal.
func (b *bake) takeOver(ctx context.Context) error {
	j, etag, err := readJournal(ctx, b.s3, b.store.bucket, b.store.key(journalName))
	if missing(errors.Unwrap(err)) {
		return fmt.Errorf("%w: %s is not below s3://%s/%s; it has ended, or the staging is another", ErrUnknown, b.id, b.store.bucket, path.Dir(b.store.base))
	}
	if err != nil {
		return err
	}
	if j.Region != b.cfg.Region {
		return fmt.Errorf("%s is in %s, not %s; use --region", b.id, j.Region, b.cfg.Region)
	}
	if now := b.now(); !j.dead(now, b.opts.Now == nil) {
		return fmt.Errorf("%s: %w (process %d, last seen %s ago); wait until it has ended", b.id, ErrAlive, j.Owner.PID, now.Sub(j.Beat).Round(1e9))
	}
	b.store.j, b.store.etag = *j, etag
	if b.store.j.Facts.Copies == nil {
		b.store.j.Facts.Copies = map[string]string{}
	}
	return b.store.update(ctx, func(j *journal) { j.Owner = newOwner() })
}

// stagedRecipe reads the recipe as it was when the bake began; the given one
// serves only while nothing is staged.
func (b *bake) stagedRecipe(ctx context.Context) error {
	out, err := b.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.store.bucket, Key: aws.String(b.store.key(recipeName))})
	if missing(err) {
		if b.recipe == nil {
			b.recipe = &recipe.Recipe{Name: b.store.j.Recipe}
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the bake's recipe: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(out.Body, 4<<20))
	if err = errors.Join(err, out.Body.Close()); err != nil {
		return fmt.Errorf("read the bake's recipe: %w", err)
	}
	dir := ""
	if b.recipe != nil {
		dir = b.recipe.Dir
	}
	var r recipe.Recipe
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("read the bake's recipe: %w", err)
	}
	r.Dir = dir
	b.recipe = &r
	return nil
}

// reconcile finds what the dead process made and did not write down.
func (b *bake) reconcile(ctx context.Context) error {
	out, err := b.ec2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: append(byTag(tagBake, b.id), types.Filter{Name: aws.String("tag:" + tagRole), Values: []string{"builder"}})})
	if err != nil {
		return fmt.Errorf("look for the builder: %w", err)
	}
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			if b.made(&i) && i.State != nil && i.State.Name != types.InstanceStateNameTerminated && i.State.Name != types.InstanceStateNameShuttingDown {
				b.store.learn(func(f *facts) { f.Instance = aws.ToString(i.InstanceId) })
			}
		}
	}
	known := b.store.known()
	if known.Image == "" {
		id, err := b.imageByName(ctx, b.ec2, known.ImageName)
		if err != nil {
			return err
		}
		b.store.learn(func(f *facts) { f.Image = id })
	}
	return nil
}
