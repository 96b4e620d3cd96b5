// Package fleet says of every instance whether it came up. It owns the join of
// instances (EC2, Auto Scaling) with their reports (S3), the deadline, the
// cause of a silence, and what is done about failures. It refuses to believe a
// report that another than the instance's own role session has written, and to
// keep state of its own: all of it is in AWS, a restart loses nothing.
package fleet

import (
	"cmp"
	"slices"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
)

// Verdict is what is known of one instance.
type Verdict string

const (
	Success    = Verdict(report.Success)
	Degraded   = Verdict(report.Degraded)
	Failure    = Verdict(report.Failure)
	Pending    = Verdict("pending")    // no report yet, the deadline has not passed
	Silent     = Verdict("silent")     // no report, and the deadline has passed
	Terminated = Verdict("terminated") // gone before it reported
)

// Verdicts lists all of them, the best first.
func Verdicts() []Verdict {
	return []Verdict{Success, Degraded, Pending, Failure, Silent, Terminated}
}

// DefaultDeadline is the agent's own default of ten minutes, and two for the
// launch and the report's way.
const DefaultDeadline = 12 * time.Minute

// TagBootSeconds is the image's tag with the seconds its canary took to
// report. Deadlines derive from it where none is given.
const TagBootSeconds = manifest.TagBootSeconds

// Instance is what EC2 and Auto Scaling say of one.
type Instance struct {
	ID              string    `json:"instance_id"`
	Region          string    `json:"region"`
	Group           string    `json:"auto_scaling_group,omitempty"`
	TemplateID      string    `json:"launch_template_id,omitempty"`
	TemplateVersion string    `json:"launch_template_version,omitempty"`
	ImageID         string    `json:"image_id,omitempty"`
	Type            string    `json:"instance_type,omitempty"`
	Zone            string    `json:"availability_zone,omitempty"`
	State           string    `json:"state"`                     // EC2's: pending, running, stopping, stopped, shutting-down, terminated
	StateReason     string    `json:"state_reason,omitempty"`    // EC2's code and message
	LifecycleState  string    `json:"lifecycle_state,omitempty"` // Auto Scaling's: Pending:Wait, InService, Standby, ...
	Health          string    `json:"health,omitempty"`          // Auto Scaling's: Healthy, Unhealthy
	LaunchedAt      time.Time `json:"launched_at"`               // EC2's LaunchTime: of the last start

	ProfileARN   string        `json:"-"` // of the instance profile
	RoleID       string        `json:"-"` // AROA… of the profile's role, empty where it is not known
	IMDSDisabled bool          `json:"-"`
	SubnetID     string        `json:"-"`
	VPCID        string        `json:"-"`
	BootTime     time.Duration `json:"-"` // of the image's canary
}

func (i *Instance) gone() bool { return i.State == "shutting-down" || i.State == "terminated" }

// Object is one report in S3, as the listing shows it.
type Object struct {
	Key        report.Key
	Name       string // the S3 key
	ModifiedAt time.Time
	Size       int64
}

// Cause is why an instance is not well.
type Cause struct {
	Code    report.Code      `json:"code"`
	Stage   report.StageName `json:"stage,omitempty"`
	Message string           `json:"message,omitempty"`
	Fix     string           `json:"fix,omitempty"`
	Source  string           `json:"source"` // report, or the channel: ec2, console, status, activity, network

	ExitCode *int   `json:"exit_code,omitempty"`
	Signal   string `json:"signal,omitempty"`
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Command  string `json:"command,omitempty"`
	Unit     string `json:"unit,omitempty"`
}

// Standing is one instance and what is known of it.
type Standing struct {
	Instance
	Verdict    Verdict    `json:"verdict"`
	Stage      string     `json:"stage,omitempty"`    // without a report: the agent's (as cloud-final); else, of a pending one, launching, booting or Auto Scaling's Pending:Wait
	StageAt    *time.Time `json:"stage_at,omitempty"` // when the agent told it, a few seconds after it began
	Cause      *Cause     `json:"cause,omitempty"`
	Due        *time.Time `json:"due_at,omitempty"` // when a pending one becomes silent
	ReportedAt *time.Time `json:"reported_at,omitempty"`
	Report     string     `json:"report,omitempty"`  // S3 key
	Refused    int        `json:"refused,omitempty"` // reports for it that were not believed

	object Object
}

// Refusal is a report that is not believed.
type Refusal struct {
	Name       string `json:"report"` // S3 key, or the SQS message's ID
	InstanceID string `json:"instance_id,omitempty"`
	Reason     Reason `json:"reason"`
	Detail     string `json:"detail,omitempty"`
}

// Reason says why a report is not believed.
type Reason string

const (
	Forged    Reason = "forged"    // its sender is another than the instance's own role session
	Replayed  Reason = "replayed"  // a copy of a report that came before
	Malformed Reason = "malformed" // not a report, or not what its key says
	Oversized Reason = "oversized"
	Schema    Reason = "schema" // a major version this program does not read
)

// Policy says how the reports are judged.
type Policy struct {
	Now      time.Time
	Deadline time.Duration // 0: by the image's boot time, else DefaultDeadline
}

func (p Policy) deadline(i *Instance) time.Duration {
	switch {
	case p.Deadline > 0:
		return p.Deadline
	case i.BootTime > 0:
		return max(2*i.BootTime, i.BootTime+2*time.Minute)
	}
	return DefaultDeadline
}

// Join says of each instance what the reports say of it, in order of region,
// group, launch and ID. The order of its arguments and repeated objects do not
// matter. Objects about other instances are no concern of it.
func Join(instances []Instance, objects []Object, p Policy) ([]Standing, []Refusal) {
	index := make(map[string]int, len(instances))
	for n := range instances {
		index[instances[n].ID] = n
	}
	// The one bootstrap report of each instance, -1 for none.
	first := make([]int, len(instances))
	refused := make([]int, len(instances))
	for n := range first {
		first[n] = -1
	}
	var refusals []Refusal
	copies := copied(objects)
	seen := map[string]bool{}
	for o := range objects {
		obj := &objects[o]
		n, ok := index[obj.Key.InstanceID()]
		if !ok || obj.Key.Kind != report.KindBootstrap {
			continue
		}
		r := Refusal{Name: obj.Name, InstanceID: instances[n].ID}
		switch role := instances[n].RoleID; {
		case role != "" && obj.Key.Sender != role+":"+instances[n].ID:
			r.Reason, r.Detail = Forged, "its sender's role is not the one of the instance's profile"
		case copies[obj.Name]:
			r.Reason, r.Detail = Replayed, "another sender wrote a report of this ID before"
		case !known(obj.Key.Verdict):
			r.Reason, r.Detail = Malformed, "its verdict is unknown: "+string(obj.Key.Verdict)
		}
		if r.Reason != "" {
			if !seen[obj.Name] {
				seen[obj.Name] = true
				refused[n]++
				refusals = append(refusals, r)
			}
			continue
		}
		if first[n] < 0 || before(obj, &objects[first[n]]) {
			first[n] = o
		}
	}
	// Where the role is not known, the first sender is believed and a second
	// one is not: an instance has one role session.
	for o := range objects {
		obj := &objects[o]
		n, ok := index[obj.Key.InstanceID()]
		if !ok || obj.Key.Kind != report.KindBootstrap || instances[n].RoleID != "" || first[n] < 0 || seen[obj.Name] ||
			obj.Key.Sender == objects[first[n]].Key.Sender {
			continue
		}
		seen[obj.Name] = true
		refused[n]++
		refusals = append(refusals, Refusal{Name: obj.Name, InstanceID: instances[n].ID, Reason: Forged, Detail: "a report of another sender for this instance came before"})
	}
	standings := make([]Standing, len(instances))
	for n := range instances {
		var obj *Object
		if first[n] >= 0 {
			obj = &objects[first[n]]
		}
		standings[n] = judge(&instances[n], obj, p)
		standings[n].Refused = refused[n]
	}
	slices.SortFunc(standings, func(a, b Standing) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Group, b.Group), a.LaunchedAt.Compare(b.LaunchedAt), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(refusals, func(a, b Refusal) int { return cmp.Compare(a.Name, b.Name) })
	return standings, refusals
}

func known(v report.Verdict) bool {
	return v == report.Success || v == report.Degraded || v == report.Failure
}

// before orders the reports of one instance: a boot is judged once, so the
// first one stands.
func before(a, b *Object) bool {
	return cmp.Or(a.Key.Time.Compare(b.Key.Time), cmp.Compare(a.Name, b.Name)) < 0
}

// copied returns the names of objects whose report ID another sender used
// before. IDs are random: the same one twice is a copy.
func copied(objects []Object) map[string]bool {
	owner := make(map[string]int, len(objects))
	shared := false
	for n := range objects {
		o := &objects[n]
		m, ok := owner[o.Key.ID]
		if !ok {
			owner[o.Key.ID] = n
			continue
		}
		p := &objects[m]
		shared = shared || p.Key.Sender != o.Key.Sender
		if cmp.Or(o.ModifiedAt.Compare(p.ModifiedAt), cmp.Compare(o.Name, p.Name)) < 0 {
			owner[o.Key.ID] = n
		}
	}
	if !shared {
		return nil
	}
	copies := map[string]bool{}
	for n := range objects {
		o := &objects[n]
		if objects[owner[o.Key.ID]].Key.Sender != o.Key.Sender {
			copies[o.Name] = true
		}
	}
	return copies
}

// judge is the verdict on one instance.
func judge(i *Instance, obj *Object, p Policy) Standing {
	s := Standing{Instance: *i}
	if obj != nil {
		at := obj.Key.Time
		s.Verdict, s.ReportedAt, s.Report, s.object = Verdict(obj.Key.Verdict), &at, obj.Name, *obj
		if obj.Key.Code != "none" {
			s.Cause = &Cause{Code: obj.Key.Code, Source: "report"}
		}
		return s
	}
	due := i.LaunchedAt.Add(p.deadline(i))
	switch {
	case i.gone():
		s.Verdict = Terminated
		s.Cause = &Cause{Code: CodeTerminated, Source: "ec2", Message: cmp.Or(i.StateReason, "it was terminated before it reported")}
	case i.LaunchedAt.IsZero() || p.Now.Before(due):
		s.Verdict = Pending
		if !i.LaunchedAt.IsZero() {
			s.Due = &due
		}
		s.Stage = "booting"
		if i.State == "pending" {
			s.Stage = "launching"
		}
		if i.LifecycleState != "" && i.LifecycleState != "InService" {
			s.Stage = i.LifecycleState
		}
	default:
		s.Verdict = Silent
		s.Cause = silence(i, p.deadline(i))
	}
	return s
}

// Codes of causes that no agent reports. See report.Code for the others.
const (
	CodeTerminated report.Code = "terminated_before_report"
	CodeStopped    report.Code = "stopped_before_report"
	CodeNoReport   report.Code = "no_report"
	CodeUnknownID  report.Code = "instance_unknown"
)

// silence is the cause as far as the instance's own description tells it.
func silence(i *Instance, deadline time.Duration) *Cause {
	switch {
	case i.State == "stopped" || i.State == "stopping":
		return &Cause{Code: CodeStopped, Source: "ec2", Message: "it was stopped before it reported: " + cmp.Or(i.StateReason, "no reason known")}
	case i.IMDSDisabled:
		return &Cause{Code: report.CodeIMDSUnreachable, Stage: report.StageIdentity, Source: "ec2",
			Message: "its metadata service is disabled", Fix: "set HttpEndpoint to enabled in the launch template's metadata options"}
	case i.ProfileARN == "":
		return &Cause{Code: report.CodeRoleMissing, Stage: report.StageIdentity, Source: "ec2",
			Message: "it has no instance profile, so that it cannot write its report", Fix: "name an instance profile in the launch template"}
	}
	return &Cause{Code: CodeNoReport, Source: "ec2", Message: "no report within " + deadline.String() + " of its launch"}
}
