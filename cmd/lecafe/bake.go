package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/promote"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/internal/atomicfile"
	"github.com/lecafe/lecafe/internal/exitcode"
)

func bakeCommand() *cli.Command {
	return &cli.Command{
		Name:      "bake",
		Usage:     "make an AMI from a recipe",
		ArgsUsage: "RECIPE",
		Description: "Launches a builder that no one can reach, provisions, cleans and proves it, and makes an image of it.\n" +
			"What the bake makes besides the image is removed when it ends, fails or is interrupted.\n" +
			"A second Ctrl-C stops at once; lecafe gc then removes the rest.\n\n" +
			"Exit 0: the image is there. 1: a step, the inspection or AWS failed. 2: the recipe or a flag is wrong.\n" +
			"3: no credentials or no permission.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "set", Usage: "override a field of the recipe: `PATH=VALUE` (several times)"},
			&cli.StringFlag{Name: "agent", Usage: "lecafe-agent for the image, `FILE`"},
			&cli.StringFlag{Name: "builder", Usage: "lecafe-builder for the builder, `FILE`"},
			&cli.BoolFlag{Name: "force", Usage: "bake although nothing has changed"},
			&cli.BoolFlag{Name: "plan", Usage: "say what would happen, change nothing"},
			&cli.BoolFlag{Name: "keep-builder", Usage: "leave the builder of a failed bake until its deadline"},
			&cli.BoolFlag{Name: "keep-failed", Usage: "leave an image whose canary failed, tagged as failed"},
			&cli.BoolFlag{Name: "promote", Usage: "then take the image into use, as the recipe's promote section says"},
			&cli.StringFlag{Name: "resume", Usage: "go on with bake `ID` where it stands"},
			&cli.StringFlag{Name: "staging", Usage: "with --resume on another machine, instead of RECIPE: `s3://BUCKET/PREFIX` of the bake"},
			&cli.StringFlag{Name: "manifest", Usage: "write the outcome to `FILE` too"},
			&cli.BoolFlag{Name: "json", Usage: "print the outcome as one JSON object"},
			pollFlag(),
		},
		Action: bakeAction,
	}
}

// pollFlag is of commands that wait for EC2.
func pollFlag() cli.Flag {
	return &cli.DurationFlag{
		Name: "poll", Usage: "at least so long between two questions to EC2; a cloud that is faster than AWS, as the lab, may be asked more often",
		Value: 2 * time.Second, EnvVars: []string{"LECAFE_POLL"},
		Action: func(_ *cli.Context, d time.Duration) error {
			if d < 50*time.Millisecond || d > time.Minute {
				return badRequest("--poll %s: give 50ms to 1m", d)
			}
			return nil
		},
	}
}

func bakeAction(c *cli.Context) error {
	var (
		r   *recipe.Recipe
		err error
	)
	switch {
	case c.Args().Len() == 1:
		if r, err = loadRecipe(c, c.Args().First()); err != nil {
			return err
		}
	case c.Args().Len() > 1:
		return badRequest("bake takes one recipe; see lecafe bake --help")
	case c.String("resume") == "":
		return badRequest("bake takes a recipe; or --resume ID")
	}
	opts := bake.Options{
		Recipe: r, KeepBuilder: c.Bool("keep-builder"), KeepFailed: c.Bool("keep-failed"), Force: c.Bool("force"), StateDir: bake.DefaultStateDir(), Poll: c.Duration("poll"),
	}
	if r != nil {
		opts.Programs, err = bake.FindPrograms(bake.Programs{Agent: c.String("agent"), Builder: c.String("builder")}, r.Architecture)
		if err != nil {
			return exitcode.With(exitcode.NotReady, err)
		}
		opts.GitCommit = gitCommit(c, r.Dir)
	}
	if c.Bool("promote") && (r == nil || r.Promote == nil) {
		return badRequest("--promote needs a recipe with a promote section")
	}
	if opts.Config, err = loadAWS(c); err != nil {
		return err
	}
	if c.Bool("plan") {
		return planAction(c, opts)
	}
	show := newDisplay(c.App.ErrWriter)
	opts.Report = show.event
	abort, release := secondSignal()
	defer release()
	opts.Abort = abort
	var out *bake.Outcome
	if id := c.String("resume"); id != "" {
		if out, err = bake.Resume(c.Context, opts, id, c.String("staging")); errors.Is(err, bake.ErrUnknown) {
			err = exitcode.With(exitcode.BadRequest, err)
		}
	} else {
		out, err = bake.Run(c.Context, opts)
	}
	release()
	show.close()
	if err != nil {
		showStep(c, err)
		return err
	}
	if err := printOutcome(c, out); err != nil || !c.Bool("promote") {
		return err
	}
	o := promotionOf(r, promote.Options{Config: opts.Config, ImageID: out.ImageID, Report: func(line string) { fmt.Fprintln(c.App.ErrWriter, line) }})
	res, err := promote.Run(c.Context, o)
	if err != nil {
		return awsError(err)
	}
	fmt.Fprintf(c.App.ErrWriter, "%s is promoted: %s\n", res.ImageID, strings.Join(res.Done, "; "))
	return nil
}

// secondSignal closes abort at the second Ctrl-C or termination signal; the
// first is the context's. A third ends the program, as does any after release.
func secondSignal() (abort <-chan struct{}, release func()) {
	seen, over, done := make(chan os.Signal, 2), make(chan struct{}), make(chan struct{})
	signal.Notify(seen, os.Interrupt, syscall.SIGTERM)
	go func() {
		defer signal.Stop(seen)
		for range 2 {
			select {
			case <-seen:
			case <-done:
				return
			}
		}
		close(over)
	}()
	return over, sync.OnceFunc(func() { close(done) })
}

// loadRecipe is recipe.Load with exit code 2 for what is wrong in it.
func loadRecipe(c *cli.Context, path string) (*recipe.Recipe, error) {
	r, err := recipe.Load(path, c.StringSlice("set")...)
	return r, exitcode.With(exitcode.BadRequest, err)
}

// showStep prints the end of a failed step's output: the error itself names
// the step, its exit code and line.
func showStep(c *cli.Context, err error) {
	var step *bake.StepError
	if errors.As(err, &step) && len(step.Step.Output) > 0 {
		fmt.Fprintf(c.App.ErrWriter, "\nthe end of the output of step %d (%s):\n", step.Step.Number, step.Step.Name)
		for _, line := range step.Step.Output {
			fmt.Fprintf(c.App.ErrWriter, "  | %s\n", line)
		}
		fmt.Fprintln(c.App.ErrWriter)
	}
}

func printOutcome(c *cli.Context, out *bake.Outcome) error {
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return fmt.Errorf("print outcome: %w", err)
	}
	data = append(data, '\n')
	if file := c.String("manifest"); file != "" {
		if err := atomicfile.WriteFile(file, data, 0o644); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		_, err := c.App.Writer.Write(data)
		return err
	}
	if out.Unchanged {
		fmt.Fprintf(c.App.Writer, "%s %s unchanged: made from the same content, --force bakes anyway\n", out.ImageID, out.ImageName)
		return nil
	}
	fmt.Fprintf(c.App.Writer, "%s %s\n", out.ImageID, out.ImageName)
	for region, id := range out.Copies {
		fmt.Fprintf(c.App.Writer, "%s in %s\n", id, region)
	}
	return nil
}

// gitCommit returns the commit of the work tree that dir is in, 12 digits.
func gitCommit(c *cli.Context, dir string) string {
	out, err := exec.CommandContext(c.Context, "git", "-C", dir, "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func recipeCommand() *cli.Command {
	return &cli.Command{
		Name:  "recipe",
		Usage: "check recipes",
		Subcommands: []*cli.Command{
			{
				Name: "schema", Usage: "print the recipe's JSON Schema",
				Action: func(c *cli.Context) error {
					data, err := recipe.Schema()
					if err != nil {
						return err
					}
					_, err = c.App.Writer.Write(data)
					return err
				},
			},
			validateCommand(),
		},
	}
}

func validateCommand() *cli.Command {
	return &cli.Command{
		Name:      "validate",
		Usage:     "check a recipe and the files it names, without a network",
		ArgsUsage: "RECIPE...",
		Flags:     []cli.Flag{&cli.StringSliceFlag{Name: "set", Usage: "override a field: `PATH=VALUE` (several times)"}},
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return badRequest("validate takes a recipe")
			}
			var errs []error
			for _, path := range c.Args().Slice() {
				_, err := loadRecipe(c, path)
				if err == nil {
					fmt.Fprintf(c.App.Writer, "%s is a valid recipe\n", path)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
}

func planAction(c *cli.Context, opts bake.Options) error {
	p, err := bake.MakePlan(c.Context, opts)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return json.NewEncoder(c.App.Writer).Encode(p)
	}
	verb := "nothing to bake"
	if p.Bake {
		verb = "would bake"
	}
	fmt.Fprintf(c.App.Writer, "%s: %s\nsource: %s %s\n", verb, p.Why, p.SourceImage, p.SourceName)
	if p.Bake {
		for i, s := range p.Steps {
			fmt.Fprintf(c.App.Writer, "step %d: %s\n", i+1, s)
		}
	}
	return nil
}
