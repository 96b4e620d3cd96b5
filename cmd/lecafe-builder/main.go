// Command lecafe-builder runs on a builder instance only: `run` does what the
// bake's plan says, `finish` does its end for another tool that is in charge,
// `last` cleans once more when the machine goes down. It is not in the image.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/lecafe/lecafe/bake/builder"
	"github.com/lecafe/lecafe/bake/cleanup/secrets"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/internal/version"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if len(args) > 1 && args[0] == "finish" {
		return finish(ctx, args[1:], os.Stdout, log)
	}
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "usage: lecafe-builder run|last|version, or finish [options]")
		return exitcode.BadRequest
	}
	switch args[0] {
	case "finish":
		return finish(ctx, nil, os.Stdout, log)
	case "version":
		fmt.Println(version.String())
		return exitcode.Done
	case "last":
		if err := builder.Last(ctx, "/", manifest.Dir, log); err != nil {
			log.Error("last cleaning", "err", err)
			return exitcode.Failed
		}
		return exitcode.Done
	case "run":
		scanner, err := secrets.New()
		if err != nil {
			log.Error("start", "err", err)
			return exitcode.Failed
		}
		b := &builder.Builder{
			Dir: manifest.Dir, Root: "/", IMDS: "http://169.254.169.254", Log: log, Scanner: scanner,
			// No overall timeout: a bundle may be large and the line slow. A
			// server that stops answering is left after a while.
			HTTP: &http.Client{Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: 30 * time.Second, TLSHandshakeTimeout: 15 * time.Second,
				DialContext: (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext, IdleConnTimeout: 30 * time.Second,
			}},
		}
		err = b.Run(ctx)
		if errors.Is(err, builder.ErrReboot) {
			return exitcode.Done
		}
		if err != nil {
			log.Error("builder", "err", err)
			return exitcode.Failed
		}
		return exitcode.Done
	}
	fmt.Fprintf(os.Stderr, "lecafe-builder: no command %q; use run, last or version\n", args[0])
	return exitcode.BadRequest
}
