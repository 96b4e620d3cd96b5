// Package settings owns the agent's settings: their shape, defaults, strict
// decoding and merging. They are baked into the image (/etc/lecafe/agent.yaml,
// then /etc/lecafe/agent.d/*.yaml in order of name) and completed by user data
// (see FromUserData). It imports no AWS SDK.
package settings

import (
	"strings"
	"time"
)

// Paths in an image.
const (
	Path       = "/etc/lecafe/agent.yaml"
	DropInGlob = "/etc/lecafe/agent.d/*.yaml"
	StateDir   = "/var/lib/lecafe"
	RuntimeDir = "/run/lecafe"
	Binary     = "/usr/bin/lecafe-agent"

	// UserDataPart is the file name of the MIME part of a payload that carries
	// settings. To cloud-init it is a boothook that does nothing: every version
	// from 22 to 25 takes it without a warning. The settings stand in it as
	// YAML between the lines UserDataBegin and UserDataEnd (a here-document of
	// the shell's no-op command), so the agent reads them although cloud-init
	// may fail.
	UserDataPart  = "lecafe-agent.sh"
	UserDataBegin = ": <<'LECAFE_AGENT_SETTINGS'"
	UserDataEnd   = "LECAFE_AGENT_SETTINGS"
)

// Settings is the whole file. Zero values mean the defaults.
type Settings struct {
	AWS       AWS       `yaml:"aws,omitempty"`
	Bootstrap Bootstrap `yaml:"bootstrap,omitempty"`
	Report    Report    `yaml:"report,omitempty"`
	Config    []Object  `yaml:"config,omitempty"`
	Env       []EnvFile `yaml:"env,omitempty"`
	Orders    Orders    `yaml:"orders,omitempty"`

	// Canary keeps an instance that tries out a new image out of production:
	// its orders stay in its spool, and of reports only S3 and the console get
	// any. Decode takes the other destinations away.
	Canary bool `yaml:"canary,omitempty"`
}

// AWS says how AWS is reached. Region and role ID come from IMDS and STS
// where they are not set.
type AWS struct {
	Region      string `yaml:"region,omitempty"`
	EndpointURL string `yaml:"endpoint_url,omitempty"` // LocalStack, moto, the lab
	RoleID      string `yaml:"role_id,omitempty"`      // AROA...: spares the call to STS
	CABundle    string `yaml:"ca_bundle,omitempty"`    // PEM file of a private CA
	Proxy       string `yaml:"proxy,omitempty"`        // http://host:port; never used for IMDS
}

// Bootstrap says when an instance is up.
type Bootstrap struct {
	Deadline time.Duration     `yaml:"deadline,omitempty"` // default 10m, from the kernel's start
	Severity map[string]string `yaml:"severity,omitempty"` // cause code → failure, degraded or ignore
	Ready    Ready             `yaml:"ready,omitempty"`
}

// Ready lists what must hold before the deadline. All of it must.
type Ready struct {
	Units   []string  `yaml:"units,omitempty"` // active
	HTTP    []HTTP    `yaml:"http,omitempty"`
	TCP     []string  `yaml:"tcp,omitempty"`     // host:port that accepts
	Command []Command `yaml:"command,omitempty"` // exits 0
}

// HTTP is a GET that answers with one of Status (default 200–399).
type HTTP struct {
	URL    string `yaml:"url"`
	Status []int  `yaml:"status,omitempty"`
}

// Command is an argument vector, run without a shell.
type Command []string

// Report says where reports go. Every sink that is set is served.
type Report struct {
	S3            S3Sink        `yaml:"s3,omitempty"`
	SQS           SQSSink       `yaml:"sqs,omitempty"`
	Webhook       WebhookSink   `yaml:"webhook,omitempty"`
	LifecycleHook LifecycleHook `yaml:"lifecycle_hook,omitempty"`
	Console       *bool         `yaml:"console,omitempty"` // default true
}

// S3Sink is a bucket and the prefix under which report.Key is written.
type S3Sink struct {
	Bucket string `yaml:"bucket,omitempty"`
	Prefix string `yaml:"prefix,omitempty"` // default lecafe-reports
	Region string `yaml:"region,omitempty"` // of the bucket, where it is another
}

// SQSSink is a queue by name (of the instance's account and region) or URL.
type SQSSink struct {
	Queue string `yaml:"queue,omitempty"`
}

// WebhookSink gets each report as a POST of JSON.
type WebhookSink struct {
	URL string `yaml:"url,omitempty"`
}

// LifecycleHook is completed with CONTINUE on success and degraded, with
// ABANDON on failure. The Auto Scaling group comes from the instance's tags
// where it is not set.
type LifecycleHook struct {
	Name  string `yaml:"name,omitempty"`
	Group string `yaml:"group,omitempty"`
}

// Object is one S3 object kept as a local file, or, where Source ends in a
// slash, all objects below that prefix kept as a directory.
type Object struct {
	Source      string        `yaml:"source"` // s3://bucket/key, or s3://bucket/prefix/
	Path        string        `yaml:"path"`
	VersionID   string        `yaml:"version_id,omitempty"` // of an object, not of a directory
	SHA256      string        `yaml:"sha256,omitempty"`     // hex; required to match. Of a directory: see docs/agent.md
	Checksum    string        `yaml:"checksum,omitempty"`   // ALGORITHM:base64 as S3 holds it; required to match
	MaxBytes    int64         `yaml:"max_bytes,omitempty"`  // default 1 MiB; of a directory in all, default 16 MiB
	MaxFiles    int           `yaml:"max_files,omitempty"`  // of a directory, default 1000
	Owner       string        `yaml:"owner,omitempty"`
	Group       string        `yaml:"group,omitempty"`
	Mode        string        `yaml:"mode,omitempty"` // octal, default "0640"; directories may be searched where files may be read
	Poll        time.Duration `yaml:"poll,omitempty"` // 0: only at start and on reload
	Validate    Command       `yaml:"validate,omitempty"`
	ReloadUnit  string        `yaml:"reload_unit,omitempty"`
	RestartUnit string        `yaml:"restart_unit,omitempty"`
	Optional    bool          `yaml:"optional,omitempty"` // its absence is no failure
}

// Tree says whether o is a directory of all objects below a prefix.
func (o Object) Tree() bool { return strings.HasSuffix(o.Source, "/") }

// EnvFile is a file of NAME="value" lines, for EnvironmentFile= of a unit and
// for shells alike, made from what the instance knows of itself: ${region},
// ${availability_zone}, ${instance_id}, ${instance_type}, ${image_id},
// ${account_id}, ${architecture} and ${tag:NAME} (where instance tags in
// metadata are on) in Set's values stand for that.
type EnvFile struct {
	Path  string            `yaml:"path"`
	Set   map[string]string `yaml:"set"`
	Owner string            `yaml:"owner,omitempty"`
	Group string            `yaml:"group,omitempty"`
	Mode  string            `yaml:"mode,omitempty"` // octal, default "0644"
}

// Orders says where the application's orders go.
type Orders struct {
	Queue    string `yaml:"queue,omitempty"`     // name or URL
	Group    string `yaml:"group,omitempty"`     // Unix group that may post; default lecafe-orders
	MaxBytes int64  `yaml:"max_bytes,omitempty"` // of the spool on disk, default 1 GiB
	SealTo   string `yaml:"seal_to,omitempty"`   // s3://bucket/prefix for what is left at shutdown

	// Drain is how long a stop may go on sending, default 20s.
	Drain time.Duration `yaml:"drain,omitempty"`
}
