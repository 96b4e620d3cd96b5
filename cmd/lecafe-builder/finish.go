package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/lecafe/lecafe/bake/builder"
	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/bake/cleanup/secrets"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/internal/exitcode"
)

// finish does what a bake does at the end, for another tool that is in charge
// of this machine. Findings go to out, one JSON object a line.
func finish(ctx context.Context, args []string, out io.Writer, log *slog.Logger) int {
	fs := flag.NewFlagSet("finish", flag.ContinueOnError)
	agent := fs.String("agent", "", "install `PATH` as lecafe-agent")
	settings := fs.String("settings", "", "`FILE` that becomes /etc/lecafe/agent.yaml")
	keep := fs.String("keep", "", "cleanup `RULES` to leave out, separated by commas")
	zero := fs.Bool("zero-free-space", false, "overwrite freed blocks")
	if err := fs.Parse(args); err != nil || fs.NArg() > 0 {
		return exitcode.BadRequest
	}
	l := builder.Local{Agent: *agent, Clean: recipe.Clean{ZeroFreeSpace: *zero}}
	if *keep != "" {
		l.Clean.Keep = strings.Split(*keep, ",")
	}
	if err := cleanup.CheckKeep(l.Clean.Keep); err != nil {
		log.Error("finish", "err", err)
		return exitcode.BadRequest
	}
	if *settings != "" {
		data, err := os.ReadFile(*settings)
		if err != nil {
			log.Error("read settings", "err", err)
			return exitcode.BadRequest
		}
		l.Settings = string(data)
	}
	scanner, err := secrets.New()
	if err == nil {
		err = builder.Settle(manifest.Dir)
	}
	if err != nil {
		log.Error("finish", "err", err)
		return exitcode.Failed
	}
	b := &builder.Builder{Dir: manifest.Dir, Root: "/", Log: log, Scanner: scanner}
	findings, err := b.Finish(ctx, l)
	if err != nil {
		log.Error("finish", "err", err)
		return exitcode.Failed
	}
	enc := json.NewEncoder(out)
	for _, f := range findings {
		if err := enc.Encode(f); err != nil {
			log.Error("finish", "err", err)
			return exitcode.Failed
		}
	}
	if len(findings) > 0 {
		fmt.Fprintf(os.Stderr, "lecafe-builder: %d findings\n", len(findings))
		return exitcode.Failed
	}
	return exitcode.Done
}
