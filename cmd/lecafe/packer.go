package main

import (
	"bytes"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/bake/packertemplate"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

func packerCommand() *cli.Command {
	return &cli.Command{
		Name:  "packer",
		Usage: "bake with Packer instead",
		Subcommands: []*cli.Command{{
			Name:      "template",
			Usage:     "write a Packer template that does what a recipe says",
			ArgsUsage: "RECIPE",
			Description: "The template uses Packer's amazon plugin and lecafe's own. What of the recipe Packer has no equivalent for is said\n" +
				"on stderr. The recipe's files are named relative to the template: without --output, it belongs beside the recipe.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE`, as image.pkr.hcl; default: to stdout"},
				&cli.StringSliceFlag{Name: "set", Usage: "override a field of the recipe: `PATH=VALUE` (several times)"},
			},
			Action: packerTemplate,
		}},
	}
}

func packerTemplate(c *cli.Context) error {
	if c.NArg() != 1 {
		return badRequest("packer template takes one recipe")
	}
	if err := checkOutput(c); err != nil {
		return err
	}
	file := c.Args().First()
	r, err := loadRecipe(c, file)
	if err != nil {
		return err
	}
	o := packertemplate.Options{Recipe: filepath.Base(file)}
	out := c.String("output")
	if out != "" {
		o.Dir = filepath.Dir(out)
		if o.Recipe, err = relative(o.Dir, file); err != nil {
			return err
		}
	}
	t, err := packertemplate.Render(r, o)
	if err != nil {
		return err
	}
	for _, n := range t.Notes {
		fmt.Fprintf(c.App.ErrWriter, "note: %s\n", n)
	}
	if out == "" {
		_, err = bytes.NewReader(t.HCL).WriteTo(c.App.Writer)
		return err
	}
	return atomicfile.WriteFile(out, t.HCL, 0o644)
}

func relative(dir, file string) (string, error) {
	from, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	to, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	return filepath.Rel(from, to)
}
