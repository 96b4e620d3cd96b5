package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/atomicfile"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/userdata"
)

func userdataCommand() *cli.Command {
	return &cli.Command{
		Name:  "userdata",
		Usage: "render and check what instances are told at launch",
		Subcommands: []*cli.Command{
			userdataRenderCommand(),
			userdataLintCommand(),
			userdataWrapCommand(),
			userdataPackCommand(),
		},
	}
}

func userdataRenderCommand() *cli.Command {
	return &cli.Command{
		Name:  "render",
		Usage: "agent settings, scripts and cloud-config as one payload",
		Description: "The payload is a MIME message that cloud-init 22 to 25 takes without warnings. It is\n" +
			"compressed only where it would be over 16 KB otherwise. The same input gives the same\n" +
			"bytes. Cloud-configs come before scripts; each kind keeps its order.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "settings", Usage: "agent settings `FILE`; later ones win"},
			&cli.StringSliceFlag{Name: "set", Usage: "one setting, as report.s3.bucket=NAME (`PATH=VALUE`)"},
			&cli.StringSliceFlag{Name: "script", Usage: "script `FILE` to run at first boot"},
			&cli.StringSliceFlag{Name: "cloud-config", Usage: "cloud-config `FILE`"},
			&cli.StringSliceFlag{Name: "ignore", Usage: "leave out a `RULE` of lecafe userdata lint"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` instead of stdout"},
		},
		Action: userdataRender,
	}
}

func userdataRender(c *cli.Context) error {
	if err := checkOutput(c); err != nil {
		return err
	}
	s, err := readSettings(c.StringSlice("settings"), c.StringSlice("set"))
	if err != nil {
		return exitcode.With(exitcode.BadRequest, err)
	}
	in := userdata.RenderInput{Settings: s}
	for _, name := range append(c.StringSlice("cloud-config"), c.StringSlice("script")...) {
		body, err := readPayload(c, name)
		if err != nil {
			return exitcode.With(exitcode.BadRequest, err)
		}
		in.Sources = append(in.Sources, userdata.Source{Name: name, Body: body})
	}
	out, err := userdata.Render(in)
	if err != nil {
		return exitcode.With(exitcode.BadRequest, err)
	}
	if err := userdata.CheckRules(c.StringSlice("ignore")); err != nil {
		return badRequest("--ignore: %w", err)
	}
	if err := refuseErrors(c.App.ErrWriter, "rendered", out, c.StringSlice("ignore")); err != nil {
		return err
	}
	return writePayload(c, out)
}

// readSettings returns nil where neither files nor single settings are given.
func readSettings(files, sets []string) (*settings.Settings, error) {
	var sources []settings.Source
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read settings: %w", err)
		}
		sources = append(sources, settings.Source{Name: name, Data: data})
	}
	for _, set := range sets {
		path, value, ok := strings.Cut(set, "=")
		if !ok || path == "" {
			return nil, fmt.Errorf("--set %q: write PATH=VALUE, as report.s3.bucket=my-bucket", set)
		}
		var b strings.Builder
		keys := strings.Split(path, ".")
		for i, key := range keys {
			fmt.Fprintf(&b, "%s%s:", strings.Repeat("  ", i), key)
			if i < len(keys)-1 {
				b.WriteString("\n")
			}
		}
		sources = append(sources, settings.Source{Name: "--set " + path, Data: []byte(b.String() + " " + value + "\n")})
	}
	if len(sources) == 0 {
		return nil, nil
	}
	s, err := settings.Decode(sources...)
	if err != nil {
		return nil, err
	}
	return &s, nil
}

// readPayload reads a file, or standard input for "-". Nothing that is larger
// than a payload could ever be is read into memory.
func readPayload(c *cli.Context, name string) ([]byte, error) {
	const limit = 8 << 20
	var r io.Reader = c.App.Reader
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read user data: %w", err)
		}
		defer f.Close()
		r = f
	}
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read user data: %w", err)
	}
	if len(body) > limit {
		return nil, fmt.Errorf("read user data %s: it is over %d MB; give a script or a cloud-config", name, limit>>20)
	}
	return body, nil
}

func writePayload(c *cli.Context, out []byte) error {
	name := c.String("output")
	if name == "" || name == "-" {
		if _, err := c.App.Writer.Write(out); err != nil {
			return fmt.Errorf("write user data: %w", err)
		}
		return nil
	}
	// User data may hold what only its writer should read.
	if err := atomicfile.WriteFile(name, out, 0o600); err != nil {
		return fmt.Errorf("write user data: %w", err)
	}
	return nil
}

// checkOutput refuses a file that cannot be written because of its place,
// before anything is done for it.
func checkOutput(c *cli.Context) error {
	name := c.String("output")
	if name == "" || name == "-" {
		return nil
	}
	if info, err := os.Stat(filepath.Dir(name)); err != nil || !info.IsDir() {
		return badRequest("--output %s: there is no directory %s", name, filepath.Dir(name))
	}
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return badRequest("--output %s: it is a directory; name a file in it", name)
	}
	return nil
}
