//go:generate go tool packer-sdc mapstructure-to-hcl2 -type Config,DatasourceOutput

// Package userdata is the Packer data source that renders user data from the
// same inputs as `lecafe userdata render`, and lints it: an error fails
// `packer validate`.
package userdata

import (
	"encoding/base64"
	"fmt"
	"os"
	"slices"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/packer-plugin-sdk/common"
	"github.com/hashicorp/packer-plugin-sdk/hcl2helper"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"github.com/zclconf/go-cty/cty"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/userdata"
)

// Config is the data source's block.
type Config struct {
	common.PackerConfig `mapstructure:",squash"`

	// Files with the agent's settings; later ones win.
	Settings []string `mapstructure:"settings"`
	// Script files to run at first boot, in this order.
	Scripts []string `mapstructure:"scripts"`
	// Cloud-config files; they come before the scripts.
	CloudConfigs []string `mapstructure:"cloud_configs"`
	// Lint rules to leave out; docs/lint.md of lecafe lists them.
	Ignore []string `mapstructure:"ignore"`
}

// DatasourceOutput is what templates can use.
type DatasourceOutput struct {
	// The payload as text, for user_data. Empty where it had to be compressed.
	Text string `mapstructure:"text"`
	// The payload in base64, for user_data of builders that take it so.
	Base64 string `mapstructure:"base64"`
	// Size in bytes, of at most 16384.
	Size int `mapstructure:"size"`
}

// Datasource implements packersdk.Datasource.
type Datasource struct{ config Config }

var _ packersdk.Datasource = (*Datasource)(nil)

// ConfigSpec returns the block's shape.
func (d *Datasource) ConfigSpec() hcldec.ObjectSpec { return d.config.FlatMapstructure().HCL2Spec() }

// OutputSpec returns the shape of what the data source gives.
func (d *Datasource) OutputSpec() hcldec.ObjectSpec {
	return (&DatasourceOutput{}).FlatMapstructure().HCL2Spec()
}

// Configure reads and checks the block. It renders and lints as well, so that
// `packer validate`, which does not execute data sources, fails on bad user
// data.
func (d *Datasource) Configure(raws ...any) error {
	if err := config.Decode(&d.config, nil, raws...); err != nil {
		return err
	}
	if _, err := d.render(); err != nil {
		return fmt.Errorf("data source lecafe-userdata: %w", err) // Packer names provisioners itself, and no data sources
	}
	return nil
}

func (d *Datasource) render() ([]byte, error) {
	var errs *packersdk.MultiError
	fail := func(attribute string, err error) {
		errs = packersdk.MultiErrorAppend(errs, fmt.Errorf("%s: %w", attribute, err))
	}
	var in userdata.RenderInput
	var sources []settings.Source
	for _, name := range d.config.Settings {
		data, err := os.ReadFile(name)
		if err != nil {
			fail("settings", err)
			continue
		}
		sources = append(sources, settings.Source{Name: name, Data: data})
	}
	if len(sources) > 0 {
		s, err := settings.Decode(sources...)
		if err != nil {
			fail("settings", err)
		}
		in.Settings = &s
	}
	add := func(attribute string, names []string) {
		for _, name := range names {
			body, err := os.ReadFile(name)
			if err != nil {
				fail(attribute, err)
				continue
			}
			for _, f := range userdata.Lint(body, userdata.Options{File: name}) {
				if f.Severity == userdata.Error && !slices.Contains(d.config.Ignore, f.Rule) {
					fail(attribute, fmt.Errorf("%s:%d:%d: %s: %s; %s", f.File, f.Line, f.Column, f.Rule, f.Message, f.Fix))
				}
			}
			in.Sources = append(in.Sources, userdata.Source{Name: name, Body: body})
		}
	}
	add("cloud_configs", d.config.CloudConfigs)
	add("scripts", d.config.Scripts)
	for _, rule := range d.config.Ignore {
		if !slices.ContainsFunc(userdata.Rules(), func(r userdata.Rule) bool { return r.ID == rule }) {
			fail("ignore", fmt.Errorf("no lint rule %q", rule))
		}
	}
	if errs != nil && len(errs.Errors) > 0 {
		return nil, errs
	}
	out, err := userdata.Render(in)
	if err != nil {
		return nil, packersdk.MultiErrorAppend(nil, err)
	}
	return out, nil
}

// Execute returns the payload.
func (d *Datasource) Execute() (cty.Value, error) {
	out, err := d.render()
	if err != nil {
		return cty.NullVal(cty.EmptyObject), err
	}
	o := DatasourceOutput{Base64: base64.StdEncoding.EncodeToString(out), Size: len(out)}
	if len(out) < 2 || out[0] != 0x1f || out[1] != 0x8b { // gzip is no text
		o.Text = string(out)
	}
	return hcl2helper.HCL2ValueFromConfig(o, d.OutputSpec()), nil
}
