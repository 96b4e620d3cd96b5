package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/internal/spelling"
)

// commandLine has every command below path keep what lecafe promises of its
// command line. The cli package prints help on stdout where something is
// wrong, into the file that was to hold a payload or a policy, and passes over
// arguments that nobody asked for.
func commandLine(path string, commands []*cli.Command) {
	for _, c := range commands {
		path := path + " " + c.Name
		c.HideHelpCommand = true
		c.OnUsageError = usageError(path, c)
		if c.Action == nil {
			c.Action = group(path, c.Subcommands)
			commandLine(path, c.Subcommands)
			continue
		}
		required := required(c.Flags)
		if lines := examples[path]; len(lines) > 0 {
			c.Description = strings.TrimPrefix(c.Description+"\n\nFor example:\n  "+strings.Join(lines, "\n  "), "\n\n")
		}
		before, flags := c.Before, c.Flags
		c.Before = func(c *cli.Context) error {
			for _, f := range required {
				if !c.IsSet(f) {
					return badRequest("--%s is missing; see %s --help", f, path)
				}
			}
			if c.Command.ArgsUsage == "" && c.Args().Present() {
				return badRequest("unexpected argument %q; see %s --help", c.Args().First(), path)
			}
			if err := counted(c, flags); err != nil {
				return err
			}
			if before != nil {
				return before(c)
			}
			return nil
		}
	}
}

// counted refuses numbers and durations below zero, which nothing here counts
// in, and a pause or a limit of no time at all.
func counted(c *cli.Context, flags []cli.Flag) error {
	for _, f := range flags {
		switch f := f.(type) {
		case *cli.DurationFlag:
			switch d := c.Duration(f.Name); {
			case d < 0, d == 0 && c.IsSet(f.Name) && (f.Name == "interval" || f.Name == "timeout"):
				return badRequest("--%s %s: want a positive duration, as 30s or 10m", f.Name, d)
			}
		case *cli.IntFlag:
			if n := c.Int(f.Name); n < 0 {
				return badRequest("--%s %d: want no negative number", f.Name, n)
			}
		}
	}
	return nil
}

// group is the action of a command that only has others.
func group(path string, commands []*cli.Command) cli.ActionFunc {
	return func(c *cli.Context) error {
		if !c.Args().Present() {
			return cli.ShowSubcommandHelp(c)
		}
		return unknownCommand(path, c.Args().First(), commands)
	}
}

func unknownCommand(path, name string, commands []*cli.Command) error {
	var names []string
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return badRequest("no command %q%s; see %s --help", name, meant(name, names), path)
}

func usageError(path string, cmd *cli.Command) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error {
		hint := ""
		if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
			var names []string
			for _, f := range cmd.Flags {
				names = append(names, f.Names()...)
			}
			hint = meant(strings.TrimLeft(name, "-"), names)
		}
		return exitcode.With(exitcode.BadRequest, fmt.Errorf("%w%s; see %s --help", err, hint, path))
	}
}

// meant suggests the name that is nearest to a misspelt one, if one is near.
func meant(name string, names []string) string {
	if len(name) < 3 || len(names) == 0 {
		return ""
	}
	best := slices.MinFunc(names, func(a, b string) int {
		return cmp.Compare(spelling.Distance(name, a), spelling.Distance(name, b))
	})
	if spelling.Distance(name, best) > 2 {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", best)
}

// required takes the names of the required flags, says so in their help, and
// leaves the check to the caller; and it leaves out defaults that say nothing.
func required(flags []cli.Flag) []string {
	var names []string
	for _, f := range flags {
		switch f := f.(type) {
		case *cli.StringFlag:
			if f.Required {
				f.Required = false
				f.Usage += " (required)"
				names = append(names, f.Name)
			}
		case *cli.BoolFlag:
			f.DisableDefaultText = !f.Value
		case *cli.DurationFlag:
			f.Usage, f.DefaultText = defaultOf(f.Usage)
		case *cli.IntFlag:
			f.Usage, f.DefaultText = defaultOf(f.Usage)
		}
	}
	return names
}

// defaultOf takes a default that is told in words out of a usage, so that the
// zero value is not told beside it.
func defaultOf(usage string) (rest, text string) {
	rest, text, _ = strings.Cut(usage, " (default: ")
	return rest, strings.TrimSuffix(text, ")")
}

// flagsFirst lets flags stand behind arguments, as in lecafe bake recipe.yaml
// --plan: the cli package stops to look for them at the first argument. A
// command that runs another one keeps its line as it is.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 || args[len(args)-1] == "--generate-bash-completion" {
		return args
	}
	flags, commands := app.Flags, app.Commands
	out := args[:1:1]
	var arguments []string
	for n := 1; n < len(args); n++ {
		a := args[n]
		switch {
		case a == "--":
			arguments = append(arguments, args[n+1:]...)
			n = len(args)
		case len(a) > 1 && a[0] == '-':
			out = append(out, a)
			name, _, given := strings.Cut(strings.TrimLeft(a, "-"), "=")
			if !given && takesValue(flags, name) && n+1 < len(args) {
				n++
				out = append(out, args[n])
			}
		case len(commands) > 0:
			i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(a) })
			if i < 0 || strings.Contains(commands[i].ArgsUsage, "-- COMMAND") {
				return args
			}
			out = append(out, a)
			flags, commands = commands[i].Flags, commands[i].Subcommands
		default:
			arguments = append(arguments, a)
		}
	}
	if len(arguments) == 0 {
		return out
	}
	return slices.Concat(out, []string{"--"}, arguments)
}

func takesValue(flags []cli.Flag, name string) bool {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			_, is := f.(*cli.BoolFlag)
			return !is
		}
	}
	return false
}
