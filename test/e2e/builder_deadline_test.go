package e2e

import (
	"encoding/base64"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/test/boots"
)

// A builder whose bake never comes back powers itself off at its deadline, and
// is terminated: nobody pays for it until somebody runs gc.
func TestBuilderEndsItself(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-12"}, func(o *lab.Options) { o.TimeScale = 20 })
	data, err := manifest.UserData(manifest.Boot{URL: l.URL + "/no-such-manifest", Deadline: time.Now().Add(20 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	api := ec2.NewFromConfig(boots.Config(l))
	out, err := api.RunInstances(t.Context(), &ec2.RunInstancesInput{
		ImageId: aws.String(l.AMIs["debian-12"]), InstanceType: types.InstanceTypeT3Small, MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
		UserData: aws.String(base64.StdEncoding.EncodeToString(data)), InstanceInitiatedShutdownBehavior: types.ShutdownBehaviorTerminate,
	})
	if err != nil {
		t.Fatal(err)
	}
	id := *out.Instances[0].InstanceId
	boots.Eventually(t, "end of the builder", func() bool {
		d, err := api.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
		if err != nil {
			t.Fatal(err)
		}
		i := d.Reservations[0].Instances[0]
		if i.State.Name != types.InstanceStateNameTerminated {
			return false
		}
		if code := aws.ToString(i.StateReason.Code); code != "Client.InstanceInitiatedShutdown" {
			t.Errorf("terminated for %s", code)
		}
		return true
	}, func() string { return boots.Console(l, id) })
}
