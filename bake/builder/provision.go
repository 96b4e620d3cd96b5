package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

// provision runs the steps that have not ended yet.
func (b *Builder) provision(ctx context.Context) error {
	for i, s := range b.plan.Steps {
		number := i + 1
		if number <= len(b.state.Steps) {
			continue
		}
		out := manifest.Step{Number: number, Name: manifest.StepName(b.named(s))}
		b.tell.step(number, out.Name)
		if b.state.Running == number {
			// It began before a reboot or a crash of this program. A reboot
			// step is over now; any other may have done half its work, and
			// doing it again could do harm.
			if s.Reboot {
				if b.state.BootID == b.bootID() {
					return b.reboot(ctx)
				}
				if err := b.ended(out); err != nil {
					return err
				}
				continue
			}
			out.ExitCode = -1
			out.Output = []string{"the builder was interrupted in this step: it rebooted or ran out of memory; use a step with reboot: true to reboot"}
			return errors.Join(errStep, b.ended(out))
		}
		b.state.Running, b.state.BootID = number, b.bootID()
		if err := b.save(); err != nil {
			return err
		}
		if s.Reboot {
			return b.reboot(ctx)
		}
		began := time.Now()
		err := b.timed(ctx, s, &out)
		out.Seconds = time.Since(began).Seconds()
		if err := errors.Join(err, b.ended(out)); err != nil {
			return errors.Join(errStep, err)
		}
	}
	return nil
}

// named puts the recipe's own file names back where the bundle's stand.
func (b *Builder) named(s recipe.Step) recipe.Step {
	s.Script = cmp.Or(b.plan.Names[s.Script], s.Script)
	return s
}

func (b *Builder) ended(s manifest.Step) error {
	b.state.Steps = append(b.state.Steps, s)
	b.state.Running = 0
	return b.save()
}

func (b *Builder) reboot(ctx context.Context) error {
	b.Log.Info("rebooting")
	if err := exec.CommandContext(ctx, "systemctl", "--no-block", "reboot").Run(); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	return ErrReboot
}

func (b *Builder) bundled(name string) string { return filepath.Join(b.Dir, "bundle", name) }

func (b *Builder) timed(ctx context.Context, s recipe.Step, out *manifest.Step) error {
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("the step's timeout of %s has passed", s.Timeout))
		defer cancel()
	}
	err := b.step(ctx, s, out)
	if err != nil && ctx.Err() != nil {
		out.Output = append(out.Output, context.Cause(ctx).Error())
	}
	return err
}

func (b *Builder) step(ctx context.Context, s recipe.Step, out *manifest.Step) error {
	switch {
	case s.Packages != nil:
		return b.packages(ctx, s.Packages, out)
	case len(s.Files) > 0:
		for _, f := range s.Files {
			if err := b.file(f); err != nil {
				out.ExitCode, out.File, out.Output = 1, f.Path, []string{err.Error()}
				return err
			}
		}
		return nil
	case s.Script != "":
		return b.script(ctx, b.bundled(s.Script), cmp.Or(b.plan.Names[s.Script], s.Script), s.Env, out)
	case s.Run != "":
		path := filepath.Join(b.Dir, "run")
		text := s.Run
		if !strings.HasPrefix(text, "#!") {
			// Bash on the same line, so that line numbers are the recipe's.
			if err := atomicfile.WriteFile(path, []byte(text), 0o700); err != nil {
				return err
			}
			return b.bash(ctx, path, "run", s.Env, out)
		}
		if err := atomicfile.WriteFile(path, []byte(text), 0o700); err != nil {
			return err
		}
		return b.script(ctx, path, "run", s.Env, out)
	case s.Units != nil:
		for _, verb := range []struct {
			args  []string
			units []string
		}{
			{[]string{"daemon-reload"}, nil}, {[]string{"enable"}, s.Units.Enable},
			{[]string{"disable", "--now"}, s.Units.Disable}, {[]string{"mask", "--now"}, s.Units.Mask},
		} {
			if len(verb.units) == 0 && len(verb.args) > 0 && verb.args[0] != "daemon-reload" {
				continue
			}
			if err := b.command(ctx, out, nil, "systemctl", append(append(verb.args, "--"), verb.units...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// file writes one file of the recipe.
func (b *Builder) file(f recipe.File) error {
	mode, err := strconv.ParseUint(cmp.Or(f.Mode, "0644"), 8, 12)
	if err != nil {
		return fmt.Errorf("mode of %s: %w", f.Path, err)
	}
	data := []byte(f.Content)
	if f.Source != "" {
		if data, err = os.ReadFile(b.bundled(f.Source)); err != nil {
			return err
		}
	}
	path := filepath.Join(b.Root, f.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := atomicfile.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	uid, gid, err := owner(f.Owner, f.Group)
	if err != nil {
		return fmt.Errorf("owner of %s: %w; make it in a step before", f.Path, err)
	}
	if uid != os.Geteuid() || gid != os.Getegid() {
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	// Last: chown clears set-uid, and until now nobody else could read it.
	return os.Chmod(path, modeBits(uint32(mode)))
}

// modeBits turns octal 4755 into Go's set-uid, set-gid and sticky bits.
func modeBits(octal uint32) os.FileMode {
	m := os.FileMode(octal & 0o777)
	for bit, flag := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if octal&bit != 0 {
			m |= flag
		}
	}
	return m
}

func owner(name, group string) (uid, gid int, err error) {
	if name == "root" || name == "" {
		uid = 0
	} else if u, err := user.Lookup(name); err != nil {
		return 0, 0, err
	} else if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	if group == "root" || group == "" {
		return uid, 0, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(g.Gid)
	return uid, gid, err
}

// installAgent puts the agent into the image with its units and settings.
func (b *Builder) installAgent(ctx context.Context) error {
	path := filepath.Join(b.Dir, "lecafe-agent")
	if err := b.fetch(ctx, "agent", func(m *manifest.Manifest) manifest.File { return m.Agent }, path, 0o755); err != nil {
		return err
	}
	return b.putAgent(ctx, path)
}

// putAgent installs the agent that is in path.
func (b *Builder) putAgent(ctx context.Context, path string) error {
	conf := filepath.Join(b.Root, "etc/lecafe/agent.yaml")
	if err := os.MkdirAll(filepath.Dir(conf), 0o755); err != nil {
		return err
	}
	if err := atomicfile.WriteFile(conf, []byte(b.plan.Settings), 0o644); err != nil {
		return err
	}
	out := manifest.Step{Number: len(b.plan.Steps) + 1, Name: "install lecafe-agent"}
	began := time.Now()
	err := b.command(ctx, &out, nil, path, "install", "--root", b.Root, "--bake-id", b.state.BakeID)
	out.Seconds = time.Since(began).Seconds()
	if err != nil {
		return errors.Join(errStep, b.ended(out))
	}
	return b.relabel(ctx)
}

// waitForCloudInit returns when no unit of cloud-init is at work any more:
// what it writes after the cleaning would be in the image. Its status file
// alone does not tell: it is written before the units have ended.
func (b *Builder) waitForCloudInit(ctx context.Context) error {
	units := []string{"cloud-init-local.service", "cloud-init.service", "cloud-init-network.service", "cloud-init-main.service", "cloud-config.service", "cloud-final.service"}
	for {
		busy := ""
		for _, u := range units {
			text, err := exec.CommandContext(ctx, "systemctl", "show", "--property=ActiveState,SubState,LoadState", u).Output()
			if err != nil {
				return fmt.Errorf("systemctl show %s: %w", u, err)
			}
			s := string(text)
			if strings.Contains(s, "LoadState=loaded") && (strings.Contains(s, "ActiveState=activating") || strings.Contains(s, "SubState=running") || strings.Contains(s, "ActiveState=deactivating")) {
				busy = u
			}
		}
		// Before cloud-final has been started at all, after a reboot, it is
		// inactive, but a start job is queued.
		if busy == "" {
			jobs, err := exec.CommandContext(ctx, "systemctl", "list-jobs", "--no-legend", "--plain").Output()
			if err != nil {
				return fmt.Errorf("systemctl list-jobs: %w", err)
			}
			if !strings.Contains(string(jobs), " cloud-") {
				return nil
			}
			busy = "a queued unit of cloud-init"
		}
		b.Log.Debug("waiting", "for", busy)
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", busy, context.Cause(ctx))
		case <-time.After(time.Second):
		}
	}
}

func redactLines(lines []string) []string { return report.RedactLines(lines) }
