// Package publish is the Packer post-processor lecafe-publish: it boots a
// canary of the image that a build has made, waits for its agent's word and
// the tests, and only then promotes the image. Canary, journal, undo and
// promotion are those of `lecafe bake`; this package owns Packer's side alone.
package publish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/hashicorp/hcl/v2/hcldec"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/promote"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/packer/programs"
)

// PostProcessor implements packersdk.PostProcessor.
type PostProcessor struct{ config Config }

var _ packersdk.PostProcessor = (*PostProcessor)(nil)

// ConfigSpec returns the block's shape.
func (p *PostProcessor) ConfigSpec() hcldec.ObjectSpec { return p.config.FlatMapstructure().HCL2Spec() }

// Configure reads and checks the block; it reports everything at once.
func (p *PostProcessor) Configure(raws ...any) error { return p.config.prepare(raws...) }

// PostProcess proves and promotes. It gives the artifact back as it came and
// has Packer keep it: the images are in use from here on. With an error Packer
// removes them, unless they are protected.
func (p *PostProcessor) PostProcess(ctx context.Context, ui packersdk.Ui, artifact packersdk.Artifact) (packersdk.Artifact, bool, bool, error) {
	if err := p.publish(ctx, ui, artifact); err != nil {
		return nil, false, false, err
	}
	return artifact, true, true, nil
}

func (p *PostProcessor) publish(ctx context.Context, ui packersdk.Ui, artifact packersdk.Artifact) error {
	images, err := imagesOf(artifact)
	if err != nil {
		return err
	}
	region, err := p.region(ctx, images)
	if err != nil {
		return err
	}
	cfg, err := awsconf.Load(ctx, awsconf.Options{Profile: p.config.Profile, Region: region, Endpoint: p.config.EndpointURL})
	if err != nil {
		return err
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return fmt.Errorf("no AWS credentials: %w; sign in, or set profile", err)
	}
	made := bake.Made{ImageID: images[region], Copies: maps.Clone(images)}
	delete(made.Copies, region)
	architecture, err := bake.ArchitectureOf(ctx, cfg, made.ImageID)
	if err != nil {
		return err
	}
	r, err := p.config.recipe(made.ImageID, architecture)
	if err != nil {
		return err
	}
	builder, err := programs.Find(p.config.Programs, "lecafe-builder", map[string]string{recipe.X8664: "amd64", recipe.ARM64: "arm64"}[architecture])
	if err != nil {
		return err
	}
	ui.Sayf("Booting a canary of %s in %s", made.ImageID, region)
	_, err = bake.Prove(ctx, bake.Options{Config: cfg, Recipe: r, Programs: bake.Programs{Builder: builder}, StateDir: bake.DefaultStateDir(), Report: (&screen{ui: ui}).event}, made)
	var failed *bake.CanaryError
	if errors.As(err, &failed) {
		showOutput(ui, err)
		if p.config.KeepFailed {
			_, held := bake.Protect(context.WithoutCancel(ctx), cfg, images)
			return kept(held, fmt.Errorf("%w\nthe image is kept for study: it is tagged lecafe:state=failed", err))
		}
	}
	if err != nil {
		return err
	}
	ui.Say("The canary came up and its tests passed")
	if p.config.Promote == nil {
		return nil
	}
	return p.promote(ctx, ui, cfg, images, made.ImageID)
}

// promote takes the proved image into use. If that fails, part of it may have
// been done: the image must not be removed from under what uses it. It is
// protected before anything uses it, since Packer removes it also when this
// program dies in the midst of it.
func (p *PostProcessor) promote(ctx context.Context, ui packersdk.Ui, cfg aws.Config, images map[string]string, imageID string) error {
	k := p.config.Promote
	limit, err := timeout(k.Timeout)
	if err != nil {
		return err
	}
	protection, held := bake.Protect(ctx, cfg, images)
	if held != nil && !errors.Is(held, bake.ErrNoProtection) {
		return fmt.Errorf("nothing was promoted: %w", errors.Join(held, protection.Lift(context.WithoutCancel(ctx))))
	}
	ui.Sayf("Promoting %s", imageID)
	res, err := promote.Run(ctx, promote.Options{
		Config: cfg, ImageID: imageID, LaunchTemplate: k.LaunchTemplate, Group: k.AutoScalingGroup, SSMParameter: k.SSMParameter,
		Pin: k.Pin, MinHealthy: k.MinHealthy, Timeout: limit, Report: func(line string) { ui.Say(line) },
	})
	if err != nil {
		return kept(held, fmt.Errorf("promote %s: %w\nthe image is proved and stays; take it into use with: lecafe images promote", imageID, err))
	}
	if err := protection.Lift(context.WithoutCancel(ctx)); err != nil {
		ui.Errorf("warning: %v; do it with: aws ec2 disable-image-deregistration-protection --image-id IMAGE-ID", err)
	}
	ui.Sayf("%s is promoted: %s", imageID, strings.Join(res.Done, "; "))
	return nil
}

// kept says of an error whether Packer can remove the images of its build: not
// while they are protected. held is what came of protecting them.
func kept(held, cause error) error {
	if held != nil {
		return fmt.Errorf("%w\nPacker removes it now: it could not be protected: %w", cause, held)
	}
	return fmt.Errorf("%w\nPacker cannot remove it: deregistration protection is on; take it off with: aws ec2 disable-image-deregistration-protection --image-id IMAGE-ID", cause)
}

// region says which of the images is proved and promoted.
func (p *PostProcessor) region(ctx context.Context, images map[string]string) (string, error) {
	names := slices.Sorted(maps.Keys(images))
	if r := p.config.Region; r != "" {
		if images[r] == "" {
			return "", fmt.Errorf("region: %q: the build has no image there, but in %s", r, strings.Join(names, ", "))
		}
		return r, nil
	}
	if len(names) == 1 {
		return names[0], nil
	}
	// Without a configured region the SDK fails where IMDS does not answer.
	cfg, err := awsconf.Load(ctx, awsconf.Options{Profile: p.config.Profile})
	if err != nil || images[cfg.Region] == "" {
		return "", fmt.Errorf("region: is missing: the build has images in %s; say which one is booted and promoted", strings.Join(names, ", "))
	}
	return cfg.Region, nil
}

var imageID = regexp.MustCompile(`^ami-[0-9a-f]{8,17}$`)

// imagesOf reads an artifact of Packer's amazon plugin, REGION:AMI-ID,... It
// returns image IDs by region.
func imagesOf(artifact packersdk.Artifact) (map[string]string, error) {
	images := map[string]string{}
	for _, one := range strings.Split(artifact.Id(), ",") {
		region, id, ok := strings.Cut(one, ":")
		if !ok || !regionName.MatchString(region) || !imageID.MatchString(id) {
			return nil, fmt.Errorf("the artifact of %s, %q, names no AMI: lecafe-publish takes those of amazon-ebs and the other AMI builders", artifact.BuilderId(), artifact.Id())
		}
		images[region] = id
	}
	return images, nil
}

// showOutput prints the end of a failed test's output: the error itself names
// the test, its exit code and line.
func showOutput(ui packersdk.Ui, err error) {
	var step *bake.StepError
	if errors.As(err, &step) && len(step.Step.Output) > 0 {
		ui.Errorf("the end of the output of test %d (%s):", step.Step.Number, step.Step.Name)
		for _, line := range step.Step.Output {
			ui.Error("  | " + line)
		}
	}
}

// screen tells a bake's events to Packer's user, each once.
type screen struct {
	ui   packersdk.Ui
	last string
}

func (s *screen) event(e bake.Event) {
	text := ""
	switch e.Kind {
	case bake.EventInfo, bake.EventProgress:
		text = e.Text
	case bake.EventStep:
		text = "canary: " + e.Text
	case bake.EventWarning:
		text = "warning: " + e.Text
	case bake.EventPhase:
		if e.Phase == "undo" {
			text = "Removing the canary and what it needed"
		}
	}
	if text != "" && text != s.last {
		s.last = text
		s.ui.Say(text)
	}
}
