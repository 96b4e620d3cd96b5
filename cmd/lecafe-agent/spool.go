package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"text/tabwriter"
	"time"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/agent/spool"
	"github.com/lecafe/lecafe/internal/cli"
	"github.com/lecafe/lecafe/internal/exitcode"
)

func spoolCommand() *cli.Command {
	dir := &cli.StringFlag{Name: "state-dir", Usage: "`DIR` of spool and parked orders", Value: orders.StateDir}
	parked := &cli.BoolFlag{Name: "parked", Usage: "the parked orders, not the spool"}
	jsonFlag := &cli.BoolFlag{Name: "json", Usage: "one JSON object a line"}
	return &cli.Command{
		Name:  "spool",
		Usage: "look at the orders on disk, or send them, without the service",
		Description: "ls, cat and verify change nothing and may be used while the service runs.\n" +
			"replay needs the service stopped: systemctl stop lecafe-orders.service lecafe-orders.socket",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list segments, or parked orders with their reasons", Flags: []cli.Flag{dir, parked, jsonFlag}, Action: spoolList},
			{Name: "cat", Usage: "print the orders that are not sent, one JSON object a line, bodies included", Flags: []cli.Flag{dir, parked, &cli.BoolFlag{Name: "all", Usage: "sent ones too, as long as they are on disk"}}, Action: spoolCat},
			{Name: "verify", Usage: "check every byte; exit 1 if any is damaged", Flags: []cli.Flag{dir}, Action: spoolVerify},
			{Name: "replay", Usage: "send what is there to the queue", Flags: []cli.Flag{
				dir, parked,
				&cli.StringFlag{Name: "queue", Usage: "`NAME` or URL of the queue (default: from the settings)"},
				&cli.StringFlag{Name: "region", Usage: "AWS `REGION` (default: $AWS_REGION, the settings', the instance's)", EnvVars: []string{"AWS_REGION"}},
				&cli.StringFlag{Name: "endpoint-url", Usage: "base `URL` of LocalStack, moto or the lab"},
				&cli.BoolFlag{Name: "no-imds", Usage: "ask no instance metadata; keys come from the environment"},
				&cli.DurationFlag{Name: "timeout", Usage: "how long to try", Value: 10 * time.Minute},
			}, Action: spoolReplay},
		},
	}
}

func inspect(c *cli.Context) (*spool.Inspection, error) {
	dir := spoolDir(c.String("state-dir"))
	in, err := spool.Inspect(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, exitcode.With(exitcode.BadRequest, fmt.Errorf("no spool in %s: name the service's state directory with --state-dir", dir))
	case errors.Is(err, fs.ErrPermission):
		return nil, exitcode.With(exitcode.NotReady, fmt.Errorf("%w: run it as root", err))
	}
	return in, err
}

func spoolList(c *cli.Context) error {
	if c.Bool("parked") {
		return parkedList(c)
	}
	in, err := inspect(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		for _, s := range in.Segments {
			if err := enc.Encode(s); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SEGMENT\tBYTES\tORDERS\tSENT\tSTATE")
	for _, s := range in.Segments {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", s.Name, s.Bytes, s.Records, s.Acked, segmentState(s))
	}
	for _, name := range in.Aside {
		fmt.Fprintf(w, "%s\t\t\t\tdamaged bytes kept aside\n", name)
	}
	return w.Flush()
}

func segmentState(s spool.SegmentInfo) string {
	state := "open"
	switch {
	case s.Empty:
		state = "spare"
	case s.Sealed:
		state = "sealed"
	}
	if len(s.Damaged) > 0 {
		state += ", damaged"
	}
	if s.Torn {
		state += ", torn tail"
	}
	return state
}

func parkedList(c *cli.Context) error {
	p := orders.Parking{Dir: parkedDir(c.String("state-dir"))}
	names, err := p.Names()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	enc := json.NewEncoder(c.App.Writer)
	if !c.Bool("json") {
		fmt.Fprintln(w, "ORDER\tPARKED\tCODE\tMESSAGE")
	}
	for _, name := range names {
		e, err := p.Read(name)
		if err != nil {
			return err
		}
		if c.Bool("json") {
			e.Order, e.Record = nil, nil
			if err := enc.Encode(struct {
				Name string `json:"name"`
				*orders.Parked
			}{name, e}); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, e.ParkedAt.Format(time.RFC3339), e.Code, e.Message)
	}
	return w.Flush()
}

func spoolCat(c *cli.Context) error {
	enc := json.NewEncoder(c.App.Writer)
	enc.SetEscapeHTML(false)
	if c.Bool("parked") {
		p := orders.Parking{Dir: parkedDir(c.String("state-dir"))}
		names, err := p.Names()
		if err != nil {
			return err
		}
		for _, name := range names {
			e, err := p.Read(name)
			if err != nil {
				return err
			}
			if err := enc.Encode(e); err != nil {
				return err
			}
		}
		return nil
	}
	in, err := inspect(c)
	if err != nil {
		return err
	}
	for e, err := range in.Records() {
		if err != nil {
			return err
		}
		if e.Acked && !c.Bool("all") {
			continue
		}
		o, err := orders.DecodeRecord(e.Data)
		if err != nil {
			fmt.Fprintf(c.App.ErrWriter, "lecafe-agent: %s at %d: %v\n", e.Segment, e.Offset, err)
			continue
		}
		if err := enc.Encode(o); err != nil {
			return err
		}
	}
	return nil
}

func spoolVerify(c *cli.Context) error {
	in, err := inspect(c)
	if err != nil {
		return err
	}
	var records, acked uint64
	bad := len(in.Aside)
	for _, s := range in.Segments {
		records, acked = records+s.Records, acked+s.Acked
		for _, d := range s.Damaged {
			bad++
			fmt.Fprintf(c.App.Writer, "%s: bytes %d to %d are damaged\n", s.Name, d.From, d.To)
		}
		if s.Torn {
			fmt.Fprintf(c.App.Writer, "%s: unfinished commit at %d, never acknowledged; the next start cuts it\n", s.Name, s.End)
		}
	}
	for _, name := range in.Aside {
		fmt.Fprintf(c.App.Writer, "%s: damaged bytes that were kept aside\n", name)
	}
	if !in.CursorOK {
		fmt.Fprintln(c.App.Writer, "cursor: damaged; orders that were sent may be sent again under their IDs")
	}
	fmt.Fprintf(c.App.Writer, "%d segments, %d orders, %d of them sent, %d damaged ranges\n", len(in.Segments), records, acked, bad)
	if bad > 0 {
		return fmt.Errorf("the spool is damaged: the orders in these bytes are lost; the others are sent")
	}
	return nil
}

func spoolReplay(c *cli.Context) error {
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
	defer cancel()
	state := c.String("state-dir")
	if _, err := os.Stat(spoolDir(state)); err != nil {
		return exitcode.With(exitcode.BadRequest, fmt.Errorf("no spool in %s: name the service's state directory with --state-dir", state))
	}
	in := &orders.Instance{Root: "/", NoIMDS: c.Bool("no-imds"), Override: settings.Settings{
		AWS:    settings.AWS{Region: c.String("region"), EndpointURL: c.String("endpoint-url")},
		Orders: settings.Orders{Queue: c.String("queue")},
	}}
	if err := checkFlags(in.Override); err != nil {
		return err
	}
	target, err := in.Resolve(ctx)
	if err != nil {
		return exitcode.With(exitcode.NotReady, err)
	}
	api := orders.NewClient(target.AWS, orders.DefaultConcurrency)
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, nil))
	if err := becomeOwner(state); err != nil {
		return err
	}
	// The lock of the spool keeps the service and a second replay away.
	sp, err := spool.Open(spool.Options{Dir: spoolDir(state), Log: log})
	if err != nil {
		return exitcode.With(exitcode.NotReady, err)
	}
	defer sp.Close()
	var r orders.Replayed
	if c.Bool("parked") {
		r, err = orders.ReplayParked(ctx, api, target.Queue, orders.Parking{Dir: parkedDir(state)}, log)
	} else {
		r, err = orders.ReplaySpool(ctx, sp, api, target.Queue, parkedDir(state), log)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%d sent, %d refused for good, %d left\n", r.Sent, len(r.Parked), r.Left)
	if r.Left > 0 {
		return fmt.Errorf("not all orders could be sent: %s: they are still on disk, run it again", r.Err)
	}
	if len(r.Parked) > 0 {
		return fmt.Errorf("the queue refused %d orders: lecafe-agent spool ls --parked says why", len(r.Parked))
	}
	return nil
}
