package autoscaling_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
)

func mixedOf(version string, instanceTypes ...string) *types.MixedInstancesPolicy {
	p := &types.MixedInstancesPolicy{LaunchTemplate: &types.LaunchTemplate{LaunchTemplateSpecification: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("web"), Version: &version}}}
	for _, t := range instanceTypes {
		p.LaunchTemplate.Overrides = append(p.LaunchTemplate.Overrides, types.LaunchTemplateOverrides{InstanceType: &t})
	}
	return p
}

func TestMixedInstances(t *testing.T) {
	l := newLab(t)
	l.settled(2, func(in *sdk.CreateAutoScalingGroupInput) {
		in.LaunchTemplate, in.MixedInstancesPolicy = nil, mixedOf("1", "t3.small", "t3.large")
	})
	g := l.group()
	if g.LaunchTemplate != nil || g.MixedInstancesPolicy == nil || len(g.MixedInstancesPolicy.LaunchTemplate.Overrides) != 2 ||
		aws.ToString(g.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version) != "1" || aws.ToString(g.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateId) == "" {
		t.Fatalf("group %+v", g)
	}
	for _, i := range g.Instances {
		if aws.ToString(i.InstanceType) != "t3.small" || aws.ToString(i.LaunchTemplate.Version) != "1" {
			t.Errorf("instance %s %s of version %s", *i.InstanceId, *i.InstanceType, *i.LaunchTemplate.Version)
		}
	}

	// A refresh goes to a version in the policy, and is rolled back to it.
	l.version(l.newImage())
	_, err := l.start(func(in *sdk.StartInstanceRefreshInput) {
		in.DesiredConfiguration = &types.DesiredConfiguration{MixedInstancesPolicy: mixedOf("2")}
		in.Preferences.AutoRollback = aws.Bool(true)
	})
	l.ok(err)
	l.clock.Advance(time.Hour)
	r := l.refresh()
	if r.Status != types.InstanceRefreshStatusSuccessful || r.DesiredConfiguration.LaunchTemplate != nil || aws.ToString(r.DesiredConfiguration.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version) != "2" {
		t.Fatalf("refresh %+v", r)
	}
	if v := l.versions(); v["2"] != 2 {
		t.Errorf("versions %v", v)
	}
	// The overrides that it did not name are kept.
	if g = l.group(); len(g.MixedInstancesPolicy.LaunchTemplate.Overrides) != 2 || aws.ToString(g.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version) != "2" {
		t.Errorf("group %+v", g.MixedInstancesPolicy)
	}

	// To a plain launch template and refusals.
	_, err = l.api.UpdateAutoScalingGroup(t.Context(), &sdk.UpdateAutoScalingGroupInput{AutoScalingGroupName: aws.String("web"), LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("web"), Version: aws.String("1")}})
	l.ok(err)
	if g = l.group(); g.MixedInstancesPolicy != nil || aws.ToString(g.LaunchTemplate.Version) != "1" {
		t.Errorf("group %+v", g)
	}
	spot := mixedOf("1")
	spot.InstancesDistribution = &types.InstancesDistribution{OnDemandPercentageAboveBaseCapacity: aws.Int32(50)}
	for _, p := range []*types.MixedInstancesPolicy{spot, mixedOf("9"), mixedOf("1", "no.such")} {
		if _, err := l.api.UpdateAutoScalingGroup(t.Context(), &sdk.UpdateAutoScalingGroupInput{AutoScalingGroupName: aws.String("web"), MixedInstancesPolicy: p}); err == nil || !strings.Contains(err.Error(), "ValidationError") {
			t.Errorf("%+v: %v", p, err)
		}
	}
}
