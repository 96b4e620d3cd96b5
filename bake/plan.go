package bake

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lecafe/lecafe/bake/manifest"
)

// Plan is what Run would do, and why.
type Plan struct {
	SourceImage string   `json:"source_image_id"`
	SourceName  string   `json:"source_image_name"`
	ContentHash string   `json:"content_hash"`
	Bake        bool     `json:"bake"`
	Why         string   `json:"why"`
	ImageID     string   `json:"image_id,omitempty"` // of the unchanged image
	Steps       []string `json:"steps"`
}

// MakePlan asks what Run would do and changes nothing.
func MakePlan(ctx context.Context, o Options) (*Plan, error) {
	b := newBake(o)
	source, err := resolve(ctx, b.cloud, b.recipe)
	if err != nil {
		return nil, b.explain(err)
	}
	p := &Plan{SourceImage: aws.ToString(source.ImageId), SourceName: aws.ToString(source.Name), Bake: true, Steps: []string{}}
	if p.ContentHash, err = contentHash(b.recipe, o.Programs, p.SourceImage); err != nil {
		return nil, err
	}
	const forever = 100 * 365 * 24 * time.Hour
	im, err := unchanged(ctx, b.cloud, p.ContentHash, forever, b.now())
	if err != nil {
		return nil, b.explain(err)
	}
	switch {
	case im == nil:
		p.Why = "no image of this recipe, its files, the agent and the source image exists"
	case o.Force:
		p.Why = "--force, although " + aws.ToString(im.ImageId) + " is made from the same content"
	default:
		p.ImageID = aws.ToString(im.ImageId)
		at, err := time.Parse(time.RFC3339, aws.ToString(im.CreationDate))
		if err == nil && b.now().Sub(at) <= b.recipe.MaxAge {
			p.Bake, p.Why = false, p.ImageID+" is made from the same content and is younger than max_age"
		} else {
			p.Why = p.ImageID + " is made from the same content but older than max_age: package repositories move"
		}
	}
	for _, s := range b.recipe.Provision {
		p.Steps = append(p.Steps, manifest.StepName(s))
	}
	return p, nil
}
