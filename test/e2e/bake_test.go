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
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/bake/cleanup/secrets"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/lab"
)

const example = "../../examples/lecafe-app"

// programs returns the directory of lecafe, lecafe-agent and lecafe-builder:
// LECAFE_BIN, where make has just built them, or one they are built into.
var programs = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("LECAFE_BIN"); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "lecafe-e2e-")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "./cmd/lecafe", "./cmd/lecafe-agent", "./cmd/lecafe-builder")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("%w\n%s", err, out)
	}
	return dir, nil
})

// operator runs lecafe as a user at the lab does.
type operator struct {
	t   *testing.T
	l   *lab.Lab
	bin string
	env []string
}

func newOperator(t *testing.T, l *lab.Lab) *operator {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return &operator{t, l, bin, append(os.Environ(), l.Env()...)}
}

// lecafe returns what the command wrote, and its exit code.
func (o *operator) lecafe(args ...string) (stdout, stderr string, code int) {
	o.t.Helper()
	// Longer than any bake here; only a hang ends so.
	ctx, cancel := context.WithTimeout(o.t.Context(), 8*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(o.bin, "lecafe"), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = o.env, &out, io.MultiWriter(&errs, testWriter{o.t})
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
	Phases        []struct {
		Name    string  `json:"name"`
		Seconds float64 `json:"seconds"`
	} `json:"phases"`
}

// bake bakes Le Café's recipe for a release and returns the outcome.
func (o *operator) bake(release string, args ...string) outcome {
	o.t.Helper()
	args = append([]string{"bake", "--json", "--set", "agent.aws.endpoint_url=" + o.l.URL, "--set", "source.ssm_parameter=" + parameter(release)}, args...)
	stdout, stderr, code := o.lecafe(append(args, filepath.Join(example, "recipe.yaml"))...)
	if code != 0 {
		o.t.Fatalf("lecafe bake: exit code %d\n%s", code, stderr)
	}
	var out outcome
	if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		o.t.Fatalf("lecafe bake --json: %v\n%s", err, stdout)
	}
	return out
}

func parameter(release string) string {
	return "/aws/service/debian/release/" + strings.TrimPrefix(release, "debian-") + "/latest/amd64"
}

// nothingLeft fails where a bake left more than its image.
func (o *operator) nothingLeft(images ...string) {
	o.t.Helper()
	api := ec2.NewFromConfig(config(o.l))
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

// inspect looks into an image before it has booted.
func inspect(t *testing.T, l *lab.Lab, imageID string) []cleanup.Finding {
	t.Helper()
	layers, err := l.Machines.Layers(imageID)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := unix.Mount("overlay", root, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(layers, ":")); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	}()
	scanner, err := secrets.New()
	if err != nil {
		t.Fatal(err)
	}
	found, err := cleanup.Inspect(t.Context(), cleanup.Options{Root: root, Scanner: scanner})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{manifest.Dir, manifest.LastHook, "/etc/systemd/system/" + manifest.Unit, "/etc/systemd/system/" + manifest.Deadline + ".timer"} {
		if _, err := os.Lstat(filepath.Join(root, p)); err == nil {
			t.Errorf("the builder left %s in the image", p)
		}
	}
	for _, p := range []string{"/usr/bin/lecafe-agent", "/etc/lecafe/agent.yaml", "/usr/bin/jq", "/opt/lecafe/lecafe-ordering"} {
		if _, err := os.Lstat(filepath.Join(root, p)); err != nil {
			t.Errorf("the image lacks %s: %v", p, err)
		}
	}
	return found
}

// reportOf waits for an instance's report in the lab.
func reportOf(t *testing.T, l *lab.Lab, id string) *report.Report {
	t.Helper()
	var r *report.Report
	eventually(t, "report of "+id, func() bool {
		for _, key := range l.S3.Objects("lecafe-reports", "lecafe-reports/") {
			k, err := report.ParseKey(key)
			if err != nil || k.InstanceID() != id || k.Kind != report.KindBootstrap {
				continue
			}
			out, err := s3api.NewFromConfig(config(l), func(o *s3api.Options) { o.UsePathStyle = true }).GetObject(t.Context(), &s3api.GetObjectInput{Bucket: aws.String("lecafe-reports"), Key: &key})
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(out.Body)
			if err != nil {
				t.Fatal(err)
			}
			if r, err = report.Decode(body); err != nil {
				t.Fatal(err)
			}
			return true
		}
		return false
	}, func() string { return console(l, id) })
	return r
}

var identity = regexp.MustCompile(`identity: (\S+) (\S+)`)

// TestBakedImage is the main job: bake, look into the image, boot it twice.
func TestBakedImage(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, release string) {
		l := startLab(t, []string{release}, func(o *lab.Options) { o.TimeScale = 20 })
		o := newOperator(t, l)
		baked := o.bake(release)
		t.Logf("bake %s: %+v", baked.BakeID, baked.Phases)
		if baked.SourceImageID != l.AMIs[release] || len(baked.SnapshotIDs) != 1 || len(baked.Phases) == 0 {
			t.Errorf("outcome: %+v", baked)
		}
		o.nothingLeft(baked.ImageID)

		api := ec2.NewFromConfig(config(l))
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
		if found := inspect(t, l, baked.ImageID); len(found) > 0 {
			t.Errorf("the image is not clean: %v", found)
		}

		// What differs between the two comes out on the console.
		script := "#!/bin/bash\nset -euo pipefail\necho \"identity: $(cat /etc/machine-id) $(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2)\"\necho \"data: %s\"\n"
		began := time.Now()
		first := runInstance(t, l, baked.ImageID, fmt.Sprintf(script, "first"), nil)
		reportOf(t, l, first)
		t.Logf("%s: %.1f s from RunInstances to the report in S3", release, time.Since(began).Seconds())
		second := runInstance(t, l, baked.ImageID, fmt.Sprintf(script, "second"), nil)
		ids := map[string]string{}
		for _, i := range []struct{ id, want string }{{first, "data: first"}, {second, "data: second"}} {
			id, want := i.id, i.want
			r := reportOf(t, l, id)
			if r.Verdict != report.Success || r.Instance.ID != id || r.Instance.ImageID != baked.ImageID {
				t.Errorf("report of %s: %s: %s (%+v)", id, r.Verdict, r.Summary, r.Causes)
			}
			waitConsole(t, l, id, want)
			out, err := l.Machines.Console(id)
			if err != nil {
				t.Fatal(err)
			}
			m := identity.FindStringSubmatch(string(out))
			if m == nil {
				t.Fatalf("no identity on the console of %s:\n%s", id, console(l, id))
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
	l := startLab(t, []string{"debian-12"}, func(o *lab.Options) { o.TimeScale = 20 })
	o := newOperator(t, l)
	recipe := filepath.Join(t.TempDir(), "recipe.yaml")
	if err := os.WriteFile(recipe, []byte(`name: broken
source: {ssm_parameter: `+parameter("debian-12")+`}
staging: {bucket: lecafe-staging}
image: {}
provision:
  - name: grind
    run: |
      echo beans
      cat /nonexistent/beans
`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := o.lecafe("bake", recipe)
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
	l := startLab(t, []string{"debian-12"}, func(o *lab.Options) { o.TimeScale = 20 })
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
	recipe := filepath.Join(t.TempDir(), "recipe.yaml")
	if err := os.WriteFile(recipe, []byte(fmt.Sprintf(`name: slow
source: {ssm_parameter: %s}
staging: {bucket: lecafe-staging}
image: {}
provision:
  - {name: roast, run: sleep %d}
`, parameter("debian-12"), int(session.Seconds())+10)), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := o.lecafe("bake", "--json", recipe)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	var out outcome
	if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		t.Fatal(err)
	}
	o.nothingLeft(out.ImageID)
	mu.Lock()
	defer mu.Unlock()
	if len(vended) < 2 || vended[0].After(time.Now()) {
		t.Errorf("the first session did not end in the bake: vended %v, bake from %v", vended, began)
	}
}
