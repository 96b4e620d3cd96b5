package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/cli"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/systemd"
)

func ordersCommand() *cli.Command {
	return &cli.Command{
		Name:  "orders",
		Usage: "take orders on the unix socket and send them to SQS (lecafe-orders.service)",
		Description: "Settings come from " + settings.Path + ", its drop-ins and the user data; flags win over them.\n" +
			"The socket is systemd's where it passes one; otherwise --listen makes it.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "state-dir", Usage: "`DIR` of spool and parked orders", Value: orders.StateDir, EnvVars: []string{"STATE_DIRECTORY"}},
			&cli.StringFlag{Name: "listen", Usage: "`PATH` of the socket where systemd passes none", Value: orders.Socket},
			&cli.StringFlag{Name: "root", Usage: "`DIR` that the settings files are below", Value: "/", Hidden: true},
			&cli.StringFlag{Name: "queue", Usage: "`NAME` or URL of the queue"},
			&cli.StringFlag{Name: "seal-to", Usage: "`s3://BUCKET/PREFIX` for what is left at the instance's end"},
			&cli.Int64Flag{Name: "max-bytes", Usage: "limit of the spool on disk in `BYTES`"},
			&cli.StringFlag{Name: "region", Usage: "AWS `REGION`"},
			&cli.StringFlag{Name: "endpoint-url", Usage: "base `URL` of LocalStack, moto or the lab"},
			&cli.BoolFlag{Name: "no-imds", Usage: "ask no instance metadata: neither user data nor notices"},
			&cli.IntFlag{Name: "concurrency", Usage: "calls to SQS at once", Value: orders.DefaultConcurrency},
			&cli.DurationFlag{Name: "drain", Usage: "how long a stop may go on sending (default: 20s, or the settings')"},
		},
		Action: func(c *cli.Context) error {
			log := systemd.Log(c.App.ErrWriter)
			in := &orders.Instance{Root: c.String("root"), NoIMDS: c.Bool("no-imds"), Override: settings.Settings{
				AWS:    settings.AWS{Region: c.String("region"), EndpointURL: c.String("endpoint-url")},
				Orders: settings.Orders{Queue: c.String("queue"), SealTo: c.String("seal-to"), MaxBytes: c.Int64("max-bytes"), Drain: c.Duration("drain")},
			}}
			if err := checkFlags(in.Override); err != nil {
				return err
			}
			if n := c.Int("concurrency"); n < 1 {
				return exitcode.With(exitcode.BadRequest, fmt.Errorf("--concurrency %d: want at least 1", n))
			}
			listeners, err := listen(c.String("listen"))
			if err != nil {
				return exitcode.With(exitcode.NotReady, err)
			}
			var notify systemd.Notify
			watchdog, err := notify.Watchdog()
			if err != nil {
				log.Warn("orders: no watchdog", "error", err)
			}
			every := 5 * time.Second
			if watchdog > 0 {
				every = min(every, watchdog/3)
			}
			// User data may say otherwise, but orders are taken before it is known.
			baked := in.Baked().Orders
			s := &orders.Service{
				Dir: c.String("state-dir"), MaxBytes: baked.MaxBytes, Log: log, Listen: listeners,
				Resolve: in.Resolve, Notices: in.Notices, Stopping: systemStopping,
				Concurrency: c.Int("concurrency"), DrainBound: baked.Drain, ProgressEvery: every,
				Extend: func(d time.Duration) { logNotify(log, notify.Extend(d)) },
				Ready:  func() { logNotify(log, notify.Ready()) },
				Progress: func(st orders.Status) {
					logNotify(log, notify.Alive())
					logNotify(log, notify.Status("%s", statusLine(st)))
				},
			}
			defer func() { logNotify(log, notify.Stopping()) }()
			return s.Run(c.Context)
		},
	}
}

// checkFlags holds flags to what the same settings are held to in a file. Those
// of a file are passed over where they are wrong, because a boot must go on; a
// command line has somebody before it.
func checkFlags(s settings.Settings) error {
	problems := settings.Validate(s)
	for n := range problems {
		problems[n].File = "command line"
	}
	return exitcode.With(exitcode.BadRequest, problems.Err())
}

func logNotify(log *slog.Logger, err error) {
	if err != nil {
		log.Warn("orders: systemd not told", "error", err)
	}
}

func statusLine(s orders.Status) string {
	line := fmt.Sprintf("%s: %d in the spool, %d sent, %d parked", strings.ReplaceAll(s.State, "_", " "), s.Spooled, s.Forward.Sent, s.Parked)
	if s.Forward.LastError != "" && s.State != "forwarding" {
		line += "; " + strings.Join(strings.Fields(s.Forward.LastError), " ")
	}
	return line[:min(len(line), 400)]
}

// listen takes systemd's sockets, or makes one.
func listen(path string) ([]net.Listener, error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take sockets from systemd: %w", err)
	}
	var out []net.Listener
	for _, l := range passed {
		if l != nil {
			out = append(out, l)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	l, err := orders.ListenUnix(path, 0o660)
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

// systemStopping asks systemd whether the machine is going down.
func systemStopping(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	// The exit code is not 0 while the state is anything but running.
	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output()
	return strings.TrimSpace(string(out)) == "stopping"
}

// spoolDir and parkedDir are where the service keeps what it has.
func spoolDir(state string) string  { return filepath.Join(state, "spool") }
func parkedDir(state string) string { return filepath.Join(state, "parked") }

// stdinOrArg reads an argument, or all of stdin for "-".
func stdinOrArg(c *cli.Context) (string, error) {
	switch {
	case c.Args().Len() > 1:
		return "", exitcode.With(exitcode.BadRequest, fmt.Errorf("send takes one body, got %d arguments: quote it, or use - for standard input", c.Args().Len()))
	case c.Args().Len() == 1 && c.Args().First() != "-":
		return c.Args().First(), nil
	}
	if f, ok := c.App.Reader.(*os.File); ok && c.Args().Len() == 0 {
		if st, err := f.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
			return "", exitcode.With(exitcode.BadRequest, fmt.Errorf("no body: give it as an argument, or on standard input"))
		}
	}
	return readAll(c.App.Reader)
}
