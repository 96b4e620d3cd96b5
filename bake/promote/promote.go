// Package promote takes an image into use in the order that cannot hurt: a new
// numbered launch template version, an instance refresh of the group pinned to
// it, and only when that has succeeded the version made default and the SSM
// parameter written, so that no scale-out gets an image the refresh has not
// proved. It bakes nothing and deletes nothing.
package promote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/launchtemplate"
)

type ec2API interface {
	launchtemplate.API
	DescribeImages(context.Context, *ec2.DescribeImagesInput, ...func(*ec2.Options)) (*ec2.DescribeImagesOutput, error)
}

type groupAPI interface {
	DescribeAutoScalingGroups(context.Context, *autoscaling.DescribeAutoScalingGroupsInput, ...func(*autoscaling.Options)) (*autoscaling.DescribeAutoScalingGroupsOutput, error)
	DescribeInstanceRefreshes(context.Context, *autoscaling.DescribeInstanceRefreshesInput, ...func(*autoscaling.Options)) (*autoscaling.DescribeInstanceRefreshesOutput, error)
	RollbackInstanceRefresh(context.Context, *autoscaling.RollbackInstanceRefreshInput, ...func(*autoscaling.Options)) (*autoscaling.RollbackInstanceRefreshOutput, error)
	StartInstanceRefresh(context.Context, *autoscaling.StartInstanceRefreshInput, ...func(*autoscaling.Options)) (*autoscaling.StartInstanceRefreshOutput, error)
	UpdateAutoScalingGroup(context.Context, *autoscaling.UpdateAutoScalingGroupInput, ...func(*autoscaling.Options)) (*autoscaling.UpdateAutoScalingGroupOutput, error)
}

type parameterAPI interface {
	GetParameter(context.Context, *ssm.GetParameterInput, ...func(*ssm.Options)) (*ssm.GetParameterOutput, error)
	PutParameter(context.Context, *ssm.PutParameterInput, ...func(*ssm.Options)) (*ssm.PutParameterOutput, error)
}

// Options say what goes where. LaunchTemplate may be empty when only a
// parameter is written; Group needs LaunchTemplate.
type Options struct {
	Config         aws.Config
	ImageID        string
	LaunchTemplate string // name or ID
	Group          string // Auto Scaling group
	SSMParameter   string
	Pin            bool          // convert a group on $Default or $Latest to a number
	MinHealthy     int           // percent that stays in service, default 90
	Warmup         time.Duration // before an instance counts; default the group's
	Timeout        time.Duration // of the refresh, default 2h; then it is rolled back
	Poll           time.Duration // default 5s
	Report         func(string)  // a line for people, may be nil
	AnyState       bool          // take an image that lecafe bake did not finish
	MaxHealthy     int           // percent that the group may grow to meanwhile; default AWS's 100
	BakeTime       time.Duration // that the refresh stays open, and can be rolled back at once, after its last instance

	// Prove, if set, is asked at each poll how the new version's instances do.
	// The refresh's success is then not enough: the promotion goes on when it
	// says proved, and goes back when it returns an ErrUnproved. Other errors
	// are told, and it is asked again.
	Prove func(context.Context, Rollout) (proved bool, err error)
}

// Rollout is a refresh under way, as Prove is told.
type Rollout struct {
	Group      string
	TemplateID string
	Version    string // the new one
	Desired    int    // the group's desired capacity at the start
	Status     string // Auto Scaling's: Pending, InProgress, Baking, Successful, ...
	Percent    int
	Since      time.Time // the refresh's start: what was gone by then is of an earlier try
}

// Result is what was done.
type Result struct {
	ImageID        string   `json:"image_id"`
	LaunchTemplate string   `json:"launch_template_id,omitempty"`
	Version        int64    `json:"version,omitempty"`
	RefreshID      string   `json:"instance_refresh_id,omitempty"` // empty when nothing had to be refreshed
	From           string   `json:"from_version,omitempty"`        // the group's version before
	BackID         string   `json:"back_refresh_id,omitempty"`     // a refresh to From, where the first had ended already
	Done           []string `json:"done"`
	NotDone        []string `json:"not_done"`
}

// Partial is an error with what was done before it and what was not. Running
// the promotion again goes on from there.
type Partial struct {
	Result *Result
	Err    error
}

func (e *Partial) Error() string {
	text := e.Err.Error()
	if len(e.Result.Done) > 0 {
		text += "\ndone: " + strings.Join(e.Result.Done, "; ")
	}
	if len(e.Result.NotDone) > 0 {
		text += "\nnot done: " + strings.Join(e.Result.NotDone, "; ")
	}
	return text
}
func (e *Partial) Unwrap() error { return e.Err }

// Errors of a promotion that was refused before anything was changed, and of
// a refresh that did not succeed.
var (
	ErrRefused  = errors.New("promotion refused")
	ErrRollback = errors.New("the instance refresh was rolled back")
	// ErrUnproved is what Prove returns of instances that did not come up.
	ErrUnproved = errors.New("the new version is not proved")
)

type promotion struct {
	Options
	ec2    ec2API
	groups groupAPI
	ssm    parameterAPI
	res    *Result
	before *astypes.AutoScalingGroup // as it was before the refresh
}

func connect(o Options) *promotion {
	o.MinHealthy, o.Timeout, o.Poll = cmp.Or(o.MinHealthy, 90), cmp.Or(o.Timeout, 2*time.Hour), cmp.Or(o.Poll, 5*time.Second)
	return &promotion{Options: o, ec2: ec2.NewFromConfig(o.Config), groups: autoscaling.NewFromConfig(o.Config), ssm: ssm.NewFromConfig(o.Config), res: &Result{ImageID: o.ImageID, Done: []string{}, NotDone: []string{}}}
}

func (p *promotion) say(format string, args ...any) {
	if p.Report != nil {
		p.Report(fmt.Sprintf(format, args...))
	}
}

// Run promotes an image. Everything it does can be repeated: a version that
// has the image already is used, a refresh to it that is under way is
// followed, a group that runs it is left alone.
func Run(ctx context.Context, o Options) (*Result, error) {
	p := connect(o)
	if err := p.check(ctx); err != nil {
		return nil, err
	}
	var group *astypes.AutoScalingGroup
	if o.Group != "" {
		var err error
		if group, err = p.group(ctx); err != nil {
			return nil, err
		}
	}
	steps := []struct {
		name string
		on   bool
		run  func(context.Context) error
	}{
		{"new version of launch template " + o.LaunchTemplate, o.LaunchTemplate != "", p.version},
		{"instance refresh of " + o.Group, group != nil, func(ctx context.Context) error { return p.refresh(ctx, group) }},
		{"default version of launch template " + o.LaunchTemplate, o.LaunchTemplate != "", p.makeDefault},
		{"SSM parameter " + o.SSMParameter, o.SSMParameter != "", p.parameter},
	}
	for i, s := range steps {
		if !s.on {
			continue
		}
		if err := s.run(ctx); err != nil {
			for _, rest := range steps[i:] {
				if rest.on {
					p.res.NotDone = append(p.res.NotDone, rest.name)
				}
			}
			return p.res, &Partial{p.res, err}
		}
		p.res.Done = append(p.res.Done, s.name)
	}
	return p.res, nil
}

func (p *promotion) check(ctx context.Context) error {
	if p.LaunchTemplate == "" && (p.SSMParameter == "" || p.Group != "") {
		return fmt.Errorf("%w: name a launch template, or an SSM parameter alone", ErrRefused)
	}
	out, err := p.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{p.ImageID}})
	if err != nil {
		return fmt.Errorf("describe image %s: %w", p.ImageID, err)
	}
	if len(out.Images) == 0 {
		return fmt.Errorf("%w: there is no image %s in %s", ErrRefused, p.ImageID, p.Config.Region)
	}
	im := out.Images[0]
	if im.State != types.ImageStateAvailable {
		return fmt.Errorf("%w: image %s is %s", ErrRefused, p.ImageID, im.State)
	}
	for _, t := range im.Tags {
		if aws.ToString(t.Key) == "lecafe:state" && aws.ToString(t.Value) != "done" && !p.AnyState {
			return fmt.Errorf("%w: image %s is %s: its bake did not end well", ErrRefused, p.ImageID, aws.ToString(t.Value))
		}
	}
	return nil
}

// group reads the group and refuses one whose instances would follow the
// default version before it is proved.
func (p *promotion) group(ctx context.Context) (*astypes.AutoScalingGroup, error) {
	out, err := p.groups.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{p.Group}})
	if err != nil {
		return nil, fmt.Errorf("describe Auto Scaling group %s: %w", p.Group, err)
	}
	if len(out.AutoScalingGroups) == 0 {
		return nil, fmt.Errorf("%w: there is no Auto Scaling group %s in %s", ErrRefused, p.Group, p.Config.Region)
	}
	g := &out.AutoScalingGroups[0]
	spec := templateOf(g)
	if spec == nil {
		return nil, fmt.Errorf("%w: group %s has no launch template; give it one first", ErrRefused, p.Group)
	}
	if p.LaunchTemplate != aws.ToString(spec.LaunchTemplateId) && p.LaunchTemplate != aws.ToString(spec.LaunchTemplateName) {
		return nil, fmt.Errorf("%w: group %s launches from %s, not from %s", ErrRefused, p.Group, cmp.Or(aws.ToString(spec.LaunchTemplateName), aws.ToString(spec.LaunchTemplateId)), p.LaunchTemplate)
	}
	for _, process := range g.SuspendedProcesses {
		if name := aws.ToString(process.ProcessName); name == "Launch" || name == "Terminate" {
			return nil, fmt.Errorf("%w: the process %s of group %s is suspended, no instance would be replaced; resume it first", ErrRefused, name, p.Group)
		}
	}
	version := cmp.Or(aws.ToString(spec.Version), "$Default")
	if _, err := strconv.Atoi(version); err == nil {
		p.res.From = version
		return g, nil
	}
	if !p.Pin {
		return nil, fmt.Errorf("%w: group %s launches %s: AWS cannot roll such a group back, and every scale-out would get a version that no refresh has proved; --pin sets it to the number that %s stands for now", ErrRefused, p.Group, version, version)
	}
	v, err := launchtemplate.Describe(ctx, p.ec2, p.LaunchTemplate, version)
	if err != nil {
		return nil, err
	}
	number := strconv.FormatInt(aws.ToInt64(v.VersionNumber), 10)
	in := &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: &p.Group}
	spec.Version, p.res.From = &number, number
	in.LaunchTemplate, in.MixedInstancesPolicy = desired(g, number)
	if _, err := p.groups.UpdateAutoScalingGroup(ctx, in); err != nil {
		return nil, fmt.Errorf("pin group %s to version %s: %w", p.Group, number, err)
	}
	p.say("group %s is pinned to version %s, which %s stood for", p.Group, number, version)
	p.res.Done = append(p.res.Done, fmt.Sprintf("group %s pinned to version %s", p.Group, number))
	return g, nil
}

func templateOf(g *astypes.AutoScalingGroup) *astypes.LaunchTemplateSpecification {
	if g.LaunchTemplate != nil {
		return g.LaunchTemplate
	}
	if m := g.MixedInstancesPolicy; m != nil && m.LaunchTemplate != nil {
		return m.LaunchTemplate.LaunchTemplateSpecification
	}
	return nil
}

// desired is the group's template or mixed instances policy with a version.
// AWS takes a template's ID or its name, not both.
func desired(g *astypes.AutoScalingGroup, version string) (*astypes.LaunchTemplateSpecification, *astypes.MixedInstancesPolicy) {
	old := templateOf(g)
	spec := &astypes.LaunchTemplateSpecification{LaunchTemplateId: old.LaunchTemplateId, Version: &version}
	if spec.LaunchTemplateId == nil {
		spec.LaunchTemplateName = old.LaunchTemplateName
	}
	if g.LaunchTemplate != nil {
		return spec, nil
	}
	policy := *g.MixedInstancesPolicy
	template := *policy.LaunchTemplate
	template.LaunchTemplateSpecification = spec
	policy.LaunchTemplate = &template
	return nil, &policy
}

func (p *promotion) version(ctx context.Context) error {
	v, err := launchtemplate.Publish(ctx, p.ec2, launchtemplate.Spec{Name: p.LaunchTemplate, Source: cmp.Or(p.res.From, "$Default"), ImageID: p.ImageID})
	if err != nil {
		return err
	}
	p.res.LaunchTemplate, p.res.Version = v.TemplateID, v.Number
	if v.Created {
		p.say("launch template %s has version %d with %s", p.LaunchTemplate, v.Number, p.ImageID)
	}
	return nil
}

func (p *promotion) makeDefault(ctx context.Context) error {
	if err := launchtemplate.SetDefault(ctx, p.ec2, p.res.LaunchTemplate, p.res.Version); err != nil {
		return err
	}
	p.say("version %d is the default of launch template %s", p.res.Version, p.LaunchTemplate)
	return nil
}

func (p *promotion) parameter(ctx context.Context) error {
	old, err := p.ssm.GetParameter(ctx, &ssm.GetParameterInput{Name: &p.SSMParameter})
	if err == nil && old.Parameter != nil && aws.ToString(old.Parameter.Value) == p.ImageID {
		return nil
	}
	if err != nil && codeOf(err) != "ParameterNotFound" {
		return fmt.Errorf("read SSM parameter %s: %w", p.SSMParameter, err)
	}
	in := &ssm.PutParameterInput{Name: &p.SSMParameter, Value: &p.ImageID, Type: ssmtypes.ParameterTypeString, Overwrite: aws.Bool(true)}
	if err == nil && old.Parameter != nil && aws.ToString(old.Parameter.DataType) == "aws:ec2:image" {
		in.DataType = old.Parameter.DataType
	}
	if _, err := p.ssm.PutParameter(ctx, in); err != nil {
		return fmt.Errorf("write SSM parameter %s: %w", p.SSMParameter, err)
	}
	p.say("SSM parameter %s is %s", p.SSMParameter, p.ImageID)
	return nil
}

func codeOf(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}

// current says that every instance of the group runs the version.
func current(g *astypes.AutoScalingGroup, version string) bool {
	spec := templateOf(g)
	return spec != nil && aws.ToString(spec.Version) == version && !slices.ContainsFunc(g.Instances, func(i astypes.Instance) bool {
		return i.LaunchTemplate == nil || aws.ToString(i.LaunchTemplate.Version) != version
	})
}
