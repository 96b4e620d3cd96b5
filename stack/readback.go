package stack

import (
	"context"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"gopkg.in/yaml.v3"
)

// Status is a stack as it stands.
type Status struct {
	Name       string            `json:"name"`
	ID         string            `json:"id"`
	Status     string            `json:"status"`
	Reason     string            `json:"reason,omitempty"`
	Parameters map[string]string `json:"parameters"`
	Outputs    map[string]string `json:"outputs"`
	Resources  []Resource        `json:"resources"`
	Missing    []string          `json:"missing"` // what the template has and the account has not
	Drift      *Drift            `json:"drift,omitempty"`
}

// Status reads the stack, and back what was made of it.
func (s *Stack) Status(ctx context.Context) (*Status, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	st, err := s.describe(ctx, s.Name)
	if err != nil {
		return nil, err
	}
	out := &Status{Name: s.Name, ID: aws.ToString(st.StackId), Status: string(st.StackStatus), Reason: aws.ToString(st.StackStatusReason),
		Parameters: map[string]string{}, Outputs: map[string]string{}, Missing: []string{}}
	for _, p := range st.Parameters {
		out.Parameters[aws.ToString(p.ParameterKey)] = aws.ToString(p.ParameterValue)
	}
	for _, o := range st.Outputs {
		out.Outputs[aws.ToString(o.OutputKey)] = aws.ToString(o.OutputValue)
	}
	if out.Resources, err = s.resources(ctx, out.ID); err != nil {
		return nil, err
	}
	t, err := s.Clients.CloudFormation.GetTemplate(ctx, &cloudformation.GetTemplateInput{StackName: &out.ID})
	if err != nil {
		return nil, fmt.Errorf("get the template of stack %s: %w", s.Name, err)
	}
	if out.Missing, err = s.readBack(ctx, []byte(aws.ToString(t.TemplateBody)), out); err != nil {
		return nil, err
	}
	return out, nil
}

// readBack compares the template with what is there. CloudFormation makes
// everything or fails; emulators leave out resources and properties and say
// nothing. Which one it is does not matter: what is not there is said.
func (s *Stack) readBack(ctx context.Context, body []byte, st *Status) ([]string, error) {
	var t struct {
		Parameters map[string]Parameter `yaml:"Parameters"`
		Conditions map[string]yaml.Node `yaml:"Conditions"`
		Resources  map[string]struct {
			Type       string               `yaml:"Type"`
			Condition  string               `yaml:"Condition"`
			Properties map[string]yaml.Node `yaml:"Properties"`
		} `yaml:"Resources"`
		Outputs map[string]struct {
			Condition string `yaml:"Condition"`
		} `yaml:"Outputs"`
	}
	if err := yaml.Unmarshal(body, &t); err != nil {
		return nil, fmt.Errorf("template of stack %s: %w", s.Name, err)
	}
	value := func(name string) string {
		if v, ok := st.Parameters[name]; ok {
			return v
		}
		if d := t.Parameters[name].Default; d != nil {
			return fmt.Sprint(d)
		}
		return ""
	}
	// wanted is false for what the parameters leave out, and where this cannot tell.
	wanted := func(condition string) bool {
		if condition == "" {
			return true
		}
		node := t.Conditions[condition]
		holds, known := holds(&node, value)
		return holds && known
	}
	made := map[string]string{}
	for _, r := range st.Resources {
		made[r.LogicalID] = r.PhysicalID
	}
	missing := []string{}
	for name, r := range t.Resources {
		if !wanted(r.Condition) {
			continue
		}
		id, listed := made[name]
		if listed && id == "" {
			continue // some emulators give rules no ID; there is nothing to read by
		}
		if !listed {
			missing = append(missing, fmt.Sprintf("%s (%s) was not made", name, r.Type))
			continue
		}
		for _, property := range s.lacks(ctx, r.Type, id, r.Properties) {
			missing = append(missing, fmt.Sprintf("%s (%s): %s", name, r.Type, property))
		}
	}
	for name, o := range t.Outputs {
		if _, ok := st.Outputs[name]; !ok && wanted(o.Condition) {
			missing = append(missing, fmt.Sprintf("output %s was not made", name))
		}
	}
	slices.Sort(missing)
	return missing, nil
}

// holds evaluates a condition; known is false where it uses a function that
// is not one of Equals, Not and Ref to a parameter.
func holds(n *yaml.Node, value func(string) string) (result, known bool) {
	switch {
	case n.Tag == "!Not" && len(n.Content) == 1:
		r, known := holds(n.Content[0], value)
		return !r, known
	case n.Tag == "!Equals" && len(n.Content) == 2:
		var sides [2]string
		for i, c := range n.Content {
			switch {
			case c.Tag == "!Ref":
				sides[i] = value(c.Value)
			case c.Kind == yaml.ScalarNode && c.Tag == "!!str":
				sides[i] = c.Value
			default:
				return false, false
			}
		}
		return sides[0] == sides[1], true
	}
	return false, false
}

// lacks reads one resource back and names the properties it does not have.
// What cannot be read is named with the reason.
func (s *Stack) lacks(ctx context.Context, kind, id string, properties map[string]yaml.Node) (out []string) {
	check := func(property string, read func() (bool, error)) {
		if _, wanted := properties[property]; !wanted {
			return
		}
		switch ok, err := read(); {
		case err != nil:
			out = append(out, fmt.Sprintf("%s cannot be read back: %v", property, err))
		case !ok:
			out = append(out, property+" was not made")
		}
	}
	switch kind {
	case typeBucket:
		check("VersioningConfiguration", func() (bool, error) {
			r, err := s.Clients.S3.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &id})
			return err == nil && r.Status == s3types.BucketVersioningStatusEnabled, err
		})
		check("PublicAccessBlockConfiguration", func() (bool, error) {
			_, err := s.Clients.S3.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: &id})
			return found(err, "NoSuchPublicAccessBlockConfiguration")
		})
		check("BucketEncryption", func() (bool, error) {
			_, err := s.Clients.S3.GetBucketEncryption(ctx, &s3.GetBucketEncryptionInput{Bucket: &id})
			return found(err, "ServerSideEncryptionConfigurationNotFoundError")
		})
		check("OwnershipControls", func() (bool, error) {
			_, err := s.Clients.S3.GetBucketOwnershipControls(ctx, &s3.GetBucketOwnershipControlsInput{Bucket: &id})
			return found(err, "OwnershipControlsNotFoundError")
		})
		check("LifecycleConfiguration", func() (bool, error) {
			_, err := s.Clients.S3.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: &id})
			return found(err, "NoSuchLifecycleConfiguration")
		})
	case typeQueue:
		attribute := func(name sqstypes.QueueAttributeName, bad string) func() (bool, error) {
			return func() (bool, error) {
				r, err := s.Clients.SQS.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &id, AttributeNames: []sqstypes.QueueAttributeName{sqstypes.QueueAttributeNameAll}})
				return err == nil && r.Attributes[string(name)] != bad && r.Attributes[string(name)] != "", err
			}
		}
		check("RedrivePolicy", attribute(sqstypes.QueueAttributeNameRedrivePolicy, ""))
		check("SqsManagedSseEnabled", attribute(sqstypes.QueueAttributeNameSqsManagedSseEnabled, "false"))
	case "AWS::EC2::SecurityGroup":
		check("SecurityGroupEgress", func() (bool, error) {
			r, err := s.Clients.EC2.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{GroupIds: []string{id}})
			if err != nil || len(r.SecurityGroups) == 0 {
				return false, err
			}
			open := slices.ContainsFunc(r.SecurityGroups[0].IpPermissionsEgress, func(p ec2types.IpPermission) bool {
				return aws.ToString(p.IpProtocol) == "-1" && slices.ContainsFunc(p.IpRanges, func(r ec2types.IpRange) bool { return aws.ToString(r.CidrIp) == "0.0.0.0/0" })
			})
			return !open, nil
		})
	case "AWS::EC2::LaunchTemplate":
		check("LaunchTemplateData", func() (bool, error) {
			r, err := s.Clients.EC2.DescribeLaunchTemplateVersions(ctx, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateId: &id, Versions: []string{"$Latest"}})
			if err != nil || len(r.LaunchTemplateVersions) == 0 || r.LaunchTemplateVersions[0].LaunchTemplateData == nil {
				return false, err
			}
			m := r.LaunchTemplateVersions[0].LaunchTemplateData.MetadataOptions
			return m != nil && m.HttpTokens == ec2types.LaunchTemplateHttpTokensStateRequired, nil
		})
	case "AWS::AutoScaling::AutoScalingGroup":
		check("LifecycleHookSpecificationList", func() (bool, error) {
			r, err := s.Clients.AutoScaling.DescribeLifecycleHooks(ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: &id})
			return err == nil && len(r.LifecycleHooks) > 0, err
		})
	case "AWS::IAM::Role":
		check("Policies", func() (bool, error) {
			r, err := s.Clients.IAM.ListRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: &id})
			return err == nil && len(r.PolicyNames) > 0, err
		})
		check("ManagedPolicyArns", func() (bool, error) {
			r, err := s.Clients.IAM.ListAttachedRolePolicies(ctx, &iam.ListAttachedRolePoliciesInput{RoleName: &id})
			return err == nil && len(r.AttachedPolicies) > 0, err
		})
	case "AWS::IAM::InstanceProfile":
		check("Roles", func() (bool, error) {
			r, err := s.Clients.IAM.GetInstanceProfile(ctx, &iam.GetInstanceProfileInput{InstanceProfileName: &id})
			return err == nil && r.InstanceProfile != nil && len(r.InstanceProfile.Roles) > 0, err
		})
	}
	return out
}

// found says whether there is something; absent is the code for nothing there.
func found(err error, absent string) (bool, error) {
	if hasCode(err, absent) {
		return false, nil
	}
	return err == nil, err
}
