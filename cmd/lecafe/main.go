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
	err := app.RunContext(ctx, flagsFirst(app, args))
	if err != nil && err.Error() != "" {
		fmt.Fprintf(stderr, "lecafe: %v\n", err)
	}
	return exitcode.Of(err)
}

func newApp() *cli.App {
	commands := commands()
	commandLine("lecafe", commands)
	app := &cli.App{
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
		Commands:       commands,
		ExitErrHandler: func(*cli.Context, error) {}, // run decides
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownCommand("lecafe", c.Args().First(), commands)
			}
			return cli.ShowAppHelp(c)
		},
	}
	app.OnUsageError = usageError("lecafe", &cli.Command{Flags: app.Flags})
	return app
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
