// Package shelf knows the images that lecafe has baked in a region: which
// there are, what uses them, and which may go. It deletes only what nothing
// uses, and only after it has been disabled for a while.
package shelf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/bake/manifest"
)

// tagDisabled is set when prune disables an image: RFC 3339.
const tagDisabled = "lecafe:disabled"

// Image is one image that lecafe baked.
type Image struct {
	ID        string    `json:"image_id"`
	Name      string    `json:"name"`
	Recipe    string    `json:"recipe"`
	BakeID    string    `json:"bake_id"`
	State     string    `json:"state"` // done, building, failed, disabled
	Created   time.Time `json:"created"`
	Source    string    `json:"source_image_id"`
	Hash      string    `json:"content_hash"`
	Snapshots []string  `json:"snapshot_ids"`
	SizeGiB   int32     `json:"size_gib"`
	Uses      []string  `json:"uses"` // what keeps it: instance i-…, version 3 of shop (default), …

	disabled  time.Time
	protected bool
}

// Options say where to look.
type Options struct {
	Config     aws.Config
	Recipe     string   // images of this recipe alone
	Parameters []string // SSM parameters that keep what they name
	Now        func() time.Time
}

type shelf struct {
	Options
	ec2    *ec2.Client
	groups *autoscaling.Client
	ssm    *ssm.Client
}

func open(o Options) *shelf {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &shelf{Options: o, ec2: ec2.NewFromConfig(o.Config), groups: autoscaling.NewFromConfig(o.Config), ssm: ssm.NewFromConfig(o.Config)}
}

// List returns the images, the newest first, with what uses them.
func List(ctx context.Context, o Options) ([]*Image, error) {
	s := open(o)
	images, err := s.images(ctx)
	if err != nil {
		return nil, err
	}
	return images, s.uses(ctx, images)
}

func tag(tags []types.Tag, key string) string {
	for _, t := range tags {
		if aws.ToString(t.Key) == key {
			return aws.ToString(t.Value)
		}
	}
	return ""
}

func (s *shelf) images(ctx context.Context) ([]*Image, error) {
	in := &ec2.DescribeImagesInput{Owners: []string{"self"}, IncludeDisabled: aws.Bool(true), Filters: []types.Filter{{Name: aws.String("tag-key"), Values: []string{manifest.TagBake}}}}
	if s.Recipe != "" {
		in.Filters = append(in.Filters, types.Filter{Name: aws.String("tag:" + manifest.TagRecipe), Values: []string{s.Recipe}})
	}
	var out []*Image
	pages := ec2.NewDescribeImagesPaginator(s.ec2, in)
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		for _, im := range page.Images {
			i := &Image{
				ID: aws.ToString(im.ImageId), Name: aws.ToString(im.Name), Recipe: tag(im.Tags, manifest.TagRecipe), BakeID: tag(im.Tags, manifest.TagBake),
				State: cmp.Or(tag(im.Tags, manifest.TagState), manifest.StateDone), Source: tag(im.Tags, manifest.TagSource), Hash: tag(im.Tags, manifest.TagHash),
				Snapshots: []string{}, Uses: []string{}, protected: strings.HasPrefix(aws.ToString(im.DeregistrationProtection), "enabled"),
			}
			if at, err := time.Parse(time.RFC3339, aws.ToString(im.CreationDate)); err == nil {
				i.Created = at
			}
			if at, err := time.Parse(time.RFC3339, tag(im.Tags, tagDisabled)); err == nil {
				i.disabled = at
			}
			if im.State == types.ImageStateDisabled {
				i.State = "disabled"
			}
			for _, d := range im.BlockDeviceMappings {
				if d.Ebs != nil && aws.ToString(d.Ebs.SnapshotId) != "" {
					i.Snapshots = append(i.Snapshots, *d.Ebs.SnapshotId)
					i.SizeGiB += aws.ToInt32(d.Ebs.VolumeSize)
				}
			}
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b *Image) int { return cmp.Or(b.Created.Compare(a.Created), strings.Compare(b.Name, a.Name)) })
	return out, nil
}

// uses fills in what keeps each image: instances, launch template versions
// that are default, latest or a group's, parameters, and others it is shared
// with.
func (s *shelf) uses(ctx context.Context, images []*Image) error {
	if len(images) == 0 {
		return nil
	}
	byID := map[string]*Image{}
	for _, i := range images {
		byID[i.ID] = i
	}
	use := func(image, format string, args ...any) {
		if i := byID[image]; i != nil {
			i.Uses = append(i.Uses, fmt.Sprintf(format, args...))
		}
	}
	instances := ec2.NewDescribeInstancesPaginator(s.ec2, &ec2.DescribeInstancesInput{})
	for instances.HasMorePages() {
		page, err := instances.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for instances: %w", err)
		}
		for _, r := range page.Reservations {
			for _, i := range r.Instances {
				if i.State == nil || i.State.Name != types.InstanceStateNameTerminated {
					use(aws.ToString(i.ImageId), "instance %s", aws.ToString(i.InstanceId))
				}
			}
		}
	}
	if err := s.templateUses(ctx, use); err != nil {
		return err
	}
	for _, name := range s.Parameters {
		image, err := s.parameter(ctx, name)
		if err != nil {
			return err
		}
		use(image, "SSM parameter %s", name)
	}
	for _, i := range images {
		if i.State == "disabled" {
			continue // its permissions are gone
		}
		out, err := s.ec2.DescribeImageAttribute(ctx, &ec2.DescribeImageAttributeInput{ImageId: &i.ID, Attribute: types.ImageAttributeNameLaunchPermission})
		if err != nil {
			return fmt.Errorf("describe launch permissions of %s: %w", i.ID, err)
		}
		for _, p := range out.LaunchPermissions {
			i.Uses = append(i.Uses, "shared with "+cmp.Or(aws.ToString(p.UserId), aws.ToString(p.OrganizationArn), aws.ToString(p.OrganizationalUnitArn), string(p.Group)))
		}
	}
	return nil
}

// parameter reads an SSM parameter; empty where there is none.
func (s *shelf) parameter(ctx context.Context, name string) (string, error) {
	out, err := s.ssm.GetParameter(ctx, &ssm.GetParameterInput{Name: &name})
	if code := codeOf(err); code == "ParameterNotFound" || code == "ParameterVersionNotFound" {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read SSM parameter %s: %w", name, err)
	}
	return aws.ToString(out.Parameter.Value), nil
}

func (s *shelf) templateUses(ctx context.Context, use func(image, format string, args ...any)) error {
	// The versions that groups name, by template ID and name.
	wanted := map[string]map[string]string{} // template → version → group
	want := func(template *string, version, group string) {
		if t := aws.ToString(template); t != "" {
			if wanted[t] == nil {
				wanted[t] = map[string]string{}
			}
			wanted[t][version] = group
		}
	}
	groups := autoscaling.NewDescribeAutoScalingGroupsPaginator(s.groups, &autoscaling.DescribeAutoScalingGroupsInput{})
	for groups.HasMorePages() {
		page, err := groups.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for Auto Scaling groups: %w", err)
		}
		for _, g := range page.AutoScalingGroups {
			name := aws.ToString(g.AutoScalingGroupName)
			if t := g.LaunchTemplate; t != nil {
				want(t.LaunchTemplateId, aws.ToString(t.Version), name)
				want(t.LaunchTemplateName, aws.ToString(t.Version), name)
			}
			if m := g.MixedInstancesPolicy; m != nil && m.LaunchTemplate != nil {
				if t := m.LaunchTemplate.LaunchTemplateSpecification; t != nil {
					want(t.LaunchTemplateId, aws.ToString(t.Version), name)
					want(t.LaunchTemplateName, aws.ToString(t.Version), name)
				}
				for _, o := range m.LaunchTemplate.Overrides {
					if t := o.LaunchTemplateSpecification; t != nil {
						want(t.LaunchTemplateId, aws.ToString(t.Version), name)
						want(t.LaunchTemplateName, aws.ToString(t.Version), name)
					}
				}
			}
		}
	}
	templates := ec2.NewDescribeLaunchTemplatesPaginator(s.ec2, &ec2.DescribeLaunchTemplatesInput{})
	for templates.HasMorePages() {
		page, err := templates.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for launch templates: %w", err)
		}
		for _, t := range page.LaunchTemplates {
			versions := ec2.NewDescribeLaunchTemplateVersionsPaginator(s.ec2, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateId: t.LaunchTemplateId})
			for versions.HasMorePages() {
				vp, err := versions.NextPage(ctx)
				if err != nil {
					return fmt.Errorf("look for versions of launch template %s: %w", aws.ToString(t.LaunchTemplateName), err)
				}
				for _, v := range vp.LaunchTemplateVersions {
					if v.LaunchTemplateData == nil {
						continue
					}
					number := fmt.Sprint(aws.ToInt64(v.VersionNumber))
					why := ""
					group := cmp.Or(wanted[aws.ToString(t.LaunchTemplateId)][number], wanted[aws.ToString(t.LaunchTemplateName)][number])
					switch {
					case group != "":
						why = "of group " + group
					case aws.ToBool(v.DefaultVersion):
						why = "default"
					case aws.ToInt64(v.VersionNumber) == aws.ToInt64(t.LatestVersionNumber):
						why = "latest"
					default:
						continue
					}
					image := aws.ToString(v.LaunchTemplateData.ImageId)
					if name, ok := strings.CutPrefix(image, "resolve:ssm:"); ok {
						if image, err = s.parameter(ctx, name); err != nil {
							return fmt.Errorf("version %s of launch template %s has its image there: %w", number, aws.ToString(t.LaunchTemplateName), err)
						}
						why += ", by SSM parameter " + name
					}
					use(image, "version %s of launch template %s (%s)", number, aws.ToString(t.LaunchTemplateName), why)
				}
			}
		}
	}
	return nil
}

// PruneOptions say what may go.
type PruneOptions struct {
	Options
	Keep   int           // newest images of each recipe that stay, default 3
	Grace  time.Duration // between disabling and deleting, default 7 days
	Remove bool          // false: only say what would be done
}

// Action is what prune does with one image.
type Action struct {
	Image *Image `json:"image"`
	Do    string `json:"do"` // keep, disable, wait, delete
	Why   string `json:"why"`
	Done  bool   `json:"done"`
}

// Prune disables images that nothing uses and nobody needs, and deletes those
// that have been disabled for the grace period: a disabled image launches
// nothing, and one call makes it good again. Images in the making are gc's.
func Prune(ctx context.Context, o PruneOptions) ([]*Action, error) {
	o.Keep, o.Grace = cmp.Or(o.Keep, 3), cmp.Or(o.Grace, 7*24*time.Hour)
	s := open(o.Options)
	images, err := s.images(ctx)
	if err == nil {
		err = s.uses(ctx, images)
	}
	if err != nil {
		return nil, err
	}
	seen := map[string]int{}
	var out []*Action
	for _, i := range images {
		a := &Action{Image: i}
		out = append(out, a)
		switch {
		case i.State == manifest.StateBuilding:
			a.Do, a.Why = "keep", "it is being made; lecafe gc sees to bakes that died"
			continue
		case i.State == manifest.StateDone:
			seen[i.Recipe]++
		}
		switch {
		case len(i.Uses) > 0:
			a.Do, a.Why = "keep", "used by "+strings.Join(i.Uses, ", ")
		case i.protected:
			a.Do, a.Why = "keep", "deregistration protection is on"
		case i.State == manifest.StateDone && seen[i.Recipe] <= o.Keep:
			a.Do, a.Why = "keep", fmt.Sprintf("one of the newest %d of %s", o.Keep, i.Recipe)
		case i.State == "disabled" && i.disabled.IsZero():
			a.Do, a.Why = "keep", "disabled by somebody else"
		case i.State == "disabled" && s.Now().Sub(i.disabled) < o.Grace:
			a.Do, a.Why = "wait", "disabled until "+i.disabled.Add(o.Grace).Format(time.RFC3339)
		case i.State == "disabled":
			a.Do, a.Why = "delete", "disabled since "+i.disabled.Format(time.RFC3339)
		default:
			a.Do, a.Why = "disable", "nothing uses it"
		}
	}
	if !o.Remove {
		return out, nil
	}
	var errs []error
	if o.Recipe == "" { // else an image of another recipe may have them
		errs = append(errs, s.orphans(ctx, images))
	}
	for _, a := range out {
		var err error
		switch a.Do {
		case "disable":
			err = s.disable(ctx, a.Image)
		case "delete":
			err = s.delete(ctx, a.Image)
		default:
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		a.Done = true
	}
	return out, errors.Join(errs...)
}

func (s *shelf) disable(ctx context.Context, i *Image) error {
	// The tag first: an image that is disabled without it would stay for ever.
	_, err := s.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{i.ID}, Tags: []types.Tag{{Key: aws.String(tagDisabled), Value: aws.String(s.Now().UTC().Format(time.RFC3339))}}})
	if err != nil {
		return fmt.Errorf("tag image %s: %w", i.ID, err)
	}
	if _, err := s.ec2.DisableImage(ctx, &ec2.DisableImageInput{ImageId: &i.ID}); err != nil {
		return fmt.Errorf("disable image %s: %w", i.ID, err)
	}
	return nil
}

// statePruned marks snapshots of an image that is being deleted. Once the image
// is gone nothing else names them.
const statePruned = "pruned"

// delete removes an image and its snapshots. Cut off in between, the next prune
// finds the snapshots by their mark.
func (s *shelf) delete(ctx context.Context, i *Image) error {
	if len(i.Snapshots) > 0 {
		_, err := s.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: i.Snapshots, Tags: []types.Tag{{Key: aws.String(manifest.TagState), Value: aws.String(statePruned)}}})
		if err != nil && codeOf(err) != "InvalidSnapshot.NotFound" {
			return fmt.Errorf("tag snapshots of %s: %w", i.ID, err)
		}
	}
	_, err := s.ec2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &i.ID})
	if code := codeOf(err); err != nil && code != "InvalidAMIID.NotFound" && code != "InvalidAMIID.Unavailable" {
		return fmt.Errorf("deregister image %s: %w", i.ID, err)
	}
	return s.deleteSnapshots(ctx, i.Snapshots)
}

func (s *shelf) deleteSnapshots(ctx context.Context, ids []string) error {
	var errs []error
	for _, id := range ids {
		_, err := s.ec2.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: &id})
		if err != nil && codeOf(err) != "InvalidSnapshot.NotFound" {
			errs = append(errs, fmt.Errorf("delete snapshot %s, whose image is gone: %w; prune again", id, err))
		}
	}
	return errors.Join(errs...)
}

// orphans deletes the snapshots that an earlier prune marked and did not delete.
func (s *shelf) orphans(ctx context.Context, images []*Image) error {
	var ids []string
	pages := ec2.NewDescribeSnapshotsPaginator(s.ec2, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: []types.Filter{
		{Name: aws.String("tag-key"), Values: []string{manifest.TagBake}}, {Name: aws.String("tag:" + manifest.TagState), Values: []string{statePruned}},
	}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for snapshots without an image: %w", err)
		}
		for _, snap := range page.Snapshots {
			id := aws.ToString(snap.SnapshotId)
			if !slices.ContainsFunc(images, func(i *Image) bool { return slices.Contains(i.Snapshots, id) }) {
				ids = append(ids, id)
			}
		}
	}
	return s.deleteSnapshots(ctx, ids)
}

func codeOf(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}

// ErrNoneBefore says that there is nothing to go back to.
var ErrNoneBefore = errors.New("there is no earlier image")

// Before returns the newest good image of the same recipe that is older than
// the given one.
func Before(ctx context.Context, o Options, imageID string) (*Image, error) {
	s := open(o)
	images, err := s.images(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(images, func(i *Image) bool { return i.ID == imageID })
	if at < 0 {
		return nil, fmt.Errorf("image %s is none of lecafe's; name the image to go back to", imageID)
	}
	for _, i := range images[at+1:] {
		if i.Recipe == images[at].Recipe && i.State == manifest.StateDone {
			return i, nil
		}
	}
	return nil, fmt.Errorf("%w of %s than %s", ErrNoneBefore, images[at].Recipe, imageID)
}
