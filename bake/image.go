package bake

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

func decodeBase64(s string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
	return string(data), err
}

const (
	stopTimeout  = 15 * time.Minute
	imageTimeout = 4 * time.Hour // large volumes take their time; the progress shows
)

// stop stops the builder; its last hook cleans what shutdown writes.
func (b *bake) stop(ctx context.Context) error {
	known := b.store.known()
	if known.Image != "" {
		return nil
	}
	b.store.note("StopInstances", known.Instance)
	if _, err := b.ec2.StopInstances(ctx, &ec2.StopInstancesInput{InstanceIds: []string{known.Instance}}); err != nil {
		return fmt.Errorf("stop builder %s: %w", known.Instance, err)
	}
	state, err := b.waitInstances(ctx, []string{known.Instance}, stopTimeout, !b.resumed, types.InstanceStateNameStopped, types.InstanceStateNameTerminated, types.InstanceStateNameShuttingDown)
	if err == nil && state != types.InstanceStateNameStopped {
		err = fmt.Errorf("it is %s: it powered itself off, at its deadline perhaps", state)
	}
	if err != nil {
		return fmt.Errorf("stop builder %s: %w", known.Instance, err)
	}
	return nil
}

// create makes the image of the stopped builder and waits until it is there.
func (b *bake) create(ctx context.Context) error {
	known := b.store.known()
	if known.Image == "" {
		id, err := b.createImage(ctx, known)
		if err != nil {
			return fmt.Errorf("create image %q: %w", known.ImageName, err)
		}
		b.store.learn(func(f *facts) { f.Image = id })
		known = b.store.known()
	}
	im, err := b.waitImage(ctx, b.ec2, known.Image)
	if err != nil {
		return fmt.Errorf("image %s: %w", known.Image, err)
	}
	b.store.learn(func(f *facts) { f.Snapshots = snapshotsOf(im) })
	return b.requireIMDSv2(ctx, known.Image)
}

func snapshotsOf(im *types.Image) []string {
	var out []string
	for _, d := range im.BlockDeviceMappings {
		if d.Ebs != nil && aws.ToString(d.Ebs.SnapshotId) != "" {
			out = append(out, *d.Ebs.SnapshotId)
		}
	}
	return out
}

func (b *bake) createImage(ctx context.Context, known facts) (string, error) {
	find := func() (string, error) { return b.imageByName(ctx, b.ec2, known.ImageName) }
	if b.resumed {
		if id, err := find(); err != nil || id != "" {
			return id, err
		}
	}
	tags := b.imageTags()
	in := &ec2.CreateImageInput{
		InstanceId: &known.Instance, Name: &known.ImageName, NoReboot: aws.Bool(true), // it is stopped: there is nothing to reboot
		TagSpecifications: []types.TagSpecification{tagSpec(types.ResourceTypeImage, tags), tagSpec(types.ResourceTypeSnapshot, tags)},
	}
	if known.Description != "" {
		in.Description = &known.Description
	}
	if err := b.store.intend(ctx, "CreateImage", known.ImageName); err != nil {
		return "", err
	}
	// moto answers snapshot tags with a plain 500, which the SDK would repeat
	// for a minute: a 500 on this call is looked at after the third time.
	out, err := b.ec2.CreateImage(ctx, in, func(o *ec2.Options) { o.RetryMaxAttempts = 3 })
	if throttledOr5xx(err) {
		// The call may have been served and its answer lost.
		if id, findErr := find(); findErr != nil || id != "" {
			return id, findErr
		}
	}
	plain := status(err) == 500 || notImplemented(err)
	if plain {
		in.TagSpecifications = in.TagSpecifications[:1]
		out, err = b.ec2.CreateImage(ctx, in)
	}
	if isCode(err, "InvalidAMIName.Duplicate") {
		if taken, ok := b.nameTaken(ctx, known.ImageName); ok {
			return "", fmt.Errorf("%w; %s has this name: put {{.Time}} into image.name", err, taken)
		}
		id, findErr := "", error(nil)
		patience, cancel := context.WithTimeoutCause(ctx, 30*time.Second, fmt.Errorf("%w; another image has this name: put {{.Time}} into image.name", err))
		defer cancel()
		findErr = b.pace.until(patience, func() (done bool, err error) { id, err = find(); return id != "", err })
		return id, findErr
	}
	if err != nil {
		return "", err
	}
	id := aws.ToString(out.ImageId)
	if plain {
		b.warn("this endpoint takes no tags for snapshots in CreateImage: they are tagged afterwards")
		b.store.learn(func(f *facts) { f.Image = id })
		return id, b.tagSnapshots(ctx, id, tags)
	}
	return id, nil
}

// nameTaken returns an image of this name that is not this bake's.
func (b *bake) nameTaken(ctx context.Context, name string) (string, bool) {
	out, err := b.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: []types.Filter{{Name: aws.String("name"), Values: []string{name}}}})
	if err != nil {
		return "", false // the search for our own says so
	}
	for _, im := range out.Images {
		if id, _ := tagOf(im.Tags, tagBake); id != b.id {
			return aws.ToString(im.ImageId), true
		}
	}
	return "", false
}

func throttledOr5xx(err error) bool { return throttled(err) || status(err) >= 500 }

func (b *bake) tagSnapshots(ctx context.Context, image string, tags map[string]string) error {
	return b.pace.visible(ctx, "InvalidAMIID.NotFound", func() error {
		out, err := b.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{image}})
		if err != nil {
			return err
		}
		for _, im := range out.Images {
			if ids := snapshotsOf(&im); len(ids) > 0 {
				_, err = b.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: ids, Tags: ec2Tags(tags)})
			}
		}
		return err
	})
}

// imageByName finds this bake's image.
func (b *bake) imageByName(ctx context.Context, api ec2API, name string) (string, error) {
	out, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: append(byTag(tagBake, b.id), types.Filter{Name: aws.String("name"), Values: []string{name}})})
	if err != nil {
		return "", fmt.Errorf("look for the image: %w", err)
	}
	if len(out.Images) == 0 {
		return "", nil
	}
	return aws.ToString(out.Images[0].ImageId), nil
}

// requireIMDSv2 lets instances of an available image refuse IMDSv1 by default.
// CreateImage has no parameter for it.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-IMDS-new-instances.html
func (b *bake) requireIMDSv2(ctx context.Context, image string) error {
	b.store.note("ModifyImageAttribute", image)
	_, err := b.ec2.ModifyImageAttribute(ctx, &ec2.ModifyImageAttributeInput{ImageId: &image, ImdsSupport: &types.AttributeValue{Value: aws.String("v2.0")}},
		func(o *ec2.Options) { o.RetryMaxAttempts = 5 })
	if notImplemented(err) {
		b.warn("this endpoint has no ImdsSupport for images: the launch template must require IMDSv2")
		return nil
	}
	if err != nil {
		return fmt.Errorf("require IMDSv2 of image %s: %w", image, err)
	}
	return nil
}

// waitImage waits until an image is available. Its snapshots say how far it
// is, so they are asked while they are in the making, and the image itself
// only now and then.
func (b *bake) waitImage(ctx context.Context, api ec2API, id string) (*types.Image, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, imageTimeout, fmt.Errorf("not available after %s", imageTimeout))
	defer cancel()
	var (
		im        *types.Image
		r         rhythm
		snapshots []string // that are not completed, as far as is known
		seen      bool     // the snapshots
		began     = b.now()
		asked     int
	)
	err := b.pace.await(ctx, !b.resumed, &r, func() (bool, error) {
		if asked++; len(snapshots) > 0 && asked%5 != 0 {
			if making, err := b.snapshotProgress(ctx, api, snapshots, &r); err != nil || making {
				return false, err
			}
			snapshots = nil
		}
		out, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{id}})
		if isCode(err, "InvalidAMIID.NotFound") {
			return false, b.tooLate(began, id) // not visible yet
		}
		if err != nil || len(out.Images) == 0 {
			return false, err
		}
		im = &out.Images[0]
		switch im.State {
		case types.ImageStateAvailable:
			return true, nil
		case types.ImageStatePending:
			if seen {
				return false, nil
			}
			if snapshots = snapshotsOf(im); len(snapshots) > 0 {
				seen = true
				_, err = b.snapshotProgress(ctx, api, snapshots, &r)
			}
			return false, err
		}
		reason := ""
		if im.StateReason != nil {
			reason = ": " + aws.ToString(im.StateReason.Message)
		}
		return false, fmt.Errorf("it is %s%s; bake again, and ask AWS Support if it fails again", im.State, reason)
	})
	return im, err
}

func (b *bake) tooLate(began time.Time, id string) error {
	if b.now().Sub(began) > 5*time.Minute {
		return fmt.Errorf("%s does not show up", id)
	}
	return nil
}

// snapshotProgress shows how far the snapshots of an image are, and says
// whether they are in the making. Where they cannot be asked, they are not:
// the image's state decides.
func (b *bake) snapshotProgress(ctx context.Context, api ec2API, ids []string, r *rhythm) (making bool, err error) {
	r.left = 0
	out, err := api.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: ids})
	if passing(err) {
		return true, err
	}
	if err != nil || len(out.Snapshots) < len(ids) {
		return false, nil
	}
	least := 100
	for _, s := range out.Snapshots {
		if s.State != types.SnapshotStatePending {
			if s.State != types.SnapshotStateCompleted {
				return false, nil
			}
			continue
		}
		making = true
		percent := 0
		_, _ = fmt.Sscanf(aws.ToString(s.Progress), "%d%%", &percent) // 0 where EC2 says nothing yet
		least = min(least, percent)
	}
	e := Event{Kind: EventProgress, Phase: b.phaseName(), Text: fmt.Sprintf("snapshots at %d%%", least), Percent: least}
	if least > 5 && least < 100 {
		r.left = time.Duration(float64(r.waited) * float64(100-least) / float64(least))
		e.Left = r.left.Round(time.Second)
		e.Text += ", about " + e.Left.String() + " left"
	}
	b.emit(e)
	return making, nil
}
