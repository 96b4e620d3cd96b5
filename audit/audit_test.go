package audit_test

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/audit"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	labec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

var start = time.Now().UTC()

// account is a fake account that a test plants faults in.
type account struct {
	t     *testing.T
	ec2   *ec2.Client
	asg   *autoscaling.Client
	image string // a recent public image that requires IMDSv2
	old   string // one of last year
}

func newAccount(t *testing.T) *account {
	t.Helper()
	c := cloudtest.New(t, cloud.Options{Clock: wire.Scaled(1e6), Times: labec2.Times{Forgotten: 1e6 * time.Hour}})
	a := &account{t: t, ec2: ec2.NewFromConfig(c.Config()), asg: autoscaling.NewFromConfig(c.Config())}
	for _, seed := range []struct {
		into *string
		name string
		age  time.Duration
	}{{&a.image, "debian-12-new", 24 * time.Hour}, {&a.old, "debian-12-old", 400 * 24 * time.Hour}} {
		id, err := c.EC2.AddImage("us-east-1", labec2.ImageSeed{Name: seed.name, Architecture: "x86_64", IMDSSupport: "v2.0", Created: start.Add(-seed.age)})
		a.must(err)
		*seed.into = id
	}
	return a
}

func (a *account) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// await waits until done, for states that take time.
func (a *account) await(what string, done func() bool) {
	a.t.Helper()
	deadline := time.After(time.Minute)
	for !done() {
		select {
		case <-deadline:
			a.t.Fatalf("%s: not within a minute", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func (a *account) state(id string, want ec2types.InstanceStateName) {
	a.t.Helper()
	a.await(id+" "+string(want), func() bool {
		out, err := a.ec2.DescribeInstances(a.t.Context(), &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
		a.must(err)
		return out.Reservations[0].Instances[0].State.Name == want
	})
}

func (a *account) available(id string) ec2types.Image {
	a.t.Helper()
	var image ec2types.Image
	a.await(id+" available", func() bool {
		out, err := a.ec2.DescribeImages(a.t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{id}})
		a.must(err)
		image = out.Images[0]
		return image.State == ec2types.ImageStateAvailable
	})
	return image
}

func (a *account) run(image string, tokens ec2types.HttpTokensState, group string) string {
	a.t.Helper()
	in := &ec2.RunInstancesInput{ImageId: &image, InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
		MetadataOptions: &ec2types.InstanceMetadataOptionsRequest{HttpTokens: tokens}}
	if group != "" {
		in.SecurityGroupIds = []string{group}
	}
	out, err := a.ec2.RunInstances(a.t.Context(), in)
	a.must(err)
	a.state(*out.Instances[0].InstanceId, ec2types.InstanceStateNameRunning)
	return *out.Instances[0].InstanceId
}

func (a *account) group(name string, rules ...ec2types.IpPermission) string {
	a.t.Helper()
	out, err := a.ec2.CreateSecurityGroup(a.t.Context(), &ec2.CreateSecurityGroupInput{GroupName: &name, Description: &name})
	a.must(err)
	if len(rules) > 0 {
		_, err = a.ec2.AuthorizeSecurityGroupIngress(a.t.Context(), &ec2.AuthorizeSecurityGroupIngressInput{GroupId: out.GroupId, IpPermissions: rules})
		a.must(err)
	}
	return *out.GroupId
}

func rule(from, to int32, cidr string) ec2types.IpPermission {
	p := ec2types.IpPermission{IpProtocol: aws.String("tcp"), FromPort: &from, ToPort: &to}
	if strings.Contains(cidr, ":") {
		p.Ipv6Ranges = []ec2types.Ipv6Range{{CidrIpv6: &cidr}}
	} else {
		p.IpRanges = []ec2types.IpRange{{CidrIp: &cidr}}
	}
	return p
}

func (a *account) template(name, userData string, tokens ec2types.LaunchTemplateHttpTokensState) string {
	a.t.Helper()
	data := &ec2types.RequestLaunchTemplateData{ImageId: &a.image, InstanceType: "t3.micro"}
	if tokens != "" {
		data.MetadataOptions = &ec2types.LaunchTemplateInstanceMetadataOptionsRequest{HttpTokens: tokens}
	}
	if userData != "" {
		data.UserData = aws.String(base64.StdEncoding.EncodeToString([]byte(userData)))
	}
	out, err := a.ec2.CreateLaunchTemplate(a.t.Context(), &ec2.CreateLaunchTemplateInput{LaunchTemplateName: &name, LaunchTemplateData: data})
	a.must(err)
	return *out.LaunchTemplate.LaunchTemplateId
}

func (a *account) scaling(name, template, version string) {
	a.t.Helper()
	_, err := a.asg.CreateAutoScalingGroup(a.t.Context(), &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: &name, MinSize: aws.Int32(0), MaxSize: aws.Int32(1), DesiredCapacity: aws.Int32(0), AvailabilityZones: []string{"us-east-1a"},
		LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateId: &template, Version: &version},
	})
	a.must(err)
}

// made makes an image of the account's own, requiring IMDSv2.
func (a *account) made(name string, encrypted bool) (image, snapshot string) {
	a.t.Helper()
	from := a.run(a.image, ec2types.HttpTokensStateRequired, "")
	out, err := a.ec2.CreateImage(a.t.Context(), &ec2.CreateImageInput{InstanceId: &from, Name: &name})
	a.must(err)
	a.available(*out.ImageId)
	_, err = a.ec2.TerminateInstances(a.t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{from}})
	a.must(err)
	a.state(from, ec2types.InstanceStateNameTerminated)
	id := *out.ImageId
	if encrypted {
		c, err := a.ec2.CopyImage(a.t.Context(), &ec2.CopyImageInput{SourceImageId: &id, SourceRegion: aws.String("us-east-1"), Name: aws.String(name + "-encrypted"), Encrypted: aws.Bool(true), KmsKeyId: aws.String("arn:aws:kms:us-east-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab")})
		a.must(err)
		a.available(*c.ImageId)
		_, err = a.ec2.DeregisterImage(a.t.Context(), &ec2.DeregisterImageInput{ImageId: &id, DeleteAssociatedSnapshots: aws.Bool(true)})
		a.must(err)
		id = *c.ImageId
	}
	_, err = a.ec2.ModifyImageAttribute(a.t.Context(), &ec2.ModifyImageAttributeInput{ImageId: &id, ImdsSupport: &ec2types.AttributeValue{Value: aws.String("v2.0")}})
	a.must(err)
	return id, *a.available(id).BlockDeviceMappings[0].Ebs.SnapshotId
}

func (a *account) audit() []audit.Finding {
	a.t.Helper()
	r, err := audit.Collect(a.t.Context(), "us-east-1", audit.Clients{EC2: a.ec2, AutoScaling: a.asg})
	a.must(err)
	return audit.Audit(r, audit.Options{Now: start.Add(48 * time.Hour), Accounts: []string{"111111111111"}})
}

const good = "#!/bin/bash\nset -euo pipefail\nsystemctl start --no-block cafe.service\n"

// seedGood fills the account with what is as it should be.
func (a *account) seedGood() {
	g := a.group("app", rule(443, 443, "0.0.0.0/0"), rule(22, 22, "10.0.0.0/8"))
	a.run(a.image, ec2types.HttpTokensStateRequired, g)
	lt := a.template("good", good, ec2types.LaunchTemplateHttpTokensStateRequired)
	a.scaling("good", lt, "$Default")
	a.scaling("good-pinned", lt, "1")
	image, _ := a.made("good", true)
	_, err := a.ec2.ModifyImageAttribute(a.t.Context(), &ec2.ModifyImageAttributeInput{ImageId: &image, LaunchPermission: &ec2types.LaunchPermissionModifications{
		Add: []ec2types.LaunchPermission{{UserId: aws.String("111111111111")}}}})
	a.must(err)
}

func TestCleanAccountHasNoFindings(t *testing.T) {
	a := newAccount(t)
	a.seedGood()
	if found := a.audit(); len(found) > 0 {
		t.Errorf("a clean account has findings: %+v", found)
	}
}

func TestEveryPlantedFaultIsFoundAndNothingElse(t *testing.T) {
	a := newAccount(t)
	a.seedGood()
	ctx := t.Context()
	var want []string
	plant := func(check, resource string) { want = append(want, check+" "+resource) }

	// Ports, each group in use so that it is not found unused as well.
	used := func(name string, r ec2types.IpPermission) {
		g := a.group(name, r)
		a.run(a.image, ec2types.HttpTokensStateRequired, g)
		plant("open-ports", g)
	}
	used("ssh", rule(22, 22, "0.0.0.0/0"))
	used("ssh6", rule(22, 22, "::/0"))
	used("postgres", rule(5432, 5432, "0.0.0.0/0"))
	used("rdp-in-range", rule(3380, 3390, "0.0.0.0/0"))
	all := ec2types.IpPermission{IpProtocol: aws.String("-1"), IpRanges: []ec2types.IpRange{{CidrIp: aws.String("0.0.0.0/0")}}}
	used("everything", all)
	plant("unused-security-groups", a.group("forgotten"))

	// IMDSv1.
	plant("imds-v1", a.run(a.image, ec2types.HttpTokensStateOptional, ""))
	optional := a.template("optional", good, ec2types.LaunchTemplateHttpTokensStateOptional)
	plant("imds-v1", optional+":1")
	v1, v1snap := a.made("without-imds-support", false)
	_, err := a.ec2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &v1})
	a.must(err)
	a.await("snapshot completed", func() bool {
		out, err := a.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{v1snap}})
		a.must(err)
		return out.Snapshots[0].State == ec2types.SnapshotStateCompleted
	})
	reg, err := a.ec2.RegisterImage(ctx, &ec2.RegisterImageInput{Name: aws.String("registered"), Architecture: ec2types.ArchitectureValuesX8664, VirtualizationType: aws.String("hvm"), RootDeviceName: aws.String("/dev/xvda"),
		BlockDeviceMappings: []ec2types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &ec2types.EbsBlockDevice{SnapshotId: &v1snap}}}})
	a.must(err)
	plant("imds-v1", *reg.ImageId)
	plant("unencrypted-snapshots", v1snap)

	// Images.
	plant("old-images", a.run(a.old, ec2types.HttpTokensStateRequired, ""))
	gone, _ := a.made("gone", true)
	plant("old-images", a.run(gone, ec2types.HttpTokensStateRequired, ""))
	_, err = a.ec2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &gone, DeleteAssociatedSnapshots: aws.Bool(true)})
	a.must(err)
	deprecated, _ := a.made("deprecated", true)
	plant("old-images", a.run(deprecated, ec2types.HttpTokensStateRequired, ""))
	_, err = a.ec2.EnableImageDeprecation(ctx, &ec2.EnableImageDeprecationInput{ImageId: &deprecated, DeprecateAt: aws.Time(start.Add(24 * time.Hour))})
	a.must(err)

	// Groups.
	latest := a.template("latest", good, ec2types.LaunchTemplateHttpTokensStateRequired)
	a.scaling("on-latest", latest, "$Latest")
	plant("unpromoted-groups", "on-latest")
	_, err = a.ec2.CreateLaunchTemplateVersion(ctx, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateId: &latest, SourceVersion: aws.String("1"), LaunchTemplateData: &ec2types.RequestLaunchTemplateData{InstanceType: "t3.small"}})
	a.must(err)
	a.scaling("on-another", latest, "2")
	plant("unpromoted-groups", "on-another")

	// Sharing.
	public, publicSnap := a.made("public", false) // AWS refuses to make an encrypted one public
	plant("unencrypted-snapshots", publicSnap)
	_, err = a.ec2.ModifyImageAttribute(ctx, &ec2.ModifyImageAttributeInput{ImageId: &public, LaunchPermission: &ec2types.LaunchPermissionModifications{Add: []ec2types.LaunchPermission{{Group: "all"}}}})
	a.must(err)
	plant("shared-images", public)
	_, sharedSnap := a.made("stranger", true)
	_, err = a.ec2.ModifySnapshotAttribute(ctx, &ec2.ModifySnapshotAttributeInput{SnapshotId: &sharedSnap, Attribute: ec2types.SnapshotAttributeNameCreateVolumePermission,
		CreateVolumePermission: &ec2types.CreateVolumePermissionModifications{Add: []ec2types.CreateVolumePermission{{UserId: aws.String("999999999999")}}}})
	a.must(err)
	plant("shared-images", sharedSnap)

	// Orphans.
	orphaned, orphan := a.made("orphaned", true)
	_, err = a.ec2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &orphaned})
	a.must(err)
	plant("orphans", orphan)
	kept, err := a.ec2.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: &a.image, InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
		BlockDeviceMappings: []ec2types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &ec2types.EbsBlockDevice{DeleteOnTermination: aws.Bool(false)}}}})
	a.must(err)
	a.state(*kept.Instances[0].InstanceId, ec2types.InstanceStateNameRunning)
	_, err = a.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{*kept.Instances[0].InstanceId}})
	a.must(err)
	var volume string
	a.await("volume available", func() bool {
		out, err := a.ec2.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: []ec2types.Filter{{Name: aws.String("status"), Values: []string{"available"}}}})
		a.must(err)
		if len(out.Volumes) == 1 {
			volume = *out.Volumes[0].VolumeId
		}
		return volume != ""
	})
	plant("orphans", volume)

	// User data.
	plant("bad-user-data", a.template("no-header", "echo hello\n", ec2types.LaunchTemplateHttpTokensStateRequired)+":1")
	plant("bad-user-data", a.template("secret", "#!/bin/bash\nset -euo pipefail\nexport AWS_SECRET_ACCESS_KEY="+strings.Repeat("aB3/", 10)+"\n", ec2types.LaunchTemplateHttpTokensStateRequired)+":1")

	if len(want) < 20 {
		t.Fatalf("only %d faults planted", len(want))
	}
	var got []string
	for _, f := range a.audit() {
		got = append(got, f.Check+" "+f.Resource)
		if f.Why == "" || f.Fix == "" || f.Message == "" || f.Region != "us-east-1" {
			t.Errorf("finding without a reason, a fix or a place: %+v", f)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	got = slices.Compact(got) // one resource may have two messages
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("not found: %s", w)
		}
	}
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("found though nothing was planted: %s", g)
		}
	}
}

func TestWildcardProfiles(t *testing.T) {
	for document, bad := range map[string]bool{
		`{"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}`:                                                   true,
		`{"Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}]}`:                                            true,
		`{"Statement": [{"Effect": "Allow", "Action": ["iam:*"], "Resource": ["arn:aws:iam::1:role/x"]}]}`:                     true,
		`{"Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]}`:                                                  false,
		`{"Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": "*"}]}`:                                    false,
		`{"Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::lecafe-assets/*"}]}`:                   false,
		`{"Statement": [{"Effect": "Allow", "Action": ["iam:GetInstanceProfile"], "Resource": "*"}]}`:                          false,
		`{"Statement": [{"Effect": "Allow", "Action": ["autoscaling:CompleteLifecycleAction"], "Resource": ["arn:aws:x:*"]}]}`: false,
	} {
		p, err := audit.ParsePolicy(document)
		if err != nil {
			t.Fatal(err)
		}
		found := audit.Audit(&audit.Region{Profiles: []audit.Profile{{Name: "p", Policies: map[string]audit.PolicyDocument{"x": p}}}}, audit.Options{Now: start})
		if got := len(found) > 0; got != bad {
			t.Errorf("%s: found %v, want %v", document, found, bad)
		}
	}
	if _, err := audit.ParsePolicy(`{"Statement": 7}`); err == nil {
		t.Error("a policy that is none was read")
	}
}
