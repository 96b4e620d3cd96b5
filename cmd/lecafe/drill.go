package main

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go/middleware"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/drill"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/image"
	"github.com/lecafe/lecafe/lab/machine"
)

func drillCommand() *cli.Command {
	return &cli.Command{
		Name:      "drill",
		Usage:     "boot an image once for each way to fail, and check what is said of it",
		ArgsUsage: "RECIPE",
		Description: "Bakes the recipe in a lab of its own and boots the image with payloads and faults that make\n" +
			"boots fail, and with some that do not. Exit 1 if any verdict or cause is wrong. Needs root on Linux.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "distro", Usage: "what the image is baked from: debian-12 or debian-13", Value: "debian-12"},
			&cli.StringFlag{Name: "payloads", Usage: "boot the cases of `TABLE` instead: payloads that lie elsewhere"},
			&cli.StringSliceFlag{Name: "case", Usage: "only the cases that `PATTERN` matches, as runcmd-*"},
			&cli.BoolFlag{Name: "list", Usage: "list the cases and end"},
			&cli.IntFlag{Name: "parallel", Usage: "boot `N` instances at once", Value: 2},
			&cli.DurationFlag{Name: "deadline", Usage: "the image's bootstrap deadline", Value: 75 * time.Second},
			&cli.DurationFlag{Name: "patience", Usage: "wait so long for a report", Value: 4 * time.Minute},
			&cli.StringSliceFlag{Name: "set", Usage: "override a field of the recipe: `PATH=VALUE`"},
			&cli.StringFlag{Name: "agent", Usage: "lecafe-agent for the image, `FILE`"},
			&cli.StringFlag{Name: "builder", Usage: "lecafe-builder for the builder, `FILE`"},
			&cli.BoolFlag{Name: "json", Usage: "print the results as one JSON object"},
			&cli.StringFlag{Name: "state-dir", Usage: "`DIR` for disks and consoles while the drill runs", Value: lab.DefaultStateDir, EnvVars: []string{"LECAFE_LAB_STATE_DIR"}},
			&cli.BoolFlag{Name: "verbose", Usage: "log what the lab does to stderr"},
			cacheFlag(), mirrorFlag(),
		},
		Action: drillAction,
	}
}

func drillAction(c *cli.Context) error {
	cases, table, err := drillCases(c)
	if err != nil {
		return err
	}
	if c.Bool("list") {
		for _, k := range cases {
			fmt.Fprintf(c.App.Writer, "%-18s %-9s %-26s %s\n", k.Name, k.Expect.Verdict, k.Expect.Code, k.About)
		}
		return nil
	}
	if c.NArg() != 1 {
		return badRequest("drill takes one recipe, flags stand before it; see lecafe drill --help")
	}
	if err := machine.Ready(); err != nil {
		return exitcode.With(exitcode.NotReady, err)
	}
	release, err := image.Find(c.String("distro"))
	if err != nil {
		return badRequest("--distro: %w", err)
	}
	if table != nil {
		if table.Distro != "" && table.Distro != release.Name {
			fmt.Fprintf(c.App.ErrWriter, "lecafe: what %s expects was written for %s\n", c.String("payloads"), table.Distro)
		}
		if err := table.Fetch(c.Context, c.String("cache"), c.String("mirror")); err != nil {
			if errors.Is(err, drill.ErrTable) {
				return exitcode.With(exitcode.BadRequest, err)
			}
			return exitcode.With(exitcode.NotReady, err)
		}
		if cases, err = chosen(c, table.Cases); err != nil {
			return err
		}
	}
	r, err := recipe.Load(c.Args().First(), append(c.StringSlice("set"), "source.ssm_parameter=/aws/service/debian/release/"+release.Version+"/latest/amd64")...)
	if err != nil {
		return exitcode.With(exitcode.BadRequest, err)
	}
	// What Le Café's user data says is baked in, so that a case's payload
	// stays what it is.
	r.Agent.Bootstrap.Deadline = c.Duration("deadline")
	r.Agent.Config = []settings.Object{{Source: "s3://" + drillBucket + "/" + drillKey, Path: "/opt/lecafe/app-config.txt", Mode: "0644"}}
	r.Agent.Orders.Queue = drillQueue
	programs, err := bake.FindPrograms(bake.Programs{Agent: c.String("agent"), Builder: c.String("builder")}, r.Architecture)
	if err != nil {
		return exitcode.With(exitcode.NotReady, err)
	}
	base, err := buildImage(c, release.Name)
	if err != nil {
		return err
	}
	g := newDrillGround()
	l, err := lab.Start(c.Context, lab.Options{
		Driver: lab.DriverNspawn, StateDir: c.String("state-dir"), Images: []*image.Image{base}, TimeScale: 20, Clock: &g.clock,
		Seed: drillSeed(), Log: labLog(c), Faults: g.machineFaults, IMDS: g.metadataFaults,
	})
	if err != nil {
		return err
	}
	g.lab = l
	defer func() {
		if err := l.Close(); err != nil {
			fmt.Fprintf(c.App.ErrWriter, "lecafe: close the lab: %v\n", err)
		}
	}()
	g.cfg = aws.Config{
		Region: lab.Region, BaseEndpoint: &l.URL, Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		APIOptions: []func(*middleware.Stack) error{awsconf.WholeBodies},
	}
	r.Agent.AWS.EndpointURL = l.URL
	results, err := g.bakeAndRun(c, r, programs, cases)
	if err != nil {
		return err
	}
	return printDrill(c, release.Name, results)
}

// drillCases are the cases that --payloads and --case ask for. Those of a
// table have no payload yet.
func drillCases(c *cli.Context) ([]drill.Case, *drill.Table, error) {
	if file := c.String("payloads"); file != "" {
		table, err := drill.ReadTable(file)
		if err != nil {
			return nil, nil, exitcode.With(exitcode.BadRequest, err)
		}
		cases, err := chosen(c, table.Cases)
		return cases, table, err
	}
	all, err := drill.Cases()
	if err != nil {
		return nil, nil, err
	}
	cases, err := chosen(c, all)
	return cases, nil, err
}

// chosen are the cases that --case asks for.
func chosen(c *cli.Context, all []drill.Case) ([]drill.Case, error) {
	patterns := c.StringSlice("case")
	if len(patterns) == 0 {
		return all, nil
	}
	var out []drill.Case
	used := make(map[string]bool)
	for _, k := range all {
		for _, p := range patterns {
			match, err := path.Match(p, k.Name)
			if err != nil {
				return nil, badRequest("--case %q: %w", p, err)
			}
			if match && !slices.ContainsFunc(out, func(o drill.Case) bool { return o.Name == k.Name }) {
				out = append(out, k)
			}
			used[p] = used[p] || match
		}
	}
	for _, p := range patterns {
		if !used[p] {
			return nil, badRequest("--case %q matches no case; see lecafe drill --list", p)
		}
	}
	return out, nil
}

func (g *drillGround) bakeAndRun(c *cli.Context, r *recipe.Recipe, programs bake.Programs, cases []drill.Case) ([]drill.Result, error) {
	show := newDisplay(c.App.ErrWriter)
	out, err := bake.Run(c.Context, bake.Options{Config: g.cfg, Recipe: r, Programs: programs, Report: show.event})
	show.close()
	if err != nil {
		showStep(c, err)
		return nil, err
	}
	g.imageID = out.ImageID
	done := 0
	return drill.Run(c.Context, cases, g, drill.Options{
		Parallel: c.Int("parallel"), Patience: c.Duration("patience"),
		Done: func(r drill.Result) {
			done++
			state := "right"
			if r.Wrong != "" {
				state = "WRONG: " + r.Wrong
			}
			fmt.Fprintf(c.App.ErrWriter, "%2d/%d  %-18s %-9s %5.1f s  %s\n", done, len(cases), r.Name, r.Verdict, r.Seconds, state)
		},
	})
}

func printDrill(c *cli.Context, distro string, results []drill.Result) error {
	wrong := 0
	for _, r := range results {
		if r.Wrong != "" {
			wrong++
		}
	}
	if c.Bool("json") {
		if err := writeJSON(c.App.Writer, struct {
			Distro string         `json:"distro"`
			Wrong  int            `json:"wrong"`
			Cases  []drill.Result `json:"cases"`
		}{distro, wrong, results}); err != nil {
			return err
		}
	} else if err := drill.WriteMatrix(c.App.Writer, results); err != nil {
		return err
	}
	if wrong > 0 {
		var names []string
		for _, r := range results {
			if r.Wrong != "" {
				names = append(names, r.Name)
			}
		}
		return fmt.Errorf("%d of %d cases are wrong: %s", wrong, len(results), strings.Join(names, ", "))
	}
	return nil
}
