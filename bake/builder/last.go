package builder

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

//go:embed last.sh
var lastScript []byte

// lateRules are proved by the last hook alone: the running system writes to
// their paths all the time.
func (b *Builder) lateRules() []string {
	return append(slices.Clone(b.plan.Clean.Keep), cleanup.Volatile...)
}

func (b *Builder) cleanAndInspect(ctx context.Context, res *manifest.Result) error {
	findings, err := b.cleaned(ctx)
	if err != nil {
		return err
	}
	for _, f := range findings {
		res.Report.Causes = append(res.Report.Causes, report.Cause{
			Stage: report.StageSystem, Code: report.CodeBuildFindings, Severity: report.SeverityFailure, File: f.Path, Line: f.Line,
			Message: f.String(), Fix: "remove it in a provision step, or exempt the rule with clean.keep: [" + f.Rule + "]",
		})
	}
	if len(findings) > 0 {
		return fmt.Errorf("%d findings", len(findings))
	}
	if b.plan.Clean.ZeroFreeSpace {
		if err := b.zeroFree(ctx); err != nil {
			return err
		}
	}
	res.Used = used(b.Root)
	return nil
}

// phase tells what is done now, to whoever follows.
func (b *Builder) phase(phase, name string) {
	if b.tell != nil {
		b.tell.phase(phase, name)
	}
}

// cleaned leaves the last hook, cleans, and returns what inspection finds.
func (b *Builder) cleaned(ctx context.Context) ([]cleanup.Finding, error) {
	b.phase("clean", "cleaning")
	// The hook first: once it is there, no way of stopping leaves the builder
	// in the image.
	hook := filepath.Join(b.Root, manifest.LastHook)
	if err := os.MkdirAll(filepath.Dir(hook), 0o755); err != nil {
		return nil, err
	}
	if err := atomicfile.WriteFile(hook, lastScript, 0o755); err != nil {
		return nil, err
	}
	if err := atomicfile.WriteFile(filepath.Join(b.Dir, "keep"), []byte(join(b.plan.Clean.Keep)), 0o600); err != nil {
		return nil, err
	}
	if b.Root == "/" {
		quiet(ctx, b.Log)
	}
	if err := cleanup.Clean(ctx, cleanup.Options{Root: b.Root, Keep: b.plan.Clean.Keep, Log: b.Log}); err != nil {
		return nil, err
	}
	b.phase("inspect", "inspecting")
	findings, err := cleanup.Inspect(ctx, cleanup.Options{Root: b.Root, Keep: b.lateRules(), SetuidBaseline: b.state.Setuid, Scanner: b.Scanner, Log: b.Log})
	if err != nil {
		return nil, err
	}
	own := filepath.Join("/", manifest.Dir)
	return slices.DeleteFunc(findings, func(f cleanup.Finding) bool {
		rel, err := filepath.Rel(own, f.Path)
		return err == nil && filepath.IsLocal(rel) // the last hook removes it
	}), nil
}

func join(words []string) string {
	out := ""
	for _, w := range words {
		out += w + "\n"
	}
	return out
}

// Last is what the last hook calls when nothing runs any more and the root
// file system is writable: it cleans what shutdown wrote.
func Last(ctx context.Context, root, dir string, log *slog.Logger) error {
	var keep []string
	if f, err := os.Open(filepath.Join(dir, "keep")); err == nil {
		data, readErr := io.ReadAll(io.LimitReader(f, 1<<20))
		if err := errors.Join(readErr, f.Close()); err != nil {
			return err
		}
		keep = lines(string(data))
	}
	return cleanup.Clean(ctx, cleanup.Options{Root: root, Keep: keep, Log: log})
}
