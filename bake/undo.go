package bake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake/manifest"
)

// undoTimeout bounds what Ctrl-C and a failure still do. Terminating takes
// most of it; what is left after it, gc removes.
const undoTimeout = 5 * time.Minute

// finish removes what a bake needs no longer: the instances, the temporary
// group and launch template, the staging objects, and last the journal. It
// goes on after an error, so that as little as possible is left.
func (b *bake) finish(ctx context.Context, keepBuilder bool) error {
	known := b.store.known()
	var errs []error
	var instances []string
	for _, id := range []string{known.Instance, known.Canary} {
		if id != "" && !(keepBuilder && id == known.Instance) {
			instances = append(instances, id)
		}
	}
	if known.Template != "" {
		errs = append(errs, b.deleteTemplate(ctx, known.Template))
	}
	errs = append(errs, b.terminate(ctx, instances))
	if !keepBuilder {
		// An image or a launch template may say that a volume outlives its
		// instance.
		volumes, err := b.volumesLeft(ctx)
		errs = append(errs, err, b.deleteVolumes(ctx, volumes))
	}
	errs = append(errs, b.unstage(ctx))
	if known.Group != "" && !keepBuilder {
		errs = append(errs, b.deleteGroup(ctx, known.Group))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if keepBuilder {
		return nil // the journal stays: gc takes the builder when it has expired
	}
	return b.store.remove(ctx)
}

// terminate ends instances and waits until they are gone: a group cannot be
// deleted before.
func (b *bake) terminate(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	b.store.note("TerminateInstances", fmt.Sprint(ids))
	out, err := b.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: ids})
	if isCode(err, "InvalidInstanceID.NotFound") {
		// One that is gone, or not visible yet, hides the others.
		err = nil
		for _, id := range ids {
			one := b.pace.visible(ctx, "InvalidInstanceID.NotFound", func() error {
				_, err := b.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{id}})
				return err
			})
			if one != nil && !isCode(one, "InvalidInstanceID.NotFound") {
				err = errors.Join(err, one)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("terminate %v: %w", ids, err)
	}
	fresh := out != nil
	if out != nil {
		going := slices.DeleteFunc(out.TerminatingInstances, func(c types.InstanceStateChange) bool {
			return c.CurrentState != nil && c.CurrentState.Name == types.InstanceStateNameTerminated
		})
		if len(going) == 0 {
			return nil // there was nothing to wait for
		}
	}
	if _, err := b.waitInstances(ctx, ids, undoTimeout, fresh, types.InstanceStateNameTerminated); err != nil {
		return fmt.Errorf("terminate %v: %w", ids, err)
	}
	return nil
}

func (b *bake) deleteGroup(ctx context.Context, id string) error {
	b.store.note("DeleteSecurityGroup", id)
	began := b.now()
	// The interface of a terminated instance goes a moment after it.
	err := b.pace.until(ctx, func() (bool, error) {
		_, err := b.ec2.DeleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupInput{GroupId: &id})
		if isCode(err, "DependencyViolation", "InvalidGroup.InUse") && b.now().Sub(began) > undoTimeout {
			return false, fmt.Errorf("something that the bake did not make uses it: %w", err)
		}
		if isCode(err, "DependencyViolation", "InvalidGroup.InUse") {
			return false, nil
		}
		return err == nil || isCode(err, "InvalidGroup.NotFound"), ignore(err, "InvalidGroup.NotFound")
	})
	if err != nil {
		return fmt.Errorf("delete security group %s: %w", id, err)
	}
	return nil
}

func (b *bake) deleteTemplate(ctx context.Context, id string) error {
	b.store.note("DeleteLaunchTemplate", id)
	_, err := b.ec2.DeleteLaunchTemplate(ctx, &ec2.DeleteLaunchTemplateInput{LaunchTemplateId: &id})
	if err := ignore(err, "InvalidLaunchTemplateId.NotFound", "InvalidLaunchTemplateName.NotFoundException"); err != nil {
		return fmt.Errorf("delete launch template %s: %w", id, err)
	}
	return nil
}

func ignore(err error, codes ...string) error {
	if isCode(err, codes...) {
		return nil
	}
	return err
}

// deleteImage deregisters an image and deletes its snapshots.
func (b *bake) deleteImage(ctx context.Context, api ec2API, id string) error {
	var snapshots []string
	out, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{id}})
	if err := ignore(err, "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable"); err != nil {
		return fmt.Errorf("describe image %s: %w", id, err)
	}
	if err == nil {
		for _, im := range out.Images {
			snapshots = append(snapshots, snapshotsOf(&im)...)
		}
	}
	b.store.note("DeregisterImage", id)
	_, err = api.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &id})
	if err := ignore(err, "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable"); err != nil {
		return fmt.Errorf("deregister image %s: %w", id, err)
	}
	return b.deleteSnapshots(ctx, api, snapshots)
}

func (b *bake) deleteSnapshots(ctx context.Context, api ec2API, ids []string) error {
	var errs []error
	for _, id := range ids {
		b.store.note("DeleteSnapshot", id)
		// The image may count as its user for a moment after it is gone.
		moment, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("it is in use"))
		defer cancel()
		err := b.pace.until(moment, func() (bool, error) {
			_, err := api.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: &id})
			if isCode(err, "InvalidSnapshot.InUse") {
				return false, nil
			}
			err = ignore(err, "InvalidSnapshot.NotFound")
			return err == nil, err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("delete snapshot %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// undo removes everything that the bake made. It looks by tag too: a call
// whose answer was lost made something that the journal does not name.
func (b *bake) undo(ctx context.Context) error {
	if err := b.store.update(ctx, func(j *journal) { j.Status = StatusUndoing }); errors.Is(err, ErrTakenOver) {
		return err
	} else if err != nil {
		b.warn("%v", err)
	}
	l, err := b.leftovers(ctx, b.store.known())
	if err != nil {
		return err
	}
	return b.removeLeftovers(ctx, l)
}

// leftovers is what a bake has in a cloud.
type leftovers struct {
	Instances []string
	Volumes   []string
	Groups    []string
	Templates []string
	Images    map[string][]string // region → images that are not done
	Snapshots map[string][]string
	Objects   []string
	Kept      []string // images that are done
}

// leftovers finds by tag, and adds what the journal names.
func (b *bake) leftovers(ctx context.Context, known facts) (leftovers, error) {
	if known.Given {
		known.Image, known.Copies = "", nil // others made them
	}
	l := leftovers{Images: map[string][]string{}, Snapshots: map[string][]string{}}
	mine := byTag(tagBake, b.id)
	var errs []error
	instances, err := b.ec2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: mine})
	errs = append(errs, err)
	if err == nil {
		gone := map[string]bool{}
		for _, r := range instances.Reservations {
			for _, i := range r.Instances {
				id := aws.ToString(i.InstanceId)
				if !b.made(&i) {
					b.warn("%s carries the tags of %s, but another launched it: it is left alone", id, b.id)
					continue
				}
				if i.State != nil && i.State.Name == types.InstanceStateNameTerminated {
					gone[id] = true
					continue
				}
				l.Instances = append(l.Instances, id)
			}
		}
		for _, id := range []string{known.Instance, known.Canary} {
			if id != "" && !gone[id] {
				l.Instances = append(l.Instances, id)
			}
		}
	}
	groups, err := b.ec2.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{Filters: mine})
	errs = append(errs, err)
	if err == nil {
		for _, g := range groups.SecurityGroups {
			l.Groups = append(l.Groups, aws.ToString(g.GroupId))
		}
	}
	if known.Group != "" {
		l.Groups = append(l.Groups, known.Group)
	}
	templates, err := b.ec2.DescribeLaunchTemplates(ctx, &ec2.DescribeLaunchTemplatesInput{Filters: mine})
	errs = append(errs, err)
	if err == nil {
		for _, t := range templates.LaunchTemplates {
			l.Templates = append(l.Templates, aws.ToString(t.LaunchTemplateId))
		}
	}
	regions := []string{b.cfg.Region}
	for _, c := range b.recipe.Image.Copies {
		regions = append(regions, c.Region)
	}
	for _, region := range regions {
		images, snapshots, kept, err := imagesOf(ctx, b.in(region), mine)
		errs = append(errs, err)
		if id := known.Copies[region]; id != "" && !slices.Contains(kept, id) {
			images = append(images, id)
		}
		l.Kept = append(l.Kept, kept...)
		l.Images[region], l.Snapshots[region] = uniq(images), uniq(snapshots)
	}
	if known.Image != "" && !slices.Contains(l.Kept, known.Image) {
		l.Images[b.cfg.Region] = uniq(append(l.Images[b.cfg.Region], known.Image))
	}
	l.Volumes, err = b.volumesLeft(ctx)
	errs = append(errs, err)
	l.Objects, err = listObjects(ctx, b.s3, b.store.bucket, b.store.key("")+"/")
	errs = append(errs, err)
	l.Instances, l.Groups, l.Templates = uniq(l.Instances), uniq(l.Groups), uniq(l.Templates)
	return l, errors.Join(errs...)
}

// made says whether this bake launched an instance: its tags may be a copy, as
// of the console's "launch more like this". The client token is the bake's own.
func (b *bake) made(i *types.Instance) bool {
	token := aws.ToString(i.ClientToken)
	return token == "" || strings.HasPrefix(token, b.id+"-")
}

// volumesLeft are the bake's volumes that no instance has.
func (b *bake) volumesLeft(ctx context.Context) ([]string, error) {
	out, err := b.ec2.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: byTag(tagBake, b.id)})
	if err != nil {
		return nil, fmt.Errorf("look for volumes: %w", err)
	}
	var ids []string
	for _, v := range out.Volumes {
		if v.State == types.VolumeStateAvailable { // others go with their instance
			ids = append(ids, aws.ToString(v.VolumeId))
		}
	}
	return ids, nil
}

func (b *bake) deleteVolumes(ctx context.Context, ids []string) error {
	var errs []error
	for _, id := range ids {
		_, err := b.ec2.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &id})
		if err = ignore(err, "InvalidVolume.NotFound"); err != nil {
			errs = append(errs, fmt.Errorf("delete volume %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func uniq(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}

// imagesOf lists images and snapshots of a bake that are not done, and images
// that are.
func imagesOf(ctx context.Context, api ec2API, mine []types.Filter) (images, snapshots, kept []string, err error) {
	out, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: mine})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("look for images: %w", err)
	}
	inUse := map[string]bool{}
	for _, im := range out.Images {
		if state, _ := tagOf(im.Tags, tagState); state == stateDone || state == manifest.StateFailed {
			kept = append(kept, aws.ToString(im.ImageId))
			for _, s := range snapshotsOf(&im) {
				inUse[s] = true
			}
			continue
		}
		images = append(images, aws.ToString(im.ImageId))
	}
	snaps, err := api.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: mine})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("look for snapshots: %w", err)
	}
	for _, s := range snaps.Snapshots {
		if id := aws.ToString(s.SnapshotId); !inUse[id] {
			snapshots = append(snapshots, id)
		}
	}
	return images, snapshots, kept, nil
}

// removeLeftovers goes on after an error; the journal goes last and only when
// nothing else is left.
func (b *bake) removeLeftovers(ctx context.Context, l leftovers) error {
	var errs []error
	for _, id := range l.Templates {
		errs = append(errs, b.deleteTemplate(ctx, id))
	}
	errs = append(errs, b.terminate(ctx, l.Instances))
	for region, ids := range l.Images {
		for _, id := range ids {
			errs = append(errs, b.deleteImage(ctx, b.in(region), id))
		}
	}
	for region, ids := range l.Snapshots {
		errs = append(errs, b.deleteSnapshots(ctx, b.in(region), ids))
	}
	for _, id := range l.Groups {
		errs = append(errs, b.deleteGroup(ctx, id))
	}
	errs = append(errs, b.deleteVolumes(ctx, l.Volumes), b.unstage(ctx))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return b.store.remove(ctx)
}
