package ec2_test

import (
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// BenchmarkList pages through a fleet with the SDK, 1000 instances a page. The
// time an instance must not grow with the fleet.
func BenchmarkList(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newLab(b)
			var subnets []string
			for i := range 4 {
				id, err := l.fake.AddSubnet("eu-central-1", "eu-central-1a", fmt.Sprintf("10.%d.0.0/16", i))
				if err != nil {
					b.Fatal(err)
				}
				subnets = append(subnets, id)
			}
			for made := 0; made < n; made += 1000 {
				_, err := l.api.RunInstances(b.Context(), &sdk.RunInstancesInput{
					ImageId: &l.base, InstanceType: "t3.micro", MinCount: aws.Int32(1000), MaxCount: aws.Int32(1000), SubnetId: &subnets[made/1000%4],
					TagSpecifications: tagged("instance", "app", "cafe"),
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				seen := 0
				p := sdk.NewDescribeInstancesPaginator(l.api, &sdk.DescribeInstancesInput{MaxResults: aws.Int32(1000), Filters: []types.Filter{{Name: aws.String("tag:app"), Values: []string{"cafe"}}}})
				for p.HasMorePages() {
					page, err := p.NextPage(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					for _, r := range page.Reservations {
						seen += len(r.Instances)
					}
				}
				if seen != n {
					b.Fatalf("saw %d of %d", seen, n)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/instance")
		})
	}
}
