package audit_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/lecafe/lecafe/audit"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	labec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// BenchmarkAudit reads and judges a region of 10,000 instances, each in two of
// 2,000 security groups, over the wire as the command does.
func BenchmarkAudit(b *testing.B) {
	const instances, groups, each = 10_000, 2000, 10
	c := cloudtest.New(b, cloud.Options{Clock: wire.Scaled(1e6)})
	api := ec2.NewFromConfig(c.Config())
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	image, err := c.EC2.AddImage("us-east-1", labec2.ImageSeed{Name: "debian-12", Architecture: "x86_64", IMDSSupport: "v2.0", Created: start})
	must(err)
	c.EC2.PutInstanceProfile("app", "app")
	must(c.PutRolePolicy("app", "read", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::assets/*"}]}`))
	subnet, err := c.EC2.AddSubnet("us-east-1", "us-east-1a", "10.0.0.0/16")
	must(err)
	where, err := api.DescribeSubnets(b.Context(), &ec2.DescribeSubnetsInput{SubnetIds: []string{subnet}})
	must(err)
	var ids []string
	for i := range groups {
		out, err := api.CreateSecurityGroup(b.Context(), &ec2.CreateSecurityGroupInput{GroupName: aws.String(fmt.Sprintf("group-%04d", i)), Description: aws.String("of the benchmark"), VpcId: where.Subnets[0].VpcId})
		must(err)
		_, err = api.AuthorizeSecurityGroupIngress(b.Context(), &ec2.AuthorizeSecurityGroupIngressInput{GroupId: out.GroupId, IpPermissions: []ec2types.IpPermission{rule(443, 443, "0.0.0.0/0"), rule(22, 22, "10.0.0.0/8")}})
		must(err)
		ids = append(ids, *out.GroupId)
	}
	for made := 0; made < instances; made += each {
		n := made / each
		_, err := api.RunInstances(b.Context(), &ec2.RunInstancesInput{ImageId: &image, InstanceType: "t3.micro", MinCount: aws.Int32(each), MaxCount: aws.Int32(each),
			SubnetId: &subnet, SecurityGroupIds: []string{ids[2*n%groups], ids[(2*n+1)%groups]},
			IamInstanceProfile: &ec2types.IamInstanceProfileSpecification{Name: aws.String("app")},
			MetadataOptions:    &ec2types.InstanceMetadataOptionsRequest{HttpTokens: ec2types.HttpTokensStateRequired}})
		must(err)
	}
	clients := audit.Clients{EC2: api, AutoScaling: autoscaling.NewFromConfig(c.Config()), IAM: iam.NewFromConfig(c.Config())}
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		r, err := audit.Collect(b.Context(), "us-east-1", clients)
		must(err)
		if len(r.Instances) != instances || len(r.Groups) < groups {
			b.Fatalf("%d instances, %d groups", len(r.Instances), len(r.Groups))
		}
		if found := audit.Audit(r, audit.Options{Now: start}); len(found) > 0 {
			b.Fatalf("%d findings, the first: %+v", len(found), found[0])
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/region")
	// What a busy machine does not change; the fake's part is in it.
	b.ReportMetric((cpu(b)-before)/float64(b.N), "cpu-s/region")
}

// cpu is the CPU time of this process so far, in seconds.
func cpu(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return (time.Duration(u.Utime.Nano()) + time.Duration(u.Stime.Nano())).Seconds()
}
