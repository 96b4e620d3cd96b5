package fleet

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// OnFailure is what is done about an instance that failed or is silent.
type OnFailure string

const (
	None      OnFailure = "none"
	Unhealthy OnFailure = "unhealthy" // Auto Scaling is told and replaces it
	Abandon   OnFailure = "abandon"   // its launch's lifecycle action is completed with ABANDON
	Terminate OnFailure = "terminate"
)

// Remedies lists all of them.
func Remedies() []OnFailure { return []OnFailure{None, Unhealthy, Abandon, Terminate} }

// Fingerprint names failures that are the same: one image and launch template
// version, one stage, cause and line.
type Fingerprint struct {
	ImageID         string `json:"image_id"`
	TemplateID      string `json:"launch_template_id,omitempty"`
	TemplateVersion string `json:"launch_template_version,omitempty"`
	Stage           string `json:"stage,omitempty"`
	Code            string `json:"code"`
	Line            int    `json:"line,omitempty"`
}

// FingerprintOf returns the fingerprint of a failure.
func FingerprintOf(s *Standing) Fingerprint {
	f := Fingerprint{ImageID: s.ImageID, TemplateID: s.TemplateID, TemplateVersion: s.TemplateVersion, Code: string(s.Verdict)}
	if s.Cause != nil {
		f.Stage, f.Code, f.Line = string(s.Cause.Stage), string(s.Cause.Code), s.Cause.Line
	}
	return f
}

func (f Fingerprint) hash() string {
	b, _ := json.Marshal(f) // strings and an int: cannot fail
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

func (f Fingerprint) String() string {
	s := f.Code
	if f.Stage != "" {
		s += " in " + f.Stage
	}
	if f.Line > 0 {
		s += fmt.Sprintf(" at line %d", f.Line)
	}
	s += " on " + f.ImageID
	if f.TemplateID != "" {
		s += fmt.Sprintf(", %s version %s", f.TemplateID, f.TemplateVersion)
	}
	return s
}

// Action is one thing that was done about an instance, or would have been.
type Action struct {
	At          time.Time   `json:"at"`
	InstanceID  string      `json:"instance_id"`
	Region      string      `json:"region"`
	Group       string      `json:"auto_scaling_group,omitempty"`
	Did         string      `json:"did"`    // unhealthy, abandon, terminate; specimen, heartbeat, brake: nothing is replaced
	Reason      string      `json:"reason"` // verdict and cause in words
	Fingerprint Fingerprint `json:"fingerprint"`
	DryRun      bool        `json:"dry_run,omitempty"`
	Error       string      `json:"error,omitempty"`
}

// Line is an action in words.
func (a *Action) Line() string {
	s := fmt.Sprintf("%s %s: %s", a.InstanceID, a.Did, a.Reason)
	if a.DryRun {
		s = "(dry run) " + s
	}
	if a.Error != "" {
		s += " — FAILED: " + a.Error
	}
	return s
}

// Brake is a fingerprint that nothing is replaced for any more.
type Brake struct {
	Fingerprint Fingerprint `json:"fingerprint"`
	Instances   []string    `json:"instances"` // that failed with it
	Specimen    string      `json:"specimen"`  // kept for study
}

// Remedy acts on failures. What it has done stands in S3, below the reports'
// prefix at _fleet/: objects written with conditional PUTs, so that of several
// watchers one acts on an instance, once, and all count the same failures.
type Remedy struct {
	OnFailure OnFailure
	After     int           // failures of one fingerprint that trip the brake, default 3
	Window    time.Duration // in which they count, default 6h
	DryRun    bool
	Bucket    string
	Prefix    string // of the reports
	S3        Store
	Regions   []*Region
	Log       *slog.Logger
	Now       func() time.Time

	done      map[string]bool // instances that need nothing more from this process
	reported  map[string]bool // instances that a report was seen of
	specimens map[string]bool
	braked    map[string]*Brake
	hooks     map[string]string // group → its launching hook
}

// marker says that somebody acts, or has acted, on an instance.
type marker struct {
	Action
	Slot  int  `json:"slot"`  // of the brake; 0 before it is known
	Acted bool `json:"acted"` // the call has been made
}

// claimFor is how long another watcher's claim is waited for: then it has died
// between claim and call. The calls themselves are safe to repeat.
const claimFor = 5 * time.Minute

// staleAfter is how long after its launch the silence of an instance says
// something of its boot. Reports expire, by the bucket's lifecycle rule: one
// that has run for longer than that may have come up well.
const staleAfter = 24 * time.Hour

// Act does what is to be done about the snapshot's failures, and returns it.
// Errors of single actions are in the actions; the error returned is of S3.
func (r *Remedy) Act(ctx context.Context, snap *Snapshot) ([]Action, error) {
	if r.OnFailure == None || r.OnFailure == "" {
		return nil, nil
	}
	if r.done == nil {
		r.reported = map[string]bool{}
		r.done, r.specimens, r.braked, r.hooks = map[string]bool{}, map[string]bool{}, map[string]*Brake{}, map[string]string{}
	}
	var actions []Action
	for n := range snap.Instances {
		s := &snap.Instances[n]
		if s.Report != "" {
			r.reported[s.ID] = true
		}
		if s.Verdict != Failure && s.Verdict != Silent {
			continue // never on pending, degraded or what is gone
		}
		if s.gone() || strings.HasPrefix(s.LifecycleState, "Terminating") || s.LifecycleState == "Detached" || s.LifecycleState == "Detaching" {
			continue
		}
		if s.State == "stopped" || s.State == "stopping" {
			continue // by somebody, or for a warm pool: it fails at nothing
		}
		a, err := r.one(ctx, s)
		if err != nil {
			return actions, err
		}
		if a != nil {
			r.log(ctx, a)
			actions = append(actions, *a)
		}
	}
	return actions, nil
}

// Brakes returns the fingerprints that nothing is replaced for.
func (r *Remedy) Brakes() []Brake {
	var list []Brake
	for _, b := range r.braked {
		list = append(list, *b)
	}
	slices.SortFunc(list, func(a, b Brake) int { return cmp.Compare(a.Specimen, b.Specimen) })
	return list
}

func (r *Remedy) log(ctx context.Context, a *Action) {
	if r.Log == nil {
		return
	}
	level := slog.LevelInfo
	if a.Did == "specimen" || a.Error != "" {
		level = slog.LevelWarn
	}
	r.Log.Log(ctx, level, "remediation", "instance", a.InstanceID, "group", a.Group, "did", a.Did, "reason", a.Reason, "fingerprint", a.Fingerprint.String(), "dry_run", a.DryRun, "error", a.Error)
}

// one acts on one failed instance.
func (r *Remedy) one(ctx context.Context, s *Standing) (*Action, error) {
	if r.specimens[s.ID] {
		return r.keepAlive(ctx, s)
	}
	if r.done[s.ID] || s.LifecycleState == "Standby" || s.LifecycleState == "EnteringStandby" {
		return nil, nil
	}
	fp := FingerprintOf(s)
	a := &Action{At: r.now(), InstanceID: s.ID, Region: s.Region, Group: s.Group, Did: string(r.OnFailure), Fingerprint: fp, DryRun: r.DryRun}
	a.Reason = string(s.Verdict)
	if s.Cause != nil {
		a.Reason += ": " + string(s.Cause.Code)
		if s.Cause.Message != "" {
			a.Reason += ": " + s.Cause.Message
		}
	}
	if why := r.cannot(s); why != "" {
		r.done[s.ID] = true
		a.Did, a.Reason = "nothing", why+"; "+a.Reason
		return a, nil
	}
	if r.DryRun {
		r.done[s.ID] = true
		return a, nil
	}

	// First the claim on the instance, then its place in the brake's count,
	// then the call, then the word that it was made.
	key := r.key("acted/" + s.ID + ".json")
	m := marker{Action: *a}
	etag, err := r.put(ctx, key, m, "")
	if errors.Is(err, errTaken) {
		var old marker
		if etag, err = r.get(ctx, key, &old); err != nil {
			return nil, err
		}
		if old.Acted {
			r.done[s.ID] = true
			if old.Did == "specimen" {
				// A restarted watcher goes on keeping it.
				r.specimens[s.ID] = true
				r.brake(old.Fingerprint, old.InstanceID)
			}
			return nil, nil
		}
		if r.now().Sub(old.At) < claimFor {
			return nil, nil // another watcher is at it
		}
		m.Fingerprint, a.Fingerprint = old.Fingerprint, old.Fingerprint
		if etag, err = r.put(ctx, key, m, etag); errors.Is(err, errTaken) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}

	slot, failed, err := r.slot(ctx, a.Fingerprint, s.ID)
	if err != nil {
		return nil, err
	}
	m.Slot = slot
	var callErr error
	switch {
	case slot == 0: // the brake is on already
		r.brake(a.Fingerprint, failed...)
		a.Did = "brake"
		a.Reason = fmt.Sprintf("nothing is done, %d instances failed the same way (%s); %s", len(failed), a.Fingerprint, a.Reason)
	case slot == r.after():
		r.brake(a.Fingerprint, failed...)
		r.braked[a.Fingerprint.hash()].Specimen = s.ID
		a.Did = "specimen"
		a.Reason = fmt.Sprintf("BRAKE: %d instances failed the same way (%s), nothing more is replaced, this one is kept for study; %s", len(failed), a.Fingerprint, a.Reason)
		if callErr = r.keep(ctx, s); !passing(callErr) {
			r.specimens[s.ID] = true
		}
	default:
		callErr = r.act(ctx, s)
	}
	if callErr != nil {
		a.Error = callErr.Error()
	}
	if passing(callErr) {
		return a, nil // the claim runs out, and the call is made again
	}
	m.Action, m.Acted = *a, true
	if _, err := r.put(ctx, key, m, etag); err != nil && !errors.Is(err, errTaken) {
		return a, err
	}
	r.done[s.ID] = true
	return a, nil
}

// cannot says why the remedy does not fit the instance, "" where it does.
func (r *Remedy) cannot(s *Standing) string {
	waiting := strings.HasPrefix(s.LifecycleState, "Pending")
	switch {
	case r.region(s.Region) == nil:
		return "its region is not watched"
	case s.Cause != nil && s.Cause.Code == CodeElsewhere:
		return "it may be well: its reports go to another place"
	case s.Verdict == Silent && r.reported[s.ID]:
		return "it has reported: its report is gone from the bucket since"
	case s.Verdict == Silent && r.now().Sub(s.LaunchedAt) > staleAfter:
		return "it was launched " + s.LaunchedAt.Format(time.RFC3339) + ": its report may have expired since"
	case r.OnFailure == Terminate:
		return ""
	case s.Group == "":
		return "it is in no Auto Scaling group, which could replace it"
	case r.OnFailure == Abandon && !waiting:
		return "it is past its lifecycle hook (" + s.LifecycleState + "), there is nothing to abandon"
	}
	return ""
}

// act is the call of the remedy.
func (r *Remedy) act(ctx context.Context, s *Standing) error {
	region := r.region(s.Region)
	switch {
	case r.OnFailure == Terminate:
		_, err := region.EC2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{s.ID}})
		return wrap("terminate", s.ID, err)
	case strings.HasPrefix(s.LifecycleState, "Pending"):
		// SetInstanceHealth does nothing for an instance in Pending:Wait.
		hook, err := r.hook(ctx, region, s.Group)
		if err != nil {
			return err
		}
		_, err = region.AutoScaling.CompleteLifecycleAction(ctx, &autoscaling.CompleteLifecycleActionInput{
			AutoScalingGroupName: &s.Group, LifecycleHookName: &hook, InstanceId: &s.ID, LifecycleActionResult: aws.String("ABANDON"),
		})
		return wrap("abandon the launch of", s.ID, err)
	}
	if s.Health == "Unhealthy" {
		return nil // said before: by a watcher that died before it could write that down, or by somebody else
	}
	_, err := region.AutoScaling.SetInstanceHealth(ctx, &autoscaling.SetInstanceHealthInput{InstanceId: &s.ID, HealthStatus: aws.String("Unhealthy"), ShouldRespectGracePeriod: aws.Bool(false)})
	return wrap("mark unhealthy", s.ID, err)
}

func wrap(what, id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, id, err)
}

// keep saves a specimen from being replaced. Scale-in protection would not do:
// it does not stop the replacement of an unhealthy instance.
func (r *Remedy) keep(ctx context.Context, s *Standing) error {
	region := r.region(s.Region)
	switch {
	case s.Group == "":
		return nil // nobody replaces it
	case strings.HasPrefix(s.LifecycleState, "Pending"):
		return r.heartbeat(ctx, s)
	case s.LifecycleState != "InService":
		return nil
	}
	in := &autoscaling.EnterStandbyInput{AutoScalingGroupName: &s.Group, InstanceIds: []string{s.ID}, ShouldDecrementDesiredCapacity: aws.Bool(true)}
	_, err := region.AutoScaling.EnterStandby(ctx, in)
	if code := apiCode(err); code == "ValidationError" || code == "ValidationException" {
		// The group is at its minimum: then it launches one more, which the
		// brake leaves as it is.
		in.ShouldDecrementDesiredCapacity = aws.Bool(false)
		_, err = region.AutoScaling.EnterStandby(ctx, in)
	}
	return wrap("move to Standby", s.ID, err)
}

func (r *Remedy) heartbeat(ctx context.Context, s *Standing) error {
	region := r.region(s.Region)
	hook, err := r.hook(ctx, region, s.Group)
	if err != nil {
		return err
	}
	_, err = region.AutoScaling.RecordLifecycleActionHeartbeat(ctx, &autoscaling.RecordLifecycleActionHeartbeatInput{AutoScalingGroupName: &s.Group, LifecycleHookName: &hook, InstanceId: &s.ID})
	return wrap("keep the lifecycle action of", s.ID, err)
}

// keepAlive heartbeats a specimen that waits; one in Standby needs nothing.
func (r *Remedy) keepAlive(ctx context.Context, s *Standing) (*Action, error) {
	if !strings.HasPrefix(s.LifecycleState, "Pending") || r.DryRun {
		return nil, nil
	}
	if err := r.heartbeat(ctx, s); err != nil {
		return &Action{At: r.now(), InstanceID: s.ID, Region: s.Region, Group: s.Group, Did: "heartbeat", Reason: "it is kept for study", Fingerprint: FingerprintOf(s), Error: err.Error()}, nil
	}
	return nil, nil
}

func (r *Remedy) hook(ctx context.Context, region *Region, group string) (string, error) {
	if h, ok := r.hooks[region.Name+"/"+group]; ok {
		return h, nil
	}
	out, err := region.AutoScaling.DescribeLifecycleHooks(ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: &group})
	if err != nil {
		return "", fmt.Errorf("describe lifecycle hooks of %s: %w", group, err)
	}
	for _, h := range out.LifecycleHooks {
		if aws.ToString(h.LifecycleTransition) == "autoscaling:EC2_INSTANCE_LAUNCHING" {
			r.hooks[region.Name+"/"+group] = aws.ToString(h.LifecycleHookName)
			return aws.ToString(h.LifecycleHookName), nil
		}
	}
	return "", fmt.Errorf("group %s has no lifecycle hook for launches", group)
}

func (r *Remedy) brake(fp Fingerprint, failed ...string) {
	b := r.braked[fp.hash()]
	if b == nil {
		b = &Brake{Fingerprint: fp}
		r.braked[fp.hash()] = b
	}
	for _, id := range failed {
		if !slices.Contains(b.Instances, id) {
			b.Instances = append(b.Instances, id)
		}
		b.Specimen = id // the last place is the specimen's
	}
}

func (r *Remedy) after() int { return cmp.Or(r.After, 3) }

func (r *Remedy) window() time.Duration { return cmp.Or(r.Window, 6*time.Hour) }

func (r *Remedy) now() time.Time {
	if r.Now != nil {
		return r.Now().UTC()
	}
	return time.Now().UTC()
}

func (r *Remedy) region(name string) *Region {
	for _, region := range r.Regions {
		if region.Name == name {
			return region
		}
	}
	return nil
}
