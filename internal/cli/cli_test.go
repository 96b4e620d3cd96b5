package cli_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/internal/cli"
)

var errUsage = errors.New("usage")

func app(out *bytes.Buffer, action func(*cli.Context) error) *cli.App {
	return &cli.App{
		Name: "prog", Usage: "does things", Version: "1.2", Writer: out,
		OnUsageError: func(_ *cli.Context, err error, _ bool) error { return errors.Join(errUsage, err) },
		Commands: []*cli.Command{
			{Name: "go", Usage: "goes", ArgsUsage: "[BODY]", Flags: []cli.Flag{
				&cli.StringFlag{Name: "name", Usage: "a `WORD`", Value: "n", EnvVars: []string{"CLI_TEST_NAME"}},
				&cli.BoolFlag{Name: "loud"}, &cli.IntFlag{Name: "count", Value: 3}, &cli.Int64Flag{Name: "bytes"},
				&cli.DurationFlag{Name: "wait", Value: time.Second}, &cli.StringSliceFlag{Name: "tag"},
				&cli.StringFlag{Name: "secret", Hidden: true},
			}, Action: action},
			{Name: "box", Usage: "has more", Subcommands: []*cli.Command{{Name: "open", Usage: "opens", Action: action}}},
			{Name: "hidden", Hidden: true, Action: action},
		},
	}
}

func TestFlagsAndArguments(t *testing.T) {
	t.Setenv("CLI_TEST_NAME", "")
	called := 0
	err := app(&bytes.Buffer{}, func(c *cli.Context) error {
		called++
		if c.String("name") != "x" || !c.Bool("loud") || c.Int("count") != 3 || c.Int64("bytes") != 5 || c.Duration("wait") != time.Minute ||
			!slices.Equal(c.StringSlice("tag"), []string{"a", "b"}) || !slices.Equal(c.Args().Slice(), []string{"body", "--more"}) || !c.IsSet("name") || c.IsSet("count") {
			t.Errorf("got %v %v", c.Args(), c.StringSlice("tag"))
		}
		return nil
	}).RunContext(t.Context(), []string{"prog", "go", "--name", "x", "-loud", "--tag=a", "body", "--tag", "b", "--bytes=5", "--wait", "1m", "--", "--more"})
	if err != nil || called != 1 {
		t.Error(err, called)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("CLI_TEST_NAME", "from-env")
	for given, want := range map[string]string{"": "from-env", "--name=y": "y"} {
		err := app(&bytes.Buffer{}, func(c *cli.Context) error {
			if got := c.String("name"); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			return nil
		}).RunContext(t.Context(), slices.DeleteFunc([]string{"prog", "go", given}, func(s string) bool { return s == "" }))
		if err != nil {
			t.Error(err)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range []string{"prog go --nope", "prog go --count x", "prog box nothing", "prog go --wait soon", "prog nothing", "prog box open more", "prog hidden more"} {
		err := app(&bytes.Buffer{}, func(*cli.Context) error { t.Errorf("%s ran", args); return nil }).RunContext(t.Context(), strings.Fields(args))
		if !errors.Is(err, errUsage) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestHelp(t *testing.T) {
	for args, want := range map[string][]string{
		"prog --help":          {"Usage: prog COMMAND", "go ", "box ", "has more"},
		"prog":                 {"Usage: prog COMMAND"},
		"prog go -h":           {"Usage: prog go [FLAGS] [BODY]", "--name WORD", "a WORD (default: n)", "--wait VALUE", "(default: 1s)"},
		"prog box":             {"Usage: prog box COMMAND", "open"},
		"prog --version":       {"prog version 1.2"},
		"prog box open --help": {"Usage: prog box open"},
	} {
		var out bytes.Buffer
		err := app(&out, func(*cli.Context) error { t.Errorf("%s ran", args); return nil }).RunContext(t.Context(), strings.Fields(args))
		for _, w := range want {
			if err != nil || !strings.Contains(out.String(), w) {
				t.Errorf("%s: %v, no %q in\n%s", args, err, w, &out)
			}
		}
		if strings.Contains(out.String(), "hidden") || strings.Contains(out.String(), "secret") {
			t.Errorf("%s shows what is hidden", args)
		}
	}
}

func TestSubcommand(t *testing.T) {
	called := false
	if err := app(&bytes.Buffer{}, func(*cli.Context) error { called = true; return nil }).RunContext(t.Context(), []string{"prog", "box", "open"}); err != nil || !called {
		t.Error(err, called)
	}
}
