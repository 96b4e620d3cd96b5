package bake

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake/recipe"
)

// Made is an image that another tool has made.
type Made struct {
	ImageID string
	Copies  map[string]string // region → image ID, of its copies elsewhere
}

// ErrNoImage says that there is no such image, or none that can be booted.
var ErrNoImage = errors.New("no image to prove")

// Prove boots a canary of an image that another tool has made: the bake's own
// phase, with its journal, tags, undo and gc. Of o.Recipe it takes the name,
// the tags, staging, builder (where the canary has no launch template) and the
// canary, which must be there; of o.Programs the builder program for the
// image's architecture. A proved image and its copies are tagged as done, and
// are from then on among those that lecafe images knows; with a failed canary
// they are tagged as failed, and whoever made them decides whether they stay.
func Prove(ctx context.Context, o Options, made Made) (*Outcome, error) {
	o.KeepFailed, o.KeepBuilder = true, false
	if o.Recipe.Canary == nil {
		return nil, fmt.Errorf("prove %s: no canary is described", made.ImageID)
	}
	if k := o.Recipe.Canary; k.LaunchTemplate == "" && k.Subnet != "" && len(o.Recipe.Builder.Subnets) == 0 {
		// The temporary security group belongs into the VPC of that subnet.
		r := *o.Recipe
		r.Builder.Subnets = []string{k.Subnet}
		canary := *k
		canary.Subnet, r.Canary = "", &canary
		o.Recipe = &r
	}
	b := newBake(o)
	out, err := b.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{made.ImageID}})
	if err == nil && len(out.Images) == 0 || isCode(err, "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable") {
		return nil, fmt.Errorf("%w: there is no %s in %s", ErrNoImage, made.ImageID, b.cfg.Region)
	}
	if err != nil {
		return nil, b.explain(fmt.Errorf("describe image %s: %w", made.ImageID, err))
	}
	im := out.Images[0]
	if im.State != types.ImageStateAvailable {
		return nil, fmt.Errorf("%w: %s is %s", ErrNoImage, made.ImageID, im.State)
	}
	if a := string(im.Architecture); a != "" && a != b.recipe.Architecture {
		return nil, fmt.Errorf("%w: %s is for %s, the canary's program for %s", ErrNoImage, made.ImageID, a, b.recipe.Architecture)
	}
	b.id = "bake-" + randomHex(8)
	f := facts{
		Given: true, Provisioned: true, Image: made.ImageID, ImageName: aws.ToString(im.Name), Snapshots: snapshotsOf(&im), Copies: made.Copies,
		SourceImage: aws.ToString(im.SourceImageId),
	}
	if err := b.begin(ctx, b.now().UTC(), f); err != nil {
		return nil, b.explain(fmt.Errorf("%w; check staging.bucket", err))
	}
	b.emit(Event{Kind: EventInfo, Text: fmt.Sprintf("%s proves %s", b.id, made.ImageID)})
	return b.drive(ctx)
}

// proves says which phases an image needs that is there already.
func (b *bake) proves(phase string) bool {
	switch phase {
	case "network": // the launch template has its own
		return b.recipe.Canary != nil && b.recipe.Canary.LaunchTemplate == ""
	case "stage", "canary", "settle", "clean up":
		return true
	}
	return false
}

// stateTags are those by which an image says how its bake ended. One that
// another tool made gets a bake with them.
func (b *bake) stateTags(state string) map[string]string {
	tags := map[string]string{tagState: state}
	if f := b.store.known(); f.Given {
		tags[tagBake], tags[tagRecipe] = b.id, b.recipe.Name
		if f.SourceImage != "" {
			tags[tagSource] = f.SourceImage
		}
	}
	return tags
}

// ArchitectureOf reads an image's architecture, in the recipe's words.
func ArchitectureOf(ctx context.Context, cfg aws.Config, imageID string) (string, error) {
	out, err := ec2.NewFromConfig(cfg).DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{imageID}})
	if err != nil {
		return "", fmt.Errorf("describe image %s: %w", imageID, err)
	}
	if len(out.Images) == 0 {
		return "", fmt.Errorf("%w: there is no %s in %s", ErrNoImage, imageID, cfg.Region)
	}
	switch a := string(out.Images[0].Architecture); a {
	case recipe.X8664, recipe.ARM64:
		return a, nil
	default:
		return "", fmt.Errorf("%w: %s is for %s; lecafe has programs for %s and %s", ErrNoImage, imageID, a, recipe.X8664, recipe.ARM64)
	}
}
