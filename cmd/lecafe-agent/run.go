package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/lecafe/lecafe/agent"
	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/orders/client"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/internal/cli"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/internal/version"
	"github.com/lecafe/lecafe/systemd"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "judge this boot, report it and keep the config (lecafe-agent.service)",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "`DIR` that stands for /", Value: "/", Hidden: true},
			&cli.StringFlag{Name: "imds", Usage: "`URL` of instance metadata", Hidden: true},
			&cli.StringFlag{Name: "console", Usage: "`DEVICE` to speak on", Value: "/dev/console", Hidden: true},
		},
		Action: func(c *cli.Context) error {
			log := systemd.Log(c.App.ErrWriter)
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			var notify systemd.Notify
			last := ""
			a, err := agent.New(c.Context, agent.Options{
				Root: c.String("root"), IMDSEndpoint: c.String("imds"), Console: c.String("console"), Log: log, Reload: hup,
				Notify: func(s agent.State) {
					if line := statusText(s); line != last {
						last = line
						logNotify(log, notify.Status("%s", line))
					}
				},
			})
			if err != nil {
				return exitcode.With(exitcode.NotReady, err)
			}
			logNotify(log, notify.Ready())
			defer func() { logNotify(log, notify.Stopping()) }()
			return a.Run(c.Context)
		},
	}
}

func statusText(s agent.State) string {
	switch {
	case s.Judged && len(s.Unsent) > 0:
		return fmt.Sprintf("%s; %d report deliveries are waiting", s.Verdict, len(s.Unsent))
	case s.Judged:
		return string(s.Verdict) + ", reported"
	case len(s.Causes) > 0:
		return "booting: " + s.Causes[0].Message
	}
	for _, st := range s.Stages {
		if st.Status == "running" {
			return "booting: " + string(st.Name)
		}
	}
	return "booting"
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "what the running agent knows: verdict, stages, config, reports that wait",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
			&cli.StringFlag{Name: "root", Value: "/", Hidden: true},
			&cli.StringFlag{Name: "socket", Usage: "`PATH` of the orders service's socket", Value: orders.Socket},
		},
		Action: func(c *cli.Context) error {
			s, err := agent.ReadState(c.String("root"))
			if err != nil {
				return exitcode.With(exitcode.NotReady, err)
			}
			o := ordersStatus(c)
			if c.Bool("json") {
				// Absent until the bootstrap is judged. What cannot be read is absent too.
				r, _ := agent.ReadReport(c.String("root"))
				b, err := json.MarshalIndent(struct {
					agent.State
					Bootstrap *report.Report `json:"bootstrap,omitempty"`
					Orders    *orders.Status `json:"orders,omitempty"` // absent where the service does not answer
				}{s, r, o}, "", "  ")
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.App.Writer, "%s\n", b)
				return err
			}
			printStatus(c, s)
			printOrders(c, o)
			if s.Judged && s.Verdict == report.Failure {
				return exitcode.With(exitcode.Failed, fmt.Errorf("the bootstrap failed"))
			}
			return nil
		},
	}
}

func printStatus(c *cli.Context, s agent.State) {
	w := c.App.Writer
	verdict := string(s.Verdict)
	if !s.Judged {
		verdict = "pending"
	}
	fmt.Fprintf(w, "verdict   %s\n          %s\n", verdict, s.Summary)
	fmt.Fprintf(w, "instance  %s %s %s\n", s.Instance.ID, s.Instance.Type, s.Instance.AvailabilityZone)
	if s.Sender != "" {
		fmt.Fprintf(w, "sender    %s\n", s.Sender)
	}
	for _, st := range s.Stages {
		took := ""
		if st.StartedAt != nil && st.FinishedAt != nil {
			took = st.FinishedAt.Sub(*st.StartedAt).Round(10 * time.Millisecond).String()
		}
		fmt.Fprintf(w, "stage     %-20s %-8s %s\n", st.Name, st.Status, took)
	}
	for _, o := range s.Config {
		line := "not here yet"
		if o.Generation > 0 {
			line = fmt.Sprintf("generation %d", o.Generation)
		}
		if o.Files > 0 {
			line += fmt.Sprintf(", %d files", o.Files)
		}
		if !o.Fresh {
			line += ", not confirmed by S3"
		}
		fmt.Fprintf(w, "config    %s %s\n", o.Path, line)
	}
	for _, cause := range s.Causes {
		fmt.Fprintf(w, "trouble   %s: %s\n", cause.Code, cause.Message)
	}
	for _, p := range s.Unsent {
		fmt.Fprintf(w, "unsent    %s to %s: %s\n", p.Report, p.Sink, p.Error)
	}
}

// ordersStatus asks the orders service; nil where it does not answer.
func ordersStatus(c *cli.Context) *orders.Status {
	ctx, cancel := context.WithTimeout(c.Context, 2*time.Second)
	defer cancel()
	cl := client.New(c.String("socket"))
	defer cl.Close()
	b, err := cl.Get(ctx, "/v1/status")
	var s orders.Status
	if err != nil || json.Unmarshal(b, &s) != nil {
		return nil
	}
	return &s
}

func printOrders(c *cli.Context, s *orders.Status) {
	w := c.App.Writer
	if s == nil {
		fmt.Fprintln(w, "orders    the service does not answer; systemctl status lecafe-orders says why")
		return
	}
	fmt.Fprintf(w, "orders    %s: %d in the spool, %d sent, %d parked", strings.ReplaceAll(s.State, "_", " "), s.Spooled, s.Forward.Sent, s.Parked)
	if !s.OldestAt.IsZero() {
		fmt.Fprintf(w, ", the oldest %s old", time.Since(s.OldestAt).Round(time.Second))
	}
	fmt.Fprintln(w)
	if s.Forward.LastError != "" {
		fmt.Fprintf(w, "          %s\n", report.Redact(s.Forward.LastError))
	}
	if !s.Credentials.IsZero() {
		fmt.Fprintf(w, "          credentials until %s\n", s.Credentials.UTC().Format(time.RFC3339))
	}
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version",
		Action: func(c *cli.Context) error {
			_, err := fmt.Fprintln(c.App.Writer, version.String())
			return err
		},
	}
}
