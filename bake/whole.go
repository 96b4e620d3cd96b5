package bake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"golang.org/x/sync/errgroup"

	"github.com/lecafe/lecafe/bake/recipe"
)

// copies brings the image to the recipe's other regions, all at once.
func (b *bake) copies(ctx context.Context) error {
	var mu sync.Mutex // facts.Copies is a map that known shares
	done := maps.Clone(b.store.known().Copies)
	g, gctx := errgroup.WithContext(ctx)
	for _, c := range b.recipe.Image.Copies {
		mu.Lock()
		id := done[c.Region]
		mu.Unlock()
		g.Go(func() error {
			api := b.in(c.Region)
			if id == "" {
				var err error
				if id, err = b.copyTo(gctx, api, c); err != nil {
					return fmt.Errorf("copy image to %s: %w", c.Region, err)
				}
				mu.Lock()
				if done == nil {
					done = map[string]string{}
				}
				done[c.Region] = id
				all := maps.Clone(done)
				mu.Unlock()
				b.store.learn(func(f *facts) { f.Copies = all })
			}
			im, err := b.waitImage(gctx, api, id)
			if err != nil {
				return fmt.Errorf("copy %s in %s: %w", id, c.Region, err)
			}
			// Emulators take no tags in CopyImage.
			if _, ok := tagOf(im.Tags, tagBake); !ok {
				b.warn("this endpoint takes no tags in CopyImage: %s is tagged afterwards", id)
				_, err = api.CreateTags(gctx, &ec2.CreateTagsInput{Resources: append([]string{id}, snapshotsOf(im)...), Tags: ec2Tags(b.imageTags())})
			}
			return err
		})
	}
	return g.Wait()
}

func (b *bake) copyTo(ctx context.Context, api ec2API, c recipe.Copy) (string, error) {
	known := b.store.known()
	if b.resumed {
		if id, err := b.imageByName(ctx, api, known.ImageName); err != nil || id != "" {
			return id, err
		}
	}
	tags := b.imageTags()
	token := b.id + "-" + c.Region
	in := &ec2.CopyImageInput{
		Name: &known.ImageName, SourceImageId: &known.Image, SourceRegion: aws.String(b.cfg.Region), ClientToken: &token,
		TagSpecifications: []types.TagSpecification{tagSpec(types.ResourceTypeImage, tags), tagSpec(types.ResourceTypeSnapshot, tags)},
	}
	if known.Description != "" {
		in.Description = &known.Description
	}
	if e := c.Encryption; e != nil {
		in.Encrypted = aws.Bool(true)
		if e.KMSKey != "" {
			in.KmsKeyId = &e.KMSKey
		}
	}
	if err := b.store.intend(ctx, "CopyImage", c.Region); err != nil {
		return "", err
	}
	out, err := api.CopyImage(ctx, in)
	if err != nil {
		return "", err
	}
	return aws.ToString(out.ImageId), nil
}

// share gives the image and its copies to those the recipe names, and sets
// how long they live.
func (b *bake) share(ctx context.Context) error {
	known := b.store.known()
	places := maps.Clone(known.Copies)
	if places == nil {
		places = map[string]string{}
	}
	places[b.cfg.Region] = known.Image
	for _, region := range slices.Sorted(maps.Keys(places)) {
		if err := b.shareOne(ctx, b.in(region), places[region]); err != nil {
			return fmt.Errorf("image %s in %s: %w", places[region], region, err)
		}
	}
	return nil
}

func (b *bake) shareOne(ctx context.Context, api ec2API, image string) error {
	im := b.recipe.Image
	var who []types.LaunchPermission
	for _, a := range im.Share.Accounts {
		who = append(who, types.LaunchPermission{UserId: aws.String(a)})
	}
	for _, o := range im.Share.Organizations {
		who = append(who, types.LaunchPermission{OrganizationArn: aws.String(o)})
	}
	for _, o := range im.Share.OrganizationalUnits {
		who = append(who, types.LaunchPermission{OrganizationalUnitArn: aws.String(o)})
	}
	if im.Public {
		who = append(who, types.LaunchPermission{Group: types.PermissionGroupAll})
	}
	if len(who) > 0 {
		b.store.note("ModifyImageAttribute", image)
		_, err := api.ModifyImageAttribute(ctx, &ec2.ModifyImageAttributeInput{ImageId: &image, LaunchPermission: &types.LaunchPermissionModifications{Add: who}})
		if err != nil {
			return fmt.Errorf("share: %w", err)
		}
	}
	if im.DeprecateAfter > 0 {
		b.store.note("EnableImageDeprecation", image)
		at := b.now().Add(im.DeprecateAfter).UTC().Truncate(time.Minute) // EC2 rounds to the minute
		_, err := api.EnableImageDeprecation(ctx, &ec2.EnableImageDeprecationInput{ImageId: &image, DeprecateAt: &at}, few)
		if notImplemented(err) {
			b.warn("this endpoint has no deprecation of images")
		} else if err != nil {
			return fmt.Errorf("set deprecation: %w", err)
		}
	}
	return nil
}

// protect is the last change to an image: a protected one cannot be undone.
func (b *bake) protect(ctx context.Context) error {
	if !b.recipe.Image.DeregistrationProtection {
		return nil
	}
	known := b.store.known()
	places := map[string]string{b.cfg.Region: known.Image}
	maps.Copy(places, known.Copies)
	for _, region := range slices.Sorted(maps.Keys(places)) {
		image := places[region]
		b.store.note("EnableImageDeregistrationProtection", image)
		_, err := b.in(region).EnableImageDeregistrationProtection(ctx, &ec2.EnableImageDeregistrationProtectionInput{ImageId: &image}, few)
		if notImplemented(err) {
			b.warn("this endpoint has no deregistration protection for images")
		} else if err != nil {
			return fmt.Errorf("protect image %s in %s: %w", image, region, err)
		}
	}
	return nil
}
