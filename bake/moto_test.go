package bake_test

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// The same bake runs against moto, as LocalStack's users have it: what it
// lacks is said and done without.
func TestBakeOnMoto(t *testing.T) {
	cfg := cloudtest.Moto(t)
	ctx := t.Context()
	if _, err := awsconf.S3(cfg).CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(bucket)}); err != nil {
		t.Fatal(err)
	}
	api := ec2.NewFromConfig(cfg)
	sources, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"amazon"}, Filters: []types.Filter{{Name: aws.String("architecture"), Values: []string{"x86_64"}}}})
	if err != nil || len(sources.Images) == 0 {
		t.Fatalf("no source image: %v", err)
	}
	var source string
	for _, im := range sources.Images {
		if im.Platform != types.PlatformValuesWindows {
			source = *im.ImageId
		}
	}
	w := &world{t: t, source: source, dir: t.TempDir(), api: api}
	w.write("agent", "agent program")
	w.write("builder", "builder program")
	w.write("setup.sh", "#!/bin/bash\necho hello\n")
	p := play(ctx, emulator{api}, &player{})
	var warnings []string
	o := bake.Options{
		Config: cfg, Recipe: w.recipe(), Programs: bake.Programs{Agent: w.dir + "/agent", Builder: w.dir + "/builder"}, Poll: 20 * time.Millisecond,
		Report: func(e bake.Event) {
			t.Logf("%s: %s %.2fs", e.Phase, e.Text, e.Seconds)
			if e.Kind == bake.EventWarning {
				warnings = append(warnings, e.Text)
			}
		},
	}
	out, err := bake.Run(ctx, o)
	if playErr := p.done(); err != nil || playErr != nil {
		t.Fatalf("Run: %v; player: %v", err, playErr)
	}
	im := w.image(out.ImageID)
	if im.State != types.ImageStateAvailable || tag(im.Tags, manifest.TagState) != manifest.StateDone || tag(im.Tags, "team") != "shop" {
		t.Errorf("image %+v", im)
	}
	snaps, err := api.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: out.SnapshotIDs})
	if err != nil || tag(snaps.Snapshots[0].Tags, "team") != "shop" {
		t.Errorf("snapshots %+v, %v", snaps, err)
	}
	if !strings.Contains(strings.Join(warnings, "\n"), "no tags for snapshots in CreateImage") {
		t.Errorf("the fallback was not said: %q", warnings)
	}
	o.Recipe = w.recipe()
	again, err := bake.Run(ctx, o)
	if err != nil || !again.Unchanged || again.ImageID != out.ImageID {
		t.Errorf("second bake: %+v, %v", again, err)
	}
	objects, err := awsconf.S3(cfg).ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String(bucket)})
	if err != nil || len(objects.Contents) != 0 {
		t.Errorf("staging objects are left: %+v, %v", objects, err)
	}
	groups, err := api.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{Filters: []types.Filter{{Name: aws.String("tag-key"), Values: []string{manifest.TagBake}}}})
	if err != nil || len(groups.SecurityGroups) != 0 {
		t.Errorf("security groups are left: %+v, %v", groups, err)
	}
}

// emulator is a cloud that has to be asked: it tells nobody what changes.
type emulator struct{ api *ec2.Client }

func (e emulator) running(ctx context.Context) func(func(string)) {
	return func(f func(string)) {
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			out, err := e.api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: []types.Filter{
				{Name: aws.String("tag:" + manifest.TagRole), Values: []string{"builder"}}, {Name: aws.String("instance-state-name"), Values: []string{"running"}},
			}})
			if err == nil {
				for _, r := range out.Reservations {
					for _, i := range r.Instances {
						f(*i.InstanceId)
					}
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
				return
			}
		}
	}
}

func (e emulator) userData(ctx context.Context, id string) ([]byte, error) {
	out, err := e.api.DescribeInstanceAttribute(ctx, &ec2.DescribeInstanceAttributeInput{InstanceId: &id, Attribute: types.InstanceAttributeNameUserData})
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(aws.ToString(out.UserData.Value))
}

func (e emulator) runs(context.Context, string) bool { return true }
