// Package cli is a command line for programs that have to stay small: commands
// with flags, subcommands and help, on the standard library's flag package. It
// has the names of github.com/urfave/cli/v2, of which it is the part that
// lecafe-agent uses. That package links text/template, for which the linker
// keeps every method of every AWS client: 6 MB, on disk and in memory.
//
// It owns parsing and help. It refuses to exit, to print errors and to read
// configuration: its caller does that.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// App is a program.
type App struct {
	Name, Usage, Version string
	Commands             []*Command
	Reader               io.Reader
	Writer, ErrWriter    io.Writer
	// OnUsageError turns an error of the command line into the one Run returns.
	OnUsageError func(c *Context, err error, isSubcommand bool) error
	Action       func(*Context) error // without a command
}

// Command is one of a program's commands. With Subcommands it does nothing by
// itself; without ArgsUsage it refuses arguments.
type Command struct {
	Name, Usage, ArgsUsage, Description string
	Flags                               []Flag
	Action                              func(*Context) error
	Subcommands                         []*Command
	Hidden                              bool
}

// Flag is one of the flags below.
type Flag interface {
	define(*flag.FlagSet) error
	describe() (name, usage, value string, hidden bool)
}

// The kinds of flags. EnvVars are read, in order, where the flag is not given.
// In Usage a word in back quotes stands for the value.
type (
	StringFlag struct {
		Name, Usage, Value string
		EnvVars            []string
		Hidden             bool
	}
	BoolFlag struct {
		Name, Usage string
		Value       bool
		Hidden      bool
	}
	IntFlag struct {
		Name, Usage string
		Value       int
		Hidden      bool
	}
	Int64Flag struct {
		Name, Usage string
		Value       int64
		Hidden      bool
	}
	DurationFlag struct {
		Name, Usage string
		Value       time.Duration
		Hidden      bool
	}
	// StringSliceFlag may be given several times.
	StringSliceFlag struct {
		Name, Usage string
		Hidden      bool
	}
)

func (f *StringFlag) define(s *flag.FlagSet) error {
	value := f.Value
	for _, name := range f.EnvVars {
		if v, ok := os.LookupEnv(name); ok && v != "" {
			value = v
			break
		}
	}
	s.String(f.Name, value, f.Usage)
	return nil
}
func (f *BoolFlag) define(s *flag.FlagSet) error  { s.Bool(f.Name, f.Value, f.Usage); return nil }
func (f *IntFlag) define(s *flag.FlagSet) error   { s.Int(f.Name, f.Value, f.Usage); return nil }
func (f *Int64Flag) define(s *flag.FlagSet) error { s.Int64(f.Name, f.Value, f.Usage); return nil }
func (f *DurationFlag) define(s *flag.FlagSet) error {
	s.Duration(f.Name, f.Value, f.Usage)
	return nil
}
func (f *StringSliceFlag) define(s *flag.FlagSet) error {
	s.Var(&list{}, f.Name, f.Usage)
	return nil
}

func (f *StringFlag) describe() (string, string, string, bool) {
	return f.Name, f.Usage, f.Value, f.Hidden
}
func (f *BoolFlag) describe() (string, string, string, bool) { return f.Name, f.Usage, "", f.Hidden }
func (f *IntFlag) describe() (string, string, string, bool) {
	return f.Name, f.Usage, number(int64(f.Value)), f.Hidden
}
func (f *Int64Flag) describe() (string, string, string, bool) {
	return f.Name, f.Usage, number(f.Value), f.Hidden
}
func (f *DurationFlag) describe() (string, string, string, bool) {
	if f.Value == 0 {
		return f.Name, f.Usage, "", f.Hidden
	}
	return f.Name, f.Usage, f.Value.String(), f.Hidden
}
func (f *StringSliceFlag) describe() (string, string, string, bool) {
	return f.Name, f.Usage, "", f.Hidden
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

type list struct{ values []string }

func (l *list) String() string     { return strings.Join(l.values, ",") }
func (l *list) Set(v string) error { l.values = append(l.values, v); return nil }
func (l *list) Get() any           { return l.values }

// Context is one call of a command.
type Context struct {
	Context context.Context
	App     *App
	Command *Command
	flags   *flag.FlagSet
}

// Args are what stands behind the flags.
type Args []string

// First returns the first argument, "" where there is none.
func (a Args) First() string {
	if len(a) == 0 {
		return ""
	}
	return a[0]
}

// Len returns how many there are.
func (a Args) Len() int { return len(a) }

// Present says whether there are any.
func (a Args) Present() bool { return len(a) > 0 }

// Slice returns them all.
func (a Args) Slice() []string { return a }

// Args returns the arguments.
func (c *Context) Args() Args { return c.flags.Args() }

func get[T any](c *Context, name string) T {
	var zero T
	f := c.flags.Lookup(name)
	if f == nil {
		panic("cli: no flag --" + name) // a mistake of the program's
	}
	g, ok := f.Value.(flag.Getter)
	if !ok {
		return zero
	}
	v, ok := g.Get().(T)
	if !ok {
		panic(fmt.Sprintf("cli: flag --%s is no %T", name, zero))
	}
	return v
}

// String returns a flag's value.
func (c *Context) String(name string) string { return get[string](c, name) }

// Bool returns a flag's value.
func (c *Context) Bool(name string) bool { return get[bool](c, name) }

// Int returns a flag's value.
func (c *Context) Int(name string) int { return get[int](c, name) }

// Int64 returns a flag's value.
func (c *Context) Int64(name string) int64 { return get[int64](c, name) }

// Duration returns a flag's value.
func (c *Context) Duration(name string) time.Duration { return get[time.Duration](c, name) }

// StringSlice returns a flag's values.
func (c *Context) StringSlice(name string) []string { return get[[]string](c, name) }

// IsSet says whether a flag was given.
func (c *Context) IsSet(name string) bool {
	set := false
	c.flags.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// RunContext runs the command that args, the program's name first, ask for.
func (a *App) RunContext(ctx context.Context, args []string) error {
	if a.Reader == nil {
		a.Reader = os.Stdin
	}
	if a.Writer == nil {
		a.Writer = os.Stdout
	}
	if a.ErrWriter == nil {
		a.ErrWriter = os.Stderr
	}
	top := &Command{Name: a.Name, Usage: a.Usage, Subcommands: a.Commands, Action: a.Action}
	if len(args) > 0 {
		args = args[1:]
	}
	return a.run(ctx, a.Name, top, args)
}

func (a *App) run(ctx context.Context, path string, cmd *Command, args []string) error {
	s := flag.NewFlagSet(path, flag.ContinueOnError)
	s.SetOutput(io.Discard) // the caller prints errors
	s.Usage = func() {}
	for _, f := range cmd.Flags {
		if err := f.define(s); err != nil {
			return err
		}
	}
	version := path == a.Name && a.Version != ""
	if version {
		s.Bool("version", false, "print the version")
	}
	c := &Context{Context: ctx, App: a, Command: cmd, flags: s}
	// Flags may stand behind arguments, until --.
	err := parse(s, args, len(cmd.Subcommands) == 0)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return a.help(path, cmd)
	case err != nil:
		return a.usage(c, fmt.Errorf("%w; see %s --help", err, path), path != a.Name)
	case version && c.Bool("version"):
		_, err := fmt.Fprintf(a.Writer, "%s version %s\n", a.Name, a.Version)
		return err
	}
	if len(cmd.Subcommands) > 0 && c.Args().Present() {
		for _, sub := range cmd.Subcommands {
			if sub.Name == c.Args().First() {
				return a.run(ctx, path+" "+sub.Name, sub, c.Args()[1:])
			}
		}
		if cmd.Action == nil {
			return a.usage(c, fmt.Errorf("no command %q; see %s --help", c.Args().First(), path), true)
		}
	}
	if cmd.Action == nil {
		return a.help(path, cmd)
	}
	if path != a.Name && cmd.ArgsUsage == "" && c.Args().Present() {
		return a.usage(c, fmt.Errorf("unexpected argument %q; see %s --help", c.Args().First(), path), true)
	}
	return cmd.Action(c)
}

// parse lets flags stand anywhere among the arguments where mixed is set.
func parse(s *flag.FlagSet, args []string, mixed bool) error {
	var rest []string
	for {
		if err := s.Parse(args); err != nil {
			return err
		}
		left := s.Args()
		if !mixed || len(left) == 0 {
			rest = append(rest, left...)
			break
		}
		if i := len(args) - len(left); i > 0 && args[i-1] == "--" {
			rest = append(rest, left...)
			break
		}
		rest, args = append(rest, left[0]), left[1:]
	}
	// Leaves the arguments alone in the set.
	return s.Parse(append([]string{"--"}, rest...))
}

func (a *App) usage(c *Context, err error, sub bool) error {
	if a.OnUsageError != nil {
		return a.OnUsageError(c, err, sub)
	}
	return err
}

// ShowAppHelp prints what the program can do.
func ShowAppHelp(c *Context) error {
	return c.App.help(c.App.Name, &Command{Name: c.App.Name, Usage: c.App.Usage, Subcommands: c.App.Commands})
}

func (a *App) help(path string, cmd *Command) error {
	w := tabwriter.NewWriter(a.Writer, 0, 8, 3, ' ', 0)
	fmt.Fprintf(w, "%s - %s\n\nUsage: %s", path, cmd.Usage, path)
	if len(cmd.Subcommands) > 0 {
		fmt.Fprint(w, " COMMAND")
	}
	if len(cmd.Flags) > 0 {
		fmt.Fprint(w, " [FLAGS]")
	}
	if cmd.ArgsUsage != "" {
		fmt.Fprint(w, " "+cmd.ArgsUsage)
	}
	fmt.Fprintln(w)
	if cmd.Description != "" {
		fmt.Fprintf(w, "\n%s\n", cmd.Description)
	}
	if len(cmd.Subcommands) > 0 {
		fmt.Fprintln(w, "\nCommands:")
		for _, sub := range cmd.Subcommands {
			if !sub.Hidden {
				fmt.Fprintf(w, "   %s\t%s\n", sub.Name, sub.Usage)
			}
		}
	}
	fmt.Fprintln(w, "\nFlags:")
	for _, f := range cmd.Flags {
		name, usage, value, hidden := f.describe()
		if hidden {
			continue
		}
		arg := ""
		if _, bool := f.(*BoolFlag); !bool {
			arg = " VALUE"
		}
		if _, rest, ok := strings.Cut(usage, "`"); ok {
			if word, _, ok := strings.Cut(rest, "`"); ok {
				arg = " " + word
			}
		}
		usage = strings.ReplaceAll(usage, "`", "")
		if value != "" {
			usage += " (default: " + value + ")"
		}
		fmt.Fprintf(w, "   --%s%s\t%s\n", name, arg, usage)
	}
	fmt.Fprintln(w, "   --help\tthis text")
	return w.Flush()
}
