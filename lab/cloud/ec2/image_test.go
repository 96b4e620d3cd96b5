package ec2_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// baked creates an image of an instance and lets it become available.
func (l *lab) baked(name string, change ...func(*sdk.CreateImageInput)) types.Image {
	l.Helper()
	id := l.running()
	in := &sdk.CreateImageInput{InstanceId: &id, Name: &name}
	for _, f := range change {
		f(in)
	}
	out := must(l.api.CreateImage(l.Context(), in))(l)
	l.clock.Advance(time.Minute)
	img := l.image(*out.ImageId)
	if img.State != types.ImageStateAvailable {
		l.Fatalf("image is %s", img.State)
	}
	return img
}

func (l *lab) snapshot(id string) types.Snapshot {
	l.Helper()
	return must(l.api.DescribeSnapshots(l.Context(), &sdk.DescribeSnapshotsInput{SnapshotIds: []string{id}}))(l).Snapshots[0]
}

func tags(list []types.Tag) map[string]string {
	m := map[string]string{}
	for _, t := range list {
		m[*t.Key] = *t.Value
	}
	return m
}

func TestCreateImage(t *testing.T) {
	l := newLab(t)
	id := l.running()
	out := must(l.api.CreateImage(t.Context(), &sdk.CreateImageInput{
		InstanceId: &id, Name: aws.String("cafe-1"), Description: aws.String("the first"),
		TagSpecifications:   append(tagged("image", "bake", "b1"), tagged("snapshot", "bake", "b2")...),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{VolumeSize: aws.Int32(12), VolumeType: types.VolumeTypeGp3}}},
	}))(l)
	img := l.image(*out.ImageId)
	if img.State != types.ImageStatePending || tags(img.Tags)["bake"] != "b1" || *img.Description != "the first" {
		t.Fatalf("a new image is %s, tags %v", img.State, tags(img.Tags))
	}
	if *img.SourceInstanceId != id || *img.SourceImageId != l.base || *img.OwnerId != "000000000000" || *img.Public {
		t.Fatalf("image of %s of %s, owner %s", *img.SourceInstanceId, *img.SourceImageId, *img.OwnerId)
	}
	root := img.BlockDeviceMappings[0]
	if *root.DeviceName != "/dev/xvda" || *root.Ebs.VolumeSize != 12 {
		t.Fatalf("root %s of %d GiB", *root.DeviceName, *root.Ebs.VolumeSize)
	}
	snap := l.snapshot(*root.Ebs.SnapshotId)
	if snap.State != types.SnapshotStatePending || tags(snap.Tags)["bake"] != "b2" || *snap.Progress != "0%" {
		t.Fatalf("a new snapshot is %s at %s, tags %v", snap.State, *snap.Progress, tags(snap.Tags))
	}
	// Nothing can be made of a pending image.
	_, err := l.api.RunInstances(t.Context(), &sdk.RunInstancesInput{ImageId: out.ImageId, InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1)})
	l.code(err, "InvalidAMIID.Unavailable")
	_, err = l.api.CopyImage(t.Context(), &sdk.CopyImageInput{Name: aws.String("cafe-copy"), SourceImageId: out.ImageId, SourceRegion: aws.String("eu-central-1")})
	l.code(err, "InvalidAMIID.Unavailable")
	_, err = l.api.ModifyImageAttribute(t.Context(), &sdk.ModifyImageAttributeInput{ImageId: out.ImageId, ImdsSupport: &types.AttributeValue{Value: aws.String("v2.0")}})
	l.code(err, "InvalidAMIID.Unavailable")

	l.clock.Advance(20 * time.Second)
	if p := *l.snapshot(*snap.SnapshotId).Progress; p != "50%" {
		t.Fatalf("progress %s after 20 s", p)
	}
	l.clock.Advance(24 * time.Second)
	if s := l.image(*out.ImageId).State; s != types.ImageStatePending {
		t.Fatalf("image %s after 44 s", s)
	}
	l.clock.Advance(time.Second)
	if s := l.image(*out.ImageId).State; s != types.ImageStateAvailable {
		t.Fatalf("image %s after 45 s", s)
	}
	if s := l.snapshot(*snap.SnapshotId); s.State != types.SnapshotStateCompleted || *s.Progress != "100%" {
		t.Fatalf("snapshot %s at %s", s.State, *s.Progress)
	}
	l.run(func(in *sdk.RunInstancesInput) { in.ImageId = out.ImageId })
}

func TestCreateImageRefuses(t *testing.T) {
	l := newLab(t)
	l.baked("taken")
	id := l.running()
	for name, c := range map[string]struct {
		change func(*sdk.CreateImageInput)
		code   string
	}{
		"name taken":          {func(in *sdk.CreateImageInput) { in.Name = aws.String("taken") }, "InvalidAMIName.Duplicate"},
		"name malformed":      {func(in *sdk.CreateImageInput) { in.Name = aws.String("a:b") }, "InvalidAMIName.Malformed"},
		"name short":          {func(in *sdk.CreateImageInput) { in.Name = aws.String("ab") }, "InvalidAMIName.Malformed"},
		"instance":            {func(in *sdk.CreateImageInput) { in.InstanceId = aws.String("i-00000000000000000") }, "InvalidInstanceID.NotFound"},
		"pending":             {func(in *sdk.CreateImageInput) { in.InstanceId = aws.String(l.run()) }, "IncorrectInstanceState"},
		"volume shrinks":      {func(in *sdk.CreateImageInput) { in.BlockDeviceMappings = volumeOf(4) }, "InvalidBlockDeviceMapping"},
		"tags of an instance": {func(in *sdk.CreateImageInput) { in.TagSpecifications = tagged("instance", "a", "b") }, "InvalidParameterValue"},
		"encryption": {func(in *sdk.CreateImageInput) {
			in.BlockDeviceMappings = []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{Encrypted: aws.Bool(true)}}}
		}, "InvalidBlockDeviceMapping"},
		"dry run": {func(in *sdk.CreateImageInput) { in.DryRun = aws.Bool(true) }, "DryRunOperation"},
	} {
		in := &sdk.CreateImageInput{InstanceId: &id, Name: aws.String("fresh")}
		c.change(in)
		_, err := l.api.CreateImage(t.Context(), in)
		if err == nil {
			t.Fatalf("%s was taken", name)
		}
		l.code(err, c.code)
	}
	own := must(l.api.DescribeImages(t.Context(), &sdk.DescribeImagesInput{Owners: []string{"self"}}))(l)
	if len(own.Images) != 1 {
		t.Fatalf("refused images are there: %d", len(own.Images))
	}
}

func TestImageFails(t *testing.T) {
	l := newLab(t)
	l.fake.FailNextImage("Client.InternalError: the disk is gone")
	id := l.running()
	out := must(l.api.CreateImage(t.Context(), &sdk.CreateImageInput{InstanceId: &id, Name: aws.String("cafe")}))(l)
	l.clock.Advance(time.Minute)
	img := l.image(*out.ImageId)
	if img.State != types.ImageStateFailed || !strings.Contains(*img.StateReason.Message, "the disk is gone") {
		t.Fatalf("image %s: %v", img.State, img.StateReason)
	}
	l.baked("cafe-2") // only the next one fails
}

func TestImageAttributes(t *testing.T) {
	l := newLab(t)
	img := l.baked("cafe")
	set := func(in *sdk.ModifyImageAttributeInput) error {
		in.ImageId = img.ImageId
		_, err := l.api.ModifyImageAttribute(t.Context(), in)
		return err
	}
	l.ok(set(&sdk.ModifyImageAttributeInput{ImdsSupport: &types.AttributeValue{Value: aws.String("v2.0")}}))
	l.ok(set(&sdk.ModifyImageAttributeInput{Description: &types.AttributeValue{Value: aws.String("new")}}))
	l.ok(set(&sdk.ModifyImageAttributeInput{LaunchPermission: &types.LaunchPermissionModifications{Add: []types.LaunchPermission{{UserId: aws.String("111122223333")}}}}))
	l.ok(set(&sdk.ModifyImageAttributeInput{Attribute: aws.String("launchPermission"), OperationType: types.OperationTypeAdd, OrganizationArns: []string{"arn:aws:organizations::111122223333:organization/o-1"}}))
	l.ok(set(&sdk.ModifyImageAttributeInput{UserIds: []string{"111122223333"}, LaunchPermission: &types.LaunchPermissionModifications{Add: []types.LaunchPermission{{UserId: aws.String("111122223333")}}}}))
	l.code(set(&sdk.ModifyImageAttributeInput{ImdsSupport: &types.AttributeValue{Value: aws.String("v1.0")}}), "InvalidParameterValue")
	l.code(set(&sdk.ModifyImageAttributeInput{LaunchPermission: &types.LaunchPermissionModifications{Add: []types.LaunchPermission{{UserId: aws.String("me")}}}}), "InvalidAMIAttributeItemValue")
	l.code(set(&sdk.ModifyImageAttributeInput{}), "InvalidParameterCombination")
	l.code(set(&sdk.ModifyImageAttributeInput{Description: &types.AttributeValue{Value: aws.String("x")}, ImdsSupport: &types.AttributeValue{Value: aws.String("v2.0")}}), "InvalidParameterCombination")
	_, err := l.api.ModifyImageAttribute(t.Context(), &sdk.ModifyImageAttributeInput{ImageId: &l.base, Description: &types.AttributeValue{Value: aws.String("x")}})
	l.code(err, "AuthFailure")
	got := l.image(*img.ImageId)
	if got.ImdsSupport != types.ImdsSupportValuesV20 || *got.Description != "new" {
		t.Fatalf("imds %q, description %q", got.ImdsSupport, *got.Description)
	}
	perms := must(l.api.DescribeImageAttribute(t.Context(), &sdk.DescribeImageAttributeInput{ImageId: img.ImageId, Attribute: types.ImageAttributeNameLaunchPermission}))(l)
	if len(perms.LaunchPermissions) != 2 {
		t.Fatalf("%d launch permissions", len(perms.LaunchPermissions))
	}
	// ImdsSupport makes tokens required of what is launched.
	m := l.instance(l.run(func(in *sdk.RunInstancesInput) { in.ImageId = img.ImageId })).MetadataOptions
	if m.HttpTokens != types.HttpTokensStateRequired || *m.HttpPutResponseHopLimit != 2 {
		t.Fatalf("tokens %s, hop limit %d", m.HttpTokens, *m.HttpPutResponseHopLimit)
	}
}

func TestDeregisterImage(t *testing.T) {
	l := newLab(t)
	img := l.baked("cafe")
	snap := *img.BlockDeviceMappings[0].Ebs.SnapshotId
	_, err := l.api.DeleteSnapshot(t.Context(), &sdk.DeleteSnapshotInput{SnapshotId: &snap})
	l.code(err, "InvalidSnapshot.InUse")
	must(l.api.EnableImageDeregistrationProtection(t.Context(), &sdk.EnableImageDeregistrationProtectionInput{ImageId: img.ImageId}))(l)
	_, err = l.api.DeregisterImage(t.Context(), &sdk.DeregisterImageInput{ImageId: img.ImageId})
	l.code(err, "OperationNotPermitted")
	must(l.api.DisableImageDeregistrationProtection(t.Context(), &sdk.DisableImageDeregistrationProtectionInput{ImageId: img.ImageId}))(l)
	must(l.api.DeregisterImage(t.Context(), &sdk.DeregisterImageInput{ImageId: img.ImageId}))(l)
	_, err = l.api.DescribeImages(t.Context(), &sdk.DescribeImagesInput{ImageIds: []string{*img.ImageId}})
	l.code(err, "InvalidAMIID.NotFound")
	l.snapshot(snap) // stays
	must(l.api.DeleteSnapshot(t.Context(), &sdk.DeleteSnapshotInput{SnapshotId: &snap}))(l)
	_, err = l.api.DescribeSnapshots(t.Context(), &sdk.DescribeSnapshotsInput{SnapshotIds: []string{snap}})
	l.code(err, "InvalidSnapshot.NotFound")

	again := l.baked("cafe") // the name is free again
	out := must(l.api.DeregisterImage(t.Context(), &sdk.DeregisterImageInput{ImageId: again.ImageId, DeleteAssociatedSnapshots: aws.Bool(true)}))(l)
	if len(out.DeleteSnapshotResults) != 1 || out.DeleteSnapshotResults[0].ReturnCode != types.SnapshotReturnCodesSuccess {
		t.Fatalf("got %+v", out.DeleteSnapshotResults)
	}
	_, err = l.api.DeleteSnapshot(t.Context(), &sdk.DeleteSnapshotInput{SnapshotId: again.BlockDeviceMappings[0].Ebs.SnapshotId})
	l.code(err, "InvalidSnapshot.NotFound")
}

func TestProtectionWithCooldown(t *testing.T) {
	l := newLab(t)
	img := l.baked("cafe")
	must(l.api.EnableImageDeregistrationProtection(t.Context(), &sdk.EnableImageDeregistrationProtectionInput{ImageId: img.ImageId, WithCooldown: aws.Bool(true)}))(l)
	must(l.api.DisableImageDeregistrationProtection(t.Context(), &sdk.DisableImageDeregistrationProtectionInput{ImageId: img.ImageId}))(l)
	l.clock.Advance(23 * time.Hour)
	_, err := l.api.DeregisterImage(t.Context(), &sdk.DeregisterImageInput{ImageId: img.ImageId})
	l.code(err, "OperationNotPermitted")
	l.clock.Advance(time.Hour)
	must(l.api.DeregisterImage(t.Context(), &sdk.DeregisterImageInput{ImageId: img.ImageId}))(l)
}

func TestDeprecatedAndDisabledImages(t *testing.T) {
	l := newLab(t)
	img := l.baked("cafe")
	at := func(d time.Duration) error {
		_, err := l.api.EnableImageDeprecation(t.Context(), &sdk.EnableImageDeprecationInput{ImageId: img.ImageId, DeprecateAt: aws.Time(l.clock.Now().Add(d))})
		return err
	}
	l.code(at(-time.Hour), "InvalidParameterValue")
	l.code(at(11*365*24*time.Hour), "InvalidParameterValue")
	l.ok(at(time.Hour))
	if got := l.image(*img.ImageId).DeprecationTime; got == nil {
		t.Fatal("no deprecation time")
	}
	must(l.api.DisableImage(t.Context(), &sdk.DisableImageInput{ImageId: img.ImageId}))(l)
	own := func(disabled bool) int {
		return len(must(l.api.DescribeImages(t.Context(), &sdk.DescribeImagesInput{Owners: []string{"self"}, IncludeDisabled: &disabled}))(l).Images)
	}
	if own(false) != 0 || own(true) != 1 {
		t.Fatalf("%d images without, %d with disabled ones", own(false), own(true))
	}
	_, err := l.api.RunInstances(t.Context(), &sdk.RunInstancesInput{ImageId: img.ImageId, InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1)})
	l.code(err, "InvalidAMIID.Unavailable")
	must(l.api.EnableImage(t.Context(), &sdk.EnableImageInput{ImageId: img.ImageId}))(l)
	l.run(func(in *sdk.RunInstancesInput) { in.ImageId = img.ImageId })
}

func TestCopyImage(t *testing.T) {
	l := newLab(t)
	src := l.baked("cafe", func(in *sdk.CreateImageInput) { in.TagSpecifications = tagged("image", "app", "cafe") })
	paris := l.in("eu-west-3")
	in := &sdk.CopyImageInput{
		Name: aws.String("cafe"), SourceImageId: src.ImageId, SourceRegion: aws.String("eu-central-1"), ClientToken: aws.String("t1"),
		Encrypted: aws.Bool(true), KmsKeyId: aws.String("arn:aws:kms:eu-west-3:000000000000:key/k1"), CopyImageTags: aws.Bool(true),
		TagSpecifications: append(tagged("image", "bake", "b1"), tagged("snapshot", "bake", "b1")...),
	}
	first := must(paris.CopyImage(t.Context(), in))(l)
	if again := must(paris.CopyImage(t.Context(), in))(l); *again.ImageId != *first.ImageId {
		t.Fatal("the same token made a second copy")
	}
	other := *in
	other.Name = aws.String("cafe-other")
	_, err := paris.CopyImage(t.Context(), &other)
	l.code(err, "IdempotentParameterMismatch")
	other.ClientToken, other.Name = aws.String("t2"), aws.String("cafe")
	_, err = paris.CopyImage(t.Context(), &other)
	l.code(err, "InvalidAMIName.Duplicate")
	other.Name, other.KmsKeyId = aws.String("cafe-other"), aws.String("arn:aws:kms:eu-central-1:000000000000:key/k1")
	_, err = paris.CopyImage(t.Context(), &other)
	l.code(err, "InvalidParameterValue")
	other.KmsKeyId, other.Encrypted = aws.String("k"), nil
	_, err = paris.CopyImage(t.Context(), &other)
	l.code(err, "InvalidParameterDependency")
	other.KmsKeyId, other.SourceImageId = nil, aws.String("ami-00000000000000000")
	_, err = paris.CopyImage(t.Context(), &other)
	l.code(err, "InvalidAMIID.NotFound")

	_, err = l.api.DescribeImages(t.Context(), &sdk.DescribeImagesInput{ImageIds: []string{*first.ImageId}})
	l.code(err, "InvalidAMIID.NotFound") // it is in Paris
	l.clock.Advance(time.Minute)
	got := must(paris.DescribeImages(t.Context(), &sdk.DescribeImagesInput{ImageIds: []string{*first.ImageId}}))(l).Images[0]
	if got.State != types.ImageStateAvailable || tags(got.Tags)["app"] != "cafe" || tags(got.Tags)["bake"] != "b1" {
		t.Fatalf("copy is %s, tags %v", got.State, tags(got.Tags))
	}
	snap := must(paris.DescribeSnapshots(t.Context(), &sdk.DescribeSnapshotsInput{SnapshotIds: []string{*got.BlockDeviceMappings[0].Ebs.SnapshotId}}))(l).Snapshots[0]
	if !*snap.Encrypted || !strings.HasSuffix(*snap.KmsKeyId, "key/k1") || tags(snap.Tags)["bake"] != "b1" {
		t.Fatalf("snapshot %+v", snap)
	}
	// A copy of an encrypted image stays encrypted, and no copy has tags unasked.
	next := must(paris.CopyImage(t.Context(), &sdk.CopyImageInput{Name: aws.String("cafe-3"), SourceImageId: first.ImageId, SourceRegion: aws.String("eu-west-3")}))(l)
	l.clock.Advance(time.Minute)
	third := must(paris.DescribeImages(t.Context(), &sdk.DescribeImagesInput{ImageIds: []string{*next.ImageId}}))(l).Images[0]
	if !*third.BlockDeviceMappings[0].Ebs.Encrypted || len(third.Tags) != 0 {
		t.Fatalf("encrypted %v, tags %v", *third.BlockDeviceMappings[0].Ebs.Encrypted, tags(third.Tags))
	}
	// Under the default key it cannot be shared, and never with the world.
	_, err = paris.ModifyImageAttribute(t.Context(), &sdk.ModifyImageAttributeInput{ImageId: next.ImageId, LaunchPermission: &types.LaunchPermissionModifications{Add: []types.LaunchPermission{{UserId: aws.String("111122223333")}}}})
	l.code(err, "InvalidParameter")
	_, err = paris.ModifyImageAttribute(t.Context(), &sdk.ModifyImageAttributeInput{ImageId: first.ImageId, LaunchPermission: &types.LaunchPermissionModifications{Add: []types.LaunchPermission{{Group: types.PermissionGroupAll}}}})
	l.code(err, "InvalidParameter")
}

func TestRegisterImage(t *testing.T) {
	l := newLab(t)
	img := l.baked("cafe")
	in := func(name string) *sdk.RegisterImageInput {
		return &sdk.RegisterImageInput{
			Name: &name, Architecture: types.ArchitectureValuesX8664, VirtualizationType: aws.String("hvm"), RootDeviceName: aws.String("/dev/xvda"),
			ImdsSupport: types.ImdsSupportValuesV20, TagSpecifications: tagged("image", "a", "b"),
			BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{SnapshotId: img.BlockDeviceMappings[0].Ebs.SnapshotId}}},
		}
	}
	out := must(l.api.RegisterImage(t.Context(), in("again")))(l)
	if got := l.image(*out.ImageId); got.State != types.ImageStateAvailable || got.ImdsSupport != types.ImdsSupportValuesV20 || tags(got.Tags)["a"] != "b" {
		t.Fatalf("registered image %+v", got)
	}
	_, err := l.api.RegisterImage(t.Context(), in("again"))
	l.code(err, "InvalidAMIName.Duplicate")
	lost := in("lost")
	lost.BlockDeviceMappings[0].Ebs.SnapshotId = aws.String("snap-00000000000000000")
	_, err = l.api.RegisterImage(t.Context(), lost)
	l.code(err, "InvalidSnapshot.NotFound")
	rootless := in("rootless")
	rootless.RootDeviceName = aws.String("/dev/sda1")
	_, err = l.api.RegisterImage(t.Context(), rootless)
	l.code(err, "InvalidBlockDeviceMapping")
}

func TestSnapshotSharing(t *testing.T) {
	l := newLab(t)
	img := l.baked("cafe")
	snap := img.BlockDeviceMappings[0].Ebs.SnapshotId
	must(l.api.ModifySnapshotAttribute(t.Context(), &sdk.ModifySnapshotAttributeInput{
		SnapshotId: snap, Attribute: types.SnapshotAttributeNameCreateVolumePermission, OperationType: types.OperationTypeAdd, UserIds: []string{"111122223333"},
	}))(l)
	got := must(l.api.DescribeSnapshotAttribute(t.Context(), &sdk.DescribeSnapshotAttributeInput{SnapshotId: snap, Attribute: types.SnapshotAttributeNameCreateVolumePermission}))(l)
	if len(got.CreateVolumePermissions) != 1 || *got.CreateVolumePermissions[0].UserId != "111122223333" {
		t.Fatalf("got %+v", got.CreateVolumePermissions)
	}
	_, err := l.api.ModifySnapshotAttribute(t.Context(), &sdk.ModifySnapshotAttributeInput{
		SnapshotId: snap, Attribute: types.SnapshotAttributeNameCreateVolumePermission, OperationType: types.OperationTypeAdd, UserIds: []string{"nobody"},
	})
	l.code(err, "InvalidParameterValue")
}

func TestVolumes(t *testing.T) {
	l := newLab(t)
	kept := l.running(func(in *sdk.RunInstancesInput) {
		in.BlockDeviceMappings = []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{DeleteOnTermination: aws.Bool(false)}}}
		in.TagSpecifications = tagged("volume", "v", "1")
	})
	vols := must(l.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{Filters: []types.Filter{{Name: aws.String("attachment.instance-id"), Values: []string{kept}}}}))(l)
	vol := vols.Volumes[0]
	if vol.State != types.VolumeStateInUse || tags(vol.Tags)["v"] != "1" {
		t.Fatalf("volume %s, tags %v", vol.State, tags(vol.Tags))
	}
	_, err := l.api.DeleteVolume(t.Context(), &sdk.DeleteVolumeInput{VolumeId: vol.VolumeId})
	l.code(err, "VolumeInUse")
	gone := l.running()
	must(l.api.TerminateInstances(t.Context(), &sdk.TerminateInstancesInput{InstanceIds: []string{kept, gone}}))(l)
	l.clock.Advance(time.Minute)
	all := must(l.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{}))(l)
	if len(all.Volumes) != 1 || *all.Volumes[0].VolumeId != *vol.VolumeId || all.Volumes[0].State != types.VolumeStateAvailable {
		t.Fatalf("%d volumes left", len(all.Volumes))
	}
	must(l.api.DeleteVolume(t.Context(), &sdk.DeleteVolumeInput{VolumeId: vol.VolumeId}))(l)
	_, err = l.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{VolumeIds: []string{*vol.VolumeId}})
	l.code(err, "InvalidVolume.NotFound")
}
