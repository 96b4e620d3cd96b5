// Package recipe owns the recipe: what an image is made from and how. It
// decodes YAML strictly, applies overrides, and checks everything that can be
// checked without a network, reporting every problem at once with its place.
// It calls no AWS API and reads only the files that a recipe names.
package recipe

import (
	"time"

	"github.com/lecafe/lecafe/agent/settings"
)

// Architectures, in EC2's words.
const (
	X8664 = "x86_64"
	ARM64 = "arm64"
)

// Recipe is the whole file. Load returns it with defaults filled in.
type Recipe struct {
	Name         string            `yaml:"name" json:"name" doc:"The recipe's name: lower-case letters, digits and hyphens; it tags everything the bake makes."`
	Image        Image             `yaml:"image" json:"image" doc:"The image to make."`
	Source       Source            `yaml:"source" json:"source" doc:"The image to start from: exactly one of ssm_parameter, image_id and filter."`
	Architecture string            `yaml:"architecture,omitempty" json:"architecture" enum:"x86_64,arm64" doc:"Of the source image and the builder; default x86_64."`
	Builder      Builder           `yaml:"builder,omitempty" json:"builder" doc:"The instance that is provisioned and becomes the image."`
	Staging      Staging           `yaml:"staging" json:"staging" doc:"Where the bake keeps its journal and what the builder fetches."`
	Provision    []Step            `yaml:"provision,omitempty" json:"provision" doc:"Steps, run in order as root."`
	Agent        settings.Settings `yaml:"agent,omitempty" json:"agent" doc:"Settings of lecafe-agent, written to /etc/lecafe/agent.yaml."`
	Clean        Clean             `yaml:"clean,omitempty" json:"clean" doc:"How the image is cleaned and inspected."`
	Canary       *Canary           `yaml:"canary,omitempty" json:"canary,omitempty" doc:"An instance of the new image that must come up before the bake succeeds."`
	Promote      *Promote          `yaml:"promote,omitempty" json:"promote,omitempty" doc:"What takes the new image into use."`
	MaxAge       time.Duration     `yaml:"max_age,omitempty" json:"max_age" doc:"An unchanged image younger than this is not baked again; default 7d."`
	Tags         map[string]string `yaml:"tags,omitempty" json:"tags,omitempty" doc:"Tags of everything the bake makes."`

	// Dir is the directory that relative paths of the recipe stand below.
	Dir string `yaml:"-" json:"-"`
}

// Image describes the result.
type Image struct {
	Name                     string            `yaml:"name,omitempty" json:"name" doc:"Name of the image; a Go template with .Name, .Time, .GitCommit and .Hash; default \"{{.Name}}-{{.Time}}\"."`
	Description              string            `yaml:"description,omitempty" json:"description,omitempty" doc:"Description, a template like name."`
	Tags                     map[string]string `yaml:"tags,omitempty" json:"tags,omitempty" doc:"Tags of the image and its snapshots, values are templates like name."`
	Volume                   Volume            `yaml:"volume,omitempty" json:"volume" doc:"The root volume."`
	Volumes                  []Volume          `yaml:"volumes,omitempty" json:"volumes,omitempty" doc:"Further volumes."`
	Encryption               *Encryption       `yaml:"encryption,omitempty" json:"encryption,omitempty" doc:"Encrypt the image's snapshots."`
	Copies                   []Copy            `yaml:"copies,omitempty" json:"copies,omitempty" doc:"Copies to other regions, made in parallel."`
	Share                    Share             `yaml:"share,omitempty" json:"share" doc:"Who else may launch the image."`
	Public                   bool              `yaml:"public,omitempty" json:"public,omitempty" doc:"Anyone may launch the image."`
	DeprecateAfter           time.Duration     `yaml:"deprecate_after,omitempty" json:"deprecate_after,omitempty" doc:"Time until the image counts as deprecated, at most 3650d."`
	DeregistrationProtection bool              `yaml:"deregistration_protection,omitempty" json:"deregistration_protection,omitempty" doc:"Refuse deregistration until protection is taken off."`
}

// Volume is one EBS volume. Zero values keep the source image's.
type Volume struct {
	Device     string `yaml:"device,omitempty" json:"device,omitempty" doc:"Device name, as /dev/sdf; the root volume's comes from the source image."`
	Type       string `yaml:"type,omitempty" json:"type,omitempty" enum:"gp2,gp3,io1,io2,st1,sc1,standard" doc:"Volume type."`
	Size       int32  `yaml:"size,omitempty" json:"size,omitempty" doc:"GiB."`
	IOPS       int32  `yaml:"iops,omitempty" json:"iops,omitempty" doc:"For gp3, io1 and io2."`
	Throughput int32  `yaml:"throughput,omitempty" json:"throughput,omitempty" doc:"MiB/s, for gp3."`
}

// Encryption asks for encrypted snapshots.
type Encryption struct {
	KMSKey string `yaml:"kms_key,omitempty" json:"kms_key,omitempty" doc:"Key ID, ARN or alias; default the account's key for EBS."`
}

// Copy is the image in another region.
type Copy struct {
	Region     string      `yaml:"region" json:"region" doc:"Region to copy to."`
	Encryption *Encryption `yaml:"encryption,omitempty" json:"encryption,omitempty" doc:"Encrypt the copy with a key of that region."`
}

// Share lists who may launch the image.
type Share struct {
	Accounts            []string `yaml:"accounts,omitempty" json:"accounts,omitempty" doc:"Account IDs, 12 digits each, quoted."`
	Organizations       []string `yaml:"organizations,omitempty" json:"organizations,omitempty" doc:"ARNs of organizations."`
	OrganizationalUnits []string `yaml:"organizational_units,omitempty" json:"organizational_units,omitempty" doc:"ARNs of organizational units."`
}

// Empty says that nobody is named.
func (s Share) Empty() bool {
	return len(s.Accounts)+len(s.Organizations)+len(s.OrganizationalUnits) == 0
}

// Source is where the bake starts. Exactly one field is set.
type Source struct {
	SSMParameter string  `yaml:"ssm_parameter,omitempty" json:"ssm_parameter,omitempty" doc:"Name of an SSM parameter that holds an image ID."`
	ImageID      string  `yaml:"image_id,omitempty" json:"image_id,omitempty" doc:"An image ID."`
	Filter       *Filter `yaml:"filter,omitempty" json:"filter,omitempty" doc:"The newest image that matches."`
}

// Filter picks the newest image of named owners.
type Filter struct {
	Owners []string            `yaml:"owners" json:"owners" doc:"Account IDs, self, amazon or aws-marketplace. Without an owner anyone could publish a matching image."`
	Name   string              `yaml:"name,omitempty" json:"name,omitempty" doc:"Image name, * and ? allowed."`
	Filter map[string][]string `yaml:"filters,omitempty" json:"filters,omitempty" doc:"Further DescribeImages filters by name."`
}

// Builder is the instance that becomes the image.
type Builder struct {
	InstanceTypes     []string          `yaml:"instance_types,omitempty" json:"instance_types" doc:"Tried in order when there is no capacity; default t3.small or t4g.small."`
	Subnets           []string          `yaml:"subnets,omitempty" json:"subnets,omitempty" doc:"Tried in order for each instance type; default the default VPC's."`
	SecurityGroups    []string          `yaml:"security_groups,omitempty" json:"security_groups,omitempty" doc:"Default: a temporary group without inbound rules."`
	InstanceProfile   string            `yaml:"instance_profile,omitempty" json:"instance_profile,omitempty" doc:"None by default: the builder needs no AWS permissions."`
	AssociatePublicIP *bool             `yaml:"associate_public_ip,omitempty" json:"associate_public_ip,omitempty" doc:"Default: as the subnet says."`
	Timeout           time.Duration     `yaml:"timeout,omitempty" json:"timeout" doc:"The builder shuts itself down after this time; default 1h."`
	Proxy             string            `yaml:"proxy,omitempty" json:"proxy,omitempty" doc:"http://host:port for everything the builder fetches."`
	NoProxy           string            `yaml:"no_proxy,omitempty" json:"no_proxy,omitempty" doc:"Hosts reached without the proxy, separated by commas."`
	CABundle          string            `yaml:"ca_bundle,omitempty" json:"ca_bundle,omitempty" doc:"PEM file of a private CA that the builder trusts while it fetches."`
	Tags              map[string]string `yaml:"tags,omitempty" json:"tags,omitempty" doc:"Further tags of the builder alone."`
}

// Staging is a place in S3. What a bake writes there is gone when it ends.
type Staging struct {
	Bucket string `yaml:"bucket" json:"bucket" doc:"An existing bucket in the bake's region."`
	Prefix string `yaml:"prefix,omitempty" json:"prefix" doc:"Default lecafe-bakes."`
}

// Step is one provision step: a name and exactly one of the actions.
type Step struct {
	Name     string            `yaml:"name,omitempty" json:"name,omitempty" doc:"Shown while the step runs; default what it does."`
	Packages *Packages         `yaml:"packages,omitempty" json:"packages,omitempty" doc:"Install or remove packages with apt or dnf, whichever the image has."`
	Files    []File            `yaml:"files,omitempty" json:"files,omitempty" doc:"Put files into the image."`
	Script   string            `yaml:"script,omitempty" json:"script,omitempty" doc:"A script of the recipe's directory; its #! line is honoured, bash runs with -e."`
	Run      string            `yaml:"run,omitempty" json:"run,omitempty" doc:"Bash lines, run with -e."`
	Units    *Units            `yaml:"units,omitempty" json:"units,omitempty" doc:"Enable, disable or mask systemd units."`
	Reboot   bool              `yaml:"reboot,omitempty" json:"reboot,omitempty" doc:"Reboot the builder and go on with the next step."`
	Env      map[string]string `yaml:"env,omitempty" json:"env,omitempty" doc:"Environment of script or run."`
	Timeout  time.Duration     `yaml:"timeout,omitempty" json:"timeout,omitempty" doc:"Of this step; default the builder's."`
}

// Packages are named as apt and dnf name them.
type Packages struct {
	Install []string `yaml:"install,omitempty" json:"install,omitempty" doc:"Names, for apt also name=version."`
	Remove  []string `yaml:"remove,omitempty" json:"remove,omitempty" doc:"Names; absent ones are no error."`
	Files   []string `yaml:"files,omitempty" json:"files,omitempty" doc:"Package files of the recipe's directory, .deb or .rpm."`
	Upgrade bool     `yaml:"upgrade,omitempty" json:"upgrade,omitempty" doc:"Upgrade everything first."`
}

// File is one file in the image: from Source or Content.
type File struct {
	Path    string `yaml:"path" json:"path" doc:"Absolute path in the image; missing directories are made."`
	Source  string `yaml:"source,omitempty" json:"source,omitempty" doc:"A file of the recipe's directory."`
	Content string `yaml:"content,omitempty" json:"content,omitempty" doc:"The file's content."`
	Mode    string `yaml:"mode,omitempty" json:"mode,omitempty" doc:"Octal, quoted; default \"0644\"."`
	Owner   string `yaml:"owner,omitempty" json:"owner,omitempty" doc:"User name; default root."`
	Group   string `yaml:"group,omitempty" json:"group,omitempty" doc:"Group name; default root."`
}

// Units are systemd unit names.
type Units struct {
	Enable  []string `yaml:"enable,omitempty" json:"enable,omitempty" doc:"Enabled, not started."`
	Disable []string `yaml:"disable,omitempty" json:"disable,omitempty" doc:"Disabled and stopped."`
	Mask    []string `yaml:"mask,omitempty" json:"mask,omitempty" doc:"Masked and stopped."`
}

// Clean is what happens to the root file system before the image is made.
type Clean struct {
	Keep          []string `yaml:"keep,omitempty" json:"keep,omitempty" doc:"Names of cleaning rules that are left out."`
	ZeroFreeSpace bool     `yaml:"zero_free_space,omitempty" json:"zero_free_space,omitempty" doc:"Overwrite freed blocks, so that deleted files cannot be read from the snapshot."`
	MaxUsed       int64    `yaml:"max_used,omitempty" json:"max_used" doc:"GiB used above which the bake warns; default 5."`
}

// Canary boots the new image before anything is promoted.
type Canary struct {
	LaunchTemplate  string        `yaml:"launch_template,omitempty" json:"launch_template,omitempty" doc:"Name or ID of the real launch template; default a temporary one."`
	InstanceType    string        `yaml:"instance_type,omitempty" json:"instance_type,omitempty" doc:"Default the launch template's, or the builder's."`
	InstanceProfile string        `yaml:"instance_profile,omitempty" json:"instance_profile,omitempty" doc:"Default the launch template's."`
	Subnet          string        `yaml:"subnet,omitempty" json:"subnet,omitempty" doc:"Default the launch template's, or the builder's."`
	UserData        string        `yaml:"user_data,omitempty" json:"user_data,omitempty" doc:"A file of the recipe's directory; default the launch template's."`
	Deadline        time.Duration `yaml:"deadline,omitempty" json:"deadline,omitempty" doc:"For the report to say success; default 10m."`
	Test            []Test        `yaml:"test,omitempty" json:"test,omitempty" doc:"Scripts that must exit 0 on the canary."`
}

// Test is one script run on the canary.
type Test struct {
	Name    string        `yaml:"name,omitempty" json:"name,omitempty" doc:"Default the script's file name."`
	Script  string        `yaml:"script,omitempty" json:"script,omitempty" doc:"A script of the recipe's directory."`
	Run     string        `yaml:"run,omitempty" json:"run,omitempty" doc:"Bash lines, run with -e."`
	Timeout time.Duration `yaml:"timeout,omitempty" json:"timeout,omitempty" doc:"Default 2m."`
}

// Promote names what takes the new image into use, in the order that cannot
// hurt: group refreshed first, default version and parameter last.
type Promote struct {
	LaunchTemplate   string `yaml:"launch_template,omitempty" json:"launch_template,omitempty" doc:"Name or ID; gets a new version with the image."`
	AutoScalingGroup string `yaml:"auto_scaling_group,omitempty" json:"auto_scaling_group,omitempty" doc:"Refreshed to the new version."`
	SSMParameter     string `yaml:"ssm_parameter,omitempty" json:"ssm_parameter,omitempty" doc:"Gets the image ID."`
	Pin              bool   `yaml:"pin,omitempty" json:"pin,omitempty" doc:"Convert a group on $Default or $Latest to a numbered version."`
}
