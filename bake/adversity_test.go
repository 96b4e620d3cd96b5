package bake_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
)

// A journal that cannot be read, by this version or by any, does not keep gc
// from what other bakes have left.
func TestGCGoesOnAfterAForgedJournal(t *testing.T) {
	t.Parallel()
	w := killedInCopy(t)
	if _, err := awsconf.S3(w.Config()).PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("elsewhere/bake-00/journal.json"), Body: strings.NewReader(`{"schema":"lecafe.journal/v9"}`)}); err != nil {
		t.Fatal(err)
	}
	forged := []types.Tag{{Key: aws.String(manifest.TagBake), Value: aws.String("bake-00")}, {Key: aws.String(manifest.TagJournal), Value: aws.String("s3://" + bucket + "/elsewhere/bake-00/journal.json")}}
	group, err := w.api.CreateSecurityGroup(t.Context(), &ec2.CreateSecurityGroupInput{GroupName: aws.String("somebodys"), Description: aws.String("theirs"), TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeSecurityGroup, Tags: forged}}})
	if err != nil {
		t.Fatal(err)
	}
	found, err := bake.GC(t.Context(), bake.GCOptions{Config: w.Config(), Remove: true, Poll: 10 * time.Millisecond, Settle: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "bake-00") || len(found) != 2 || found[0].Removed || found[0].Error == "" || !found[1].Removed {
		t.Errorf("gc: %+v, %v", found, err)
	}
	if _, err := w.api.DeleteSecurityGroup(t.Context(), &ec2.DeleteSecurityGroupInput{GroupId: group.GroupId}); err != nil {
		t.Errorf("the other's group: %v", err)
	}
	if _, err := awsconf.S3(w.Config()).DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: aws.String("elsewhere/bake-00/journal.json")}); err != nil {
		t.Error(err)
	}
	w.nothingLeaked()
}

// Tags can be copied, by the console's "launch more like this" for one: what
// the bake did not launch is not its to terminate.
func TestGCLeavesAnInstanceWithCopiedTags(t *testing.T) {
	t.Parallel()
	w := newCrashWorld(t)
	ran, err := w.api.RunInstances(t.Context(), &ec2.RunInstancesInput{ImageId: &w.source, InstanceType: types.InstanceTypeT3Micro, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)})
	if err != nil {
		t.Fatal(err)
	}
	production := *ran.Instances[0].InstanceId
	becomes := func(state string) {
		w.Until(t, production+" "+state, func() bool { i, _ := w.EC2.Instance(production); return i.State == state })
	}
	becomes("running")
	if _, err := w.api.StopInstances(t.Context(), &ec2.StopInstancesInput{InstanceIds: []string{production}}); err != nil { // it is no builder to play
		t.Fatal(err)
	}
	becomes("stopped")
	w.play(&player{})
	if !w.bake("CopyImage#1", true) {
		t.Fatal("not killed")
	}
	journal := "s3://" + bucket + "/" + w.r.Staging.Prefix + "/" + w.bakeID() + "/journal.json"
	if _, err := w.api.CreateTags(t.Context(), &ec2.CreateTagsInput{Resources: []string{production}, Tags: []types.Tag{
		{Key: aws.String(manifest.TagBake), Value: aws.String(w.bakeID())}, {Key: aws.String(manifest.TagJournal), Value: &journal}, {Key: aws.String(manifest.TagRole), Value: aws.String("builder")},
	}}); err != nil {
		t.Fatal(err)
	}
	found := w.gc(bake.GCOptions{Remove: true}, "us-east-1")
	if len(found) != 1 || !found[0].Removed || strings.Contains(strings.Join(found[0].Things, " "), production) {
		t.Errorf("gc: %+v", found)
	}
	if i, ok := w.EC2.Instance(production); !ok || i.State != "stopped" {
		t.Errorf("the other's instance is %s", i.State)
	}
}

// A bake was killed when its image stood, and the image has been removed since:
// gc removes the rest.
func TestGCOfABakeWhoseImageIsGone(t *testing.T) {
	t.Parallel()
	w := newCrashWorld(t)
	w.play(&player{})
	if !w.bake("CreateTags#1", false) {
		t.Fatal("not killed")
	}
	for _, im := range w.imagesIn("us-east-1") {
		if _, err := w.api.DeregisterImage(t.Context(), &ec2.DeregisterImageInput{ImageId: im.ImageId}); err != nil {
			t.Fatal(err)
		}
	}
	if found := w.gc(bake.GCOptions{Remove: true}, "us-east-1"); len(found) != 1 || !found[0].Committed || !found[0].Removed {
		t.Errorf("gc: %+v", found)
	}
	if left := w.S3.Objects(bucket, ""); len(left) != 0 {
		t.Errorf("objects %q", left)
	}
}

// Something else uses the temporary security group: gc says so and ends.
func TestGCOfAGroupInUse(t *testing.T) {
	t.Parallel()
	w := killedInCopy(t)
	met := w.Inject(cloud.Fault{Service: "ec2", Action: "DeleteSecurityGroup", Kind: cloud.Code, Code: "DependencyViolation", Message: "resource has a dependent object"})
	var calls atomic.Int64
	o := bake.GCOptions{Config: w.Config(), Remove: true, Poll: 10 * time.Millisecond, Settle: time.Millisecond}
	o.Now = func() time.Time {
		if met.Hits() == 0 {
			return time.Now()
		}
		return time.Now().Add(time.Duration(calls.Add(1)) * time.Minute)
	}
	found, err := bake.GC(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "did not make uses it") || len(found) != 1 || found[0].Removed {
		t.Fatalf("gc: %+v, %v", found, err)
	}
	met.Remove()
	later := func() time.Time { return time.Now().Add(2 * time.Hour) } // this process drives it now
	if found := w.gc(bake.GCOptions{Remove: true, Now: later}, "us-east-1"); len(found) != 1 || !found[0].Removed {
		t.Errorf("gc once more: %+v", found)
	}
	w.nothingLeaked()
}

// EC2 has forgotten a builder that ended long ago, as when the machine slept.
func TestForgottenBuilderEndsTheBake(t *testing.T) {
	w := newWorld(t)
	w.play(&player{Silent: true})
	var slept atomic.Bool
	opts := w.options(w.recipe())
	opts.Now = func() time.Time {
		if slept.Load() {
			return time.Now().Add(24 * time.Hour)
		}
		return time.Now()
	}
	inner := opts.Report
	opts.Report = func(e bake.Event) {
		inner(e)
		if e.Kind == bake.EventDone && e.Phase == "launch" {
			w.Inject(cloud.Fault{Service: "ec2", Action: "DescribeInstances", Kind: cloud.Code, Code: "InvalidInstanceID.NotFound", Message: "does not exist", Times: 1})
			slept.Store(true)
		}
	}
	_, err := bake.Run(t.Context(), opts)
	if err == nil || !strings.Contains(err.Error(), "not known to EC2 any more") {
		t.Errorf("Run: %v", err)
	}
	w.nothingLeaked()
}

// A full disk, or a home that is read-only, ends no bake.
func TestNoRoomForTheJournalsCopy(t *testing.T) {
	w := newWorld(t)
	w.play(&player{})
	opts := w.options(w.recipe())
	opts.StateDir = w.write("a-file", "in the way of the directory")
	warned := 0
	inner := opts.Report
	opts.Report = func(e bake.Event) {
		inner(e)
		if strings.Contains(e.Text, "no copy of the journal") {
			warned++
		}
	}
	if _, err := bake.Run(t.Context(), opts); err != nil || warned != 1 {
		t.Errorf("Run: %v, warned %d times", err, warned)
	}
	w.nothingLeaked()
}

// S3 answers a conditional writing with a conflict while another is under way,
// our own repeated one as well: nobody has taken the bake over.
func TestConflictIsNoTakeOver(t *testing.T) {
	w := newWorld(t)
	w.play(&player{})
	met := w.Inject(cloud.Fault{Service: "s3", Action: "PutObject", Resource: "*journal.json", Skip: 1, Times: 2, Kind: cloud.Code, Status: 409, Code: "ConditionalRequestConflict", Message: "The conditional request cannot succeed due to a conflicting operation against this resource."})
	if _, err := bake.Run(t.Context(), w.options(w.recipe())); err != nil {
		t.Error(err)
	}
	if met.Hits() != 2 {
		t.Errorf("%d faults met", met.Hits())
	}
	w.nothingLeaked()
}

// Production's launch template protects its instances and keeps their volumes:
// the canary goes all the same, with all that is its own.
func TestCanaryOfAProtectingTemplate(t *testing.T) {
	w := newWorld(t)
	w.play(&player{})
	_, err := w.api.CreateLaunchTemplate(t.Context(), &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("guarded"), LaunchTemplateData: &types.RequestLaunchTemplateData{
		ImageId: &w.source, InstanceType: types.InstanceTypeM5Large, DisableApiTermination: aws.Bool(true),
		BlockDeviceMappings: []types.LaunchTemplateBlockDeviceMappingRequest{{DeviceName: aws.String("/dev/sdf"), Ebs: &types.LaunchTemplateEbsBlockDeviceRequest{VolumeSize: aws.Int32(8), DeleteOnTermination: aws.Bool(false)}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bake.Run(t.Context(), w.options(w.recipe("canary={launch_template: guarded}"))); err != nil {
		t.Fatal(err)
	}
	w.nothingLeakedBut("launch template guarded")
	volumes, err := w.api.DescribeVolumes(t.Context(), &ec2.DescribeVolumesInput{Filters: []types.Filter{{Name: aws.String("tag-key"), Values: []string{manifest.TagBake}}}})
	if err != nil || len(volumes.Volumes) != 0 {
		t.Errorf("volumes are left: %+v, %v", volumes.Volumes, err)
	}
}
