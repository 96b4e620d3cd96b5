package shelf_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/shelf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	cloudec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

type world struct {
	*cloudtest.Cloud
	t     *testing.T
	api   *ec2.Client
	ahead time.Duration     // of the shelf's clock
	ids   map[string]string // name → ID
}

// newWorld has images app-1 (the oldest) to app-8 and one of another recipe.
func newWorld(t *testing.T) *world {
	t.Helper()
	clock := wire.NewManual(time.Now().Add(-10 * time.Minute)) // at the end it is about now
	c := cloudtest.New(t, cloud.Options{Clock: clock})
	w := &world{Cloud: c, t: t, api: ec2.NewFromConfig(c.Config()), ids: map[string]string{}}
	base, err := c.EC2.AddImage("us-east-1", cloudec2.ImageSeed{Name: "debian"})
	if err != nil {
		t.Fatal(err)
	}
	run, err := w.api.RunInstances(t.Context(), &ec2.RunInstancesInput{ImageId: &base, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeT3Small})
	if err != nil {
		t.Fatal(err)
	}
	clock.Advance(time.Minute)
	c.Until(t, "the instance", func() bool {
		i, _ := c.EC2.Instance(*run.Instances[0].InstanceId)
		return i.State == "running"
	})
	make := func(name, recipe, state string) {
		tags := []types.Tag{{Key: aws.String(manifest.TagBake), Value: aws.String("bake-" + name)}, {Key: aws.String(manifest.TagRecipe), Value: &recipe}, {Key: aws.String(manifest.TagState), Value: &state}}
		out, err := w.api.CreateImage(t.Context(), &ec2.CreateImageInput{InstanceId: run.Instances[0].InstanceId, Name: &name, NoReboot: aws.Bool(true), TagSpecifications: []types.TagSpecification{
			{ResourceType: types.ResourceTypeImage, Tags: tags}, {ResourceType: types.ResourceTypeSnapshot, Tags: tags},
		}})
		if err != nil {
			t.Fatal(err)
		}
		w.ids[name] = *out.ImageId
		clock.Advance(time.Minute)
		if im, err := w.api.DescribeImages(t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{*out.ImageId}}); err != nil || im.Images[0].State != types.ImageStateAvailable {
			t.Fatalf("image %s: %+v, %v", name, im, err)
		}
	}
	for i := range 8 {
		make(fmt.Sprintf("app-%d", i+1), "app", manifest.StateDone)
	}
	make("other-1", "other", manifest.StateDone)
	make("app-failed", "app", manifest.StateFailed)
	make("app-building", "app", manifest.StateBuilding)
	return w
}

func (w *world) options() shelf.Options {
	return shelf.Options{Config: w.Config(), Now: func() time.Time { return time.Now().Add(w.ahead) }, Parameters: []string{"/app/image", "/app/none"}}
}

// use puts images into use in every way that keeps one.
func (w *world) use() {
	w.t.Helper()
	ctx := w.t.Context()
	check := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	_, err := w.api.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: aws.String(w.ids["app-1"]), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeT3Small})
	check(err)
	// Versions: 1 a group's, 2 the default, 3 nobody's, 4 the latest.
	for i, name := range []string{"app-2", "app-3", "app-7", "app-8"} {
		data := &types.RequestLaunchTemplateData{ImageId: aws.String(w.ids[name]), InstanceType: types.InstanceTypeT3Small}
		if i == 0 {
			_, err = w.api.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("app"), LaunchTemplateData: data})
		} else {
			_, err = w.api.CreateLaunchTemplateVersion(ctx, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateName: aws.String("app"), LaunchTemplateData: data})
		}
		check(err)
	}
	_, err = w.api.ModifyLaunchTemplate(ctx, &ec2.ModifyLaunchTemplateInput{LaunchTemplateName: aws.String("app"), DefaultVersion: aws.String("2")})
	check(err)
	_, err = autoscaling.NewFromConfig(w.Config()).CreateAutoScalingGroup(ctx, &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: aws.String("app"), MinSize: aws.Int32(0), MaxSize: aws.Int32(1), AvailabilityZones: []string{"us-east-1a"},
		LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String("app"), Version: aws.String("1")},
	})
	check(err)
	w.SSM.Put("us-east-1", "/app/image", w.ids["app-4"])
	_, err = w.api.ModifyImageAttribute(ctx, &ec2.ModifyImageAttributeInput{ImageId: aws.String(w.ids["app-5"]), LaunchPermission: &types.LaunchPermissionModifications{Add: []types.LaunchPermission{{UserId: aws.String("123456789012")}}}})
	check(err)
}

func (w *world) prune(remove bool) map[string]*shelf.Action {
	w.t.Helper()
	actions, err := shelf.Prune(w.t.Context(), shelf.PruneOptions{Options: w.options(), Keep: 1, Grace: 24 * time.Hour, Remove: remove})
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]*shelf.Action{}
	for _, a := range actions {
		out[a.Image.Name] = a
	}
	return out
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	w.use()
	want := map[string]string{
		"app-1": "keep instance", "app-2": "keep group app", "app-3": "keep (default)", "app-4": "keep SSM parameter /app/image", "app-5": "keep shared with 123456789012",
		"app-6": "disable nothing", "app-7": "disable nothing", "app-8": "keep (latest)", "other-1": "keep newest 1 of other", "app-failed": "disable nothing", "app-building": "keep it is being made",
	}
	for _, remove := range []bool{false, true} { // the dry run says what the real one does
		for name, a := range w.prune(remove) {
			do, why, _ := strings.Cut(want[name], " ")
			if a.Do != do || !strings.Contains(a.Why, why) || a.Done != (remove && do == "disable") {
				t.Errorf("%s: %s %q done %v, want %s", name, a.Do, a.Why, a.Done, want[name])
			}
		}
	}
	if a := w.prune(true)["app-6"]; a.Do != "wait" {
		t.Errorf("right after: %+v", a)
	}
	w.ahead = 25 * time.Hour
	// One that is used again in the meantime stays.
	if _, err := w.api.EnableImage(t.Context(), &ec2.EnableImageInput{ImageId: aws.String(w.ids["app-7"])}); err != nil {
		t.Fatal(err)
	}
	w.SSM.Put("us-east-1", "/app/image", w.ids["app-7"])
	after := w.prune(true)
	if a := after["app-6"]; a.Do != "delete" || !a.Done {
		t.Errorf("after the grace period: %+v", a)
	}
	if a := after["app-7"]; a.Do != "keep" {
		t.Errorf("used again: %+v", a)
	}
	images, err := shelf.List(t.Context(), w.options())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		if i.Name == "app-6" || i.Name == "app-failed" {
			t.Errorf("%s is still there", i.Name)
		}
	}
	snaps, err := w.api.DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{Filters: []types.Filter{{Name: aws.String("tag:" + manifest.TagBake), Values: []string{"bake-app-6", "bake-app-failed"}}}})
	if err != nil || len(snaps.Snapshots) != 0 {
		t.Errorf("snapshots are left: %+v, %v", snaps.Snapshots, err)
	}
}

func TestBefore(t *testing.T) {
	w := newWorld(t)
	got, err := shelf.Before(t.Context(), w.options(), w.ids["app-8"])
	if err != nil || got.Name != "app-7" {
		t.Errorf("before app-8: %+v, %v", got, err)
	}
	if _, err := shelf.Before(t.Context(), w.options(), w.ids["other-1"]); err == nil {
		t.Error("there is one before other-1")
	}
}
