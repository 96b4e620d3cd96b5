package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/launchtemplate"
)

func launchTemplateCommand() *cli.Command {
	return &cli.Command{
		Name:  "launch-template",
		Usage: "publish and compare launch template versions",
		Subcommands: []*cli.Command{{
			Name:      "publish",
			Usage:     "publish a version: IMDSv2 required, hop limit 1, no key pair",
			UsageText: "lecafe launch-template publish --name NAME --image AMI [options]",
			Description: "Makes the template, or a new version of it. The same content as the latest\n" +
				"version's makes no new one, so that it is safe to repeat. With --source the\n" +
				"options that are not given are taken over from that version.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "name", Usage: "`NAME` of the template, or its ID where it exists"},
				&cli.StringFlag{Name: "image", Usage: "`AMI` ID, or resolve:ssm:PARAMETER"},
				&cli.StringFlag{Name: "source", Usage: "`VERSION` to start from: a number, $Default or $Latest"},
				&cli.StringFlag{Name: "user-data", Usage: "`FILE` with the user data, - for stdin; see lecafe userdata render"},
				&cli.StringFlag{Name: "lint", Usage: "what to do about errors in the user data: `HOW`, error (refuse it), warn or off", Value: "warn"},
				&cli.StringSliceFlag{Name: "ignore", Usage: "leave out a `RULE` of lecafe userdata lint, repeatable"},
				&cli.StringFlag{Name: "instance-type", Usage: "as t3.micro"},
				&cli.StringFlag{Name: "instance-profile", Aliases: []string{"profile-name"}, Usage: "`NAME` or ARN of the instance profile"},
				&cli.StringSliceFlag{Name: "security-group", Usage: "security group `ID`, repeatable"},
				&cli.StringSliceFlag{Name: "tag", Usage: "`KEY=VALUE` for instances and volumes, repeatable"},
				&cli.BoolFlag{Name: "metadata-tags", Usage: "show instance tags in instance metadata (not possible with '/' or blanks in tag keys)", Value: true},
				&cli.BoolFlag{Name: "default", Usage: "make the version the default one"},
				&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
			},
			Action: publishLaunchTemplate,
		}, {
			Name:        "diff",
			Usage:       "show what differs between two versions",
			ArgsUsage:   "NAME A B",
			Description: "A and B are version numbers, $Default or $Latest. Exit 0: the same. 1: they differ.",
			Flags:       []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print one JSON object"}},
			Action:      diffLaunchTemplate,
		}},
	}
}

func publishLaunchTemplate(c *cli.Context) error {
	s := launchtemplate.Spec{
		Name: c.String("name"), Source: c.String("source"), ImageID: c.String("image"), InstanceType: c.String("instance-type"),
		InstanceProfile: c.String("instance-profile"), SecurityGroups: c.StringSlice("security-group"),
		NoMetadataTags: !c.Bool("metadata-tags"), Default: c.Bool("default"),
	}
	var err error
	if s.Tags, err = parseTags(c.StringSlice("tag")); err != nil {
		return err
	}
	if file := c.String("user-data"); file != "" {
		if s.UserData, err = readPayload(c, file); err != nil {
			return exitcode.With(exitcode.BadRequest, err)
		}
	}
	if err := s.Check(); err != nil {
		return exitcode.With(exitcode.BadRequest, err)
	}
	switch how := c.String("lint"); {
	case how != "error" && how != "warn" && how != "off":
		return badRequest("--lint %q: want error, warn or off", how)
	case len(s.UserData) > 0 && how != "off":
		// Shown in any case: nobody is to learn from a fleet what a look tells.
		if err := refuseErrors(c.App.ErrWriter, c.String("user-data"), s.UserData, c.StringSlice("ignore")); err != nil && how == "error" {
			return err
		}
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	v, err := launchtemplate.Publish(c.Context, ec2.NewFromConfig(cfg), s)
	switch {
	case errors.Is(err, launchtemplate.ErrSpec), errors.Is(err, launchtemplate.ErrNotFound):
		return exitcode.With(exitcode.BadRequest, err)
	case err != nil:
		return awsError(err)
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, v)
	}
	what := "published"
	if !v.Created {
		what = "unchanged:"
	}
	def := ""
	if v.Default {
		def = ", the default"
	}
	fmt.Fprintf(c.App.Writer, "%s %s (%s) version %d%s\n", what, v.TemplateName, v.TemplateID, v.Number, def)
	return nil
}

// diffLaunchTemplate exits 1 when the versions differ, as diff does.
func diffLaunchTemplate(c *cli.Context) error {
	if c.NArg() != 3 {
		return badRequest("want a template and two versions: lecafe launch-template diff NAME A B")
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	api := ec2.NewFromConfig(cfg)
	name := c.Args().Get(0)
	a, err := launchtemplate.Describe(c.Context, api, name, c.Args().Get(1))
	if err != nil {
		return notFoundOrAWS(err)
	}
	b, err := launchtemplate.Describe(c.Context, api, name, c.Args().Get(2))
	if err != nil {
		return notFoundOrAWS(err)
	}
	changes := launchtemplate.Diff(a.LaunchTemplateData, b.LaunchTemplateData)
	if c.Bool("json") {
		if changes == nil {
			changes = []launchtemplate.Change{}
		}
		if err := writeJSON(c.App.Writer, map[string]any{
			"launch_template_id": *a.LaunchTemplateId, "a": *a.VersionNumber, "b": *b.VersionNumber, "changes": changes,
		}); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
		for _, ch := range changes {
			fmt.Fprintf(w, "%s\t%s\t→\t%s\n", ch.Path, side(ch.A), side(ch.B))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(changes) > 0 {
		return exitcode.With(exitcode.Failed, errors.New(""))
	}
	return nil
}

// side shows one side of a change; user data is too long for a table.
func side(v string) string {
	switch {
	case v == "":
		return "(unset)"
	case len(v) > 60:
		return fmt.Sprintf("%s… (%d bytes)", v[:24], len(v))
	}
	return v
}

func notFoundOrAWS(err error) error {
	if errors.Is(err, launchtemplate.ErrNotFound) {
		return exitcode.With(exitcode.BadRequest, err)
	}
	return awsError(err)
}

// parseTags reads KEY=VALUE options.
func parseTags(list []string) (map[string]string, error) {
	tags := map[string]string{}
	for _, t := range list {
		k, v, ok := strings.Cut(t, "=")
		if !ok || k == "" {
			return nil, badRequest("--tag %q: want KEY=VALUE", t)
		}
		tags[k] = v
	}
	return tags, nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
