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
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/launchtemplate"
	"github.com/lecafe/lecafe/rollout"
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
	if c.Args().Present() {
		return badRequest("unexpected argument %q; see lecafe deploy --help", c.Args().First())
	}
	if len(c.StringSlice("asg")) != 1 {
		return badRequest("want one group: --asg NAME")
	}
	if c.String("image") == "" {
		return badRequest("no image: give --image AMI, latest or ssm:PARAMETER")
	}
	if c.IsSet("max-healthy") && !c.IsSet("min-healthy") {
		return badRequest("--max-healthy needs --min-healthy too")
	}
	w, _, err := newWatcher(c)
	if err != nil {
		return err
	}
	if err := w.Check(c.Context); err != nil {
		return watchError(err)
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	api := ec2.NewFromConfig(cfg)
	asg := autoscaling.NewFromConfig(cfg)
	clients := rollout.Clients{EC2: api, AutoScaling: asg, SSM: ssm.NewFromConfig(cfg)}
	spec := rollout.Spec{Group: c.StringSlice("asg")[0], Parameter: c.String("parameter"), Pin: c.Bool("pin"), BakeTime: int32(c.Duration("bake-time").Seconds())}
	if c.IsSet("min-healthy") {
		spec.MinHealthy = aws.Int32(int32(c.Int("min-healthy")))
	}
	if c.IsSet("max-healthy") {
		spec.MaxHealthy = aws.Int32(int32(c.Int("max-healthy")))
	}
	image, err := resolveImage(c.Context, c.String("image"), spec.Group, api, asg, ssm.NewFromConfig(cfg))
	if err != nil {
		return deployError(err)
	}
	spec.ImageID = aws.ToString(image.ImageId)
	switch hooked, err := launchHook(c.Context, asg, spec.Group); {
	case err != nil:
		return deployError(err)
	case c.IsSet("warmup"):
		spec.Warmup = aws.Int32(int32(c.Duration("warmup").Seconds()))
	case !hooked:
		spec.Warmup = aws.Int32(int32(fleet.BootTime(image, 2*time.Minute).Seconds()))
	}

	r, err := rollout.Prepare(c.Context, clients, spec)
	if err != nil {
		return deployError(err)
	}
	fmt.Fprintf(c.App.ErrWriter, "%s: launch template %s version %s → %s with %s\n", r.Group, r.TemplateName, r.From, r.To, r.ImageID)
	d := &fleet.Deploy{Watcher: w, Rollout: r, Clients: clients, After: c.Int("brake"), Timeout: c.Duration("timeout"), Interval: c.Duration("interval"),
		Degraded: c.Bool("accept-degraded"), Tell: teller(c.App.ErrWriter)}
	out, err := d.Run(c.Context)
	if out != nil && c.Bool("json") {
		if jsonErr := writeJSON(c.App.Writer, out); jsonErr != nil {
			return jsonErr
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return exitcode.With(exitcode.Interrupt, fmt.Errorf("stopped following; the instance refresh %s goes on: run the same command again to follow it, or roll it back with aws autoscaling rollback-instance-refresh", r.RefreshID))
	case err != nil:
		return deployError(err)
	case !out.OK:
		for n := range out.Failed {
			fmt.Fprintf(c.App.ErrWriter, "%s %s: %s\n", out.Failed[n].ID, out.Failed[n].Verdict, causeLine(&out.Failed[n]))
		}
		return fmt.Errorf("rolled back to version %s: %s", r.From, out.Reason)
	}
	if !c.Bool("json") {
		fmt.Fprintf(c.App.Writer, "%s: version %s of %s with %s is up and the default\n", r.Group, r.To, r.TemplateName, r.ImageID)
	}
	return nil
}

func deployError(err error) error {
	if errors.Is(err, rollout.ErrRefused) || errors.Is(err, launchtemplate.ErrNotFound) || errors.Is(err, errNoImage) {
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
		line := fmt.Sprintf("%s: %s, %d %%", p.Phase, p.Refresh.Status, p.Refresh.Percent)
		if len(counts) > 0 {
			line += ", new instances: " + strings.Join(counts, ", ")
		}
		if p.Note != "" {
			line = p.Phase + ": " + p.Note
		}
		if line != last {
			fmt.Fprintln(out, line)
		}
		last = line
		for n := range p.Changes {
			if ch := &p.Changes[n]; ch.Verdict != fleet.Pending {
				fmt.Fprintf(out, "  %s %s: %s\n", ch.ID, ch.Verdict, causeLine(&ch.Standing))
			}
		}
	}
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
func resolveImage(ctx context.Context, image, group string, api *ec2.Client, asg *autoscaling.Client, parameters *ssm.Client) (*types.Image, error) {
	if name, ok := strings.CutPrefix(image, "ssm:"); ok {
		out, err := parameters.GetParameter(ctx, &ssm.GetParameterInput{Name: &name})
		if err != nil {
			return nil, fmt.Errorf("read SSM parameter %s: %w", name, err)
		}
		image = aws.ToString(out.Parameter.Value)
	}
	if image == "latest" {
		return latestImage(ctx, group, api, asg)
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
func latestImage(ctx context.Context, group string, api *ec2.Client, asg *autoscaling.Client) (*types.Image, error) {
	groups, err := asg.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{group}})
	if err != nil {
		return nil, fmt.Errorf("describe Auto Scaling group %s: %w", group, err)
	}
	if len(groups.AutoScalingGroups) == 0 || groups.AutoScalingGroups[0].LaunchTemplate == nil {
		return nil, fmt.Errorf("%w: group %q does not exist or has no launch template of its own; name the image's ID", errNoImage, group)
	}
	lt := groups.AutoScalingGroups[0].LaunchTemplate
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
