package bake_test

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/manifest"
)

func TestWholeImage(t *testing.T) {
	w := newWorld(t)
	w.play(&player{})
	out, err := bake.Run(t.Context(), w.options(w.recipe(
		`image.encryption={kms_key: "arn:aws:kms:us-east-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab"}`,
		`image.copies=[{region: eu-west-1, encryption: {kms_key: "arn:aws:kms:eu-west-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab"}}, {region: us-west-2, encryption: {kms_key: "arn:aws:kms:us-west-2:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab"}}]`,
		`image.share={accounts: ["123456789012"]}`, `image.deprecate_after=90d`, `image.deregistration_protection=true`,
		`image.volume={type: gp3, size: 12}`, `image.volumes=[{device: /dev/sdf, size: 3, type: gp3}]`, `image.description=of {{.Name}}`,
	)))
	if err != nil {
		t.Fatal(err)
	}
	im := w.image(out.ImageID)
	if aws.ToString(im.Description) != "of lecafe-app" || len(im.BlockDeviceMappings) != 2 || aws.ToString(im.DeregistrationProtection) == "disabled" || im.DeprecationTime == nil {
		t.Errorf("image %+v", im)
	}
	for _, d := range im.BlockDeviceMappings {
		if !aws.ToBool(d.Ebs.Encrypted) {
			t.Errorf("device %s is not encrypted", *d.DeviceName)
		}
	}
	if at, err := time.Parse(time.RFC3339, aws.ToString(im.DeprecationTime)); err != nil || time.Until(at) < 89*24*time.Hour || time.Until(at) > 91*24*time.Hour {
		t.Errorf("deprecation %v, %v", im.DeprecationTime, err)
	}
	check := func(region, id string) {
		t.Helper()
		api := ec2.NewFromConfig(w.Config(), func(o *ec2.Options) { o.Region = region })
		got, err := api.DescribeImages(t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{id}})
		if err != nil {
			t.Fatal(err)
		}
		im := got.Images[0]
		if im.State != types.ImageStateAvailable || tag(im.Tags, manifest.TagState) != manifest.StateDone || tag(im.Tags, manifest.TagBake) != out.BakeID || aws.ToBool(im.Public) {
			t.Errorf("%s: %+v", region, im)
		}
		snaps, err := api.DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{SnapshotIds: []string{*im.BlockDeviceMappings[0].Ebs.SnapshotId}})
		if err != nil || tag(snaps.Snapshots[0].Tags, manifest.TagState) != manifest.StateDone || !aws.ToBool(snaps.Snapshots[0].Encrypted) {
			t.Errorf("%s: snapshot %+v, %v", region, snaps, err)
		}
		attr, err := api.DescribeImageAttribute(t.Context(), &ec2.DescribeImageAttributeInput{ImageId: &id, Attribute: types.ImageAttributeNameLaunchPermission})
		if err != nil || len(attr.LaunchPermissions) != 1 || aws.ToString(attr.LaunchPermissions[0].UserId) != "123456789012" {
			t.Errorf("%s: launch permissions %+v, %v", region, attr, err)
		}
	}
	check("us-east-1", out.ImageID)
	if len(out.Copies) != 2 {
		t.Fatalf("copies %v", out.Copies)
	}
	for region, id := range out.Copies {
		check(region, id)
	}
	w.nothingLeaked()
}

// An image whose copy fails is undone with its copies, in every region.
func TestCopyThatFails(t *testing.T) {
	w := newWorld(t)
	w.play(&player{})
	opts := w.options(w.recipe(`image.copies=[{region: eu-west-1}, {region: us-west-2}]`))
	inner := opts.Report
	opts.Report = func(e bake.Event) {
		inner(e)
		if e.Kind == bake.EventPhase && e.Phase == "copy" {
			w.EC2.FailNextImage("the key is disabled")
		}
	}
	_, err := bake.Run(t.Context(), opts)
	if err == nil {
		t.Fatal("no error")
	}
	t.Log(err)
	for _, region := range []string{"us-east-1", "eu-west-1", "us-west-2"} {
		api := ec2.NewFromConfig(w.Config(), func(o *ec2.Options) { o.Region = region })
		got, err := api.DescribeImages(t.Context(), &ec2.DescribeImagesInput{Owners: []string{"self"}})
		if err != nil || len(got.Images) != 0 {
			t.Errorf("%s: images %+v, %v", region, got.Images, err)
		}
	}
	w.nothingLeaked()
}
