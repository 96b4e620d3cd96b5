package main

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/bake"
)

func gcCommand() *cli.Command {
	return &cli.Command{
		Name:      "gc",
		Usage:     "remove what bakes that died have left",
		ArgsUsage: "[RECIPE...]",
		Description: "Finds bakes by the tags of what they made, and below the staging of the recipes given. A bake whose process\n" +
			"lives is left alone until it has expired. Without --yes it only shows.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "staging", Usage: "look below `s3://BUCKET/PREFIX` too (several times)"},
			&cli.StringSliceFlag{Name: "set", Usage: "override a field of the recipes: `PATH=VALUE`"},
			&cli.BoolFlag{Name: "yes", Usage: "remove it"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *cli.Context) error {
			staging := c.StringSlice("staging")
			for _, path := range c.Args().Slice() {
				r, err := loadRecipe(c, path)
				if err != nil {
					return err
				}
				staging = append(staging, "s3://"+r.Staging.Bucket+"/"+r.Staging.Prefix)
			}
			cfg, err := loadAWS(c)
			if err != nil {
				return err
			}
			show := newDisplay(c.App.ErrWriter)
			found, err := bake.GC(c.Context, bake.GCOptions{Config: cfg, Staging: staging, Remove: c.Bool("yes"), StateDir: stateDir(), Report: show.event})
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
			case len(found) == 0:
				fmt.Fprintln(c.App.Writer, "nothing is left of any bake")
			case waiting > 0 && !c.Bool("yes"):
				fmt.Fprintln(c.App.Writer, "lecafe gc --yes removes it")
			}
			return err
		},
	}
}
