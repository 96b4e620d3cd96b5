package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/image"
	"github.com/lecafe/lecafe/lab/machine"
)

func labCommand() *cli.Command {
	return &cli.Command{
		Name:  "lab",
		Usage: "run a local AWS whose instances really boot",
		Description: "One endpoint answers as EC2, Auto Scaling, S3, SQS, SSM, IAM, STS and CloudFormation. Its instances are systemd\n" +
			"containers with a cloud-init, a metadata service and a disk of their own; CreateImage captures\n" +
			"the disk. Booting needs root on Linux; --driver none keeps instances as records.",
		Subcommands: []*cli.Command{
			{
				Name: "up", Usage: "run a lab in the foreground and print the environment to export", Flags: labFlags(),
				Description: "Ctrl-C ends the lab, its instances and all it made on this host.",
				Action: func(c *cli.Context) error {
					return withLab(c, func(ctx context.Context, l *lab.Lab) error {
						for _, name := range lab.Unset() {
							fmt.Fprintln(c.App.Writer, "unset "+name)
						}
						for _, v := range l.Env() {
							fmt.Fprintln(c.App.Writer, "export "+v)
						}
						for distro, ami := range l.AMIs {
							fmt.Fprintf(c.App.ErrWriter, "image %s is %s\n", distro, ami)
						}
						fmt.Fprintln(c.App.ErrWriter, "the lab is up; Ctrl-C ends it")
						<-ctx.Done()
						return nil
					})
				},
			},
			{
				Name: "run", Usage: "run one command in a fresh lab", ArgsUsage: "-- COMMAND [ARG...]", Flags: labFlags(),
				Description: "The command finds the lab in its environment. Its exit code is lecafe's; the lab ends with it.",
				Action: func(c *cli.Context) error {
					if !c.Args().Present() {
						return badRequest("no command: lecafe lab run -- COMMAND")
					}
					if _, err := exec.LookPath(c.Args().First()); err != nil {
						return badRequest("%v", err)
					}
					return withLab(c, func(ctx context.Context, l *lab.Lab) error {
						return runIn(ctx, l, c.App, c.Args().Slice())
					})
				},
			},
			labExecCommand(),
			labImageCommand(),
			labIMDSCommand(),
		},
	}
}

func labFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "listen", Usage: "loopback `ADDR` of the endpoint, inside instances too", Value: "127.0.0.1:0"},
		&cli.StringFlag{Name: "driver", Usage: "what runs instances: " + lab.DriverNspawn + " boots them, " + lab.DriverNone + " does not", Value: lab.DriverNspawn},
		&cli.StringSliceFlag{Name: "distro", Usage: "base image to have, built if it is not cached; repeatable", Value: cli.NewStringSlice("debian-12")},
		stateDirFlag(),
		&cli.Float64Flag{Name: "time-scale", Usage: "divide the cloud's own delays by `N`; boots take what they take", Value: 10},
		&cli.BoolFlag{Name: "aws-times", Usage: "instances that boot change state as slowly as on AWS, with --time-scale: pending 15 s, stopping 30 s, image 45 s"},
		&cli.StringFlag{Name: "seed", Usage: "what is in the cloud at first: le-cafe (buckets, queues, instance profile of the example), stack (what lecafe stack up makes, and LECAFE_STACK) or none", Value: "le-cafe"},
		&cli.BoolFlag{Name: "verbose", Usage: "log what the lab does to stderr"},
		cacheFlag(), mirrorFlag(),
	}
}

// withLab runs f in a lab made from the flags of c and closes the lab after it.
func withLab(c *cli.Context, f func(context.Context, *lab.Lab) error) (err error) {
	if host, _, err := net.SplitHostPort(c.String("listen")); err != nil || !loopback(host) {
		return badRequest("--listen %q: want a loopback address and a port, as 127.0.0.1:4566; port 0 is any", c.String("listen"))
	}
	o := lab.Options{Listen: c.String("listen"), Driver: c.String("driver"), StateDir: c.String("state-dir"), TimeScale: c.Float64("time-scale"), AWSTimes: c.Bool("aws-times"), Log: labLog(c)}
	if o.TimeScale <= 0 {
		return badRequest("--time-scale %v: give a number above 0", o.TimeScale)
	}
	switch c.String("seed") {
	case "le-cafe":
		o.Seed = lab.LeCafe()
	case "stack", "none":
	default:
		return badRequest("--seed %q: choose le-cafe, stack or none", c.String("seed"))
	}
	switch o.Driver {
	case lab.DriverNone:
	case lab.DriverNspawn:
		if err := machine.Ready(); err != nil {
			return exitcode.With(exitcode.NotReady, fmt.Errorf("%w (--driver none needs neither)", err))
		}
		for _, distro := range slices.Compact(c.StringSlice("distro")) {
			img, err := buildImage(c, distro)
			if err != nil {
				return err
			}
			o.Images = append(o.Images, img)
		}
	default:
		return badRequest("--driver %q: choose %s or %s", o.Driver, lab.DriverNspawn, lab.DriverNone)
	}
	l, err := lab.Start(c.Context, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if c.String("seed") == "stack" {
		if err := seedStack(c, l); err != nil {
			return err
		}
	}
	return f(c.Context, l)
}

// runIn runs a command whose environment is the lab's.
func runIn(ctx context.Context, l *lab.Lab, app *cli.App, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	drop := lab.Unset()
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if !slices.Contains(drop, name) {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, l.Env()...)
	cmd.Cancel = func() error {
		// On a terminal Ctrl-C has reached the command as well, and a second
		// signal would cut short its cleaning up.
		grace := time.Duration(0)
		if in, ok := app.Reader.(*os.File); ok && term.IsTerminal(int(in.Fd())) {
			grace = commandGrace / 2
		}
		time.AfterFunc(grace, func() { _ = cmd.Process.Signal(syscall.SIGTERM) }) // it may have ended
		return nil
	}
	cmd.WaitDelay = commandGrace
	return runCommand(cmd, app, argv[0])
}

// runCommand runs a command on lecafe's own input and output; its exit code is
// the error's.
func runCommand(cmd *exec.Cmd, app *cli.App, name string) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = app.Reader, app.Writer, app.ErrWriter
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		// The command has said itself what went wrong.
		return exitcode.With(exit.ExitCode(), errors.New(""))
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", name, err)
	}
	return nil
}

// commandGrace is how long an interrupted command may clean up after itself.
const commandGrace = time.Minute

func labLog(c *cli.Context) *slog.Logger {
	level := slog.LevelWarn
	if c.Bool("verbose") {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
}

func stateDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "state-dir", Usage: "`DIR` for disks and consoles while the lab is up", Value: lab.DefaultStateDir, EnvVars: []string{"LECAFE_LAB_STATE_DIR"}}
}

func labExecCommand() *cli.Command {
	return &cli.Command{
		Name: "exec", Usage: "a shell, or one command, as root on an instance of a lab that is up", ArgsUsage: "INSTANCE [-- COMMAND [ARG...]]",
		Description: "Looks for the instance in the labs that keep their state in --state-dir. The command's exit code is lecafe's.",
		Flags:       []cli.Flag{stateDirFlag()},
		Action: func(c *cli.Context) error {
			id := c.Args().First()
			if !instanceRE.MatchString(id) {
				return badRequest("want an instance ID: lecafe lab exec i-0123456789abcdef0 [-- COMMAND]")
			}
			argv := c.Args().Tail()
			if len(argv) > 0 && argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				argv = []string{"/bin/bash", "--login"}
			}
			cmd, err := machine.Enter(c.Context, c.String("state-dir"), id, argv...)
			if errors.Is(err, machine.ErrNotFound) {
				return fmt.Errorf("no lab below %s has %s running: lecafe lab up starts a lab, --state-dir names another place", c.String("state-dir"), id)
			}
			if err != nil {
				return err
			}
			if term := os.Getenv("TERM"); term != "" {
				cmd.Env = append(cmd.Env, "TERM="+term)
			}
			return runCommand(cmd, c.App, argv[0])
		},
	}
}

func cacheFlag() cli.Flag {
	return &cli.StringFlag{Name: "cache", Usage: "`DIR` of built images", Value: image.DefaultCache, EnvVars: []string{"LECAFE_LAB_CACHE"}}
}

func mirrorFlag() cli.Flag {
	return &cli.StringFlag{Name: "mirror", Usage: "Debian mirror `URL` to build images from", Value: image.DefaultMirror, EnvVars: []string{"LECAFE_LAB_MIRROR"}}
}

func labImageCommand() *cli.Command {
	return &cli.Command{
		Name: "image", Usage: "the base images that labs boot",
		Subcommands: []*cli.Command{
			{
				Name: "build", Usage: "build an image unless it is cached, and print its directory", ArgsUsage: "debian-12|debian-13",
				Flags: []cli.Flag{cacheFlag(), mirrorFlag(), &cli.BoolFlag{Name: "verbose", Usage: "show what mmdebstrap does"}},
				Action: func(c *cli.Context) error {
					if c.NArg() != 1 {
						return badRequest("name one image: debian-12 or debian-13")
					}
					img, err := buildImage(c, c.Args().First())
					if err != nil {
						return err
					}
					_, err = fmt.Fprintln(c.App.Writer, img.Dir)
					return err
				},
			},
			{
				Name: "list", Usage: "list the images that can be built and where they are cached", Flags: []cli.Flag{cacheFlag()},
				Action: func(c *cli.Context) error {
					for _, r := range image.Releases() {
						state := "not built"
						img, err := image.Open(r, image.Options{Cache: c.String("cache")})
						switch {
						case err == nil:
							state = fmt.Sprintf("%s cloud-init %s, built %s", img.Dir, img.Packages["cloud-init"], img.Built.Format(time.DateOnly))
						case !errors.Is(err, image.ErrNotBuilt):
							return err
						}
						fmt.Fprintf(c.App.Writer, "%s\t%s\n", r.Name, state)
					}
					return nil
				},
			},
		},
	}
}

// buildImage finds or builds an image for the flags of c.
func buildImage(c *cli.Context, name string) (*image.Image, error) {
	r, err := image.Find(name)
	if err != nil {
		return nil, exitcode.With(exitcode.BadRequest, err)
	}
	o := image.Options{Cache: c.String("cache"), Mirror: c.String("mirror")}
	if c.Bool("verbose") {
		o.Out = c.App.ErrWriter
	}
	if _, err := image.Open(r, o); errors.Is(err, image.ErrNotBuilt) {
		if err := image.Ready(); err != nil {
			return nil, exitcode.With(exitcode.NotReady, err)
		}
		// Building takes about as long as a cup of coffee: say what goes on.
		_, _ = io.WriteString(c.App.ErrWriter, "building the base image "+name+", once: this takes a minute or two\n")
	}
	start := time.Now()
	img, err := image.Build(c.Context, r, o)
	if err != nil {
		return nil, err
	}
	if !img.Reused {
		fmt.Fprintf(c.App.ErrWriter, "built %s in %.0f s\n", name, time.Since(start).Seconds())
	}
	return img, nil
}
