package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/promote"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/launchtemplate"
)

func deployCommand() *cli.Command {
	wanted := []string{"asg", "reports", "reports-region", "deadline", "role-id", "no-verify-sender"}
	var flags []cli.Flag
	for _, f := range selectionFlags() {
		if slices.Contains(wanted, f.Names()[0]) {
			flags = append(flags, f)
		}
	}
	return &cli.Command{
		Name:      "deploy",
		Usage:     "roll an image out to an Auto Scaling group, and back if it does not come up",
		UsageText: "lecafe deploy --asg NAME --image AMI|latest|ssm:PARAMETER [options]",
		Description: "Publishes a launch template version with the image, refreshes the group pinned to\n" +
			"it, and follows the new instances through their agents' reports. Only when all of\n" +
			"them are up is the version made default and the SSM parameter written. When several\n" +
			"fail the same way, or the time is over, the group goes back to where it was.",
		Flags: append(flags,
			&cli.StringFlag{Name: "image", Usage: "`AMI` ID; latest: the newest image of the recipe that the group's image is of; ssm:PARAMETER: that parameter's value"},
			&cli.StringFlag{Name: "parameter", Usage: "SSM `PARAMETER` that gets the image's ID at the end"},
			&cli.BoolFlag{Name: "pin", Usage: "convert a group on $Default or $Latest to a numbered version"},
			&cli.IntFlag{Name: "min-healthy", Usage: "`PERCENT` of the group that stays in service (default: Auto Scaling's)"},
			&cli.IntFlag{Name: "max-healthy", Usage: "`PERCENT` that the group may grow to meanwhile; needs --min-healthy"},
			&cli.DurationFlag{Name: "warmup", Usage: "before a new instance counts and the next is replaced (default: the image's canary's boot, else 2m; 0 with a lifecycle hook at launch)"},
			&cli.DurationFlag{Name: "bake-time", Usage: "keep the refresh open, so that it can be rolled back at once, after its last instance"},
			&cli.IntFlag{Name: "brake", Usage: "go back after `N` failures of one kind, at most half of the group", Value: 3},
			&cli.DurationFlag{Name: "timeout", Usage: "go back after this time", Value: 2 * time.Hour},
			&cli.DurationFlag{Name: "interval", Usage: "between two looks", Value: 10 * time.Second},
			&cli.BoolFlag{Name: "accept-degraded", Usage: "take degraded instances for success"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object at the end"},
		),
		Action: deploy,
	}
}

func deploy(c *cli.Context) error {
	if len(c.StringSlice("asg")) != 1 {
		return badRequest("want one group: --asg NAME")
	}
	if c.String("image") == "" {
		return badRequest("no image: give --image AMI, latest or ssm:PARAMETER")
	}
	if c.IsSet("max-healthy") && !c.IsSet("min-healthy") {
		return badRequest("--max-healthy needs --min-healthy too")
	}
	if n := c.Int("min-healthy"); n > 100 {
		return badRequest("--min-healthy %d: want 0 to 100 percent", n)
	}
	if n := c.Int("max-healthy"); c.IsSet("max-healthy") && (n < 100 || n > 200 || n-c.Int("min-healthy") > 100) {
		return badRequest("--max-healthy %d: want 100 to 200 percent, at most 100 more than --min-healthy", n)
	}
	if n := c.Int("brake"); n < 1 {
		return badRequest("--brake %d: want at least 1", n)
	}
	if image := c.String("image"); image != "latest" && !strings.HasPrefix(image, "ami-") && !strings.HasPrefix(image, "ssm:") {
		return badRequest("--image %q: want an AMI ID (ami-...), latest, or ssm:PARAMETER", image)
	}
	w, _, err := newWatcher(c)
	if err != nil {
		return err
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	api, asg := ec2.NewFromConfig(cfg), autoscaling.NewFromConfig(cfg)
	group, err := describeGroup(c.Context, asg, c.StringSlice("asg")[0])
	if err != nil {
		return deployError(err)
	}
	image, err := resolveImage(c.Context, c.String("image"), group, api, ssm.NewFromConfig(cfg))
	if err != nil {
		return deployError(err)
	}
	o := promote.Options{
		Config: cfg, ImageID: aws.ToString(image.ImageId), Group: aws.ToString(group.AutoScalingGroupName), LaunchTemplate: templateName(group),
		SSMParameter: c.String("parameter"), Pin: c.Bool("pin"), MinHealthy: c.Int("min-healthy"), MaxHealthy: c.Int("max-healthy"),
		Warmup: c.Duration("warmup"), BakeTime: c.Duration("bake-time"), Timeout: c.Duration("timeout"), Poll: c.Duration("interval"),
		Report: func(s string) { fmt.Fprintln(c.App.ErrWriter, s) },
	}
	if !c.IsSet("warmup") {
		hooked, err := launchHook(c.Context, asg, o.Group)
		if err != nil {
			return deployError(err)
		}
		if !hooked {
			o.Warmup = fleet.BootTime(image, 2*time.Minute)
		}
	}
	proof := &fleet.Proof{Watcher: w, After: c.Int("brake"), Degraded: c.Bool("accept-degraded"), Tell: teller(c.App.ErrWriter)}
	o.Prove = proof.Prove
	res, err := promote.Run(c.Context, o)
	if c.Bool("json") && res != nil {
		out := deployed{OK: err == nil, RolledBack: errors.Is(err, promote.ErrRollback), Result: res, Counts: proof.Counts, Failed: proof.Failed}
		if out.Failed == nil {
			out.Failed = []fleet.Standing{}
		}
		if err != nil {
			out.Reason = err.Error()
		}
		if jsonErr := writeJSON(c.App.Writer, out); jsonErr != nil {
			return jsonErr
		}
	}
	if err != nil {
		for n := range proof.Failed {
			fmt.Fprintf(c.App.ErrWriter, "%s %s: %s\n", proof.Failed[n].ID, proof.Failed[n].Verdict, causeLine(&proof.Failed[n]))
		}
		return deployError(err)
	}
	if !c.Bool("json") {
		fmt.Fprintf(c.App.Writer, "%s: version %d of %s with %s is up and the default\n", o.Group, res.Version, o.LaunchTemplate, o.ImageID)
	}
	return nil
}

// deployed is what lecafe deploy --json prints.
type deployed struct {
	OK         bool   `json:"ok"`
	RolledBack bool   `json:"rolled_back"`
	Reason     string `json:"reason,omitempty"`
	*promote.Result
	Counts map[fleet.Verdict]int `json:"counts"` // of the new version's instances
	Failed []fleet.Standing      `json:"failed"`
}

func deployError(err error) error {
	if errors.Is(err, promote.ErrRefused) || errors.Is(err, launchtemplate.ErrNotFound) || errors.Is(err, errNoImage) {
		return exitcode.With(exitcode.BadRequest, err)
	}
	return watchError(err)
}

// teller prints what is new about a deploy.
func teller(out io.Writer) func(fleet.Progress) {
	var last string
	return func(p fleet.Progress) {
		var counts []string
		for _, v := range fleet.Verdicts() {
			if n := p.Counts[v]; n > 0 {
				counts = append(counts, fmt.Sprintf("%d %s", n, v))
			}
		}
		if line := "new instances: " + strings.Join(counts, ", "); line != last && len(counts) > 0 {
			last = line
			fmt.Fprintln(out, line)
		}
		for n := range p.Changes {
			if ch := &p.Changes[n]; ch.Verdict != fleet.Pending {
				fmt.Fprintf(out, "  %s %s: %s\n", ch.ID, ch.Verdict, causeLine(&ch.Standing))
			}
		}
	}
}

func describeGroup(ctx context.Context, api *autoscaling.Client, name string) (*astypes.AutoScalingGroup, error) {
	out, err := api.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{name}})
	if err != nil {
		return nil, fmt.Errorf("describe Auto Scaling group %s: %w", name, err)
	}
	if len(out.AutoScalingGroups) == 0 {
		return nil, fmt.Errorf("%w: no Auto Scaling group %q", fleet.ErrSelection, name)
	}
	return &out.AutoScalingGroups[0], nil
}

// templateOf is the group's launch template; nil where it has none.
func templateOf(g *astypes.AutoScalingGroup) *astypes.LaunchTemplateSpecification {
	if p := g.MixedInstancesPolicy; p != nil && p.LaunchTemplate != nil {
		return p.LaunchTemplate.LaunchTemplateSpecification
	}
	return g.LaunchTemplate
}

func templateName(g *astypes.AutoScalingGroup) string {
	lt := templateOf(g)
	if lt == nil {
		return ""
	}
	return cmp.Or(aws.ToString(lt.LaunchTemplateName), aws.ToString(lt.LaunchTemplateId))
}

// launchHook says whether instances wait for a lifecycle hook at launch, as
// for the agent's.
func launchHook(ctx context.Context, api *autoscaling.Client, group string) (bool, error) {
	out, err := api.DescribeLifecycleHooks(ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: &group})
	if err != nil {
		return false, fmt.Errorf("describe lifecycle hooks of %s: %w", group, err)
	}
	for _, h := range out.LifecycleHooks {
		if aws.ToString(h.LifecycleTransition) == "autoscaling:EC2_INSTANCE_LAUNCHING" {
			return true, nil
		}
	}
	return false, nil
}

var errNoImage = errors.New("no such image")

// resolveImage finds the image that is meant.
func resolveImage(ctx context.Context, image string, group *astypes.AutoScalingGroup, api *ec2.Client, parameters *ssm.Client) (*types.Image, error) {
	if name, ok := strings.CutPrefix(image, "ssm:"); ok {
		out, err := parameters.GetParameter(ctx, &ssm.GetParameterInput{Name: &name})
		if err != nil {
			return nil, fmt.Errorf("read SSM parameter %s: %w", name, err)
		}
		image = aws.ToString(out.Parameter.Value)
	}
	if image == "latest" {
		return latestImage(ctx, group, api)
	}
	if !strings.HasPrefix(image, "ami-") {
		return nil, fmt.Errorf("%w: %q: want an AMI ID, latest, or ssm:PARAMETER", errNoImage, image)
	}
	return describeImage(ctx, api, image)
}

func describeImage(ctx context.Context, api *ec2.Client, id string) (*types.Image, error) {
	out, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{Filters: []types.Filter{{Name: aws.String("image-id"), Values: []string{id}}}})
	if err != nil {
		return nil, fmt.Errorf("describe image %s: %w", id, err)
	}
	if len(out.Images) == 0 {
		return nil, fmt.Errorf("%w: %s", errNoImage, id)
	}
	if s := out.Images[0].State; s != types.ImageStateAvailable {
		return nil, fmt.Errorf("%w: %s is %s, not available", errNoImage, id, s)
	}
	return &out.Images[0], nil
}

// latestImage is the account's newest finished image of the recipe that the
// group's present image was baked from.
func latestImage(ctx context.Context, group *astypes.AutoScalingGroup, api *ec2.Client) (*types.Image, error) {
	lt := templateOf(group)
	if lt == nil {
		return nil, fmt.Errorf("%w: group %s has no launch template; name the image's ID", errNoImage, aws.ToString(group.AutoScalingGroupName))
	}
	v, err := launchtemplate.Describe(ctx, api, cmp.Or(aws.ToString(lt.LaunchTemplateId), aws.ToString(lt.LaunchTemplateName)), aws.ToString(lt.Version))
	if err != nil {
		return nil, err
	}
	now, err := describeImage(ctx, api, aws.ToString(v.LaunchTemplateData.ImageId))
	if err != nil {
		return nil, err
	}
	recipe := tagOf(now.Tags, manifest.TagRecipe)
	if recipe == "" {
		return nil, fmt.Errorf("%w: the group's image %s was not baked by lecafe, so that its latest is not known; name the image's ID", errNoImage, aws.ToString(now.ImageId))
	}
	out, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: []types.Filter{
		{Name: aws.String("tag:" + manifest.TagRecipe), Values: []string{recipe}},
		{Name: aws.String("state"), Values: []string{"available"}},
	}})
	if err != nil {
		return nil, fmt.Errorf("describe images of recipe %s: %w", recipe, err)
	}
	list := slices.DeleteFunc(out.Images, func(i types.Image) bool {
		state := tagOf(i.Tags, manifest.TagState)
		return state != "" && state != manifest.StateDone
	})
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: no finished image of recipe %s; bake one", errNoImage, recipe)
	}
	newest := slices.MaxFunc(list, func(a, b types.Image) int {
		return cmp.Compare(aws.ToString(a.CreationDate), aws.ToString(b.CreationDate))
	})
	return &newest, nil
}

func tagOf(tags []types.Tag, key string) string {
	for _, t := range tags {
		if aws.ToString(t.Key) == key {
			return aws.ToString(t.Value)
		}
	}
	return ""
}
