package promote_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake/promote"
	"github.com/lecafe/lecafe/lab/cloud"
)

// begin starts a refresh of the group as somebody else would.
func (s *shop) begin(template, version string) string {
	s.t.Helper()
	out, err := s.groups.StartInstanceRefresh(s.t.Context(), &autoscaling.StartInstanceRefreshInput{
		AutoScalingGroupName: aws.String("shop"),
		DesiredConfiguration: &astypes.DesiredConfiguration{LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateName: &template, Version: &version}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return *out.InstanceRefreshId
}

func (s *shop) refreshStatus(id string) astypes.InstanceRefreshStatus {
	s.t.Helper()
	out, err := s.groups.DescribeInstanceRefreshes(s.t.Context(), &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: aws.String("shop"), InstanceRefreshIds: []string{id}})
	if err != nil || len(out.InstanceRefreshes) != 1 {
		s.t.Fatalf("refresh %s: %v", id, err)
	}
	return out.InstanceRefreshes[0].Status
}

// The refresh has ended well, its instances are found to be bad, and meanwhile
// somebody else has begun another: that one is left alone.
func TestAnothersRefreshIsNotRolledBack(t *testing.T) {
	s := newShop(t, "1")
	other := ""
	o := s.options()
	o.Prove = func(_ context.Context, now promote.Rollout) (bool, error) {
		if now.Status != "Successful" {
			return false, nil
		}
		s.EC2.Capacity("", "", false) // the other gets nowhere
		_, err := s.ec2.CreateLaunchTemplateVersion(t.Context(), &ec2.CreateLaunchTemplateVersionInput{
			LaunchTemplateName: aws.String("shop"), LaunchTemplateData: &types.RequestLaunchTemplateData{ImageId: &s.old, InstanceType: types.InstanceTypeT3Micro},
		})
		if err != nil {
			t.Error(err)
		}
		other = s.begin("shop", "3")
		return false, fmt.Errorf("%w: none is well", promote.ErrUnproved)
	}
	_, err := promote.Run(t.Context(), o)
	if !errors.Is(err, promote.ErrUnproved) || errors.Is(err, promote.ErrRollback) || !strings.Contains(err.Error(), other) {
		t.Errorf("Run: %v", err)
	}
	if got := s.order(); strings.Contains(got, "RollbackInstanceRefresh") {
		t.Errorf("calls %s", got)
	}
	if status := s.refreshStatus(other); status != astypes.InstanceRefreshStatusPending && status != astypes.InstanceRefreshStatusInProgress {
		t.Errorf("the other refresh is %s", status)
	}
	if def, _ := s.defaults(); def != 1 || s.param() != "" {
		t.Errorf("default %d, parameter %q", def, s.param())
	}
}

// Auto Scaling refuses for a while what it takes a moment later: the rollback
// of a bad version is not given up for that.
func TestRollbackIsTriedAgain(t *testing.T) {
	for name, f := range map[string]cloud.Fault{
		"contention": {Kind: cloud.Code, Status: 500, Code: "ResourceContention", Message: "You already have a pending update to an Amazon EC2 Auto Scaling resource."},
		"throttled":  {Kind: cloud.Throttle},
		"reset":      {Kind: cloud.Reset},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, "1")
			s.EC2.Capacity("", "", false)
			var asked atomic.Int32
			s.OnCall(func(c cloud.Call) {
				if c.Action == "RollbackInstanceRefresh" && asked.Add(1) == 8 {
					s.EC2.Capacity("", "", true)
				}
			})
			f.Service, f.Action, f.Times = "autoscaling", "RollbackInstanceRefresh", 7
			met := s.Inject(f)
			o := s.options()
			o.Config.RetryMaxAttempts = 1 // the SDK's own attempts are over
			o.Prove = func(context.Context, promote.Rollout) (bool, error) {
				return false, fmt.Errorf("%w: none is well", promote.ErrUnproved)
			}
			if _, err := promote.Run(t.Context(), o); !errors.Is(err, promote.ErrRollback) {
				t.Errorf("Run: %v", err)
			}
			if met.Hits() != 7 {
				t.Errorf("%d faults met", met.Hits())
			}
		})
	}
}

// A refresh to the same version number of another template is not ours.
func TestAnotherTemplatesRefreshIsNotFollowed(t *testing.T) {
	s := newShop(t, "1")
	data := &types.RequestLaunchTemplateData{ImageId: &s.old, InstanceType: types.InstanceTypeT3Small}
	if _, err := s.ec2.CreateLaunchTemplate(t.Context(), &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("other"), LaunchTemplateData: data}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ec2.CreateLaunchTemplateVersion(t.Context(), &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateName: aws.String("other"), LaunchTemplateData: data}); err != nil {
		t.Fatal(err)
	}
	s.begin("other", "2") // ours will be version 2 of shop
	_, err := promote.Run(t.Context(), s.options())
	if !errors.Is(err, promote.ErrRefused) {
		t.Errorf("Run: %v", err)
	}
	if def, _ := s.defaults(); def != 1 || s.param() != "" {
		t.Errorf("default %d, parameter %q", def, s.param())
	}
}

// A group that may launch or terminate nothing would be refreshed for hours.
func TestSuspendedGroupIsRefused(t *testing.T) {
	s := newShop(t, "1")
	if _, err := s.groups.SuspendProcesses(t.Context(), &autoscaling.SuspendProcessesInput{AutoScalingGroupName: aws.String("shop"), ScalingProcesses: []string{"Launch"}}); err != nil {
		t.Fatal(err)
	}
	_, err := promote.Run(t.Context(), s.options())
	if !errors.Is(err, promote.ErrRefused) || !strings.Contains(err.Error(), "Launch") {
		t.Errorf("Run: %v", err)
	}
	if got := s.order(); got != "" {
		t.Errorf("calls %s", got)
	}
}
