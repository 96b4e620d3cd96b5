package main

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/bake/cleanup/secrets"
	"github.com/lecafe/lecafe/internal/exitcode"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:  "inspect",
		Usage: "prove that a root directory holds nothing that must not be in an image",
		Description: "Runs the rules that end a bake on any tree: a mounted disk, a chroot, a container's root.\n" +
			"Exit 0: clean. 1: findings. A finding names path, line and rule, never the secret.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "`DIRECTORY` that is the image's /"},
			&cli.StringSliceFlag{Name: "keep", Usage: "leave out `RULE` (several times)"},
			&cli.BoolFlag{Name: "rules", Usage: "list the rules and why they are there"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: inspect,
	}
}

func inspect(c *cli.Context) error {
	if c.Bool("rules") {
		if c.Bool("json") {
			return json.NewEncoder(c.App.Writer).Encode(cleanup.Rules())
		}
		for _, r := range cleanup.Rules() {
			fmt.Fprintf(c.App.Writer, "%-22s %s\n", r.Name, r.Why)
		}
		return nil
	}
	if c.Args().Present() || c.String("root") == "" {
		return badRequest("inspect takes --root DIRECTORY and no argument")
	}
	if err := cleanup.CheckKeep(c.StringSlice("keep")); err != nil {
		return badRequest("--keep: %w; lecafe inspect --rules lists them", err)
	}
	scanner, err := secrets.New()
	if err != nil {
		return err
	}
	findings, err := cleanup.Inspect(c.Context, cleanup.Options{Root: c.String("root"), Keep: c.StringSlice("keep"), Scanner: scanner})
	if err != nil {
		return badRequest("inspect: %w", err)
	}
	if c.Bool("json") {
		if findings == nil {
			findings = []cleanup.Finding{}
		}
		if err := json.NewEncoder(c.App.Writer).Encode(findings); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			fmt.Fprintln(c.App.Writer, f)
		}
	}
	if len(findings) > 0 {
		return exitcode.With(exitcode.Failed, fmt.Errorf("%d findings in %s", len(findings), c.String("root")))
	}
	return nil
}
