package ec2_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// FuzzServe: no form makes the fake panic or fail by itself.
func FuzzServe(f *testing.F) {
	for _, s := range []string{
		"Action=RunInstances&ImageId=$BASE&MinCount=1&MaxCount=2&InstanceType=t3.micro&UserData=aGk%3D&BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1.Ebs.VolumeSize=9",
		"Action=RunInstances&ImageId=$BASE&MinCount=1&MaxCount=1&InstanceType=t3.micro&NetworkInterface.1.DeviceIndex=0&NetworkInterface.1.SubnetId=$SUBNET&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=a",
		"Action=RunInstances&LaunchTemplate.LaunchTemplateId=$TEMPLATE&LaunchTemplate.Version=$Latest&MinCount=1&MaxCount=1",
		"Action=CreateLaunchTemplateVersion&LaunchTemplateId=$TEMPLATE&SourceVersion=1&LaunchTemplateData.MetadataOptions.HttpTokens=required",
		"Action=DescribeInstances&Filter.1.Name=tag:a&Filter.1.Value.1=*&MaxResults=5&NextToken=x",
		"Action=CreateImage&InstanceId=$INSTANCE&Name=cafe&BlockDeviceMapping.1.DeviceName=/dev/sdb&BlockDeviceMapping.1.NoDevice=",
		"Action=CreateImage&InstanceId=$INSTANCE&Name=cafe&BlockDeviceMapping.1.DeviceName=/dev/sdb&BlockDeviceMapping.1.VirtualName=ephemeral0",
		"Action=ModifyImageAttribute&ImageId=$BASE&LaunchPermission.Add.1.Group=all",
		"Action=CopyImage&SourceImageId=$BASE&SourceRegion=eu-central-1&Name=copy&Encrypted=true",
		"Action=RegisterImage&Name=reg&Architecture=x86_64&VirtualizationType=hvm&BlockDeviceMapping.1.DeviceName=/dev/sda1&BlockDeviceMapping.1.Ebs.SnapshotId=snap-1",
		"Action=AuthorizeSecurityGroupIngress&GroupName=default&IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=1&IpPermissions.1.ToPort=2&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0",
		"Action=DescribeSecurityGroupRules&Filter.1.Name=group-id&Filter.1.Value.1=sg-1",
		"Action=DescribeLaunchTemplateVersions&Versions.1=$Latest&MaxVersion=3&NextToken=YWZ0ZXI6MQ",
		"Action=DescribeTags&Filter.1.Name=key&Filter.1.Value.1=a&MaxResults=5",
		"Action=DescribeInstanceTypes&MaxResults=5&Filter.1.Name=vcpu-info.default-vcpus&Filter.1.Value.1=2",
		"Action=ModifyInstanceAttribute&InstanceId=$INSTANCE&Attribute=disableApiStop&Value=true",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, form string) {
		clock := wire.NewManual(start)
		s := ec2.New(ec2.Options{Clock: clock, Vault: wire.NewVault(clock), Region: "eu-central-1"})
		defer s.Close()
		base, err := s.AddImage("eu-central-1", ec2.ImageSeed{})
		if err != nil {
			t.Fatal(err)
		}
		subnet, err := s.AddSubnet("eu-central-1", "eu-central-1a", "10.0.0.0/24")
		if err != nil {
			t.Fatal(err)
		}
		send := func(body string) (int, string) {
			req := httptest.NewRequest("POST", "/", strings.NewReader(body))
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			w := httptest.NewRecorder()
			s.ServeHTTP(w, req)
			return w.Code, w.Body.String()
		}
		between := func(s, a, b string) string {
			_, rest, _ := strings.Cut(s, a)
			v, _, _ := strings.Cut(rest, b)
			return v
		}
		_, tpl := send("Action=CreateLaunchTemplate&LaunchTemplateName=app&LaunchTemplateData.InstanceType=t3.micro&LaunchTemplateData.ImageId=" + base)
		_, run := send("Action=RunInstances&MinCount=1&MaxCount=1&InstanceType=t3.micro&ImageId=" + base)
		form = strings.NewReplacer("$BASE", base, "$SUBNET", subnet, "$TEMPLATE", between(tpl, "<launchTemplateId>", "<"), "$INSTANCE", between(run, "<instanceId>", "<")).Replace(form)
		clock.Advance(3e10)
		for range 2 { // the second time on what the first has made
			if code, body := send(form); code >= http.StatusInternalServerError {
				t.Fatalf("%d: %s", code, body)
			}
			clock.Advance(6e11)
		}
		if code, body := send("Action=DescribeInstances"); code != http.StatusOK {
			t.Fatalf("%d: %s", code, body)
		}
	})
}
