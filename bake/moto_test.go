package bake_test

import (
	"bufio"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/awsconf"
)

// moto starts moto_server, the cloud behind LocalStack's EC2, for one test.
func moto(t *testing.T) aws.Config {
	t.Helper()
	path, err := exec.LookPath("moto_server")
	if err != nil {
		t.Skip("moto_server is not installed (pip install 'moto[server]==5.2.1')")
	}
	cmd := exec.Command(path, "-H", "127.0.0.1", "-p", "0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_ = w.Close()
	})
	url := make(chan string, 1)
	go func() {
		s := bufio.NewScanner(r)
		form := regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
		for s.Scan() { // to the end: moto must not block on its log
			if m := form.FindString(s.Text()); m != "" {
				select {
				case url <- m:
				default:
				}
			}
		}
	}()
	var base string
	select {
	case base = <-url:
	case <-time.After(time.Minute):
		t.Fatal("moto_server did not say where it listens")
	}
	for {
		resp, err := http.Get(base + "/moto-api/")
		if err == nil {
			_ = resp.Body.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return aws.Config{Region: "us-east-1", BaseEndpoint: &base, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
}

// The same bake runs against moto, as LocalStack's users have it: what it
// lacks is said and done without.
func TestBakeOnMoto(t *testing.T) {
	cfg := moto(t)
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
	p := play(ctx, cfg, &player{})
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
