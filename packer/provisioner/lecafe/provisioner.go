//go:generate go tool packer-sdc mapstructure-to-hcl2 -type Config

// Package lecafe is the Packer provisioner: it installs the agent with its
// units, settings and the bash trap, cleans the machine, and fails the build
// on whatever inspection still finds. The work on the machine is done by
// lecafe-builder, the program that `lecafe bake` uses.
package lecafe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/packer-plugin-sdk/common"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/packer/programs"
)

// Config is the provisioner's block.
type Config struct {
	common.PackerConfig `mapstructure:",squash"`

	// File with the agent's settings, baked in as /etc/lecafe/agent.yaml.
	Settings string `mapstructure:"settings"`
	// The same settings inline, as YAML; one of the two.
	SettingsContent string `mapstructure:"settings_content"`
	// Directory that holds lecafe-agent and lecafe-builder, or
	// lecafe-agent-linux-amd64 and so on for several architectures. Default:
	// the plugin's own directory, then the directories in PATH.
	Programs string `mapstructure:"programs"`
	// Names of cleanup rules to leave out; `lecafe inspect --rules` lists them.
	Keep []string `mapstructure:"keep"`
	// Overwrite freed blocks, so that deleted files cannot be read from the
	// snapshot.
	ZeroFreeSpace bool `mapstructure:"zero_free_space"`
	// Do not install the agent: clean and inspect only.
	SkipAgent bool `mapstructure:"skip_agent"`

	ctx interpolate.Context
}

// Provisioner implements packersdk.Provisioner.
type Provisioner struct{ config Config }

var _ packersdk.Provisioner = (*Provisioner)(nil)

// ConfigSpec returns the block's shape.
func (p *Provisioner) ConfigSpec() hcldec.ObjectSpec { return p.config.FlatMapstructure().HCL2Spec() }

// Prepare reads and checks the block; it reports everything at once.
func (p *Provisioner) Prepare(raws ...any) error {
	err := config.Decode(&p.config, &config.DecodeOpts{PluginType: "lecafe", Interpolate: true, InterpolateContext: &p.config.ctx}, raws...)
	if err != nil {
		return err
	}
	var errs *packersdk.MultiError
	if f := p.config.Settings; f != "" {
		data, err := os.ReadFile(f)
		if err == nil {
			_, err = settings.Decode(settings.Source{Name: f, Data: data})
		}
		if err != nil {
			errs = packersdk.MultiErrorAppend(errs, fmt.Errorf("settings: %w", err))
		}
	}
	if text := p.config.SettingsContent; text != "" {
		if _, err := settings.Decode(settings.Source{Name: "settings_content", Data: []byte(text)}); err != nil {
			errs = packersdk.MultiErrorAppend(errs, fmt.Errorf("settings_content: %w", err))
		}
	}
	if p.config.Settings != "" && p.config.SettingsContent != "" {
		errs = packersdk.MultiErrorAppend(errs, errors.New("settings: goes not with settings_content; remove one of them"))
	}
	for _, a := range []struct{ name, value string }{{"settings", p.config.Settings}, {"settings_content", p.config.SettingsContent}} {
		if p.config.SkipAgent && a.value != "" {
			errs = packersdk.MultiErrorAppend(errs, fmt.Errorf("%s: no use with skip_agent; remove one of them", a.name))
		}
	}
	if err := cleanup.CheckKeep(p.config.Keep); err != nil {
		errs = packersdk.MultiErrorAppend(errs, fmt.Errorf("keep: %w; lecafe inspect --rules lists them", err))
	}
	if d := p.config.Programs; d != "" {
		if info, err := os.Stat(d); err != nil || !info.IsDir() {
			errs = packersdk.MultiErrorAppend(errs, fmt.Errorf("programs: %q is not a directory", d))
		} else if err := p.anyProgram(); err != nil {
			errs = packersdk.MultiErrorAppend(errs, fmt.Errorf("programs: %w", err))
		}
	}
	if errs != nil && len(errs.Errors) > 0 {
		return errs
	}
	return nil
}

// Provision does the work. The communicator's user is root or may use sudo
// without a password.
func (p *Provisioner) Provision(ctx context.Context, ui packersdk.Ui, comm packersdk.Communicator, _ map[string]any) error {
	facts, err := output(ctx, comm, "uname -m && id -u")
	if err != nil {
		return fmt.Errorf("ask the machine what it is: %w", err)
	}
	words := strings.Fields(facts)
	if len(words) != 2 {
		return fmt.Errorf("the machine answered %q to uname -m && id -u; it must be Linux", facts)
	}
	arch := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[words[0]]
	if arch == "" {
		return fmt.Errorf("the machine is %s; lecafe has programs for x86_64 and aarch64", words[0])
	}
	sudo := "sudo -n "
	if words[1] == "0" {
		sudo = ""
	}
	builder, err := programs.Find(p.config.Programs, "lecafe-builder", arch)
	if err != nil {
		return err
	}
	agent := ""
	if !p.config.SkipAgent {
		if agent, err = programs.Find(p.config.Programs, "lecafe-agent", arch); err != nil {
			return err
		}
	}
	dir := "/tmp/lecafe-" + strings.ToLower(rand.Text())
	if _, err := output(ctx, comm, "mkdir -m 0700 "+dir); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	args := []string{"finish"}
	ui.Say("Uploading lecafe's programs")
	if err := upload(comm, dir+"/lecafe-builder", builder); err != nil {
		return err
	}
	if agent != "" {
		if err := upload(comm, dir+"/lecafe-agent", agent); err != nil {
			return err
		}
		args = append(args, "--agent", dir+"/lecafe-agent")
	}
	if p.config.Settings != "" {
		if err := upload(comm, dir+"/agent.yaml", p.config.Settings); err != nil {
			return err
		}
		args = append(args, "--settings", dir+"/agent.yaml")
	} else if text := p.config.SettingsContent; text != "" {
		if err := comm.Upload(dir+"/agent.yaml", strings.NewReader(text), nil); err != nil {
			return fmt.Errorf("upload settings_content: %w", err)
		}
		args = append(args, "--settings", dir+"/agent.yaml")
	}
	if len(p.config.Keep) > 0 {
		args = append(args, "--keep", strings.Join(p.config.Keep, ","))
	}
	if p.config.ZeroFreeSpace {
		args = append(args, "--zero-free-space")
	}
	ui.Say("Installing the agent, cleaning, inspecting")
	// One command under one sudo: cleaning removes the user that cloud-init
	// made, after which sudo would no longer know it.
	return finish(ctx, ui, comm, fmt.Sprintf("chmod -R u+rwX %[1]s && chmod 0755 %[1]s/lecafe-* && %[2]s%[1]s/lecafe-builder %[3]s", dir, sudo, strings.Join(args, " ")))
}

// finish runs lecafe-builder and turns its findings into an error.
func finish(ctx context.Context, ui packersdk.Ui, comm packersdk.Communicator, command string) error {
	var stdout, stderr bytes.Buffer
	cmd := &packersdk.RemoteCmd{Command: command, Stdout: &stdout, Stderr: &stderr}
	if err := comm.Start(ctx, cmd); err != nil {
		return fmt.Errorf("run lecafe-builder: %w", err)
	}
	code := cmd.Wait()
	findings := 0
	lines := bufio.NewScanner(&stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var f cleanup.Finding
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			ui.Say(lines.Text())
			continue
		}
		findings++
		ui.Error(f.String())
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read lecafe-builder's findings: %w", err)
	}
	if code == 0 {
		ui.Say("The machine is clean")
		return nil
	}
	if findings > 0 {
		return fmt.Errorf("%s: the image would hold what must not be in it; remove it, or exempt a rule with keep = [\"RULE\"]", count(findings))
	}
	return fmt.Errorf("lecafe-builder ended with exit code %d: %s", code, tail(stderr.String(), 20))
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// anyProgram checks that the directory has what will be uploaded, for some
// architecture: the machine's own is not known before it is there.
func (p *Provisioner) anyProgram() error {
	names := []string{"lecafe-builder"}
	if !p.config.SkipAgent {
		names = append(names, "lecafe-agent")
	}
	var errs []error
	for _, name := range names {
		if !slices.ContainsFunc(programs.Architectures, func(arch string) bool {
			_, err := programs.Find(p.config.Programs, name, arch)
			return err == nil
		}) {
			errs = append(errs, fmt.Errorf("no %s for linux in %s", name, p.config.Programs))
		}
	}
	return errors.Join(errs...)
}

func upload(comm packersdk.Communicator, to, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if err := comm.Upload(to, f, &info); err != nil {
		return fmt.Errorf("upload %s: %w", from, err)
	}
	return nil
}

// output runs a command that must succeed.
func output(ctx context.Context, comm packersdk.Communicator, command string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := &packersdk.RemoteCmd{Command: command, Stdout: &stdout, Stderr: &stderr}
	if err := comm.Start(ctx, cmd); err != nil {
		return "", err
	}
	if code := cmd.Wait(); code != 0 {
		return "", fmt.Errorf("exit code %d: %s", code, tail(stderr.String(), 5))
	}
	return stdout.String(), nil
}

func count(findings int) string {
	if findings == 1 {
		return "1 finding"
	}
	return fmt.Sprintf("%d findings", findings)
}
