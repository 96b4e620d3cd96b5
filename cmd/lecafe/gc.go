package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/bake"
)

func gcCommand() *cli.Command {
	return &cli.Command{
		Name:      "gc",
		Usage:     "remove what bakes that died have left",
		ArgsUsage: "[RECIPE...]",
		Description: "Finds bakes by the tags of what they made, below the staging of the recipes given, and where bakes of this machine\n" +
			"were begun. It looks in the region, in those that the recipes copy to, and in those of --region or --all-regions;\n" +
			"what a bake left is removed in all of its regions. A bake whose process lives is left alone until it has expired.\n" +
			"Without --yes it only shows.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "staging", Usage: "look below `s3://BUCKET/PREFIX` too (several times)"},
			&cli.StringSliceFlag{Name: "region", Usage: "look in `REGION` (several times), instead of the region of the AWS configuration"},
			&cli.BoolFlag{Name: "all-regions", Usage: "look in every region that the account has enabled"},
			&cli.StringSliceFlag{Name: "set", Usage: "override a field of the recipes: `PATH=VALUE`"},
			&cli.BoolFlag{Name: "yes", Usage: "remove it"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			pollFlag(),
		},
		Action: func(c *cli.Context) error {
			staging, regions := c.StringSlice("staging"), c.StringSlice("region")
			if c.Bool("all-regions") && len(regions) > 0 {
				return badRequest("gc: --region and --all-regions exclude each other")
			}
			var copies []string
			for _, path := range c.Args().Slice() {
				r, err := loadRecipe(c, path)
				if err != nil {
					return err
				}
				staging = append(staging, "s3://"+r.Staging.Bucket+"/"+r.Staging.Prefix)
				for _, cp := range r.Image.Copies {
					copies = append(copies, cp.Region)
				}
			}
			cfg, err := loadAWSIn(c, regions)
			if err != nil {
				return err
			}
			switch {
			case c.Bool("all-regions"):
				if regions, err = enabledRegions(c.Context, cfg); err != nil {
					return awsError(err)
				}
			case len(regions) == 0:
				regions = append(copies, cfg.Region)
			}
			show := newDisplay(c.App.ErrWriter)
			found, err := bake.GC(c.Context, bake.GCOptions{Config: cfg, Regions: regions, Staging: staging, Remove: c.Bool("yes"), StateDir: bake.DefaultStateDir(), Poll: c.Duration("poll"), Report: show.event})
			show.close()
			if c.Bool("json") {
				if found == nil {
					found = []*bake.Garbage{}
				}
				if jsonErr := json.NewEncoder(c.App.Writer).Encode(found); jsonErr != nil {
					return jsonErr
				}
				return err
			}
			waiting := 0
			for _, g := range found {
				fmt.Fprintf(c.App.Writer, "%s (%s): %s\n", g.BakeID, g.Recipe, g.Why)
				verb := "  leave  "
				switch {
				case g.Removed:
					verb = "  removed"
				case g.Take:
					verb = "  remove "
					waiting++
				}
				for _, t := range g.Things {
					fmt.Fprintf(c.App.Writer, "%s %s\n", verb, t)
				}
				if g.Error != "" {
					fmt.Fprintf(c.App.Writer, "  not everything was removed: %s\n", g.Error)
				}
			}
			switch {
			case len(found) == 0 && err == nil:
				fmt.Fprintln(c.App.Writer, "nothing is left of any bake")
			case waiting > 0 && !c.Bool("yes"):
				fmt.Fprintln(c.App.Writer, "lecafe gc --yes removes it")
			}
			return err
		},
	}
}

// loadAWSIn is loadAWS for a command whose own --region stands for several.
func loadAWSIn(c *cli.Context, regions []string) (aws.Config, error) {
	app := c.Lineage()[1]
	if len(regions) == 0 {
		return loadAWS(app)
	}
	return loadAWSFor(app, regions[0])
}

// enabledRegions are those that the account may use.
func enabledRegions(ctx context.Context, cfg aws.Config) ([]string, error) {
	out, err := ec2.NewFromConfig(cfg).DescribeRegions(ctx, &ec2.DescribeRegionsInput{})
	if err != nil {
		return nil, fmt.Errorf("list regions: %w", err)
	}
	var names []string
	for _, r := range out.Regions {
		names = append(names, aws.ToString(r.RegionName))
	}
	return names, nil
}
