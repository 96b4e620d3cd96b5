// Package rollout takes an image into use in the order that cannot hurt: a new
// numbered launch template version, an instance refresh of the group pinned to
// it, and only when that has succeeded the version made default and the SSM
// parameter written. It owns that order and the way back. It decides nothing
// about when to go back: whoever follows the instances does (see fleet).
package rollout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/launchtemplate"
)

// ErrRefused says that the rollout cannot be begun as it was asked for; nothing
// was changed. The message says why and what to do.
var ErrRefused = errors.New("rollout refused")

// ErrBusy says that another instance refresh of the group is under way.
var ErrBusy = errors.New("another instance refresh is under way")

// Spec says what is rolled out where.
type Spec struct {
	Group      string // Auto Scaling group; "" where there is none: then the version alone is published
	Template   string // name or ID; "" for the group's own
	ImageID    string
	Parameter  string // SSM parameter that gets the image's ID at the end, "" for none
	Pin        bool   // convert a group on $Default or $Latest to the number that is behind it now
	MinHealthy *int32 // percent, of the refresh; nil for AWS's default
	MaxHealthy *int32 // percent, needs MinHealthy
	Warmup     *int32 // seconds; nil for the group's
	BakeTime   int32  // seconds that the refresh stays open, and can be rolled back at once, after its last instance
}

// Rollout is one rollout under way. Every field is in AWS too: the same Spec
// again goes on where the last call ended.
type Rollout struct {
	Group        string `json:"auto_scaling_group,omitempty"`
	TemplateID   string `json:"launch_template_id"`
	TemplateName string `json:"launch_template_name"`
	From         string `json:"from_version"` // the group's version before; the template's default where there is no group
	To           string `json:"to_version"`
	ImageID      string `json:"image_id"`
	RefreshID    string `json:"instance_refresh_id,omitempty"`
	Back         string `json:"rollback_refresh_id,omitempty"` // a refresh to From, where the first could not be rolled back any more
	Desired      int    `json:"desired_capacity,omitempty"`
	Parameter    string `json:"ssm_parameter,omitempty"`

	spec  Spec
	mixed *types.MixedInstancesPolicy
}

// EC2 is what a rollout calls; *ec2.Client has it.
type EC2 interface {
	launchtemplate.API
	DescribeLaunchTemplates(context.Context, *ec2.DescribeLaunchTemplatesInput, ...func(*ec2.Options)) (*ec2.DescribeLaunchTemplatesOutput, error)
}

// AutoScaling is what a rollout calls; *autoscaling.Client has it.
type AutoScaling interface {
	DescribeAutoScalingGroups(context.Context, *autoscaling.DescribeAutoScalingGroupsInput, ...func(*autoscaling.Options)) (*autoscaling.DescribeAutoScalingGroupsOutput, error)
	UpdateAutoScalingGroup(context.Context, *autoscaling.UpdateAutoScalingGroupInput, ...func(*autoscaling.Options)) (*autoscaling.UpdateAutoScalingGroupOutput, error)
	StartInstanceRefresh(context.Context, *autoscaling.StartInstanceRefreshInput, ...func(*autoscaling.Options)) (*autoscaling.StartInstanceRefreshOutput, error)
	DescribeInstanceRefreshes(context.Context, *autoscaling.DescribeInstanceRefreshesInput, ...func(*autoscaling.Options)) (*autoscaling.DescribeInstanceRefreshesOutput, error)
	RollbackInstanceRefresh(context.Context, *autoscaling.RollbackInstanceRefreshInput, ...func(*autoscaling.Options)) (*autoscaling.RollbackInstanceRefreshOutput, error)
}

// SSM is what a rollout calls; *ssm.Client has it.
type SSM interface {
	PutParameter(context.Context, *ssm.PutParameterInput, ...func(*ssm.Options)) (*ssm.PutParameterOutput, error)
}

// Clients of one region. SSM may be nil where no parameter is written.
type Clients struct {
	EC2         EC2
	AutoScaling AutoScaling
	SSM         SSM
}

// Prepare publishes the version and looks at the group, which stays as it is
// but for Pin. Errors: ErrRefused, launchtemplate.ErrNotFound, else AWS's.
func Prepare(ctx context.Context, c Clients, s Spec) (*Rollout, error) {
	if !strings.HasPrefix(s.ImageID, "ami-") {
		return nil, fmt.Errorf("%w: image %q is no AMI ID; a refresh to an SSM parameter could not be rolled back", ErrRefused, s.ImageID)
	}
	r := &Rollout{Group: s.Group, ImageID: s.ImageID, Parameter: s.Parameter, spec: s}
	template := s.Template
	if s.Group != "" {
		var err error
		if template, err = r.readGroup(ctx, c); err != nil {
			return nil, err
		}
	}
	if template == "" {
		return nil, fmt.Errorf("%w: neither a group nor a launch template was named", ErrRefused)
	}
	source := cmp.Or(r.From, "$Default")
	v, err := launchtemplate.Publish(ctx, c.EC2, launchtemplate.Spec{Name: template, Source: source, ImageID: s.ImageID})
	if err != nil {
		return nil, err
	}
	r.TemplateID, r.TemplateName, r.To = v.TemplateID, v.TemplateName, strconv.FormatInt(v.Number, 10)
	if r.From == "" {
		old, err := launchtemplate.Describe(ctx, c.EC2, template, "$Default")
		if err != nil {
			return nil, err
		}
		r.From = strconv.FormatInt(aws.ToInt64(old.VersionNumber), 10)
	}
	return r, nil
}

// readGroup reads the group's template and pins it where that is wanted.
func (r *Rollout) readGroup(ctx context.Context, c Clients) (template string, err error) {
	g, err := describeGroup(ctx, c.AutoScaling, r.Group)
	if err != nil {
		return "", err
	}
	r.Desired = int(aws.ToInt32(g.DesiredCapacity))
	lt := g.LaunchTemplate
	if p := g.MixedInstancesPolicy; p != nil && p.LaunchTemplate != nil {
		lt, r.mixed = p.LaunchTemplate.LaunchTemplateSpecification, p
	}
	if lt == nil {
		return "", fmt.Errorf("%w: group %s has no launch template (a launch configuration cannot be refreshed to a version)", ErrRefused, r.Group)
	}
	template = cmp.Or(aws.ToString(lt.LaunchTemplateId), aws.ToString(lt.LaunchTemplateName))
	if t := r.spec.Template; t != "" && t != aws.ToString(lt.LaunchTemplateId) && t != aws.ToString(lt.LaunchTemplateName) {
		return "", fmt.Errorf("%w: group %s uses launch template %s, not %s", ErrRefused, r.Group, cmp.Or(aws.ToString(lt.LaunchTemplateName), template), t)
	}
	version := cmp.Or(aws.ToString(lt.Version), "$Default")
	if version != "$Default" && version != "$Latest" {
		r.From = version
		return template, nil
	}
	now, err := launchtemplate.Describe(ctx, c.EC2, template, version)
	if err != nil {
		return "", err
	}
	number := strconv.FormatInt(aws.ToInt64(now.VersionNumber), 10)
	if !r.spec.Pin {
		return "", fmt.Errorf("%w: group %s is on version %s of its launch template: AWS cannot roll back a refresh from there, and a new version would be in every scale-out before it is proved; pin it to version %s with --pin", ErrRefused, r.Group, version, number)
	}
	in := &autoscaling.UpdateAutoScalingGroupInput{AutoScalingGroupName: &r.Group}
	if r.mixed != nil {
		in.MixedInstancesPolicy = withVersion(r.mixed, template, number)
		r.mixed = in.MixedInstancesPolicy
	} else {
		in.LaunchTemplate = &types.LaunchTemplateSpecification{LaunchTemplateId: now.LaunchTemplateId, Version: &number}
	}
	if _, err := c.AutoScaling.UpdateAutoScalingGroup(ctx, in); err != nil {
		return "", fmt.Errorf("pin group %s to version %s: %w", r.Group, number, err)
	}
	r.From = number
	return template, nil
}

func describeGroup(ctx context.Context, api AutoScaling, name string) (*types.AutoScalingGroup, error) {
	out, err := api.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{name}})
	if err != nil {
		return nil, fmt.Errorf("describe Auto Scaling group %s: %w", name, err)
	}
	if len(out.AutoScalingGroups) == 0 {
		return nil, fmt.Errorf("%w: no Auto Scaling group %q", ErrRefused, name)
	}
	return &out.AutoScalingGroups[0], nil
}

// withVersion copies a policy with another version of its template. Overrides
// with templates of their own keep them.
func withVersion(p *types.MixedInstancesPolicy, template, version string) *types.MixedInstancesPolicy {
	q := *p
	lt := *p.LaunchTemplate
	spec := types.LaunchTemplateSpecification{Version: &version}
	if strings.HasPrefix(template, "lt-") {
		spec.LaunchTemplateId = &template
	} else {
		spec.LaunchTemplateName = &template
	}
	lt.LaunchTemplateSpecification = &spec
	q.LaunchTemplate = &lt
	return &q
}

// desired is the configuration of a refresh to version.
func (r *Rollout) desired(version string) *types.DesiredConfiguration {
	if r.mixed != nil {
		return &types.DesiredConfiguration{MixedInstancesPolicy: withVersion(r.mixed, r.TemplateID, version)}
	}
	return &types.DesiredConfiguration{LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateId: &r.TemplateID, Version: &version}}
}

// Start begins the refresh to the new version, or finds the one that is under
// way to it. ErrBusy where one to elsewhere is.
func (r *Rollout) Start(ctx context.Context, c Clients) error {
	if r.Group == "" {
		return nil
	}
	id, err := r.refreshTo(ctx, c, r.To)
	if err != nil {
		return err
	}
	r.RefreshID = id
	return nil
}

func (r *Rollout) refreshTo(ctx context.Context, c Clients, version string) (string, error) {
	in := &autoscaling.StartInstanceRefreshInput{
		AutoScalingGroupName: &r.Group, Strategy: types.RefreshStrategyRolling, DesiredConfiguration: r.desired(version),
		Preferences: &types.RefreshPreferences{SkipMatching: aws.Bool(true), MinHealthyPercentage: r.spec.MinHealthy, MaxHealthyPercentage: r.spec.MaxHealthy, InstanceWarmup: r.spec.Warmup},
	}
	if r.spec.BakeTime > 0 && version == r.To {
		in.Preferences.BakeTime = &r.spec.BakeTime
	}
	out, err := c.AutoScaling.StartInstanceRefresh(ctx, in)
	if apiCode(err) == "InstanceRefreshInProgress" {
		// A repeat of this rollout finds its own refresh.
		active, err := c.AutoScaling.DescribeInstanceRefreshes(ctx, &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: &r.Group, MaxRecords: aws.Int32(1)})
		if err != nil {
			return "", fmt.Errorf("describe instance refreshes of %s: %w", r.Group, err)
		}
		if len(active.InstanceRefreshes) > 0 {
			a := &active.InstanceRefreshes[0]
			if goal(a) == r.TemplateID+":"+version || goal(a) == r.TemplateName+":"+version {
				return aws.ToString(a.InstanceRefreshId), nil
			}
			return "", fmt.Errorf("%w: %s of group %s, to %s; wait for it, or cancel it", ErrBusy, aws.ToString(a.InstanceRefreshId), r.Group, cmp.Or(goal(a), "the group's own configuration"))
		}
		return "", fmt.Errorf("%w: of group %s", ErrBusy, r.Group)
	}
	if err != nil {
		return "", fmt.Errorf("start instance refresh of %s to version %s: %w", r.Group, version, err)
	}
	return aws.ToString(out.InstanceRefreshId), nil
}

func goal(i *types.InstanceRefresh) string {
	d := i.DesiredConfiguration
	if d == nil {
		return ""
	}
	lt := d.LaunchTemplate
	if d.MixedInstancesPolicy != nil && d.MixedInstancesPolicy.LaunchTemplate != nil {
		lt = d.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification
	}
	if lt == nil {
		return ""
	}
	return cmp.Or(aws.ToString(lt.LaunchTemplateId), aws.ToString(lt.LaunchTemplateName)) + ":" + aws.ToString(lt.Version)
}

// State is how far a refresh is.
type State struct {
	Status  string `json:"status"` // Auto Scaling's: Pending, InProgress, Baking, Successful, Failed, Cancelled, RollbackInProgress, ...
	Reason  string `json:"reason,omitempty"`
	Percent int    `json:"percent"`
}

// Ended says that nothing more happens.
func (s State) Ended() bool {
	switch s.Status {
	case "Successful", "Failed", "Cancelled", "RollbackFailed", "RollbackSuccessful":
		return true
	}
	return false
}

// State reads the refresh, the one back where there is one.
func (r *Rollout) State(ctx context.Context, c Clients) (State, error) {
	if r.Group == "" {
		return State{Status: "Successful", Percent: 100}, nil
	}
	id := cmp.Or(r.Back, r.RefreshID)
	out, err := c.AutoScaling.DescribeInstanceRefreshes(ctx, &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: &r.Group, InstanceRefreshIds: []string{id}})
	if err != nil {
		return State{}, fmt.Errorf("describe instance refresh %s of %s: %w", id, r.Group, err)
	}
	if len(out.InstanceRefreshes) == 0 {
		return State{}, fmt.Errorf("describe instance refresh %s of %s: it does not exist", id, r.Group)
	}
	i := &out.InstanceRefreshes[0]
	return State{Status: string(i.Status), Reason: aws.ToString(i.StatusReason), Percent: int(aws.ToInt32(i.PercentageComplete))}, nil
}

// Complete makes the version default and writes the parameter: the refresh
// must have succeeded. It is safe to repeat.
func (r *Rollout) Complete(ctx context.Context, c Clients) error {
	number, err := strconv.ParseInt(r.To, 10, 64)
	if err != nil {
		return fmt.Errorf("version %q of launch template %s is no number", r.To, r.TemplateID)
	}
	if err := launchtemplate.SetDefault(ctx, c.EC2, r.TemplateID, number); err != nil {
		return err
	}
	if r.Parameter == "" {
		return nil
	}
	_, err = c.SSM.PutParameter(ctx, &ssm.PutParameterInput{
		Name: &r.Parameter, Value: &r.ImageID, Type: ssmtypes.ParameterTypeString, DataType: aws.String("aws:ec2:image"), Overwrite: aws.Bool(true),
	})
	if err != nil {
		return fmt.Errorf("write SSM parameter %s (version %s is the default already): %w", r.Parameter, r.To, err)
	}
	return nil
}

// Rollback takes the group back to From: by rolling the refresh back, or, once
// that has ended, by another one. State then follows the way back.
func (r *Rollout) Rollback(ctx context.Context, c Clients) error {
	if r.Group == "" {
		return nil
	}
	_, err := c.AutoScaling.RollbackInstanceRefresh(ctx, &autoscaling.RollbackInstanceRefreshInput{AutoScalingGroupName: &r.Group})
	switch code := apiCode(err); {
	case err == nil:
		return nil
	case strings.HasPrefix(code, "ActiveInstanceRefreshNotFound"), strings.HasPrefix(code, "IrreversibleInstanceRefresh"):
	default:
		return fmt.Errorf("roll back the instance refresh of %s: %w", r.Group, err)
	}
	state, err := r.State(ctx, c)
	if err != nil {
		return err
	}
	if strings.HasPrefix(state.Status, "Rollback") {
		return nil // it does so already
	}
	id, err := r.refreshTo(ctx, c, r.From)
	if err != nil {
		return fmt.Errorf("take group %s back to version %s: %w", r.Group, r.From, err)
	}
	r.Back = id
	return nil
}

func apiCode(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}
