package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"context"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/agent/orders/client"
	"github.com/lecafe/lecafe/internal/cli"
	"github.com/lecafe/lecafe/internal/exitcode"
)

func sendCommand() *cli.Command {
	return &cli.Command{
		Name:      "send",
		Usage:     "hand one order to the running service, and print its ID once it is on the disk",
		ArgsUsage: "[BODY|-]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "socket", Usage: "`PATH` of the service's socket", Value: orders.Socket},
			&cli.StringFlag{Name: "group", Usage: "message group `ID`, needed for FIFO queues"},
			&cli.StringFlag{Name: "idempotency-key", Usage: "`KEY` under which a repeated send is the same order"},
			&cli.IntFlag{Name: "delay", Usage: "`SECONDS` before the queue shows it, 0 to 900"},
			&cli.StringSliceFlag{Name: "attribute", Usage: "message attribute `NAME=VALUE`, repeatable"},
			&cli.DurationFlag{Name: "timeout", Usage: "how long to try while the spool is full or the service restarts", Value: 30 * time.Second},
		},
		Action: func(c *cli.Context) error {
			body, err := stdinOrArg(c)
			if err != nil {
				return err
			}
			o := client.Order{Body: body, Group: c.String("group"), DelaySeconds: c.Int("delay"), IdempotencyKey: c.String("idempotency-key")}
			for _, a := range c.StringSlice("attribute") {
				name, value, ok := strings.Cut(a, "=")
				if !ok {
					return exitcode.With(exitcode.BadRequest, fmt.Errorf("--attribute %q: write it as NAME=VALUE", a))
				}
				if o.Attributes == nil {
					o.Attributes = map[string]string{}
				}
				o.Attributes[name] = value
			}
			ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
			defer cancel()
			cl := client.New(c.String("socket"))
			defer cl.Close()
			id, err := cl.Send(ctx, o)
			var refused *client.Error
			switch {
			case errors.As(err, &refused) && refused.Status < 429:
				return exitcode.With(exitcode.BadRequest, err)
			case errors.Is(err, client.ErrNoService):
				return exitcode.With(exitcode.NotReady, err)
			case err != nil:
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, id)
			return err
		},
	}
}

func readAll(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, orders.MaxMessage+1))
	if err != nil {
		return "", fmt.Errorf("read body: %w", err)
	}
	if len(b) > orders.MaxMessage {
		return "", exitcode.With(exitcode.BadRequest, fmt.Errorf("the body has more than %d bytes: SQS takes no more", orders.MaxMessage))
	}
	return string(b), nil
}
