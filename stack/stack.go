// Package stack owns the ground that agent and fleet stand on: one
// CloudFormation template, and the way to make, change, show and remove a
// stack of it. CloudFormation orders the resources and takes failed changes
// back; this package shows changes before it makes them, keeps what a deploy
// has promoted, keeps data when the stack goes, and reads back what was made.
// It makes no resource by itself.
package stack

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"
	"gopkg.in/yaml.v3"

	"github.com/lecafe/lecafe/internal/awsconf"
)

//go:embed template.yaml
var template []byte

// Template returns the built-in template, YAML with comments.
func Template() []byte { return slices.Clone(template) }

// maxTemplate is what CloudFormation takes without a bucket to fetch it from:
// https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
const maxTemplate = 51200

var (
	// ErrNotFound says that there is no such stack.
	ErrNotFound = errors.New("no such stack")
	// ErrRequest says that the request cannot be what is wanted; nothing was changed.
	ErrRequest = errors.New("refused")
)

// Clients are the services that a stack is made of. They are structs and not
// interfaces: CloudFormation's client in an interface value would link all of
// its calls into a program that uses text/template.
type Clients struct {
	CloudFormation *cloudformation.Client
	AutoScaling    *autoscaling.Client
	EC2            *ec2.Client
	IAM            *iam.Client
	S3             *s3.Client
	SQS            *sqs.Client
}

// NewClients returns clients for cfg.
func NewClients(cfg aws.Config) Clients {
	return Clients{
		cloudformation.NewFromConfig(cfg), autoscaling.NewFromConfig(cfg), ec2.NewFromConfig(cfg), iam.NewFromConfig(cfg),
		awsconf.S3(cfg), sqs.NewFromConfig(cfg),
	}
}

// Stack is one stack by name, which may or may not exist.
type Stack struct {
	Name     string
	Clients  Clients
	Interval time.Duration     // between two looks; default 3 s
	Tell     func(line string) // progress; may be nil
	// How long SQS holds back the name of a deleted queue; default 65 s, which
	// is what it says and some for its clock.
	QueueWait time.Duration
}

var nameRE = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,127}$`)

// Check refuses names that CloudFormation does not take.
func (s *Stack) Check() error {
	if !nameRE.MatchString(s.Name) {
		return fmt.Errorf("%w: stack name %q: want a letter, then letters, digits and hyphens, 128 at most", ErrRequest, s.Name)
	}
	return nil
}

func (s *Stack) tell(format string, args ...any) {
	if s.Tell != nil {
		s.Tell(fmt.Sprintf(format, args...))
	}
}

func (s *Stack) sleep(ctx context.Context) error {
	return pause(ctx, cmp.Or(s.Interval, 3*time.Second))
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// describe returns the stack by name or ID, or ErrNotFound. A stack that is
// deleted is found by its ID alone.
func (s *Stack) describe(ctx context.Context, id string) (*types.Stack, error) {
	out, err := s.Clients.CloudFormation.DescribeStacks(ctx, &cloudformation.DescribeStacksInput{StackName: &id})
	var api smithy.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode() == "ValidationError":
		// The name is well-formed, see Check: what is left is that nothing has it.
		return nil, fmt.Errorf("%w: %s; make it with lecafe stack up", ErrNotFound, s.Name)
	case err != nil:
		return nil, fmt.Errorf("describe stack %s: %w", s.Name, err)
	case len(out.Stacks) == 0:
		return nil, fmt.Errorf("%w: %s; make it with lecafe stack up", ErrNotFound, s.Name)
	}
	return &out.Stacks[0], nil
}

// Parameter is one of a template's.
type Parameter struct {
	Type        string `yaml:"Type"`
	Default     any    `yaml:"Default"`
	Description string `yaml:"Description"`
}

// Parameters reads those of a template. CloudFormation checks the rest of it.
func Parameters(template []byte) (map[string]Parameter, error) {
	if len(template) > maxTemplate {
		return nil, fmt.Errorf("%w: the template has %d bytes, CloudFormation takes %d; leave comments out", ErrRequest, len(template), maxTemplate)
	}
	var t struct {
		Parameters map[string]Parameter `yaml:"Parameters"`
		Resources  map[string]struct {
			Type string `yaml:"Type"`
		} `yaml:"Resources"`
	}
	if err := yaml.Unmarshal(template, &t); err != nil {
		return nil, fmt.Errorf("%w: template: %w", ErrRequest, err)
	}
	if len(t.Resources) == 0 {
		return nil, fmt.Errorf("%w: the template has no Resources", ErrRequest)
	}
	return t.Parameters, nil
}

// Request is what a stack is to be.
type Request struct {
	Template []byte            // nil for the built-in one
	Set      map[string]string // parameters that get a value; the others keep theirs
}

// parameters of a change: what is set, and for the rest what the stack has.
// What neither has stays with the template's default.
func (s *Stack) parameters(ctx context.Context, r Request, now *types.Stack) ([]types.Parameter, error) {
	known, err := Parameters(r.Template)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(r.Set)) {
		if _, ok := known[name]; !ok {
			return nil, fmt.Errorf("%w: the template has no parameter %s; it has %s", ErrRequest, name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
	}
	had := map[string]string{}
	if now != nil {
		for _, p := range now.Parameters {
			had[aws.ToString(p.ParameterKey)] = aws.ToString(p.ParameterValue)
		}
	}
	set := maps.Clone(r.Set)
	if set == nil {
		set = map[string]string{}
	}
	if now == nil {
		err = s.network(ctx, known, set)
	} else {
		err = s.keepPromoted(ctx, set, had, now)
	}
	if err != nil {
		return nil, err
	}
	var out []types.Parameter
	for _, name := range slices.Sorted(maps.Keys(known)) {
		p := types.Parameter{ParameterKey: aws.String(name)}
		value, isSet := set[name]
		_, isThere := had[name]
		switch {
		case isSet:
			p.ParameterValue = &value
		case isThere:
			p.UsePreviousValue = aws.Bool(true)
		default:
			continue
		}
		out = append(out, p)
	}
	return out, nil
}

// keepPromoted sets LaunchTemplateVersion to the group's own where a deploy has
// promoted another one since: a change to any property of the group sends the
// version along, and would take the group back. And it refuses another image.
func (s *Stack) keepPromoted(ctx context.Context, set, had map[string]string, now *types.Stack) error {
	all, err := s.resources(ctx, aws.ToString(now.StackId))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(r Resource) bool { return r.LogicalID == "Group" && r.PhysicalID != "" })
	if i < 0 {
		return nil
	}
	group := all[i].PhysicalID
	// The version as the stack knows it. Where there are no outputs, as with an
	// emulator, it is the one it was told, or else the first.
	known := cmp.Or(output(now, "LaunchTemplateVersion"), had["LaunchTemplateVersion"], "1")
	if image, ok := set["ImageId"]; ok && image != had["ImageId"] {
		return fmt.Errorf("%w: the group %s is there already, with image %s at first: roll another one out with lecafe deploy --asg %s --image %s, which goes back when it does not come up", ErrRequest, group, had["ImageId"], group, image)
	}
	if _, ok := set["LaunchTemplateVersion"]; ok {
		return nil
	}
	out, err := s.Clients.AutoScaling.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{group}})
	if err != nil {
		return fmt.Errorf("describe Auto Scaling group %s: %w", group, err)
	}
	if len(out.AutoScalingGroups) == 0 || out.AutoScalingGroups[0].LaunchTemplate == nil {
		return nil
	}
	version := aws.ToString(out.AutoScalingGroups[0].LaunchTemplate.Version)
	if _, err := strconv.Atoi(version); err != nil || version == known {
		return nil
	}
	s.tell("%s is on launch template version %s, as deployed: the stack takes that over from %s", group, version, known)
	set["LaunchTemplateVersion"] = version
	return nil
}

// output returns an output of a stack, or nothing.
func output(st *types.Stack, key string) string {
	for _, o := range st.Outputs {
		if aws.ToString(o.OutputKey) == key {
			return aws.ToString(o.OutputValue)
		}
	}
	return ""
}
