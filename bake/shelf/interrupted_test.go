package shelf_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/shelf"
	"github.com/lecafe/lecafe/lab/cloud"
)

// Snapshots whose image is gone cost money and are in no list of images: the
// next prune deletes what one that was cut off has left.
func TestInterruptedPruneLeavesNoSnapshots(t *testing.T) {
	w := newWorld(t)
	w.use()
	w.prune(true)
	w.ahead = 25 * time.Hour
	lost := w.Inject(cloud.Fault{Service: "ec2", Action: "DeleteSnapshot", Kind: cloud.Code, Code: "InvalidSnapshot.InUse", Message: "The snapshot is currently in use"})
	o := shelf.PruneOptions{Options: w.options(), Keep: 1, Grace: 24 * time.Hour, Remove: true}
	if _, err := shelf.Prune(t.Context(), o); err == nil || !strings.Contains(err.Error(), "delete snapshot") {
		t.Fatalf("Prune: %v", err)
	}
	lost.Remove()
	if _, err := shelf.Prune(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	snaps, err := w.api.DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{Filters: []types.Filter{{Name: aws.String("tag:" + manifest.TagBake), Values: []string{"bake-app-6", "bake-app-failed"}}}})
	if err != nil || len(snaps.Snapshots) != 0 {
		t.Errorf("snapshots are left: %+v, %v", snaps.Snapshots, err)
	}
	kept, err := w.api.DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{Filters: []types.Filter{{Name: aws.String("tag:" + manifest.TagBake), Values: []string{"bake-app-8"}}}})
	if err != nil || len(kept.Snapshots) != 1 {
		t.Errorf("snapshots of app-8: %+v, %v", kept.Snapshots, err)
	}
}

// A launch template that takes its image from a parameter uses that image,
// although nobody has named the parameter.
func TestImageBehindATemplatesParameterIsKept(t *testing.T) {
	w := newWorld(t)
	w.SSM.Put("us-east-1", "/hidden/image", w.ids["app-2"])
	_, err := w.api.CreateLaunchTemplate(t.Context(), &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("by-parameter"), LaunchTemplateData: &types.RequestLaunchTemplateData{
		ImageId: aws.String("resolve:ssm:/hidden/image"), InstanceType: types.InstanceTypeT3Small,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if a := w.prune(true)["app-2"]; a.Do != "keep" || !strings.Contains(a.Why, "/hidden/image") {
		t.Errorf("%+v", a)
	}
	// One that may not be read may name any image.
	w.Deny("ssm:GetParameter", "*", "*hidden*")
	if _, err := shelf.Prune(t.Context(), shelf.PruneOptions{Options: w.options(), Remove: true}); err == nil || !strings.Contains(err.Error(), "/hidden/image") {
		t.Errorf("Prune: %v", err)
	}
}
