package autoscaling_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
)

// BenchmarkFleet brings 20 groups into service and describes them with the
// SDK, 100 groups a page.
func BenchmarkFleet(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newLab(b)
			began := time.Now()
			for g := range 20 {
				id, err := l.fake.AddSubnet(region, region+"a", fmt.Sprintf("10.%d.0.0/16", g))
				if err != nil {
					b.Fatal(err)
				}
				_, err = l.api.CreateAutoScalingGroup(b.Context(), &sdk.CreateAutoScalingGroupInput{
					AutoScalingGroupName: aws.String(fmt.Sprint("g", g)), MinSize: aws.Int32(0), MaxSize: aws.Int32(10_000), DesiredCapacity: aws.Int32(int32(n / 20)), VPCZoneIdentifier: &id,
					LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("web"), Version: aws.String("1")},
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			l.clock.Advance(time.Minute)
			up := time.Since(began)
			for b.Loop() {
				out, err := l.api.DescribeAutoScalingGroups(b.Context(), &sdk.DescribeAutoScalingGroupsInput{MaxRecords: aws.Int32(100)})
				if err != nil {
					b.Fatal(err)
				}
				seen := 0
				for _, g := range out.AutoScalingGroups {
					for _, i := range g.Instances {
						if i.LifecycleState == types.LifecycleStateInService {
							seen++
						}
					}
				}
				if seen != n {
					b.Fatalf("%d of %d in service", seen, n)
				}
			}
			b.ReportMetric(up.Seconds(), "s-until-in-service")
		})
	}
}
