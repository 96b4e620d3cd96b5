package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/test/boots"
)

const example = "../../examples/lecafe-app"

// operator runs lecafe as a user at the lab does.
type operator struct {
	t   *testing.T
	l   *lab.Lab
	bin string
	env []string
}

func newOperator(t *testing.T, l *lab.Lab) *operator {
	t.Helper()
	return &operator{t, l, boots.Programs(t), append(os.Environ(), l.Env()...)}
}

// lecafe returns what the command wrote, and its exit code.
func (o *operator) lecafe(args ...string) (stdout, stderr string, code int) {
	o.t.Helper()
	// Longer than any bake here; only a hang ends so.
	ctx, cancel := context.WithTimeout(o.t.Context(), 8*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(o.bin, "lecafe"), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = o.env, &out, io.MultiWriter(&errs, boots.Writer(o.t))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		o.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

type outcome struct {
	BakeID        string   `json:"bake_id"`
	ImageID       string   `json:"image_id"`
	SnapshotIDs   []string `json:"snapshot_ids"`
	SourceImageID string   `json:"source_image_id"`
	UsedBytes     int64    `json:"used_bytes"`
	Phases        []struct {
		Name    string  `json:"name"`
		Seconds float64 `json:"seconds"`
	} `json:"phases"`

	stderr string
}

// bake bakes Le Café's recipe for a release and returns the outcome.
func (o *operator) bake(release string, args ...string) outcome {
	o.t.Helper()
	args = append([]string{"--set", "agent.aws.endpoint_url=" + o.l.URL, "--set", "source.ssm_parameter=" + parameter(release)}, args...)
	return o.bakeRecipe(append(args, filepath.Join(example, "recipe.yaml"))...)
}

// bakeRecipe bakes with arguments of the test's own and returns the outcome.
func (o *operator) bakeRecipe(args ...string) outcome {
	o.t.Helper()
	stdout, stderr, code := o.lecafe(append([]string{"bake", "--json"}, args...)...)
	if code != 0 {
		o.t.Fatalf("lecafe bake: exit code %d\n%s", code, stderr)
	}
	out := outcome{stderr: stderr}
	if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		o.t.Fatalf("lecafe bake --json: %v\n%s", err, stdout)
	}
	return out
}

// recipeOf writes a recipe with Debian 12 as its source and no setting for the
// image, and returns its path; more is the rest of it.
func recipeOf(t *testing.T, name, more string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "recipe.yaml")
	text := "name: " + name + "\nsource: {ssm_parameter: " + parameter("debian-12") + "}\nstaging: {bucket: lecafe-staging}\nimage: {}\n" + more
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func parameter(release string) string {
	return "/aws/service/debian/release/" + strings.TrimPrefix(release, "debian-") + "/latest/amd64"
}

// nothingLeft fails where a bake left more than its image.
func (o *operator) nothingLeft(images ...string) {
	o.t.Helper()
	api := ec2.NewFromConfig(boots.Config(o.l))
	instances, err := api.DescribeInstances(o.t.Context(), &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("tag-key"), Values: []string{manifest.TagBake}}}})
	if err != nil {
		o.t.Fatal(err)
	}
	for _, r := range instances.Reservations {
		for _, i := range r.Instances {
			if i.State.Name != types.InstanceStateNameTerminated && i.State.Name != types.InstanceStateNameShuttingDown {
				o.t.Errorf("instance %s is %s", *i.InstanceId, i.State.Name)
			}
		}
	}
	groups, err := api.DescribeSecurityGroups(o.t.Context(), &ec2.DescribeSecurityGroupsInput{Filters: []types.Filter{{Name: aws.String("tag-key"), Values: []string{manifest.TagBake}}}})
	if err != nil {
		o.t.Fatal(err)
	}
	if len(groups.SecurityGroups) > 0 {
		o.t.Errorf("%d security groups left", len(groups.SecurityGroups))
	}
	if keys := o.l.S3.Objects("lecafe-staging", ""); len(keys) > 0 {
		o.t.Errorf("staging objects left: %v", keys)
	}
	own, err := api.DescribeImages(o.t.Context(), &ec2.DescribeImagesInput{Owners: []string{"self"}})
	if err != nil {
		o.t.Fatal(err)
	}
	for _, i := range own.Images {
		if !slices.Contains(images, *i.ImageId) {
			o.t.Errorf("image %s left", *i.ImageId)
		}
	}
}

var identity = regexp.MustCompile(`identity: (\S+) (\S+)`)

// TestBakedImage is the main job: bake, look into the image, boot it twice.
func TestBakedImage(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		l := boots.Lab(t, []string{release}, func(o *lab.Options) { o.TimeScale = 20 })
		o := newOperator(t, l)
		baked := o.bake(release)
		t.Logf("bake %s: %+v", baked.BakeID, baked.Phases)
		if baked.SourceImageID != l.AMIs[release] || len(baked.SnapshotIDs) != 1 || len(baked.Phases) == 0 {
			t.Errorf("outcome: %+v", baked)
		}
		o.nothingLeft(baked.ImageID)

		api := ec2.NewFromConfig(boots.Config(l))
		images, err := api.DescribeImages(t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{baked.ImageID}})
		if err != nil {
			t.Fatal(err)
		}
		if i := images.Images[0]; i.ImdsSupport != types.ImdsSupportValuesV20 || aws.ToBool(i.Public) || !tagged(i.Tags, baked.BakeID) {
			t.Errorf("image: IMDS %q, public %v, tags %v", i.ImdsSupport, aws.ToBool(i.Public), i.Tags)
		}
		snapshots, err := api.DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{SnapshotIds: baked.SnapshotIDs})
		if err != nil {
			t.Fatal(err)
		}
		if !tagged(snapshots.Snapshots[0].Tags, baked.BakeID) {
			t.Errorf("snapshot tags: %v", snapshots.Snapshots[0].Tags)
		}
		boots.Inspect(t, l, baked.ImageID, []string{"/usr/bin/jq", "/opt/lecafe/lecafe-ordering"}, nil)

		// What differs between the two comes out on the console.
		script := "#!/bin/bash\nset -euo pipefail\necho \"identity: $(cat /etc/machine-id) $(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2)\"\necho \"data: %s\"\n"
		began := time.Now()
		first := boots.RunInstance(t, l, baked.ImageID, fmt.Sprintf(script, "first"), nil)
		boots.ReportOf(t, l, first)
		t.Logf("%s: %.1f s from RunInstances to the report in S3", release, time.Since(began).Seconds())
		second := boots.RunInstance(t, l, baked.ImageID, fmt.Sprintf(script, "second"), nil)
		ids := map[string]string{}
		for _, i := range []struct{ id, want string }{{first, "data: first"}, {second, "data: second"}} {
			id, want := i.id, i.want
			r := boots.ReportOf(t, l, id)
			if r.Verdict != report.Success || r.Instance.ID != id || r.Instance.ImageID != baked.ImageID {
				t.Errorf("report of %s: %s: %s (%+v)", id, r.Verdict, r.Summary, r.Causes)
			}
			boots.WaitConsole(t, l, id, want)
			out, err := l.Machines.Console(id)
			if err != nil {
				t.Fatal(err)
			}
			m := identity.FindStringSubmatch(string(out))
			if m == nil {
				t.Fatalf("no identity on the console of %s:\n%s", id, boots.Console(l, id))
			}
			for _, x := range m[1:] {
				if other := ids[x]; other != "" {
					t.Errorf("%s and %s share %s", id, other, x)
				}
				ids[x] = id
			}
		}
		rss, err := l.Machines.Exec(t.Context(), first, "sh", "-c", "grep VmRSS /proc/$(systemctl show -p MainPID --value lecafe-agent.service)/status")
		if err != nil {
			t.Errorf("the agent does not run after the boot: %v %s", err, rss)
		}
		t.Logf("%s: the agent after the boot: %s", release, strings.TrimSpace(string(rss)))
	})
}

func tagged(tags []types.Tag, bakeID string) bool {
	return slices.ContainsFunc(tags, func(t types.Tag) bool {
		return aws.ToString(t.Key) == manifest.TagBake && aws.ToString(t.Value) == bakeID
	})
}

// TestFailedProvisioning shows the step, its exit code and line, and leaves
// nothing behind.
func TestFailedProvisioning(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-12"}, func(o *lab.Options) { o.TimeScale = 20 })
	o := newOperator(t, l)
	_, stderr, code := o.lecafe("bake", recipeOf(t, "broken", `provision:
  - name: grind
    run: |
      echo beans
      cat /nonexistent/beans
`))
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, want := range []string{"grind", "exit code 1 at run:2", "cat /nonexistent/beans", "No such file or directory"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("the output does not say %q:\n%s", want, stderr)
		}
	}
	o.nothingLeft()
}

// TestSignersSessionExpires bakes with credentials that die during the bake
// and are replaced: presigned URLs that the builder holds die with them.
func TestSignersSessionExpires(t *testing.T) {
	t.Parallel()
	const session = 60 * time.Second
	l := boots.Lab(t, []string{"debian-12"}, func(o *lab.Options) { o.TimeScale = 20 })
	o := newOperator(t, l)
	var vended []time.Time
	var mu sync.Mutex
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c := l.Vault.VendOperator(session)
		mu.Lock()
		vended = append(vended, c.Expiration)
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"AccessKeyId": c.AccessKeyID, "SecretAccessKey": c.SecretAccessKey, "Token": c.SessionToken, "Expiration": c.Expiration.Format(time.RFC3339)})
	}))
	defer keys.Close()
	o.env = slices.DeleteFunc(o.env, func(v string) bool {
		return strings.HasPrefix(v, "AWS_ACCESS_KEY_ID=") || strings.HasPrefix(v, "AWS_SECRET_ACCESS_KEY=") || strings.HasPrefix(v, "AWS_SESSION_TOKEN=")
	})
	o.env = append(o.env, "AWS_CONTAINER_CREDENTIALS_FULL_URI="+keys.URL)
	began := time.Now()
	// The step outlives the first session: time is what is tested here.
	out := o.bakeRecipe(recipeOf(t, "slow", fmt.Sprintf("provision:\n  - {name: roast, run: sleep %d}\n", int(session.Seconds())+10)))
	o.nothingLeft(out.ImageID)
	mu.Lock()
	defer mu.Unlock()
	if len(vended) < 2 || vended[0].After(time.Now()) {
		t.Errorf("the first session did not end in the bake: vended %v, bake from %v", vended, began)
	}
}
