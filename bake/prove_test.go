package bake_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/manifest"
)

// foreign makes an image as another tool would: without any of lecafe's tags.
func (w *world) foreign() bake.Made {
	w.t.Helper()
	ctx := w.t.Context()
	ran, err := w.api.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: &w.source, InstanceType: types.InstanceTypeT3Micro, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)})
	if err != nil {
		w.t.Fatal(err)
	}
	id := *ran.Instances[0].InstanceId
	soon := func(o *ec2.InstanceRunningWaiterOptions) {
		o.MinDelay, o.MaxDelay = 10*time.Millisecond, 50*time.Millisecond
	}
	if err := ec2.NewInstanceRunningWaiter(w.api).Wait(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{id}}, time.Minute, soon); err != nil {
		w.t.Fatal(err)
	}
	made, err := w.api.CreateImage(ctx, &ec2.CreateImageInput{InstanceId: &id, Name: aws.String("by-packer"), NoReboot: aws.Bool(true)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.available("us-east-1", *made.ImageId)
	if _, err := w.api.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{id}}); err != nil {
		w.t.Fatal(err)
	}
	west := w.in("us-west-2")
	copied, err := west.CopyImage(ctx, &ec2.CopyImageInput{Name: aws.String("by-packer"), SourceImageId: made.ImageId, SourceRegion: aws.String("us-east-1")})
	if err != nil {
		w.t.Fatal(err)
	}
	w.available("us-west-2", *copied.ImageId)
	gone := func(o *ec2.InstanceTerminatedWaiterOptions) {
		o.MinDelay, o.MaxDelay = 10*time.Millisecond, 50*time.Millisecond
	}
	if err := ec2.NewInstanceTerminatedWaiter(w.api).Wait(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{id}}, time.Minute, gone); err != nil {
		w.t.Fatal(err)
	}
	return bake.Made{ImageID: *made.ImageId, Copies: map[string]string{"us-west-2": *copied.ImageId}}
}

func (w *world) in(region string) *ec2.Client {
	return ec2.NewFromConfig(w.Config(), func(o *ec2.Options) { o.Region = region })
}

func (w *world) available(region, image string) {
	w.t.Helper()
	fast := func(o *ec2.ImageAvailableWaiterOptions) {
		o.MinDelay, o.MaxDelay = 10*time.Millisecond, 50*time.Millisecond
	}
	if err := ec2.NewImageAvailableWaiter(w.in(region)).Wait(w.t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{image}}, time.Minute, fast); err != nil {
		w.t.Fatal(err)
	}
}

// states are the state tags of an image and its snapshots, by ID.
func (w *world) states(region, image string) map[string]string {
	w.t.Helper()
	api := w.in(region)
	out, err := api.DescribeImages(w.t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{image}})
	if err != nil || len(out.Images) != 1 {
		w.t.Fatalf("image %s in %s: %v", image, region, err)
	}
	all := map[string]string{image: tag(out.Images[0].Tags, manifest.TagState)}
	for _, d := range out.Images[0].BlockDeviceMappings {
		s, err := api.DescribeSnapshots(w.t.Context(), &ec2.DescribeSnapshotsInput{SnapshotIds: []string{*d.Ebs.SnapshotId}})
		if err != nil {
			w.t.Fatal(err)
		}
		all[*d.Ebs.SnapshotId] = tag(s.Snapshots[0].Tags, manifest.TagState)
	}
	return all
}

// TestProve: an image of another tool goes through the same canary; it is
// tagged by how that ended, in every region, and stays whatever happens.
func TestProve(t *testing.T) {
	for name, c := range map[string]struct {
		canary string
		says   func(*manifest.Result)
		state  string
		want   string // of the error
	}{
		"proved with the real template": {"{launch_template: shop}", nil, manifest.StateDone, ""},
		"proved with a temporary one":   {"{}", nil, manifest.StateDone, ""},
		"not proved":                    {"{}", func(r *manifest.Result) { r.Report.Verdict, r.Report.Summary = report.Failure, "It did not come up." }, manifest.StateFailed, "It did not come up."},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.production()
			w.play(&player{Canary: c.says})
			made := w.foreign()
			out, err := bake.Prove(t.Context(), w.options(w.recipe("canary="+c.canary)), made)
			var failed *bake.CanaryError
			switch {
			case c.want == "" && (err != nil || out.Canary != "passed" || out.ImageID != made.ImageID):
				t.Fatalf("Prove: %+v, %v", out, err)
			case c.want != "" && (!errors.As(err, &failed) || !strings.Contains(err.Error(), c.want)):
				t.Fatalf("Prove: %v, want %q", err, c.want)
			}
			for region, image := range map[string]string{"us-east-1": made.ImageID, "us-west-2": made.Copies["us-west-2"]} {
				for id, state := range w.states(region, image) {
					if state != c.state {
						t.Errorf("%s is tagged %q, want %q", id, state, c.state)
					}
				}
			}
			w.onlyForeign(made)
			found, err := bake.GC(t.Context(), bake.GCOptions{Config: w.Config(), Staging: []string{"s3://" + bucket + "/lecafe-bakes"}, Remove: true})
			if err != nil || len(found) != 0 {
				t.Errorf("gc found %+v, %v", found, err)
			}
		})
	}
}

// onlyForeign fails where anything is left but the image itself.
func (w *world) onlyForeign(made bake.Made) {
	w.t.Helper()
	for _, l := range w.leaked() {
		if strings.HasPrefix(l, "launch template shop") || strings.HasPrefix(l, "image ") || strings.HasPrefix(l, "snapshot ") {
			continue
		}
		w.t.Errorf("left behind: %s", l)
	}
	w.states("us-east-1", made.ImageID) // fails where it is gone
	w.states("us-west-2", made.Copies["us-west-2"])
}

// A process that proved an image and died leaves what gc finds; gc leaves the
// image.
func TestProveKilled(t *testing.T) {
	for _, canary := range []string{"{}", "{launch_template: shop}"} {
		t.Run(canary, func(t *testing.T) {
			w := newWorld(t)
			w.production()
			made := w.foreign()
			w.play(&player{Silent: true})
			opts := w.options(w.recipe("canary=" + canary))
			opts.Programs.Agent = ""
			died := &dying{RoundTripper: http.DefaultTransport}
			opts.Config.HTTPClient = &http.Client{Transport: died}
			inner := opts.Report
			opts.Report = func(e bake.Event) {
				inner(e)
				if e.Phase == "canary" && e.Kind == bake.EventProgress {
					died.now.Store(true)
				}
			}
			if _, err := bake.Prove(t.Context(), opts, made); err == nil {
				t.Fatal("the image is proved without a word of its canary")
			}
			staging := []string{"s3://" + bucket + "/lecafe-bakes"}
			late := func() time.Time { return time.Now().Add(48 * time.Hour) }
			found, err := bake.GC(t.Context(), bake.GCOptions{Config: w.Config(), Staging: staging, Remove: true, Now: late, Poll: 20 * time.Millisecond})
			if err != nil || len(found) != 1 || !found[0].Removed {
				t.Fatalf("gc: %+v, %v", found, err)
			}
			things := strings.Join(found[0].Things, "\n")
			if !strings.Contains(things, "instance i-") || strings.Contains(things, "image ") || strings.Contains(things, "snapshot ") {
				t.Errorf("gc found:\n%s", things)
			}
			w.onlyForeign(made)
			for id, state := range w.states("us-east-1", made.ImageID) {
				if state != "" {
					t.Errorf("%s is tagged %q", id, state)
				}
			}
		})
	}
}

// dying lets nothing through any more, as if the process were gone: not even
// what would undo.
type dying struct {
	http.RoundTripper
	now atomic.Bool
}

func (d *dying) RoundTrip(r *http.Request) (*http.Response, error) {
	if !d.now.Load() {
		return d.RoundTripper.RoundTrip(r)
	}
	return &http.Response{StatusCode: http.StatusForbidden, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("<Error><Code>Dead</Code></Error>")), Request: r}, nil
}

func TestProveRefuses(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		image  string
		recipe string
	}{
		"no image":           {"ami-0123456789abcdef0", "architecture=x86_64"},
		"other architecture": {w.source, "architecture=arm64"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bake.Prove(t.Context(), w.options(w.recipe("canary={}", c.recipe)), bake.Made{ImageID: c.image})
			if !errors.Is(err, bake.ErrNoImage) {
				t.Errorf("Prove: %v", err)
			}
			w.nothingLeaked()
		})
	}
}
