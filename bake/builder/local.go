package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
)

// Local is what another tool that is in charge of the builder, such as Packer,
// wants done on it at the end.
type Local struct {
	Agent    string // path of lecafe-agent; empty: it is not installed
	Settings string // content of /etc/lecafe/agent.yaml
	Clean    recipe.Clean
}

// Finish installs the agent, waits for cloud-init to end, cleans, and returns
// what inspection still finds. The last hook then cleans once more when the
// machine goes down. b.Dir must hold this program as lecafe-builder.
func (b *Builder) Finish(ctx context.Context, l Local) ([]cleanup.Finding, error) {
	b.plan = &manifest.Plan{Settings: l.Settings, Clean: l.Clean}
	if l.Agent != "" {
		if err := b.putAgent(ctx, l.Agent); err != nil {
			if n := len(b.state.Steps); n > 0 { // the step says more than the error
				for _, line := range b.state.Steps[n-1].Output {
					b.Log.Error("lecafe-agent install", "output", line)
				}
			}
			return nil, fmt.Errorf("install lecafe-agent: %w", err)
		}
	}
	if err := b.waitForCloudInit(ctx); err != nil {
		return nil, err
	}
	findings, err := b.cleaned(ctx)
	if err != nil || len(findings) > 0 {
		return findings, err
	}
	if l.Clean.ZeroFreeSpace {
		err = b.zeroFree(ctx)
	}
	return nil, err
}

// Settle copies the running program to where the last hook looks for it.
func Settle(dir string) (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	to := filepath.Join(dir, "lecafe-builder")
	if self == to {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	in, err := os.Open(self)
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o700)
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}
