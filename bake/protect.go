package bake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// ErrNoProtection says that an endpoint, an emulator's, has no deregistration
// protection: nothing keeps an image.
var ErrNoProtection = errors.New("this endpoint has no deregistration protection for images")

// Protection is of the images for which it was turned on.
type Protection struct {
	cloud  cloud
	images map[string]string // by region
}

func protecting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, time.Minute, errors.New("not done after 1m"))
}

func few(o *ec2.Options) { o.RetryMaxAttempts = 4 }

// Protect turns on deregistration protection, without cooldown, of images by
// region. One that is protected is left as it is, by Lift too.
func Protect(ctx context.Context, cfg aws.Config, images map[string]string) (*Protection, error) {
	ctx, cancel := protecting(ctx)
	defer cancel()
	p := &Protection{cloud: connect(cfg, 0), images: map[string]string{}}
	for _, region := range slices.Sorted(maps.Keys(images)) {
		id, api := images[region], p.cloud.in(region)
		out, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{id}}, few)
		if err != nil {
			return p, fmt.Errorf("describe image %s in %s: %w", id, region, err)
		}
		if len(out.Images) > 0 && strings.HasPrefix(aws.ToString(out.Images[0].DeregistrationProtection), "enabled") {
			continue
		}
		_, err = api.EnableImageDeregistrationProtection(ctx, &ec2.EnableImageDeregistrationProtectionInput{ImageId: &id}, few)
		if notImplemented(err) {
			return p, ErrNoProtection
		}
		if err != nil {
			return p, fmt.Errorf("protect image %s in %s: %w", id, region, err)
		}
		p.images[region] = id
	}
	return p, nil
}

// Lift turns off what Protect has turned on.
func (p *Protection) Lift(ctx context.Context) error {
	ctx, cancel := protecting(ctx)
	defer cancel()
	var errs []error
	for _, region := range slices.Sorted(maps.Keys(p.images)) {
		id := p.images[region]
		if _, err := p.cloud.in(region).DisableImageDeregistrationProtection(ctx, &ec2.DisableImageDeregistrationProtectionInput{ImageId: &id}, few); err != nil {
			errs = append(errs, fmt.Errorf("take the protection off image %s in %s: %w", id, region, err))
		}
	}
	return errors.Join(errs...)
}
