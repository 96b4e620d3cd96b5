package autoscaling_test

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/autoscaling"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// TestConcurrent: callers, the clock and EC2's own changes at once end in a
// group of the size that was asked for last, and in no deadlock.
func TestConcurrent(t *testing.T) {
	clock := wire.Scaled(5000)
	fake := ec2.New(ec2.Options{Clock: clock, Vault: wire.NewVault(clock), Region: region})
	defer fake.Close()
	as := autoscaling.New(autoscaling.Options{Clock: clock, Instances: fake, Region: region})
	image, err := fake.AddImage(region, ec2.ImageSeed{Name: "debian-12"})
	if err != nil {
		t.Fatal(err)
	}
	send := func(h http.Handler, pairs ...string) string {
		form := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			form.Set(pairs[i], pairs[i+1])
		}
		req := httptest.NewRequest("POST", "/", strings.NewReader(form.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w.Body.String()
	}
	send(fake, "Action", "CreateLaunchTemplate", "LaunchTemplateName", "web", "LaunchTemplateData.ImageId", image, "LaunchTemplateData.InstanceType", "t3.micro")
	if out := send(as, "Action", "CreateAutoScalingGroup", "AutoScalingGroupName", "web", "MinSize", "0", "MaxSize", "20", "DesiredCapacity", "5",
		"LaunchTemplate.LaunchTemplateName", "web", "LaunchTemplate.Version", "1", "AvailabilityZones.member.1", region+"a"); strings.Contains(out, "<Error>") {
		t.Fatal(out)
	}
	members := func() []string {
		var ids []string
		out := send(as, "Action", "DescribeAutoScalingInstances")
		for part := range strings.SplitSeq(out, "<InstanceId>") {
			if id, _, ok := strings.Cut(part, "<"); ok && strings.HasPrefix(id, "i-") {
				ids = append(ids, id)
			}
		}
		return ids
	}
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(n)))
			for range 150 {
				ids := members()
				if len(ids) == 0 {
					ids = []string{"i-00000000000000000"}
				}
				id := ids[r.IntN(len(ids))]
				switch r.IntN(6) {
				case 0:
					send(as, "Action", "SetDesiredCapacity", "AutoScalingGroupName", "web", "DesiredCapacity", strconv.Itoa(r.IntN(20)))
				case 1:
					send(as, "Action", "SetInstanceHealth", "InstanceId", id, "HealthStatus", "Unhealthy")
				case 2:
					send(as, "Action", "TerminateInstanceInAutoScalingGroup", "InstanceId", id, "ShouldDecrementDesiredCapacity", "false")
				case 3:
					fake.PoweredOff(id)
				case 4:
					send(as, "Action", "StartInstanceRefresh", "AutoScalingGroupName", "web", "Preferences.InstanceWarmup", "0")
				case 5:
					send(fake, "Action", "TerminateInstances", "InstanceId.1", id)
				}
			}
		})
	}
	wg.Wait()
	send(as, "Action", "CancelInstanceRefresh", "AutoScalingGroupName", "web")
	send(as, "Action", "SetDesiredCapacity", "AutoScalingGroupName", "web", "DesiredCapacity", "3")
	var out string
	for deadline := time.Now().Add(60 * time.Second); ; {
		out = send(as, "Action", "DescribeAutoScalingInstances")
		if strings.Count(out, "<InstanceId>") == 3 && strings.Count(out, "<LifecycleState>InService<") == 3 && strings.Count(out, "<HealthStatus>Healthy<") == 3 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the group does not settle: %s", out)
		}
		<-time.After(time.Millisecond)
	}
}
