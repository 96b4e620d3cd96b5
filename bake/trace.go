package bake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"golang.org/x/sync/errgroup"

	"github.com/lecafe/lecafe/bake/manifest"
)

// trace is how a bake was found.
type trace struct {
	id       string
	location string // of its journal, s3://…
	recipe   string
	expires  time.Time
	home     string   // the region of a builder or what goes with one; empty where only images were seen
	regions  []string // where anything was seen
}

// traces are gathered from several regions at once.
type traces struct {
	mu    sync.Mutex
	found map[string]*trace
}

func (f *traces) of(id string) *trace {
	t := f.found[id]
	if t == nil {
		t = &trace{id: id}
		f.found[id] = t
	}
	return t
}

// note remembers what is tagged with a bake. builders says that only the
// bake's own region has such things.
func (f *traces) note(region string, tags []types.Tag, builders bool) {
	id, ok := tagOf(tags, tagBake)
	if !ok {
		return
	}
	if state, _ := tagOf(tags, tagState); state == stateDone || state == manifest.StateFailed {
		return // an image that stands, or is kept for study, is no trace of trouble
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.of(id)
	t.location, _ = tagOf(tags, tagJournal)
	t.recipe, _ = tagOf(tags, tagRecipe)
	if text, ok := tagOf(tags, tagExpires); ok {
		if at, err := time.Parse(time.RFC3339, text); err == nil && at.After(t.expires) {
			t.expires = at
		}
	}
	if builders {
		t.home = region
	}
	if !slices.Contains(t.regions, region) {
		t.regions = append(t.regions, region)
	}
}

// staged remembers a bake that has objects in its staging.
func (f *traces) staged(id, location string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.of(id); t.location == "" {
		t.location = location
	}
}

// findBakes looks for traces in regions and in staging, and where the journals
// say that were begun on this machine. Those may be of another account, or of
// a lab that has ended: what cannot be looked at there is a warning.
func findBakes(ctx context.Context, o Options, gc GCOptions) (map[string]*trace, error) {
	here := newBake(o)
	f := &traces{found: map[string]*trace{}}
	regions := gc.Regions
	if len(regions) == 0 {
		regions = []string{here.cfg.Region}
	}
	regions = uniq(slices.Clone(regions))
	staging := slices.Clone(gc.Staging)
	asked := [2]int{len(regions), len(staging)} // of them; what follows is the journals'
	local := localJournals(o.StateDir)
	for _, j := range local {
		if !slices.Contains(regions, j.Region) {
			regions = append(regions, j.Region)
		}
		if !slices.Contains(staging, j.Staging) {
			staging = append(staging, j.Staging)
		}
	}
	var (
		mu     sync.Mutex
		unseen []string
	)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for n, region := range regions {
		g.Go(func() error {
			err := f.lookIn(gctx, here.in(region), region)
			switch {
			case err == nil || gctx.Err() != nil:
				return context.Cause(gctx)
			case n < asked[0]:
				return fmt.Errorf("%s: %w", region, err)
			}
			here.warn("not looked in %s, where a bake of this machine was begun: %v", region, err)
			mu.Lock()
			defer mu.Unlock()
			unseen = append(unseen, region)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for n, s := range staging {
		if err := f.lookBelow(ctx, here.cloud, s); err != nil {
			if n < asked[1] {
				return nil, err
			}
			if !isCode(err, "NoSuchBucket") {
				here.warn("not looked below %s, where a bake of this machine was begun: %v", s, err)
			}
			continue
		}
		for _, j := range local {
			if j.Staging == s && f.found[j.BakeID] == nil && gc.Remove && !slices.Contains(unseen, j.Region) {
				// Another machine has ended it: its copy is all there is.
				if err := os.Remove(localJournal(o.StateDir, j.BakeID)); err != nil && !errors.Is(err, os.ErrNotExist) {
					here.warn("%v", err)
				}
			}
		}
	}
	return f.found, nil
}

// lookIn notes everything in a region that is tagged with a bake.
func (f *traces) lookIn(ctx context.Context, api ec2API, region string) error {
	tagged := []types.Filter{{Name: aws.String("tag-key"), Values: []string{tagBake}}}
	instances := ec2.NewDescribeInstancesPaginator(api, &ec2.DescribeInstancesInput{Filters: tagged})
	for instances.HasMorePages() {
		page, err := instances.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for builders: %w", err)
		}
		for _, r := range page.Reservations {
			for _, i := range r.Instances {
				if i.State == nil || i.State.Name != types.InstanceStateNameTerminated {
					f.note(region, i.Tags, true)
				}
			}
		}
	}
	groups := ec2.NewDescribeSecurityGroupsPaginator(api, &ec2.DescribeSecurityGroupsInput{Filters: tagged})
	for groups.HasMorePages() {
		page, err := groups.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for security groups: %w", err)
		}
		for _, g := range page.SecurityGroups {
			f.note(region, g.Tags, true)
		}
	}
	images := ec2.NewDescribeImagesPaginator(api, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: tagged})
	for images.HasMorePages() {
		page, err := images.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for images: %w", err)
		}
		for _, im := range page.Images {
			f.note(region, im.Tags, false)
		}
	}
	snapshots := ec2.NewDescribeSnapshotsPaginator(api, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: tagged})
	for snapshots.HasMorePages() {
		page, err := snapshots.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for snapshots: %w", err)
		}
		for _, s := range page.Snapshots {
			f.note(region, s.Tags, false)
		}
	}
	templates := ec2.NewDescribeLaunchTemplatesPaginator(api, &ec2.DescribeLaunchTemplatesInput{Filters: tagged})
	for templates.HasMorePages() {
		page, err := templates.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for launch templates: %w", err)
		}
		for _, t := range page.LaunchTemplates {
			f.note(region, t.Tags, true)
		}
	}
	volumes := ec2.NewDescribeVolumesPaginator(api, &ec2.DescribeVolumesInput{Filters: tagged})
	for volumes.HasMorePages() {
		page, err := volumes.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("look for volumes: %w", err)
		}
		for _, v := range page.Volumes {
			f.note(region, v.Tags, true)
		}
	}
	return nil
}

// lookBelow notes the bakes that have objects below s3://bucket/prefix.
func (f *traces) lookBelow(ctx context.Context, c cloud, staging string) error {
	bucket, prefix, err := stagingOf(nil, staging)
	if err != nil {
		return err
	}
	var keys []string
	err = c.inBucketsRegion(func() (err error) { keys, err = listObjects(ctx, c.s3, bucket, prefix+"/"); return err })
	if err != nil {
		return err
	}
	for _, key := range keys {
		if id, _, ok := strings.Cut(strings.TrimPrefix(key, prefix+"/"), "/"); ok && strings.HasPrefix(id, "bake-") {
			f.staged(id, "s3://"+bucket+"/"+path.Join(prefix, id, journalName))
		}
	}
	return nil
}

// localJournals are the copies on this machine; what is no journal is none.
func localJournals(dir string) []journal {
	if dir == "" {
		return nil
	}
	names, err := filepath.Glob(filepath.Join(dir, "bake-*.json"))
	if err != nil {
		return nil
	}
	var out []journal
	for _, name := range names {
		var j journal
		data, err := os.ReadFile(name)
		if err == nil && json.Unmarshal(data, &j) == nil && j.Schema == journalSchema && j.Region != "" && j.Staging != "" {
			out = append(out, j)
		}
	}
	return out
}

// moved is the cloud as it is in another region. S3 stays where the bucket is.
func (c cloud) moved(region string) cloud {
	c.ec2, c.cfg = c.in(region), connectConfig(c.cfg, region)
	return c
}

// inBucketsRegion calls f again, with the S3 client in the bucket's region,
// when S3 says that this is another one.
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
func (c *cloud) inBucketsRegion(f func() error) error {
	err := f()
	var re *smithyhttp.ResponseError
	if !isCode(err, "PermanentRedirect", "AuthorizationHeaderMalformed", "MovedPermanently", "BadRequest") || !errors.As(err, &re) || re.HTTPResponse() == nil {
		return err
	}
	region := re.HTTPResponse().Header.Get("X-Amz-Bucket-Region")
	if region == "" {
		return err
	}
	*c = c.staged(region)
	return f()
}
