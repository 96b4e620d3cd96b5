package bake

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"

	"github.com/lecafe/lecafe/bake/recipe"
)

// resolve finds the source image and checks that it fits the recipe.
func resolve(ctx context.Context, c cloud, r *recipe.Recipe) (types.Image, error) {
	in := &ec2.DescribeImagesInput{}
	what := ""
	switch s := r.Source; {
	case s.SSMParameter != "":
		what = "the image in SSM parameter " + s.SSMParameter
		out, err := c.ssm.GetParameter(ctx, &ssm.GetParameterInput{Name: &s.SSMParameter})
		if err != nil {
			return types.Image{}, fmt.Errorf("resolve source: get SSM parameter %s: %w", s.SSMParameter, err)
		}
		id := strings.TrimSpace(aws.ToString(out.Parameter.Value))
		if !strings.HasPrefix(id, "ami-") {
			return types.Image{}, fmt.Errorf("resolve source: SSM parameter %s holds %q, which is no image ID; name a parameter that holds one", s.SSMParameter, shorten(id))
		}
		in.ImageIds = []string{id}
	case s.ImageID != "":
		what = "image " + s.ImageID
		in.ImageIds = []string{s.ImageID}
	default:
		f := s.Filter
		what = fmt.Sprintf("an image of %s named %q", strings.Join(f.Owners, ", "), f.Name)
		in.Owners = f.Owners
		add := func(name string, values ...string) {
			in.Filters = append(in.Filters, types.Filter{Name: aws.String(name), Values: values})
		}
		add("state", "available")
		add("architecture", r.Architecture)
		if f.Name != "" {
			add("name", f.Name)
		}
		for name, values := range f.Filter {
			add(name, values...)
		}
	}
	out, err := c.ec2.DescribeImages(ctx, in)
	if err != nil {
		return types.Image{}, fmt.Errorf("resolve source: describe %s: %w", what, err)
	}
	if len(out.Images) == 0 {
		return types.Image{}, fmt.Errorf("resolve source: there is no %s in %s that is available; correct the recipe's source", strings.TrimPrefix(what, "an "), c.cfg.Region)
	}
	im := slices.MaxFunc(out.Images, func(a, b types.Image) int {
		return cmp.Or(strings.Compare(aws.ToString(a.CreationDate), aws.ToString(b.CreationDate)), strings.Compare(aws.ToString(a.ImageId), aws.ToString(b.ImageId)))
	})
	switch {
	case string(im.Architecture) != r.Architecture:
		return im, fmt.Errorf("resolve source: %s is %s, the recipe's architecture is %s; change one of them", aws.ToString(im.ImageId), im.Architecture, r.Architecture)
	case im.State != types.ImageStateAvailable:
		return im, fmt.Errorf("resolve source: %s is %s; wait until it is available", aws.ToString(im.ImageId), im.State)
	case im.RootDeviceType != "" && im.RootDeviceType != types.DeviceTypeEbs:
		return im, fmt.Errorf("resolve source: %s has an instance store root, which cannot be stopped and imaged; choose one backed by EBS", aws.ToString(im.ImageId))
	case im.Platform == types.PlatformValuesWindows:
		return im, fmt.Errorf("resolve source: %s is a Windows image; lecafe bakes Linux", aws.ToString(im.ImageId))
	}
	return im, nil
}

func shorten(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}

// unchanged finds the newest image that was made from the same content, is
// available and young enough.
func unchanged(ctx context.Context, c cloud, hash string, maxAge time.Duration, now time.Time) (*types.Image, error) {
	out, err := c.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: []types.Filter{
		{Name: aws.String("tag:" + tagHash), Values: []string{hash}}, {Name: aws.String("state"), Values: []string{"available"}},
	}})
	if err != nil {
		return nil, fmt.Errorf("look for an unchanged image: %w", err)
	}
	var best *types.Image
	var bestAt time.Time
	for _, im := range out.Images {
		// Images in the making are not proved yet, failed ones never will be.
		if state, ok := tagOf(im.Tags, tagState); ok && state != stateDone {
			continue
		}
		at, err := time.Parse(time.RFC3339, aws.ToString(im.CreationDate))
		if err != nil || now.Sub(at) > maxAge {
			continue
		}
		if best == nil || at.After(bestAt) {
			best, bestAt = &im, at
		}
	}
	return best, nil
}

func tagOf(tags []types.Tag, key string) (string, bool) {
	for _, t := range tags {
		if aws.ToString(t.Key) == key {
			return aws.ToString(t.Value), true
		}
	}
	return "", false
}
