package promote_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"

	"github.com/lecafe/lecafe/bake/promote"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	cloudec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// shop is a group of two instances on version 1 of a launch template, and an
// image that could replace theirs.
type shop struct {
	*cloudtest.Cloud
	t        *testing.T
	ec2      *ec2.Client
	groups   *autoscaling.Client
	old, new string
}

func newShop(t *testing.T, version string) *shop {
	t.Helper()
	c := cloudtest.New(t, cloud.Options{Clock: wire.Scaled(1000)})
	s := &shop{Cloud: c, t: t, ec2: ec2.NewFromConfig(c.Config()), groups: autoscaling.NewFromConfig(c.Config())}
	for _, id := range []*string{&s.old, &s.new} {
		var err error
		if *id, err = c.EC2.AddImage("us-east-1", cloudec2.ImageSeed{Name: "shop"}); err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	_, err := s.ec2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("shop"), LaunchTemplateData: &types.RequestLaunchTemplateData{
		ImageId: &s.old, InstanceType: types.InstanceTypeT3Small,
		MetadataOptions: &types.LaunchTemplateInstanceMetadataOptionsRequest{HttpTokens: types.LaunchTemplateHttpTokensStateRequired},
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.groups.CreateAutoScalingGroup(ctx, &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: aws.String("shop"), MinSize: aws.Int32(2), MaxSize: aws.Int32(4), DesiredCapacity: aws.Int32(2), AvailabilityZones: []string{"us-east-1a"},
		LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String("shop"), Version: aws.String(version)},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Until(t, "the group's instances", func() bool { return len(s.running()) == 2 })
	return s
}

func (s *shop) group() astypes.AutoScalingGroup {
	s.t.Helper()
	out, err := s.groups.DescribeAutoScalingGroups(s.t.Context(), &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"shop"}})
	if err != nil {
		s.t.Fatal(err)
	}
	return out.AutoScalingGroups[0]
}

// capacityAtRollback lets EC2 launch instances again once a refresh is being
// rolled back.
func (s *shop) capacityAtRollback() {
	rollback := s.Called(func(c cloud.Call) bool { return c.Action == "RollbackInstanceRefresh" })
	go func() {
		select {
		case <-rollback:
			s.EC2.Capacity("", "", true)
		case <-s.t.Context().Done():
		}
	}()
}

// running lists the images of the instances in service.
func (s *shop) running() (images []string) {
	s.t.Helper()
	for _, m := range s.group().Instances {
		if m.LifecycleState != astypes.LifecycleStateInService {
			continue
		}
		out, err := s.ec2.DescribeInstances(s.t.Context(), &ec2.DescribeInstancesInput{InstanceIds: []string{*m.InstanceId}})
		if err != nil {
			s.t.Fatal(err)
		}
		images = append(images, *out.Reservations[0].Instances[0].ImageId)
	}
	return images
}

// defaults returns default and latest version of the launch template.
func (s *shop) defaults() (def, latest int64) {
	s.t.Helper()
	out, err := s.ec2.DescribeLaunchTemplates(s.t.Context(), &ec2.DescribeLaunchTemplatesInput{LaunchTemplateNames: []string{"shop"}})
	if err != nil {
		s.t.Fatal(err)
	}
	return *out.LaunchTemplates[0].DefaultVersionNumber, *out.LaunchTemplates[0].LatestVersionNumber
}

func (s *shop) param() string {
	out, err := ssm.NewFromConfig(s.Config()).GetParameter(s.t.Context(), &ssm.GetParameterInput{Name: aws.String("/shop/image")})
	if err != nil {
		return ""
	}
	return *out.Parameter.Value
}

func (s *shop) options() promote.Options {
	return promote.Options{
		Config: s.Config(), ImageID: s.new, LaunchTemplate: "shop", Group: "shop", SSMParameter: "/shop/image", Poll: 10 * time.Millisecond, Timeout: 30 * time.Second,
		Warmup: time.Second, Report: func(line string) { s.t.Log(line) },
	}
}

// order lists the calls that take an image into use, in their order.
func (s *shop) order() string {
	var names []string
	for _, c := range s.Calls() {
		switch c.Action {
		case "CreateLaunchTemplateVersion", "StartInstanceRefresh", "ModifyLaunchTemplate", "PutParameter", "RollbackInstanceRefresh":
			names = append(names, c.Action)
		}
	}
	return strings.Join(names, " ")
}

func TestPromote(t *testing.T) {
	s := newShop(t, "1")
	res, err := promote.Run(t.Context(), s.options())
	if err != nil {
		t.Fatal(err)
	}
	if res.Version != 2 || res.RefreshID == "" || len(res.NotDone) != 0 || len(res.Done) != 4 {
		t.Errorf("result %+v", res)
	}
	if def, _ := s.defaults(); def != 2 || s.param() != s.new {
		t.Errorf("default %d, parameter %s", def, s.param())
	}
	for _, image := range s.running() {
		if image != s.new {
			t.Errorf("an instance in service runs %s", image)
		}
	}
	if v := aws.ToString(s.group().LaunchTemplate.Version); v != "2" {
		t.Errorf("the group launches version %s", v)
	}
	if got := s.order(); got != "CreateLaunchTemplateVersion StartInstanceRefresh ModifyLaunchTemplate PutParameter" {
		t.Errorf("order: %s", got)
	}
	// Again: all is done, nothing is done twice.
	again, err := promote.Run(t.Context(), s.options())
	if err != nil || again.Version != 2 || again.RefreshID != "" {
		t.Errorf("again: %+v, %v", again, err)
	}
}

// Ctrl-C while the refresh is being begun: it is rolled back all the same.
func TestInterruptedAtTheRefreshsBeginning(t *testing.T) {
	s := newShop(t, "1")
	s.EC2.Capacity("", "", false) // it gets nowhere
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.OnCall(func(c cloud.Call) { // before the answer is read
		if c.Action == "StartInstanceRefresh" {
			cancel()
		}
	})
	s.capacityAtRollback()
	if _, err := promote.Run(ctx, s.options()); !errors.Is(err, promote.ErrRollback) || !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	if def, _ := s.defaults(); def != 1 || s.param() != "" {
		t.Errorf("default %d, parameter %q", def, s.param())
	}
}

// No scale-out may get an image that the refresh has not proved.
func TestFailedRefreshPromotesNothing(t *testing.T) {
	s := newShop(t, "1")
	s.EC2.Capacity("", "", false) // nothing can be launched: the refresh gets nowhere
	o := s.options()
	o.Timeout = time.Second
	s.capacityAtRollback()
	_, err := promote.Run(t.Context(), o)
	var partial *promote.Partial
	if !errors.As(err, &partial) || !errors.Is(err, promote.ErrRollback) {
		t.Fatalf("Run: %v", err)
	}
	if got := strings.Join(partial.Result.NotDone, ", "); got != "instance refresh of shop, default version of launch template shop, SSM parameter /shop/image" {
		t.Errorf("not done: %s", got)
	}
	if def, latest := s.defaults(); def != 1 || latest != 2 || s.param() != "" {
		t.Errorf("default %d, latest %d, parameter %q", def, latest, s.param())
	}
	for _, image := range s.running() {
		if image != s.old {
			t.Errorf("an instance in service runs %s", image)
		}
	}
}

func TestGroupOnDefaultIsRefused(t *testing.T) {
	for _, version := range []string{"$Default", "$Latest"} {
		s := newShop(t, version)
		_, err := promote.Run(t.Context(), s.options())
		if !errors.Is(err, promote.ErrRefused) || !strings.Contains(err.Error(), version) || !strings.Contains(err.Error(), "--pin") {
			t.Errorf("%s: %v", version, err)
		}
		if got := s.order(); got != "" {
			t.Errorf("%s: calls %s", version, got)
		}
		o := s.options()
		o.Pin = true
		if _, err := promote.Run(t.Context(), o); err != nil {
			t.Errorf("%s, pinned: %v", version, err)
		}
		if v := aws.ToString(s.group().LaunchTemplate.Version); v != "2" {
			t.Errorf("%s: the group launches version %s", version, v)
		}
	}
}

func TestPartGoesOn(t *testing.T) {
	s := newShop(t, "1")
	lift := s.Deny("ssm:PutParameter", "*", "*")
	_, err := promote.Run(t.Context(), s.options())
	var partial *promote.Partial
	if !errors.As(err, &partial) || len(partial.Result.Done) != 3 || strings.Join(partial.Result.NotDone, "") != "SSM parameter /shop/image" {
		t.Fatalf("Run: %v", err)
	}
	lift()
	if _, err := promote.Run(t.Context(), s.options()); err != nil {
		t.Fatal(err)
	}
	if got := s.order(); strings.Count(got, "StartInstanceRefresh") != 1 || strings.Count(got, "CreateLaunchTemplateVersion") != 1 || s.param() != s.new {
		t.Errorf("order: %s", got)
	}
}

func TestRefusals(t *testing.T) {
	s := newShop(t, "1")
	for name, change := range map[string]func(*promote.Options){
		"no such image":         func(o *promote.Options) { o.ImageID = "ami-0123456789abcdef0" },
		"no such group":         func(o *promote.Options) { o.Group = "none" },
		"another template":      func(o *promote.Options) { o.LaunchTemplate = "other" },
		"nothing to promote to": func(o *promote.Options) { o.LaunchTemplate, o.Group, o.SSMParameter = "", "", "" },
	} {
		o := s.options()
		change(&o)
		if _, err := promote.Run(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if got := s.order(); got != "" {
		t.Errorf("calls %s", got)
	}
}
