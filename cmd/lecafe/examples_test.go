package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// Each example is of a command that there is, with flags that it has, and is in
// the command's help.
func TestExamplesAreOfTheirCommands(t *testing.T) {
	for path, lines := range examples {
		commands := newApp().Commands
		var c *cli.Command
		for _, name := range strings.Fields(path)[1:] {
			i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.Name == name })
			if i < 0 {
				t.Fatalf("no command %q", path)
			}
			c = commands[i]
			commands = c.Subcommands
		}
		for _, line := range lines {
			if !strings.Contains(c.Description, line) {
				t.Errorf("%s: its help has no %q", path, line)
			}
			_, rest, ok := strings.Cut(line, path)
			if !ok {
				t.Errorf("%s: not in %q", path, line)
			}
			for _, word := range strings.Fields(rest) {
				if word == "--" || word == ">" || strings.HasPrefix(word, "#") {
					break
				}
				if name := strings.TrimLeft(word, "-"); name != word && name != "" && !slices.ContainsFunc(c.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) }) {
					t.Errorf("%s has no flag %s, as in %q", path, word, line)
				}
			}
		}
	}
}

// A default is told once, and in words where it is no number.
func TestHelpTellsDefaultsOnce(t *testing.T) {
	var walk func([]*cli.Command)
	walk = func(commands []*cli.Command) {
		for _, c := range commands {
			walk(c.Subcommands)
			for _, f := range c.Flags {
				if s := f.String(); strings.Count(s, "(default: ") > 1 {
					t.Errorf("%s: %s", c.Name, s)
				}
			}
		}
	}
	walk(newApp().Commands)
}
