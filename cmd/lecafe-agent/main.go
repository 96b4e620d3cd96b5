// Command lecafe-agent runs on instances: it judges the boot and reports it,
// pulls the application's config and forwards the application's orders.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/lecafe/lecafe/internal/cli"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/internal/version"
)

func main() { os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr)) }

// run is main without the exit: the script tests call it too.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal ends the work gracefully; from then on the default
	// action is back, so that a second one ends the program at once.
	context.AfterFunc(ctx, stop)

	app := newApp()
	app.Reader, app.Writer, app.ErrWriter = stdin, stdout, stderr
	err := app.RunContext(ctx, args)
	if err != nil && err.Error() != "" {
		fmt.Fprintf(stderr, "lecafe-agent: %v\n", err)
	}
	return exitcode.Of(err)
}

func newApp() *cli.App {
	return &cli.App{
		Name:     "lecafe-agent",
		Usage:    "prove that an instance is up, and carry its orders",
		Version:  version.String(),
		Commands: commands(),
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return exitcode.With(exitcode.BadRequest, err)
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return exitcode.With(exitcode.BadRequest, fmt.Errorf("no command %q; see lecafe-agent --help", c.Args().First()))
			}
			return cli.ShowAppHelp(c)
		},
	}
}
