package promote_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lecafe/lecafe/bake/promote"
)

// newMixedShop is a shop whose group is replaced by one with a mixed instances
// policy of two types (the fake has On-Demand alone).
func newMixedShop(t *testing.T, version string) *shop {
	t.Helper()
	s := newShop(t, "1")
	ctx := t.Context()
	_, err := s.groups.DeleteAutoScalingGroup(ctx, &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: aws.String("shop"), ForceDelete: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	s.Until(t, "the group's end", func() bool {
		out, err := s.groups.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"shop"}})
		if err != nil {
			t.Fatal(err)
		}
		return len(out.AutoScalingGroups) == 0
	})
	_, err = s.groups.CreateAutoScalingGroup(ctx, &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: aws.String("shop"), MinSize: aws.Int32(2), MaxSize: aws.Int32(4), DesiredCapacity: aws.Int32(2), AvailabilityZones: []string{"us-east-1a"},
		MixedInstancesPolicy: &astypes.MixedInstancesPolicy{
			LaunchTemplate: &astypes.LaunchTemplate{
				LaunchTemplateSpecification: &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String("shop"), Version: aws.String(version)},
				Overrides:                   []astypes.LaunchTemplateOverrides{{InstanceType: aws.String("t3.small")}, {InstanceType: aws.String("t3.medium")}},
			},
			InstancesDistribution: &astypes.InstancesDistribution{OnDemandBaseCapacity: aws.Int32(1), OnDemandPercentageAboveBaseCapacity: aws.Int32(100)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Until(t, "the group's instances", func() bool { return len(s.running()) == 2 })
	return s
}

// A mixed instances policy keeps its types and shares: only the version of its
// launch template becomes another.
func TestMixedInstances(t *testing.T) {
	s := newMixedShop(t, "1")
	before := s.group().MixedInstancesPolicy
	res, err := promote.Run(t.Context(), s.options())
	if err != nil {
		t.Fatal(err)
	}
	if res.Version != 2 || res.RefreshID == "" || len(res.NotDone) != 0 {
		t.Errorf("result %+v", res)
	}
	for _, image := range s.running() {
		if image != s.new {
			t.Errorf("an instance in service runs %s", image)
		}
	}
	g := s.group()
	if g.LaunchTemplate != nil || g.MixedInstancesPolicy == nil {
		t.Fatalf("the group lost its policy: %+v", g)
	}
	after := g.MixedInstancesPolicy
	if v := aws.ToString(after.LaunchTemplate.LaunchTemplateSpecification.Version); v != "2" {
		t.Errorf("the group launches version %s", v)
	}
	before.LaunchTemplate.LaunchTemplateSpecification.Version = aws.String("2")
	if d := cmp.Diff(before, after, cmpopts.IgnoreUnexported(astypes.MixedInstancesPolicy{}, astypes.LaunchTemplate{}, astypes.LaunchTemplateSpecification{}, astypes.LaunchTemplateOverrides{}, astypes.InstancesDistribution{})); d != "" {
		t.Errorf("the policy before and after: %s", d)
	}
	if def, _ := s.defaults(); def != 2 || s.param() != s.new {
		t.Errorf("default %d, parameter %s", def, s.param())
	}
	if again, err := promote.Run(t.Context(), s.options()); err != nil || again.RefreshID != "" {
		t.Errorf("again: %+v, %v", again, err)
	}
}

func TestMixedInstancesOnDefaultAreRefused(t *testing.T) {
	s := newMixedShop(t, "$Default")
	if _, err := promote.Run(t.Context(), s.options()); !errors.Is(err, promote.ErrRefused) {
		t.Errorf("Run: %v", err)
	}
	o := s.options()
	o.Pin = true
	if _, err := promote.Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if v := aws.ToString(s.group().MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version); v != "2" {
		t.Errorf("the group launches version %s", v)
	}
}

func TestMixedInstancesAreRolledBack(t *testing.T) {
	s := newMixedShop(t, "1")
	o := s.options()
	proofs := 0
	o.BakeTime = time.Hour // open until it is proved, or not
	o.Prove = func(_ context.Context, r promote.Rollout) (bool, error) {
		if proofs++; proofs > 3 {
			return false, promote.ErrUnproved
		}
		return false, nil
	}
	if _, err := promote.Run(t.Context(), o); !errors.Is(err, promote.ErrRollback) {
		t.Fatalf("Run: %v", err)
	}
	if def, _ := s.defaults(); def != 1 || s.param() != "" {
		t.Errorf("default %d, parameter %q", def, s.param())
	}
	if v := aws.ToString(s.group().MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version); v != "1" {
		t.Errorf("the group launches version %s", v)
	}
	if images := s.running(); slices.Contains(images, s.new) {
		t.Errorf("in service: %v", images)
	}
}
