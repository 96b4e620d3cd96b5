package bake_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	cloudec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const bucket = "lecafe-staging"

// world is a fake cloud with a source image and a bucket, its states 100 times
// as fast as AWS's.
type world struct {
	*cloudtest.Cloud
	t      *testing.T
	api    *ec2.Client
	source string
	dir    string
}

func newWorld(t *testing.T) *world { return newWorldAt(t, 100) }

func newWorldAt(t *testing.T, times float64) *world {
	t.Helper()
	c := cloudtest.New(t, cloud.Options{Clock: wire.Scaled(times)})
	c.S3.CreateBucket(bucket, "us-east-1")
	id, err := c.EC2.AddImage("us-east-1", cloudec2.ImageSeed{Name: "debian-12-amd64-20261101", Owner: "136693071363", Created: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Cloud: c, t: t, api: ec2.NewFromConfig(c.Config()), source: id, dir: t.TempDir()}
	w.write("agent", "agent program")
	w.write("builder", "builder program")
	w.write("setup.sh", "#!/bin/bash\necho hello\n")
	return w
}

func (w *world) write(name, content string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) recipe(more ...string) *recipe.Recipe {
	w.t.Helper()
	text := "name: lecafe-app\nsource: {image_id: " + w.source + "}\nstaging: {bucket: " + bucket + "}\n" +
		"image: {name: \"{{.Name}}-{{.Hash}}-{{.Time}}\", tags: {team: shop}}\ntags: {project: cafe}\n" +
		"provision:\n  - {name: base, script: setup.sh}\n"
	r, err := recipe.Parse(filepath.Join(w.dir, "recipe.yaml"), []byte(text), more...)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) options(r *recipe.Recipe) bake.Options {
	return bake.Options{
		Config: w.Config(), Recipe: r, Programs: bake.Programs{Agent: filepath.Join(w.dir, "agent"), Builder: filepath.Join(w.dir, "builder")},
		Poll: 20 * time.Millisecond, Report: func(e bake.Event) {
			if e.Text != "" || e.Kind == bake.EventDone {
				w.t.Logf("%s: %s %.2fs", e.Phase, e.Text, e.Seconds)
			}
		},
	}
}

// play answers for builders until the test ends.
func (w *world) play(p *player) *player {
	play(w.t.Context(), fake{w.EC2}, p)
	w.t.Cleanup(func() {
		if err := p.done(); err != nil {
			w.t.Error(err)
		}
	})
	return p
}

// leaked lists everything in the cloud that a bake made, but images that are
// done and their snapshots.
func (w *world) leaked() []string {
	w.t.Helper()
	ctx := w.t.Context()
	var out []string
	check := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	tagged := []types.Filter{{Name: aws.String("tag-key"), Values: []string{manifest.TagBake}}}
	instances, err := w.api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{})
	check(err)
	for _, r := range instances.Reservations {
		for _, i := range r.Instances {
			if i.State.Name != types.InstanceStateNameTerminated {
				out = append(out, "instance "+*i.InstanceId+" "+string(i.State.Name))
			}
		}
	}
	groups, err := w.api.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{})
	check(err)
	for _, g := range groups.SecurityGroups {
		if *g.GroupName != "default" {
			out = append(out, "security group "+*g.GroupName)
		}
	}
	for _, region := range []string{"us-east-1", "us-west-2", "eu-west-1"} {
		api := ec2.NewFromConfig(w.Config(), func(o *ec2.Options) { o.Region = region })
		images, err := api.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}})
		check(err)
		done := map[string]bool{}
		for _, im := range images.Images {
			if tag(im.Tags, manifest.TagState) != manifest.StateDone {
				out = append(out, "image "+*im.ImageId)
				continue
			}
			for _, d := range im.BlockDeviceMappings {
				done[aws.ToString(d.Ebs.SnapshotId)] = true
			}
		}
		snapshots, err := api.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{Filters: tagged})
		check(err)
		for _, s := range snapshots.Snapshots {
			if !done[*s.SnapshotId] {
				out = append(out, "snapshot "+*s.SnapshotId)
			}
		}
	}
	volumes, err := w.api.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{})
	check(err)
	for _, v := range volumes.Volumes {
		out = append(out, "volume "+*v.VolumeId)
	}
	templates, err := w.api.DescribeLaunchTemplates(ctx, &ec2.DescribeLaunchTemplatesInput{Filters: tagged})
	check(err)
	for _, t := range templates.LaunchTemplates {
		out = append(out, "launch template "+*t.LaunchTemplateName)
	}
	for _, o := range w.S3.Objects(bucket, "") {
		out = append(out, "object "+o)
	}
	return out
}

func (w *world) nothingLeaked() {
	w.t.Helper()
	if l := w.leaked(); len(l) > 0 {
		w.t.Errorf("left behind: %s", strings.Join(l, ", "))
	}
}

func (w *world) image(id string) types.Image {
	w.t.Helper()
	out, err := w.api.DescribeImages(w.t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{id}})
	if err != nil {
		w.t.Fatal(err)
	}
	return out.Images[0]
}

func (w *world) images() []types.Image {
	w.t.Helper()
	out, err := w.api.DescribeImages(w.t.Context(), &ec2.DescribeImagesInput{Owners: []string{"self"}})
	if err != nil {
		w.t.Fatal(err)
	}
	return out.Images
}

func tag(tags []types.Tag, key string) string {
	for _, t := range tags {
		if aws.ToString(t.Key) == key {
			return aws.ToString(t.Value)
		}
	}
	return ""
}

func TestBake(t *testing.T) {
	w := newWorld(t)
	p := w.play(&player{})
	out, err := bake.Run(t.Context(), w.options(w.recipe()))
	if err != nil {
		t.Fatal(err)
	}
	if out.Unchanged || out.SourceImage != w.source || len(out.SnapshotIDs) != 1 || out.BakeID == "" || out.UsedBytes != 1<<30 {
		t.Errorf("outcome %+v", out)
	}
	im := w.image(out.ImageID)
	if im.State != types.ImageStateAvailable || im.ImdsSupport != types.ImdsSupportValuesV20 || aws.ToString(im.Name) != out.ImageName {
		t.Errorf("image %+v", im)
	}
	for key, want := range map[string]string{
		"team": "shop", "project": "cafe", manifest.TagBake: out.BakeID, manifest.TagState: manifest.StateDone, manifest.TagSource: w.source,
		manifest.TagHash: out.ContentHash, manifest.TagRecipe: "lecafe-app",
	} {
		if got := tag(im.Tags, key); got != want {
			t.Errorf("tag %s is %q, want %q", key, got, want)
		}
	}
	snaps, err := w.api.DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{SnapshotIds: out.SnapshotIDs})
	if err != nil || tag(snaps.Snapshots[0].Tags, "team") != "shop" || tag(snaps.Snapshots[0].Tags, manifest.TagBake) != out.BakeID {
		t.Errorf("snapshot %+v, %v", snaps, err)
	}
	if len(p.plans) != 1 || p.plans[0].Steps[0].Name != "base" || p.plans[0].Names[p.plans[0].Steps[0].Script] != "setup.sh" {
		t.Errorf("plan %+v", p.plans)
	}
	var phases []string
	for _, ph := range out.Phases {
		phases = append(phases, ph.Name)
	}
	if got := strings.Join(phases, " "); got != "stage network launch provision stop image settle clean up" {
		t.Errorf("phases %s", got)
	}
	w.nothingLeaked()
}

// The builder cannot be reached, holds nothing, and vanishes by itself.
func TestBuilderIsClosed(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	w.play(&player{Hold: hold})
	var seen types.Instance
	opts := w.options(w.recipe())
	inner := opts.Report
	opened := false
	opts.Report = func(e bake.Event) {
		inner(e)
		if e.Kind == bake.EventStep && !opened {
			opened = true
			out, err := w.api.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{})
			if err != nil {
				t.Error(err)
			} else {
				seen = out.Reservations[0].Instances[0]
			}
			groups, err := w.api.DescribeSecurityGroups(t.Context(), &ec2.DescribeSecurityGroupsInput{GroupIds: []string{*seen.SecurityGroups[0].GroupId}})
			if err != nil || len(groups.SecurityGroups[0].IpPermissions) != 0 || tag(groups.SecurityGroups[0].Tags, manifest.TagBake) == "" {
				t.Errorf("security group %+v, %v", groups, err)
			}
			attr, err := w.api.DescribeInstanceAttribute(t.Context(), &ec2.DescribeInstanceAttributeInput{InstanceId: seen.InstanceId, Attribute: types.InstanceAttributeNameInstanceInitiatedShutdownBehavior})
			if err != nil || *attr.InstanceInitiatedShutdownBehavior.Value != "terminate" {
				t.Errorf("shutdown behaviour %+v, %v", attr, err)
			}
			close(hold)
		}
	}
	if _, err := bake.Run(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	md := seen.MetadataOptions
	if md == nil || md.HttpTokens != types.HttpTokensStateRequired || *md.HttpPutResponseHopLimit != 1 || seen.KeyName != nil || seen.IamInstanceProfile != nil {
		t.Errorf("builder %+v", seen)
	}
	for _, key := range []string{manifest.TagBake, manifest.TagJournal, manifest.TagExpires, manifest.TagRole, "project"} {
		if tag(seen.Tags, key) == "" {
			t.Errorf("the builder has no tag %s", key)
		}
	}
	w.nothingLeaked()
}

func TestFailedStepUndoesTheBake(t *testing.T) {
	w := newWorld(t)
	w.play(&player{Result: func(r *manifest.Result) {
		r.Steps = []manifest.Step{{Number: 1, Name: "base", ExitCode: 7, File: "setup.sh", Line: 3, Command: "false", Output: []string{"oops"}}}
		r.Report.Verdict = report.Failure
	}})
	_, err := bake.Run(t.Context(), w.options(w.recipe()))
	var step *bake.StepError
	if !errors.As(err, &step) || step.Step.ExitCode != 7 || exitcode.Of(err) != exitcode.Failed {
		t.Fatalf("Run: %v", err)
	}
	if got := err.Error(); got != "step 1 (base) failed with exit code 7 at setup.sh:3: false" {
		t.Errorf("error %q", got)
	}
	if len(w.images()) != 0 {
		t.Error("there is an image")
	}
	w.nothingLeaked()
}

func TestFindingsUndoTheBake(t *testing.T) {
	w := newWorld(t)
	w.play(&player{Result: func(r *manifest.Result) {
		r.Report.Verdict, r.Report.Summary = report.Failure, "1 finding"
		r.Report.Causes = []report.Cause{{Code: report.CodeBuildFindings, Message: "/root/.ssh/id_rsa: private-key"}}
	}})
	_, err := bake.Run(t.Context(), w.options(w.recipe()))
	var re *bake.ReportError
	if !errors.As(err, &re) || !strings.Contains(err.Error(), "/root/.ssh/id_rsa") {
		t.Fatalf("Run: %v", err)
	}
	w.nothingLeaked()
}

func TestCancelUndoesTheBake(t *testing.T) {
	w := newWorld(t)
	w.play(&player{Silent: true})
	ctx, cancel := context.WithCancel(t.Context())
	opts := w.options(w.recipe())
	inner := opts.Report
	opts.Report = func(e bake.Event) {
		inner(e)
		if e.Kind == bake.EventPhase && e.Phase == "provision" {
			cancel()
		}
	}
	_, err := bake.Run(ctx, opts)
	if !errors.Is(err, context.Canceled) || exitcode.Of(err) != exitcode.Interrupt {
		t.Fatalf("Run: %v", err)
	}
	w.nothingLeaked()
}

func TestKeepBuilder(t *testing.T) {
	w := newWorld(t)
	w.play(&player{Result: func(r *manifest.Result) {
		r.Steps[0].ExitCode = 1
		r.Report.Verdict = report.Failure
	}})
	opts := w.options(w.recipe())
	opts.KeepBuilder = true
	if _, err := bake.Run(t.Context(), opts); err == nil {
		t.Fatal("no error")
	}
	if l := w.leaked(); !slices.ContainsFunc(l, func(s string) bool { return strings.HasSuffix(s, " running") }) {
		t.Errorf("the builder was not kept: %v", l)
	}
}

func TestBuilderThatDiesIsSeen(t *testing.T) {
	w := newWorld(t)
	w.play(&player{Silent: true})
	opts := w.options(w.recipe())
	inner := opts.Report
	opts.Report = func(e bake.Event) {
		inner(e)
		if e.Kind == bake.EventProgress && strings.HasSuffix(e.Text, "is running") {
			id, _, _ := strings.Cut(e.Text, " ")
			w.EC2.SetConsole(id, []byte("Kernel panic - not syncing\n"))
			w.EC2.PoweredOff(id)
		}
	}
	_, err := bake.Run(t.Context(), opts)
	if err == nil || !strings.Contains(err.Error(), "before it sent its result") || !strings.Contains(err.Error(), "Kernel panic") {
		t.Fatalf("Run: %v", err)
	}
	w.nothingLeaked()
}

func TestSources(t *testing.T) {
	w := newWorld(t)
	newer, err := w.EC2.AddImage("us-east-1", cloudec2.ImageSeed{Name: "debian-12-amd64-20261108", Owner: "136693071363", Created: time.Date(2026, 11, 8, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.EC2.AddImage("us-east-1", cloudec2.ImageSeed{Name: "debian-12-amd64-20261201", Owner: "666666666666", Created: time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)}); err != nil {
		t.Fatal(err)
	}
	w.SSM.Put("us-east-1", "/images/debian", newer)
	w.SSM.Put("us-east-1", "/images/nonsense", "hello")
	w.play(&player{})
	for name, c := range map[string]struct{ set, want string }{
		"filter":            {`source={filter: {owners: ["136693071363"], name: "debian-12-amd64-*"}}`, newer},
		"parameter":         {`source={ssm_parameter: /images/debian}`, newer},
		"parameter missing": {`source={ssm_parameter: /images/none}`, "get SSM parameter /images/none"},
		"parameter strange": {`source={ssm_parameter: /images/nonsense}`, `holds "hello", which is no image ID`},
		"no match":          {`source={filter: {owners: [self], name: "x*"}}`, "there is no image of self named"},
		"unknown image":     {`source={image_id: ami-0123456789abcdef0}`, "describe image ami-0123456789abcdef0"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := bake.Run(t.Context(), w.options(w.recipe(c.set)))
			if err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run: %v, want %q", err, c.want)
			}
			if err == nil && out.SourceImage != c.want {
				t.Errorf("source %s, want %s", out.SourceImage, c.want)
			}
		})
	}
	w.nothingLeaked()
}
