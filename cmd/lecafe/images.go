package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/bake/promote"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/bake/shelf"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/launchtemplate"
)

func imagesCommand() *cli.Command {
	asJSON := &cli.BoolFlag{Name: "json", Usage: "print JSON"}
	of := &cli.StringFlag{Name: "recipe", Usage: "images of the recipe `NAME` alone"}
	parameters := &cli.StringSliceFlag{Name: "parameter", Usage: "an SSM parameter `NAME` that keeps the image it names (several times)"}
	where := []cli.Flag{
		&cli.StringFlag{Name: "launch-template", Usage: "`NAME` or ID; gets a new version with the image"},
		&cli.StringFlag{Name: "asg", Usage: "Auto Scaling group `NAME` to refresh"},
		&cli.StringFlag{Name: "ssm-parameter", Usage: "`NAME` that gets the image ID"},
		&cli.StringFlag{Name: "from", Usage: "take the three above from the promote section of recipe `FILE`"},
		&cli.BoolFlag{Name: "pin", Usage: "convert a group on $Default or $Latest to the number it stands for"},
		&cli.IntFlag{Name: "min-healthy", Usage: "`PERCENT` of the group that stays in service", Value: 90},
		&cli.DurationFlag{Name: "timeout", Usage: "for the instance refresh; then it is rolled back", Value: 2 * time.Hour},
		asJSON,
	}
	return &cli.Command{
		Name:  "images",
		Usage: "list, promote, roll back and prune baked images",
		Subcommands: []*cli.Command{
			{Name: "list", Usage: "what was baked, and what uses it", Flags: []cli.Flag{of, parameters, asJSON}, Action: imagesList},
			{
				Name: "promote", Usage: "take an image into use", ArgsUsage: "IMAGE-ID", Flags: where, Action: imagesPromote,
				Description: "A new numbered launch template version, an instance refresh of the group pinned to it, and only when that has\n" +
					"succeeded the version made default and the SSM parameter written. Run again, it goes on where it stopped.",
			},
			{
				Name: "rollback", Usage: "roll a running refresh back, or promote the image before", Flags: append(where, &cli.StringFlag{Name: "to", Usage: "the `IMAGE-ID` to go back to"}),
				Action: imagesRollback,
			},
			{
				Name: "prune", Usage: "disable images that nothing uses, delete those disabled for a while", Action: imagesPrune,
				Description: "Kept are the newest of each recipe and every image in use: by instances, by launch template versions that are default,\n" +
					"latest or a group's, by the parameters named, and shared ones. Without --yes it only shows.",
				Flags: []cli.Flag{
					of, parameters, asJSON,
					&cli.IntFlag{Name: "keep", Usage: "`N` newest of each recipe stay", Value: 3},
					&cli.StringFlag{Name: "grace", Usage: "`DURATION` between disabling and deleting", Value: "7d"},
					&cli.BoolFlag{Name: "yes", Usage: "do it"},
					&cli.BoolFlag{Name: "dry-run", Usage: "only show, which is the default"},
				},
			},
		},
	}
}

func imagesList(c *cli.Context) error {
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	images, err := shelf.List(c.Context, shelf.Options{Config: cfg, Recipe: c.String("recipe"), Parameters: c.StringSlice("parameter")})
	if err != nil {
		return awsError(err)
	}
	if c.Bool("json") {
		if images == nil {
			images = []*shelf.Image{}
		}
		return json.NewEncoder(c.App.Writer).Encode(images)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tRECIPE\tCREATED\tSTATE\tNAME\tUSED BY")
	for _, i := range images {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", i.ID, i.Recipe, i.Created.Format("2006-01-02 15:04"), i.State, i.Name, strings.Join(i.Uses, ", "))
	}
	return w.Flush()
}

func promoteOptions(c *cli.Context) (promote.Options, error) {
	o := promote.Options{
		LaunchTemplate: c.String("launch-template"), Group: c.String("asg"), SSMParameter: c.String("ssm-parameter"), Pin: c.Bool("pin"),
		MinHealthy: c.Int("min-healthy"), Timeout: c.Duration("timeout"), Report: func(line string) { fmt.Fprintln(c.App.ErrWriter, line) },
	}
	if file := c.String("from"); file != "" {
		r, err := loadRecipe(c, file)
		if err != nil {
			return o, err
		}
		if r.Promote == nil {
			return o, badRequest("%s has no promote section", file)
		}
		o = promotionOf(r, o)
	}
	cfg, err := loadAWS(c)
	o.Config = cfg
	return o, err
}

// promotionOf fills in what the recipe's promote section says and o does not.
func promotionOf(r *recipe.Recipe, o promote.Options) promote.Options {
	for _, f := range []struct {
		to   *string
		from string
	}{{&o.LaunchTemplate, r.Promote.LaunchTemplate}, {&o.Group, r.Promote.AutoScalingGroup}, {&o.SSMParameter, r.Promote.SSMParameter}} {
		if *f.to == "" {
			*f.to = f.from
		}
	}
	o.Pin = o.Pin || r.Promote.Pin
	return o
}

func imagesPromote(c *cli.Context) error {
	if c.Args().Len() != 1 {
		return badRequest("promote takes one image ID")
	}
	o, err := promoteOptions(c)
	if err != nil {
		return err
	}
	o.ImageID = c.Args().First()
	return runPromotion(c, o)
}

func runPromotion(c *cli.Context, o promote.Options) error {
	res, err := promote.Run(c.Context, o)
	if res != nil && c.Bool("json") {
		if jsonErr := json.NewEncoder(c.App.Writer).Encode(res); jsonErr != nil {
			return jsonErr
		}
	} else if err == nil {
		fmt.Fprintf(c.App.Writer, "%s is promoted: %s\n", res.ImageID, strings.Join(res.Done, "; "))
	}
	if errors.Is(err, promote.ErrRefused) {
		return exitcode.With(exitcode.BadRequest, err)
	}
	return awsError(err)
}

func imagesRollback(c *cli.Context) error {
	o, err := promoteOptions(c)
	if err != nil {
		return err
	}
	if o.Group != "" {
		rolled, err := promote.RollBackRefresh(c.Context, o)
		if err != nil {
			return awsError(err)
		}
		if rolled {
			fmt.Fprintf(c.App.Writer, "the instance refresh of %s is rolled back\n", o.Group)
			return nil
		}
	}
	if o.ImageID = c.String("to"); o.ImageID == "" {
		if o.LaunchTemplate == "" {
			return badRequest("rollback needs --to IMAGE-ID, or a launch template whose default version says what is in use")
		}
		v, err := launchtemplate.Describe(c.Context, ec2.NewFromConfig(o.Config), o.LaunchTemplate, "$Default")
		if err != nil {
			return awsError(err)
		}
		before, err := shelf.Before(c.Context, shelf.Options{Config: o.Config}, aws.ToString(v.LaunchTemplateData.ImageId))
		if err != nil {
			return awsError(err)
		}
		o.ImageID = before.ID
		fmt.Fprintf(c.App.ErrWriter, "going back to %s %s\n", before.ID, before.Name)
	}
	return runPromotion(c, o)
}

func imagesPrune(c *cli.Context) error {
	grace, err := recipe.ParseDuration(c.String("grace"))
	if err != nil || grace <= 0 || c.Int("keep") < 1 {
		return badRequest("prune: --keep is at least 1, --grace a duration as 7d or 36h")
	}
	if c.Bool("yes") && c.Bool("dry-run") {
		return badRequest("prune: --yes and --dry-run exclude each other")
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	actions, err := shelf.Prune(c.Context, shelf.PruneOptions{
		Options: shelf.Options{Config: cfg, Recipe: c.String("recipe"), Parameters: c.StringSlice("parameter")}, Keep: c.Int("keep"), Grace: grace, Remove: c.Bool("yes"),
	})
	if c.Bool("json") {
		if actions == nil {
			actions = []*shelf.Action{}
		}
		if jsonErr := json.NewEncoder(c.App.Writer).Encode(actions); jsonErr != nil {
			return jsonErr
		}
		return awsError(err)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, a := range actions {
		do := a.Do
		if a.Done {
			do += "d"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", do, a.Image.ID, a.Image.Name, a.Why)
	}
	if flushErr := w.Flush(); flushErr != nil {
		return flushErr
	}
	return awsError(err)
}
