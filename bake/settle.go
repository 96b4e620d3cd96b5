package bake

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/lecafe/lecafe/bake/recipe"
)

// volume of the recipe, for brevity.
type ebsVolume = recipe.Volume

// settle declares the image done: from here on nothing undoes it. The journal
// says so before the tags do, so that gc, in between, finishes it.
func (b *bake) settle(ctx context.Context) error {
	if err := b.store.update(ctx, func(j *journal) { j.Status = StatusCommitted }); err != nil {
		return err
	}
	return b.crown(ctx)
}

// crown does what is left to do to an image that is committed. Repeating it
// does no harm.
func (b *bake) crown(ctx context.Context) error {
	if err := b.tagDone(ctx); err != nil {
		return err
	}
	return b.protect(ctx)
}

// tagDone marks the image, its copies and all their snapshots.
func (b *bake) tagDone(ctx context.Context) error { return b.markImages(ctx, stateDone) }

// markImages says of the image, its copies and all their snapshots how they
// ended.
func (b *bake) markImages(ctx context.Context, state string) error {
	f := b.store.known()
	mark := func(api ec2API, image string, snapshots []string) error {
		ids := append([]string{image}, snapshots...)
		if _, err := api.CreateTags(ctx, &ec2.CreateTagsInput{Resources: ids, Tags: ec2Tags(b.stateTags(state))}); err != nil {
			return fmt.Errorf("tag image %s as %s: %w", image, state, err)
		}
		return nil
	}
	for region, id := range f.Copies {
		out, err := b.in(region).DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{id}})
		if err != nil {
			return fmt.Errorf("describe copy %s: %w", id, err)
		}
		var snapshots []string
		for _, im := range out.Images {
			snapshots = append(snapshots, snapshotsOf(&im)...)
		}
		if err := mark(b.in(region), id, snapshots); err != nil {
			return err
		}
	}
	if f.Snapshots == nil {
		out, err := b.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{f.Image}})
		if err != nil {
			return fmt.Errorf("describe image %s: %w", f.Image, err)
		}
		for _, im := range out.Images {
			f.Snapshots = append(f.Snapshots, snapshotsOf(&im)...)
		}
		b.store.learn(func(k *facts) { k.Snapshots = f.Snapshots })
	}
	return mark(b.ec2, f.Image, f.Snapshots)
}
