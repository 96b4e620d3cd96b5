package conformance

import (
	"encoding/base64"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

func images(r *run) {
	c := ec2.NewFromConfig(r.cfg)
	out := ok(c.DescribeImages(r, &ec2.DescribeImagesInput{ImageIds: []string{r.image}}))(r)
	r.note("%d", len(out.Images))
	out = ok(c.DescribeImages(r, &ec2.DescribeImagesInput{Owners: []string{"amazon"}, Filters: []ec2types.Filter{{Name: aws.String("image-id"), Values: []string{r.image}}}}))(r)
	r.note("%s", *out.Images[0].OwnerId)
	_, err := c.DescribeImages(r, &ec2.DescribeImagesInput{ImageIds: []string{"ami-0123456789abcdef0"}})
	r.code(err)
}

func (r *run) state(c *ec2.Client, id, want string) {
	r.t.Helper()
	r.until(want+" instance", func() bool {
		out := ok(c.DescribeInstances(r, &ec2.DescribeInstancesInput{InstanceIds: []string{id}}))(r)
		return string(out.Reservations[0].Instances[0].State.Name) == want
	})
	r.note("%s", want)
}

func (r *run) launch(c *ec2.Client) string {
	return *ok(c.RunInstances(r, &ec2.RunInstancesInput{ImageId: &r.image, InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1)}))(r).Instances[0].InstanceId
}

func instances(r *run) {
	c := ec2.NewFromConfig(r.cfg)
	in := &ec2.RunInstancesInput{
		ImageId: &r.image, InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1), DryRun: aws.Bool(true),
		MetadataOptions:   &ec2types.InstanceMetadataOptionsRequest{HttpTokens: "required", HttpPutResponseHopLimit: aws.Int32(1)},
		UserData:          aws.String(base64.StdEncoding.EncodeToString([]byte("#!/bin/true"))),
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: "instance", Tags: []ec2types.Tag{{Key: aws.String("role"), Value: aws.String("worker")}}}},
	}
	_, err := c.RunInstances(r, in)
	r.code(err)
	in.DryRun = nil
	out := ok(c.RunInstances(r, in))(r)
	i := out.Instances[0]
	r.note("%s", i.State.Name)
	r.state(c, *i.InstanceId, "running")
	tagged := ok(c.DescribeInstances(r, &ec2.DescribeInstancesInput{Filters: []ec2types.Filter{
		{Name: aws.String("tag:role"), Values: []string{"worker"}}, {Name: aws.String("instance-state-name"), Values: []string{"running"}}}}))(r)
	have := tagged.Reservations[0].Instances[0]
	r.note("%s %d %s", have.MetadataOptions.HttpTokens, *have.MetadataOptions.HttpPutResponseHopLimit, *have.Tags[0].Value)
	data := ok(c.DescribeInstanceAttribute(r, &ec2.DescribeInstanceAttributeInput{InstanceId: i.InstanceId, Attribute: "userData"}))(r)
	raw := ok(base64.StdEncoding.DecodeString(*data.UserData.Value))(r)
	r.note("%s", raw)
	ids := []string{*i.InstanceId}
	ok(c.StopInstances(r, &ec2.StopInstancesInput{InstanceIds: ids}))(r)
	r.state(c, ids[0], "stopped")
	ok(c.StartInstances(r, &ec2.StartInstancesInput{InstanceIds: ids}))(r)
	r.state(c, ids[0], "running")
	ok(c.TerminateInstances(r, &ec2.TerminateInstancesInput{InstanceIds: ids}))(r)
	r.state(c, ids[0], "terminated")
	_, err = c.DescribeInstances(r, &ec2.DescribeInstancesInput{InstanceIds: []string{"i-0123456789abcdef0"}})
	r.code(err)
}

func ownImages(r *run) {
	c := ec2.NewFromConfig(r.cfg)
	id := r.launch(c)
	r.state(c, id, "running")
	r.seen = nil
	made := ok(c.CreateImage(r, &ec2.CreateImageInput{InstanceId: &id, Name: aws.String("conf"), TagSpecifications: []ec2types.TagSpecification{
		{ResourceType: "image", Tags: []ec2types.Tag{{Key: aws.String("cafe"), Value: aws.String("yes")}}}}}))(r)
	var image ec2types.Image
	r.until("available image", func() bool {
		out := ok(c.DescribeImages(r, &ec2.DescribeImagesInput{ImageIds: []string{*made.ImageId}}))(r)
		image = out.Images[0]
		return image.State == "available"
	})
	r.note("available %s=%s", *image.Tags[0].Key, *image.Tags[0].Value)
	mine := ok(c.DescribeImages(r, &ec2.DescribeImagesInput{Owners: []string{"self"}}))(r)
	if slices.ContainsFunc(mine.Images, func(i ec2types.Image) bool { return *i.ImageId == *made.ImageId }) {
		r.note("self")
	}
	snapshots := ok(c.DescribeSnapshots(r, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{*image.BlockDeviceMappings[0].Ebs.SnapshotId}}))(r)
	r.note("%d", len(snapshots.Snapshots))
	ok(c.ModifyImageAttribute(r, &ec2.ModifyImageAttributeInput{ImageId: made.ImageId, LaunchPermission: &ec2types.LaunchPermissionModifications{Add: []ec2types.LaunchPermission{{UserId: aws.String("111122223333")}}}}))(r)
	ok(c.DeregisterImage(r, &ec2.DeregisterImageInput{ImageId: made.ImageId}))(r)
	mine = ok(c.DescribeImages(r, &ec2.DescribeImagesInput{Owners: []string{"self"}}))(r)
	if len(mine.Images) == 0 {
		r.note("gone")
	}
	ok(c.TerminateInstances(r, &ec2.TerminateInstancesInput{InstanceIds: []string{id}}))(r)
}

func launchTemplates(r *run) {
	c := ec2.NewFromConfig(r.cfg)
	name := aws.String("conf")
	data := func(size ec2types.InstanceType) *ec2types.RequestLaunchTemplateData {
		return &ec2types.RequestLaunchTemplateData{ImageId: &r.image, InstanceType: size}
	}
	lt := ok(c.CreateLaunchTemplate(r, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: name, LaunchTemplateData: data("t3.micro")}))(r).LaunchTemplate
	r.note("%d", *lt.LatestVersionNumber)
	v := ok(c.CreateLaunchTemplateVersion(r, &ec2.CreateLaunchTemplateVersionInput{LaunchTemplateName: name, LaunchTemplateData: data("t3.small")}))(r).LaunchTemplateVersion
	r.note("%d", *v.VersionNumber)
	m := ok(c.ModifyLaunchTemplate(r, &ec2.ModifyLaunchTemplateInput{LaunchTemplateName: name, DefaultVersion: aws.String("2")}))(r).LaunchTemplate
	r.note("default=%d", *m.DefaultVersionNumber)
	out := ok(c.DescribeLaunchTemplateVersions(r, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateName: name, Versions: []string{"$Default"}}))(r)
	r.note("%s", out.LaunchTemplateVersions[0].LaunchTemplateData.InstanceType)
	_, err := c.CreateLaunchTemplate(r, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: name, LaunchTemplateData: data("t3.micro")})
	r.code(err)
	_, err = c.DescribeLaunchTemplates(r, &ec2.DescribeLaunchTemplatesInput{LaunchTemplateNames: []string{"conf-nosuch"}})
	r.code(err)
}

func groupsAndKeys(r *run) {
	c := ec2.NewFromConfig(r.cfg)
	vpc := ok(c.DescribeVpcs(r, &ec2.DescribeVpcsInput{Filters: []ec2types.Filter{{Name: aws.String("is-default"), Values: []string{"true"}}}}))(r).Vpcs[0].VpcId
	group := &ec2.CreateSecurityGroupInput{GroupName: aws.String("conf"), Description: aws.String("conf"), VpcId: vpc}
	id := ok(c.CreateSecurityGroup(r, group))(r).GroupId
	_, err := c.CreateSecurityGroup(r, group)
	r.code(err)
	ok(c.CreateKeyPair(r, &ec2.CreateKeyPairInput{KeyName: aws.String("conf")}))(r)
	_, err = c.CreateKeyPair(r, &ec2.CreateKeyPairInput{KeyName: aws.String("conf")})
	r.code(err)
	r.note("%d", len(ok(c.DescribeSecurityGroups(r, &ec2.DescribeSecurityGroupsInput{GroupIds: []string{*id}}))(r).SecurityGroups[0].IpPermissions))
	ok(c.DeleteKeyPair(r, &ec2.DeleteKeyPairInput{KeyName: aws.String("conf")}))(r)
	ok(c.DeleteSecurityGroup(r, &ec2.DeleteSecurityGroupInput{GroupId: id}))(r)
	_, err = c.DescribeSecurityGroups(r, &ec2.DescribeSecurityGroupsInput{GroupIds: []string{*id}})
	r.code(err)
}

func scaling(r *run) {
	e, c := ec2.NewFromConfig(r.cfg), autoscaling.NewFromConfig(r.cfg)
	name := aws.String("conf-group")
	ok(e.CreateLaunchTemplate(r, &ec2.CreateLaunchTemplateInput{LaunchTemplateName: name, LaunchTemplateData: &ec2types.RequestLaunchTemplateData{ImageId: &r.image, InstanceType: "t3.micro"}}))(r)
	in := &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: name, MinSize: aws.Int32(0), MaxSize: aws.Int32(4), DesiredCapacity: aws.Int32(2), AvailabilityZones: []string{region + "a"},
		LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateName: name, Version: aws.String("$Default")},
	}
	ok(c.CreateAutoScalingGroup(r, in))(r)
	group := func() astypes.AutoScalingGroup {
		return ok(c.DescribeAutoScalingGroups(r, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{*name}}))(r).AutoScalingGroups[0]
	}
	inService := func(n int) func() bool {
		return func() bool {
			have := 0
			for _, i := range group().Instances {
				if i.LifecycleState == "InService" {
					have++
				}
			}
			return have == n
		}
	}
	r.note("%d", *group().DesiredCapacity)
	r.until("two instances", inService(2))
	r.note("InService:2")
	ok(c.SetDesiredCapacity(r, &autoscaling.SetDesiredCapacityInput{AutoScalingGroupName: name, DesiredCapacity: aws.Int32(3)}))(r)
	r.until("three instances", inService(3))
	r.note("%d launchtemplate=", len(group().Instances))
	if *group().Instances[0].LaunchTemplate.LaunchTemplateName == *name {
		r.seen[len(r.seen)-1] += "yes"
	}
	ok(c.DeleteAutoScalingGroup(r, &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: name, ForceDelete: aws.Bool(true)}))(r)
	r.until("end of the group", func() bool {
		return len(ok(c.DescribeAutoScalingGroups(r, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{*name}}))(r).AutoScalingGroups) == 0
	})
	r.note("gone")
}
