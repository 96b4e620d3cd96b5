// Command lecafe bakes AMIs, renders and checks user data, publishes launch
// templates, watches a fleet and runs a local lab.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/internal/awsconf"
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
	acted := false
	marking(app.Commands, &acted)
	err := app.RunContext(ctx, args)
	if !acted && exitcode.Of(err) == exitcode.Failed {
		// What keeps a command from beginning is its command line: a required
		// flag that is missing has an error of its own in the cli package.
		err = exitcode.With(exitcode.BadRequest, err)
	}
	if err != nil && err.Error() != "" {
		fmt.Fprintf(stderr, "lecafe: %v\n", err)
	}
	return exitcode.Of(err)
}

// marking has every command say that it has begun.
func marking(commands []*cli.Command, acted *bool) {
	for _, c := range commands {
		if action := c.Action; action != nil {
			c.Action = func(c *cli.Context) error {
				*acted = true
				return action(c)
			}
		}
		marking(c.Subcommands, acted)
	}
}

func newApp() *cli.App {
	return &cli.App{
		Name:                 "lecafe",
		Usage:                "bake AMIs, and know that every instance came up",
		Version:              version.String(),
		EnableBashCompletion: true,
		HideHelpCommand:      true,
		// Values of repeatable flags may have commas: --set tags={a: b, c: d}.
		DisableSliceFlagSeparator: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "profile", Usage: "AWS shared config `PROFILE`", EnvVars: []string{"AWS_PROFILE"}},
			&cli.StringFlag{Name: "region", Usage: "AWS `REGION`", EnvVars: []string{"AWS_REGION", "AWS_DEFAULT_REGION"}},
			&cli.StringFlag{Name: "endpoint-url", Usage: "base `URL` of LocalStack, moto or the lab", EnvVars: []string{"AWS_ENDPOINT_URL"}},
		},
		Commands:       commands(),
		ExitErrHandler: func(*cli.Context, error) {}, // run decides
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return exitcode.With(exitcode.BadRequest, err)
		},
		CommandNotFound: nil,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return badRequest("no command %q; see lecafe --help", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
}

// badRequest is an error with exit code 2: flags or input are wrong.
func badRequest(format string, args ...any) error {
	return exitcode.With(exitcode.BadRequest, fmt.Errorf(format, args...))
}

// loadAWS returns the SDK's configuration for the global flags. A missing
// region or missing credentials are exit code 3.
func loadAWS(c *cli.Context) (aws.Config, error) {
	cfg, err := awsconf.Load(c.Context, awsconf.Options{
		Profile: c.String("profile"), Region: c.String("region"), Endpoint: c.String("endpoint-url"),
	})
	if err != nil {
		return aws.Config{}, exitcode.With(exitcode.NotReady, err)
	}
	if cfg.Region == "" {
		return aws.Config{}, exitcode.With(exitcode.NotReady, fmt.Errorf("no AWS region: set --region, AWS_REGION or the profile's region"))
	}
	if _, err := cfg.Credentials.Retrieve(c.Context); err != nil {
		return aws.Config{}, exitcode.With(exitcode.NotReady, fmt.Errorf("no AWS credentials: %w", err))
	}
	return cfg, nil
}
