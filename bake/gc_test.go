package bake_test

import (
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
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/internal/exitcode"
)

// killedInCopy is a cloud in which a bake was killed when CopyImage had been
// served, and nobody had read its answer.
func killedInCopy(t *testing.T) *crashWorld {
	t.Helper()
	w := newCrashWorld(t)
	w.play(&player{})
	if !w.bake("CopyImage#1", true) {
		t.Fatal("not killed")
	}
	if n := len(w.imagesIn("us-west-2")); n != 1 {
		t.Fatalf("%d copies in us-west-2, want 1", n)
	}
	return w
}

func (w *world) imagesIn(region string) []types.Image {
	w.t.Helper()
	out, err := ec2.NewFromConfig(w.Config(), func(o *ec2.Options) { o.Region = region }).DescribeImages(w.t.Context(), &ec2.DescribeImagesInput{Owners: []string{"self"}})
	if err != nil {
		w.t.Fatal(err)
	}
	return out.Images
}

func (w *crashWorld) gc(o bake.GCOptions, region string) []*bake.Garbage {
	w.t.Helper()
	o.Config = w.Config()
	o.Config.Region = region
	o.Poll, o.Settle = 10*time.Millisecond, time.Millisecond
	found, err := bake.GC(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// A bake that died in the middle of a copy is removed in all of its regions,
// in whichever of them gc looks.
func TestGCOfACopy(t *testing.T) {
	for name, c := range map[string]struct {
		here    string
		regions []string
	}{
		"from its own region":      {here: "us-east-1"},
		"from the copy's":          {here: "us-west-2"},
		"from elsewhere, by names": {here: "eu-west-1", regions: []string{"eu-west-1", "us-west-2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := killedInCopy(t)
			id := w.bakeID()
			found := w.gc(bake.GCOptions{Regions: c.regions}, c.here)
			if len(found) != 1 || found[0].BakeID != id || !found[0].Take || found[0].Removed || found[0].Region != "us-east-1" {
				t.Fatalf("gc shows %+v", found)
			}
			for kind, region := range map[string]string{"instance": "us-east-1", "security group": "us-east-1", "image": "us-east-1", "image ": "us-west-2", "snapshot": "us-west-2"} {
				if !slices.ContainsFunc(found[0].Things, func(s string) bool {
					return strings.HasPrefix(s, strings.TrimSpace(kind)+" ") && strings.Contains(s, " in "+region) == (region != c.here)
				}) {
					t.Errorf("no %s in %s among %q", kind, region, found[0].Things)
				}
			}
			if found = w.gc(bake.GCOptions{Regions: c.regions, Remove: true}, c.here); len(found) != 1 || !found[0].Removed {
				t.Fatalf("gc: %+v", found)
			}
			w.nothingLeaked()
			if found = w.gc(bake.GCOptions{Regions: []string{"us-east-1", "us-west-2", "eu-west-1"}}, c.here); len(found) > 0 {
				t.Errorf("gc once more: %+v", found)
			}
		})
	}
}

// Where the journal is lost too, each region's leftovers are found by tag.
func TestGCWithoutAJournal(t *testing.T) {
	t.Parallel()
	w := killedInCopy(t)
	for _, key := range w.S3.Objects(bucket, "") {
		if _, err := awsconf.S3(w.Config()).DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: &key}); err != nil {
			t.Fatal(err)
		}
	}
	if found := w.gc(bake.GCOptions{Regions: []string{"us-west-2", "us-east-1"}, Remove: true}, "us-west-2"); len(found) != 1 || !found[0].Removed || found[0].Region != "us-east-1" {
		t.Fatalf("gc: %+v", found)
	}
	w.nothingLeaked()
}

// On the machine where a bake was begun, its journal's copy says where to look.
func TestGCKnowsThisMachinesBakes(t *testing.T) {
	t.Parallel()
	w := killedInCopy(t)
	state := filepath.Join(w.dir, "state")
	id := w.bakeID()
	local := filepath.Join(state, id+".json")
	if _, err := os.Stat(local); err != nil {
		t.Fatal(err)
	}
	if found := w.gc(bake.GCOptions{Remove: true}, "eu-west-1"); len(found) != 0 {
		t.Fatalf("gc in a region without a trace: %+v", found)
	}
	if found := w.gc(bake.GCOptions{Remove: true, StateDir: state}, "eu-west-1"); len(found) != 1 || !found[0].Removed {
		t.Fatalf("gc: %+v", found)
	}
	w.nothingLeaked()
	if _, err := os.Stat(local); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal's copy: %v", err)
	}
}

// The copy of a journal whose bake ended elsewhere goes with the next gc.
func TestGCDropsCopiesOfEndedBakes(t *testing.T) {
	t.Parallel()
	w := killedInCopy(t)
	state := filepath.Join(w.dir, "state")
	if found := w.gc(bake.GCOptions{Remove: true}, "us-east-1"); len(found) != 1 { // on another machine
		t.Fatalf("gc: %+v", found)
	}
	w.gc(bake.GCOptions{StateDir: state}, "us-east-1")
	if left, err := filepath.Glob(filepath.Join(state, "*.json")); err != nil || len(left) != 1 {
		t.Errorf("only looking left %v, %v", left, err)
	}
	w.gc(bake.GCOptions{StateDir: state, Remove: true}, "us-east-1")
	if left, err := filepath.Glob(filepath.Join(state, "*.json")); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// A copy that is done belongs to an image that stands.
func TestGCLeavesFinishedCopies(t *testing.T) {
	t.Parallel()
	w := newCrashWorld(t)
	w.play(&player{})
	if w.bake("", false) {
		t.Fatal("killed")
	}
	regions := []string{"us-east-1", "us-west-2"}
	if found := w.gc(bake.GCOptions{Regions: regions, Remove: true}, "us-east-1"); len(found) > 0 {
		t.Errorf("gc: %+v", found)
	}
	for _, region := range regions {
		if im := w.imagesIn(region); len(im) != 1 || tag(im[0].Tags, manifest.TagState) != manifest.StateDone {
			t.Errorf("%s: %+v", region, im)
		}
	}
}

// A gc that may not remove names the action and the statement that lacks.
func TestGCWithoutPermission(t *testing.T) {
	t.Parallel()
	w := killedInCopy(t)
	w.Deny("ec2:DeleteSnapshot", "*", "*")
	_, err := bake.GC(t.Context(), bake.GCOptions{Config: w.Config(), Remove: true, Poll: 10 * time.Millisecond, Settle: time.Millisecond})
	if err == nil || exitcode.Of(err) != exitcode.NotReady {
		t.Fatalf("GC: %v", err)
	}
	for _, want := range []string{"delete snapshot snap-", "a permission is missing: ec2:DeleteSnapshot", `"Sid": "DeleteSnapshots"`, "lecafe policy gc --staging"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}
