//go:generate go tool packer-sdc mapstructure-to-hcl2 -type Config,Canary,Test,Staging,Promote

package publish

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/hashicorp/packer-plugin-sdk/common"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"

	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/internal/strictyaml"
	"github.com/lecafe/lecafe/packer/programs"
)

// Config is the post-processor's block.
type Config struct {
	common.PackerConfig `mapstructure:",squash"`

	// What the image is of, as a recipe's name: lower-case letters, digits and
	// hyphens. It tags the image, and lecafe images lists it by that.
	RecipeName string `mapstructure:"recipe_name" required:"true"`
	// Which of the artifact's images is booted and promoted. Default: the only
	// one; where there are several, that of the AWS configuration's region.
	Region string `mapstructure:"region"`
	// Profile of the AWS shared configuration. Without it the SDK's own chain
	// of credentials serves: environment, files, SSO, instance role.
	Profile string `mapstructure:"profile"`
	// Base URL of LocalStack, moto or lecafe's lab.
	EndpointURL string `mapstructure:"endpoint_url"`
	// Directory that holds lecafe-builder, or lecafe-builder-linux-arm64 and
	// so on. Default: the plugin's own directory, then those in PATH.
	Programs string `mapstructure:"programs"`
	// Tags of everything that is made for the canary.
	Tags map[string]string `mapstructure:"tags"`
	// Leave an image whose canary failed, tagged as failed and protected from
	// being deregistered. Otherwise Packer removes it.
	KeepFailed bool `mapstructure:"keep_failed"`

	// Where the canary fetches its tests and puts its result.
	Staging Staging `mapstructure:"staging" required:"true"`
	// The instance that must come up before anything is promoted.
	Canary Canary `mapstructure:"canary"`
	// What takes the image into use. Without it the image is proved and tagged.
	Promote *Promote `mapstructure:"promote"`

	ctx interpolate.Context
}

// Staging is a place in S3. What is written there is gone afterwards.
type Staging struct {
	// An existing bucket in the image's region.
	Bucket string `mapstructure:"bucket" required:"true"`
	// Default lecafe-bakes.
	Prefix string `mapstructure:"prefix"`
}

// Canary is one instance of the new image, in no group and behind no load
// balancer.
type Canary struct {
	// Name or ID of the real launch template, whose default version it is
	// launched from. Default: a temporary one.
	LaunchTemplate string `mapstructure:"launch_template"`
	// Default: the launch template's, or t3.small or t4g.small.
	InstanceType string `mapstructure:"instance_type"`
	// Name or ARN. Default: the launch template's.
	InstanceProfile string `mapstructure:"instance_profile"`
	// Default: the launch template's, or one of the default VPC.
	Subnet string `mapstructure:"subnet"`
	// Without a launch template: IDs of security groups. Default: a temporary
	// one that lets nothing in.
	SecurityGroups []string `mapstructure:"security_groups"`
	// Without a launch template: whether the canary has a public address.
	// Default: as the subnet says.
	AssociatePublicIP *bool `mapstructure:"associate_public_ip"`
	// A file. Default: the launch template's user data.
	UserData string `mapstructure:"user_data"`
	// For the agent's report to say success. Default 10m.
	Deadline string `mapstructure:"deadline"`
	// http://host:port for what the canary's tests are fetched through.
	Proxy string `mapstructure:"proxy"`
	// Hosts reached without the proxy, separated by commas.
	NoProxy string `mapstructure:"no_proxy"`
	// PEM file of a private CA that is trusted while they are fetched.
	CABundle string `mapstructure:"ca_bundle"`
	// Scripts that must exit 0 on it, after its agent has said success.
	Test []Test `mapstructure:"test"`
}

// Test is one script that is run on the canary, as root.
type Test struct {
	// Default: the script's file name.
	Name string `mapstructure:"name"`
	// A file; either this or run.
	Script string `mapstructure:"script"`
	// Bash lines, run with -e; either this or script.
	Run string `mapstructure:"run"`
	// Default 2m.
	Timeout string `mapstructure:"timeout"`
}

// Promote names what takes the image into use, in the order that cannot hurt:
// group refreshed first, default version and parameter last.
type Promote struct {
	// Name or ID; gets a new version with the image.
	LaunchTemplate string `mapstructure:"launch_template"`
	// Refreshed to the new version; rolled back if that fails.
	AutoScalingGroup string `mapstructure:"auto_scaling_group"`
	// Gets the image ID.
	SSMParameter string `mapstructure:"ssm_parameter"`
	// Convert a group on $Default or $Latest to the number it stands for.
	Pin bool `mapstructure:"pin"`
	// Percent of the group that stays in service. Default 90.
	MinHealthy int `mapstructure:"min_healthy"`
	// For the instance refresh; then it is rolled back. Default 2h.
	Timeout string `mapstructure:"timeout"`
}

// places where an attribute of the block stands in a recipe.
var places = map[string]string{
	"name":                        "recipe_name",
	"builder.security_groups":     "canary.security_groups",
	"builder.associate_public_ip": "canary.associate_public_ip",
	"builder.subnets[0]":          "canary.subnet",
	"builder.proxy":               "canary.proxy",
	"builder.no_proxy":            "canary.no_proxy",
	"builder.ca_bundle":           "canary.ca_bundle",
}

// recipe says the same as a recipe of lecafe bake, so that the same checks and
// the same canary serve both.
func (c *Config) recipe(imageID, architecture string) (*recipe.Recipe, error) {
	k := c.Canary
	doc := object{}
	doc.set("name", c.RecipeName).set("architecture", architecture)
	doc["image"], doc["source"] = object{}, object{"image_id": imageID}
	if len(c.Tags) > 0 {
		doc["tags"] = c.Tags
	}
	doc["staging"] = object{}.set("bucket", c.Staging.Bucket).set("prefix", c.Staging.Prefix)
	builder := object{}.set("proxy", k.Proxy).set("no_proxy", k.NoProxy).set("ca_bundle", k.CABundle)
	if len(k.SecurityGroups) > 0 {
		builder["security_groups"] = k.SecurityGroups
	}
	if k.AssociatePublicIP != nil {
		builder["associate_public_ip"] = *k.AssociatePublicIP
	}
	canary := object{}.set("launch_template", k.LaunchTemplate).set("instance_type", k.InstanceType).set("instance_profile", k.InstanceProfile).
		set("subnet", k.Subnet).set("user_data", k.UserData).set("deadline", k.Deadline)
	var tests []object
	for _, t := range k.Test {
		tests = append(tests, object{}.set("name", t.Name).set("script", t.Script).set("run", t.Run).set("timeout", t.Timeout))
	}
	if len(tests) > 0 {
		canary["test"] = tests
	}
	if len(builder) > 0 {
		doc["builder"] = builder
	}
	doc["canary"] = canary
	if p := c.Promote; p != nil {
		o := object{}.set("launch_template", p.LaunchTemplate).set("auto_scaling_group", p.AutoScalingGroup).set("ssm_parameter", p.SSMParameter)
		if p.Pin {
			o["pin"] = true
		}
		doc["promote"] = o
	}
	data, err := yaml.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	// Paths are relative to where Packer runs, as all of Packer's are.
	return recipe.Parse("settings", data)
}

// object is a YAML mapping without empty members.
type object map[string]any

func (o object) set(name, value string) object {
	if value != "" {
		o[name] = value
	}
	return o
}

var regionName = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]+){1,3}-[0-9]{1,2}$`)

// prepare reads the block and reports everything that is wrong with it at
// once, each by its attribute.
func (c *Config) prepare(raws ...any) error {
	if err := config.Decode(c, &config.DecodeOpts{PluginType: "lecafe-publish", Interpolate: true, InterpolateContext: &c.ctx}, raws...); err != nil {
		return err
	}
	var errs *packersdk.MultiError
	bad := func(format string, args ...any) { errs = packersdk.MultiErrorAppend(errs, fmt.Errorf(format, args...)) }
	// The image is not there yet: any ID will do.
	_, err := c.recipe("ami-00000000", recipe.X8664)
	var invalid *recipe.Invalid
	switch {
	case errors.As(err, &invalid):
		for _, p := range invalid.Problems {
			bad("%s", attribute(p))
		}
	case err != nil:
		bad("%w", err)
	}
	if c.Region != "" && !regionName.MatchString(c.Region) {
		bad("region: %q: is not a region; write it as eu-central-1", c.Region)
	}
	if d := c.Programs; d != "" {
		if info, err := os.Stat(d); err != nil || !info.IsDir() {
			bad("programs: %q: is not a directory", d)
		} else if !slices.ContainsFunc(programs.Architectures, func(arch string) bool {
			_, err := programs.Find(d, "lecafe-builder", arch)
			return err == nil
		}) {
			bad("programs: %q: has no lecafe-builder for linux", d)
		}
	}
	if k := c.Canary; k.LaunchTemplate != "" {
		if len(k.SecurityGroups) > 0 {
			bad("canary.security_groups: the launch template has its own; remove one of them")
		}
		if k.AssociatePublicIP != nil {
			bad("canary.associate_public_ip: the launch template says that; remove one of them")
		}
	}
	if p := c.Promote; p != nil {
		if _, err := timeout(p.Timeout); err != nil {
			bad("promote.timeout: %q: %w", p.Timeout, err)
		}
		if p.MinHealthy < 0 || p.MinHealthy > 100 {
			bad("promote.min_healthy: %d: is no percentage; choose 0 to 100", p.MinHealthy)
		}
	}
	if errs != nil && len(errs.Errors) > 0 {
		return errs
	}
	return nil
}

func timeout(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := recipe.ParseDuration(text)
	if err != nil || d < time.Minute || d > 24*time.Hour {
		return 0, errors.New("is no duration of 1m to 24h; write it as 90m")
	}
	return d, nil
}

// attribute tells a recipe's problem by the block's attribute.
func attribute(p strictyaml.Problem) string {
	field := p.Field
	for from, to := range places {
		if field == from || strings.HasPrefix(field, from+"[") {
			field = to + field[len(from):]
		}
	}
	text := field + ": "
	if p.Value != "" {
		text += fmt.Sprintf("%q: ", p.Value)
	}
	text += p.Message
	if p.Hint != "" {
		text += "; " + strings.NewReplacer("relative to the recipe's directory", "relative to where Packer runs: write \"${path.root}/...\"").Replace(p.Hint)
	}
	return text
}
