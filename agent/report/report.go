// Package report owns the contract between instances and those who watch them:
// the report's fields, cause codes and S3 key. docs/report.schema.json is its
// published form. It sends nothing and imports no AWS SDK.
package report

import "time"

// Schema is the value of Report.Schema. Readers refuse another major version;
// fields are only ever added within one.
const Schema = "lecafe.report/v1"

// Kind says what a report is about.
type Kind string

const (
	KindBootstrap Kind = "bootstrap" // the one judged boot of an instance
	KindStart     Kind = "start"     // a later boot (reboot, stop and start, warm pool), recorded, not judged
	KindConfig    Kind = "config"    // a config generation went live or was rolled back
	KindOrders    Kind = "orders"    // orders parked or sealed
	KindBuild     Kind = "build"     // a builder's final report
)

// Verdict is the judgement of a bootstrap.
type Verdict string

const (
	Success  Verdict = "success"
	Degraded Verdict = "degraded" // it came up, but something failed unhandled
	Failure  Verdict = "failure"
)

// Report is one JSON document. Times are UTC, RFC 3339 with milliseconds.
// Text from the instance is redacted before it gets here (see Redact).
type Report struct {
	Schema  string  `json:"schema"`
	ID      string  `json:"id"` // 32 hex digits, unique for each report, the same on every resend
	Kind    Kind    `json:"kind"`
	Verdict Verdict `json:"verdict"`
	Summary string  `json:"summary"` // one plain sentence

	Causes []Cause `json:"causes"` // the most telling first; empty on success
	Stages []Stage `json:"stages"` // timeline, in order of start

	Instance  Instance  `json:"instance"`
	Sender    string    `json:"sender"` // ROLEID:i-..., empty when the instance has no role
	UserData  UserData  `json:"user_data"`
	Agent     Agent     `json:"agent"`
	CloudInit CloudInit `json:"cloud_init"`

	BootID          string    `json:"boot_id"` // /proc/sys/kernel/random/boot_id
	BootedAt        time.Time `json:"booted_at"`
	JudgedAt        time.Time `json:"judged_at"`
	DeadlineSeconds int       `json:"deadline_seconds,omitempty"`
	LogTail         []string  `json:"log_tail,omitempty"` // the last lines of cloud-init-output.log
}

// Severity says what a cause makes of the verdict.
type Severity string

const (
	SeverityFailure  Severity = "failure"
	SeverityDegraded Severity = "degraded"
)

// Cause is one thing that went wrong. Zero fields are unknown.
type Cause struct {
	Stage    StageName `json:"stage"`
	Code     Code      `json:"code"`
	Severity Severity  `json:"severity"`
	Message  string    `json:"message"` // one plain sentence
	Fix      string    `json:"fix,omitempty"`

	ExitCode *int     `json:"exit_code,omitempty"`
	Signal   string   `json:"signal,omitempty"` // SIGKILL
	File     string   `json:"file,omitempty"`   // script part or path
	Line     int      `json:"line,omitempty"`   // from 1
	Column   int      `json:"column,omitempty"` // from 1
	Command  string   `json:"command,omitempty"`
	Unit     string   `json:"unit,omitempty"`
	Output   []string `json:"output,omitempty"` // last lines, at most 40
}

// StageName is one of the stages below.
type StageName string

const (
	StageIdentity         StageName = "identity"           // IMDS, role credentials
	StageUserData         StageName = "user-data"          // the payload itself, before anything ran
	StageCloudInitLocal   StageName = "cloud-init-local"   //
	StageCloudInitNetwork StageName = "cloud-init-network" // cloud-init.service, cloud-init-network.service from 24.3
	StageCloudConfig      StageName = "cloud-config"       // modules-config
	StageCloudFinal       StageName = "cloud-final"        // modules-final: user scripts, runcmd
	StageConfig           StageName = "config"             // the application's config from S3
	StageOrders           StageName = "orders"             // the queue is reachable
	StageApplication      StageName = "application"        // units, readiness checks
	StageSystem           StageName = "system"             // systemd units and the machine
)

// Stage is one entry of the timeline.
type Stage struct {
	Name       StageName  `json:"name"`
	Status     string     `json:"status"` // pending, running, success, failure
	StartedAt  *time.Time `json:"started_at,omitempty"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
}

// Instance is what IMDS says of the instance, and its tags where IMDS gives them.
type Instance struct {
	ID                    string `json:"id"`
	Type                  string `json:"type,omitempty"`
	ImageID               string `json:"image_id,omitempty"`
	Region                string `json:"region,omitempty"`
	AvailabilityZone      string `json:"availability_zone,omitempty"`
	AccountID             string `json:"account_id,omitempty"`
	Architecture          string `json:"architecture,omitempty"` // x86_64 or arm64
	AutoScalingGroup      string `json:"auto_scaling_group,omitempty"`
	LaunchTemplateID      string `json:"launch_template_id,omitempty"`
	LaunchTemplateVersion string `json:"launch_template_version,omitempty"`
	LifecycleState        string `json:"target_lifecycle_state,omitempty"`
	BakeID                string `json:"bake_id,omitempty"` // the bake that made the image
}

// UserData describes the payload and never carries it.
type UserData struct {
	SHA256 string `json:"sha256,omitempty"` // of the bytes IMDS gave
	Size   int    `json:"size"`             // bytes
	Format string `json:"format"`           // none, shell-script, cloud-config, multipart, gzip, unknown, ...
}

// Agent is the program that judged.
type Agent struct {
	Version string `json:"version"`
}

// CloudInit is what cloud-init said by itself.
type CloudInit struct {
	Version    string   `json:"version,omitempty"`
	Status     string   `json:"status,omitempty"` // done, error, running, disabled, not-run, degraded
	Datasource string   `json:"datasource,omitempty"`
	Errors     []string `json:"errors,omitempty"`
	Warnings   []string `json:"warnings,omitempty"`
}
