package cloud_test

import (
	"testing"
	"time"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
)

// A bake's policy, and what each statement that is missing forbids.
func TestEC2Permissions(t *testing.T) {
	c := cloudtest.New(t, cloud.Options{})
	image, err := c.EC2.AddImage("us-east-1", ec2.ImageSeed{Name: "debian-12"})
	if err != nil {
		t.Fatal(err)
	}
	c.EC2.PutInstanceProfile("app", "app")
	const (
		run  = `{"Effect":"Allow","Action":"ec2:RunInstances","Resource":["arn:aws:ec2:*:*:instance/*","arn:aws:ec2:*:*:volume/*","arn:aws:ec2:*:*:network-interface/*","arn:aws:ec2:*::image/*"]}`
		tags = `{"Effect":"Allow","Action":"ec2:CreateTags","Resource":"arn:aws:ec2:*:*:instance/*","Condition":{"StringEquals":{"ec2:CreateAction":"RunInstances","aws:RequestTag/lecafe:bake-id":"b1"}}}`
		pass = `{"Effect":"Allow","Action":"iam:PassRole","Resource":"arn:aws:iam::*:role/app","Condition":{"StringEquals":{"iam:PassedToService":"ec2.amazonaws.com"}}}`
		stop = `{"Effect":"Allow","Action":"ec2:StopInstances","Resource":"arn:aws:ec2:us-east-1:*:instance/i-00000000000000001"}`
	)
	launch := "RunInstances&MinCount=1&MaxCount=1&InstanceType=t3.micro&ImageId=" + image
	tagged := launch + "&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=lecafe%3Abake-id&TagSpecification.1.Tag.1.Value="
	for name, tt := range map[string]struct {
		action     string
		statements string
		code       string // empty: allowed
	}{
		"launch":                           {launch, run, ""},
		"launch, nothing allowed":          {launch, stop, "UnauthorizedOperation"},
		"tags":                             {tagged + "b1", run + "," + tags, ""},
		"tags without CreateTags":          {tagged + "b1", run, "UnauthorizedOperation"},
		"tags of another bake":             {tagged + "b2", run + "," + tags, "UnauthorizedOperation"},
		"a profile":                        {launch + "&IamInstanceProfile.Name=app", run + "," + pass, ""},
		"a profile without PassRole":       {launch + "&IamInstanceProfile.Name=app", run, "UnauthorizedOperation"},
		"another instance":                 {"StopInstances&InstanceId.1=i-00000000000000002", stop, "UnauthorizedOperation"},
		"the instance, which is not there": {"StopInstances&InstanceId.1=i-00000000000000001", stop, "InvalidInstanceID.NotFound"},
		"description":                      {"DescribeInstances", run, "UnauthorizedOperation"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.PutRolePolicy("baker", "p", `{"Version":"2012-10-17","Statement":[`+tt.statements+`]}`); err != nil {
				t.Fatal(err)
			}
			cfg := c.As(c.Vault.Assume("baker", "ci", time.Hour))
			err := post(t.Context(), cfg, "ec2", tt.action)
			if tt.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			code(t, err, tt.code)
		})
	}
}
