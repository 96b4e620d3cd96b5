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
			&cli.StringSliceFlag{Name: "distro", Usage: "what the image is baked from: debian-12, debian-13, or both, one after the other", Value: cli.NewStringSlice("debian-12")},
			&cli.StringFlag{Name: "payloads", Usage: "boot the cases of `TABLE` too: payloads that lie elsewhere"},
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
	all, table, err := drillCases(c)
	if err != nil {
		return err
	}
	if c.Bool("list") {
		for _, k := range all {
			fmt.Fprintf(c.App.Writer, "%-26s %-9s %-26s %s\n", k.Name, k.Expect.Verdict, k.Expect.Code, k.About)
		}
		return nil
	}
	if c.NArg() != 1 {
		return badRequest("drill takes one recipe; see lecafe drill --help")
	}
	if n := c.Int("parallel"); n < 1 {
		return badRequest("--parallel %d: want at least 1", n)
	}
	if d := c.Duration("deadline"); d < settings.MinDeadline || d > settings.MaxDeadline {
		return badRequest("--deadline %s: want %s to %s", d, settings.MinDeadline, settings.MaxDeadline)
	}
	var releases []image.Release
	for _, name := range c.StringSlice("distro") {
		r, err := image.Find(name)
		if err != nil {
			return badRequest("--distro: %w", err)
		}
		releases = append(releases, r)
	}
	if err := machine.Ready(); err != nil {
		return exitcode.With(exitcode.NotReady, err)
	}
	if table != nil {
		if err := table.Fetch(c.Context, c.String("cache"), c.String("mirror")); err != nil {
			if errors.Is(err, drill.ErrTable) {
				return exitcode.With(exitcode.BadRequest, err)
			}
			return exitcode.With(exitcode.NotReady, err)
		}
		// With the payloads in them.
		if all, err = join(table); err != nil {
			return err
		}
		if all, err = chosen(c, all); err != nil {
			return err
		}
	}
	var runs []drillRun
	for _, r := range releases {
		cases := slices.Clone(all)
		if table != nil && table.Distro != "" && table.Distro != r.Name {
			fmt.Fprintf(c.App.ErrWriter, "lecafe: the cases of %s expect %s and are left out on %s\n", c.String("payloads"), table.Distro, r.Name)
			cases = slices.DeleteFunc(cases, table.Has)
		}
		results, err := drillOn(c, r, cases)
		if err != nil {
			return fmt.Errorf("drill on %s: %w", r.Name, err)
		}
		run := drillRun{Distro: r.Name, Cases: results}
		run.LagMedian, run.LagMax, run.Lags = drill.Lags(results, cases)
		for _, r := range results {
			if r.Wrong != "" {
				run.Wrong++
			}
		}
		runs = append(runs, run)
	}
	return printDrill(c, runs)
}

// drillOn bakes the recipe for one release in a lab of its own and boots the
// cases.
func drillOn(c *cli.Context, release image.Release, cases []drill.Case) ([]drill.Result, error) {
	r, err := recipe.Load(c.Args().First(), append(c.StringSlice("set"), "source.ssm_parameter=/aws/service/debian/release/"+release.Version+"/latest/amd64")...)
	if err != nil {
		return nil, exitcode.With(exitcode.BadRequest, err)
	}
	// What Le Café's user data says is baked in, so that a case's payload
	// stays what it is.
	r.Agent.Bootstrap.Deadline = c.Duration("deadline")
	r.Agent.Config = []settings.Object{{Source: "s3://" + drillBucket + "/" + drillKey, Path: "/opt/lecafe/app-config.txt", Mode: "0644"}}
	r.Agent.Orders.Queue = drillQueue
	programs, err := bake.FindPrograms(bake.Programs{Agent: c.String("agent"), Builder: c.String("builder")}, r.Architecture)
	if err != nil {
		return nil, exitcode.With(exitcode.NotReady, err)
	}
	base, err := buildImage(c, release.Name)
	if err != nil {
		return nil, err
	}
	g := newDrillGround()
	l, err := lab.Start(c.Context, lab.Options{
		Driver: lab.DriverNspawn, StateDir: c.String("state-dir"), Images: []*image.Image{base}, TimeScale: 20, Clock: &g.clock,
		Seed: drillSeed(), Log: labLog(c), Faults: g.machineFaults, IMDS: g.metadataFaults,
	})
	if err != nil {
		return nil, err
	}
	g.lab = l
	defer l.OnCall(g.note)()
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
	return g.bakeAndRun(c, r, programs, cases)
}

// drillCases are the cases that --payloads and --case ask for. Those of a
// table have no payload yet.
func drillCases(c *cli.Context) ([]drill.Case, *drill.Table, error) {
	var table *drill.Table
	if file := c.String("payloads"); file != "" {
		var err error
		if table, err = drill.ReadTable(file); err != nil {
			return nil, nil, exitcode.With(exitcode.BadRequest, err)
		}
	}
	all, err := join(table)
	if err != nil {
		return nil, nil, err
	}
	all, err = chosen(c, all)
	return all, table, err
}

// join is the drill's own cases and those of a table, if there is one.
func join(table *drill.Table) ([]drill.Case, error) {
	all, err := drill.Cases()
	if err != nil || table == nil {
		return all, err
	}
	if i := slices.IndexFunc(all, table.Has); i >= 0 {
		return nil, badRequest("--payloads: there is a case %q already; give yours another name", all[i].Name)
	}
	return append(all, table.Cases...), nil
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
	out, err := bake.Run(c.Context, bake.Options{Config: g.cfg, Recipe: r, Programs: programs, Report: show.event, Poll: 100 * time.Millisecond})
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
			fmt.Fprintf(c.App.ErrWriter, "%2d/%d  %-26s %-9s %5.1f s  %s\n", done, len(cases), r.Name, r.Verdict, r.Seconds, state)
		},
	})
}

// drillRun is what came of one release.
type drillRun struct {
	Distro string         `json:"distro"`
	Wrong  int            `json:"wrong"`
	Cases  []drill.Result `json:"cases"`

	// From the end of cloud-init to the report in S3, in seconds, of boots
	// without a fault.
	LagMedian float64 `json:"lag_median_seconds"`
	LagMax    float64 `json:"lag_max_seconds"`
	Lags      int     `json:"lags"` // so many boots
}

// printDrill prints one matrix or JSON object for each release.
func printDrill(c *cli.Context, runs []drillRun) error {
	total := 0
	var wrong []string
	for _, run := range runs {
		total += len(run.Cases)
		for _, r := range run.Cases {
			if r.Wrong != "" {
				wrong = append(wrong, run.Distro+"/"+r.Name)
			}
		}
		if c.Bool("json") {
			if err := writeJSON(c.App.Writer, run); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(c.App.Writer, "%s\n", run.Distro)
		if err := drill.WriteMatrix(c.App.Writer, run.Cases); err != nil {
			return err
		}
		if run.Lags > 0 {
			fmt.Fprintf(c.App.Writer, "from the end of cloud-init to the report in S3: median %.2f s, longest %.2f s, of %d boots\n", run.LagMedian, run.LagMax, run.Lags)
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d of %d cases are wrong: %s", len(wrong), total, strings.Join(wrong, ", "))
	}
	return nil
}
