// Command lecafe bakes AMIs, renders and checks user data, publishes launch
// templates, watches a fleet and runs a local lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
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
	if exitcode.Of(err) == exitcode.Failed {
		err = awsError(err)
	}
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
// region, missing credentials and a local endpoint that nobody serves are exit
// code 3.
func loadAWS(c *cli.Context) (aws.Config, error) { return loadAWSFor(c, c.String("region")) }

func loadAWSFor(c *cli.Context, region string) (aws.Config, error) {
	endpoint := c.String("endpoint-url")
	if err := checkEndpoint(c.Context, endpoint); err != nil {
		return aws.Config{}, err
	}
	cfg, err := awsconf.Load(c.Context, awsconf.Options{Profile: c.String("profile"), Region: region, Endpoint: endpoint})
	var noProfile config.SharedConfigProfileNotExistError
	switch {
	case errors.As(err, &noProfile):
		return aws.Config{}, exitcode.With(exitcode.BadRequest, fmt.Errorf("--profile: %w", err))
	case err != nil:
		return aws.Config{}, exitcode.With(exitcode.NotReady, err)
	case cfg.Region == "":
		return aws.Config{}, exitcode.With(exitcode.NotReady, errors.New("no AWS region: set --region, AWS_REGION or the profile's region"))
	}
	if _, err := cfg.Credentials.Retrieve(c.Context); err != nil {
		return aws.Config{}, exitcode.With(exitcode.NotReady, fmt.Errorf("no AWS credentials: name a --profile (aws configure makes one, aws sso login renews it) or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: %w", err))
	}
	return cfg, nil
}

// checkEndpoint refuses what is no URL, and finds a lab or LocalStack that has
// ended at once: the SDK would try again for a minute. Only on this host: to
// others the way may lead through a proxy.
func checkEndpoint(ctx context.Context, endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return badRequest("--endpoint-url %q: want a URL, as http://127.0.0.1:4566", endpoint)
	}
	host := u.Hostname()
	if !loopback(host) {
		return nil
	}
	port := u.Port()
	if port == "" {
		port = u.Scheme // their names are known
	}
	d := net.Dialer{Timeout: 2 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return exitcode.With(exitcode.NotReady, fmt.Errorf("nothing answers at %s (--endpoint-url, AWS_ENDPOINT_URL): start the lab or the emulator, or unset it for AWS: %w", endpoint, err))
	}
	return conn.Close()
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
