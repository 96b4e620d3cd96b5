package bake_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	cloudec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	clouds3 "github.com/lecafe/lecafe/lab/cloud/s3"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// childEnv makes the test binary a process that bakes, to be killed.
const childEnv = "LECAFE_TEST_BAKE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

func child(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, "recipe.json"))
	var r recipe.Recipe
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil {
		r.Dir = dir
		o := crashOptions(os.Getenv("AWS_ENDPOINT_URL"), dir, &r)
		o.StateDir = filepath.Join(dir, "state")
		_, err = bake.Run(context.Background(), o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func crashOptions(endpoint, dir string, r *recipe.Recipe) bake.Options {
	return bake.Options{
		Config:   aws.Config{Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")},
		Recipe:   r,
		Programs: bake.Programs{Agent: filepath.Join(dir, "agent"), Builder: filepath.Join(dir, "builder")},
		Poll:     10 * time.Millisecond,
	}
}

// guillotine stands between a bake and its cloud. It counts the child's calls
// by name, and kills the child before or after the one it waits for.
type guillotine struct {
	cloud http.Handler

	mu    sync.Mutex
	seen  map[string]int
	order []string // names of calls in the order in which each first came
	at    string   // name#occurrence; empty: none
	after bool
	kill  func()
	fell  bool
}

// actionOf tells calls apart: EC2's by their action, S3's by the object too.
func actionOf(r *http.Request) string {
	if !strings.Contains(r.Header.Get("Authorization"), "/ec2/") {
		o := clouds3.OperationOf(r)
		if r.URL.Query().Has("start-after") { // what an instance has said; not the clean-up's listing
			return sayings
		}
		return strings.TrimSpace(o.Name + " " + path.Base(o.Key))
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return "unreadable"
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return "unreadable"
	}
	return form.Get("Action")
}

const sayings = "ListObjectsV2 said"

// polls are the calls whose number depends on time: their first is a point.
var polls = []string{"DescribeInstances", "DescribeImages", "DescribeSnapshots", "GetObject", sayings}

func (g *guillotine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := httptest.NewRecorder()
	action := ""
	if strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256") { // presigned URLs are the builder's
		action = actionOf(r)
	}
	g.mu.Lock()
	fall, after := false, g.after
	if action != "" && !g.fell {
		g.seen[action]++
		point := fmt.Sprintf("%s#%d", action, g.seen[action])
		verb, _, _ := strings.Cut(action, " ")
		if !slices.Contains(polls, verb) && !slices.Contains(polls, action) || g.seen[action] == 1 {
			g.order = append(g.order, point)
			fall = point == g.at
		}
	}
	dead := action != "" && g.fell
	g.mu.Unlock()
	switch {
	case dead:
		panic(http.ErrAbortHandler) // the child is gone
	case fall && !after:
		g.drop()
		panic(http.ErrAbortHandler)
	}
	g.cloud.ServeHTTP(rec, r)
	if fall {
		g.drop()
		panic(http.ErrAbortHandler)
	}
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

func (g *guillotine) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fell = true
	g.kill()
}

// crashSet is what the recipe has besides: everything that makes something.
// LECAFE_CRASH=plain leaves it out.
func crashSet() []string {
	if os.Getenv("LECAFE_CRASH") == "plain" {
		return nil
	}
	return []string{"image.copies=[{region: us-west-2}]", `image.share={accounts: ["123456789012"]}`, "canary={}"}
}

// crashWorld is a cloud 1000 times as fast as AWS, behind a guillotine.
type crashWorld struct {
	*world
	g   *guillotine
	url string
	r   *recipe.Recipe
}

func newCrashWorld(t *testing.T, set ...string) *crashWorld {
	t.Helper()
	c := cloudtest.New(t, cloud.Options{Clock: wire.Scaled(1000)})
	c.S3.CreateBucket(bucket, "us-east-1")
	id, err := c.EC2.AddImage("us-east-1", cloudec2.ImageSeed{Name: "debian-12-amd64-20261101"})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Cloud: c, t: t, api: ec2.NewFromConfig(c.Config()), source: id, dir: t.TempDir()}
	w.write("agent", "agent program")
	w.write("builder", "builder program")
	w.write("setup.sh", "#!/bin/bash\necho hello\n")
	g := &guillotine{cloud: c.Cloud, seen: map[string]int{}}
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	r := w.recipe(append(crashSet(), set...)...)
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	w.write("recipe.json", string(data))
	return &crashWorld{world: w, g: g, url: srv.URL, r: r}
}

// bake runs a bake in a process of its own and returns when it has ended.
func (w *crashWorld) bake(at string, after bool) (killed bool) {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	// Cancelling kills; unlike cmd.Process it may be done while Start runs.
	alive, kill := context.WithCancel(w.t.Context())
	defer kill()
	cmd := exec.CommandContext(alive, self)
	cmd.Env = append(os.Environ(), childEnv+"="+w.dir, "AWS_ENDPOINT_URL="+w.url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	w.g.mu.Lock()
	w.g.at, w.g.after, w.g.kill = at, after, kill
	w.g.mu.Unlock()
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == -1 {
		return true
	}
	if err != nil {
		w.t.Fatalf("the bake failed by itself: %v: %s", err, stderr.String())
	}
	return false
}

// bakeID finds the killed bake in its staging; empty when it left nothing.
func (w *crashWorld) bakeID() string {
	for _, key := range w.S3.Objects(bucket, "") {
		if parts := strings.Split(key, "/"); len(parts) == 3 {
			return parts[1]
		}
	}
	return ""
}

func (w *crashWorld) doneImages() (n int) {
	for _, im := range w.images() {
		if tag(im.Tags, manifest.TagState) == manifest.StateDone && im.State == types.ImageStateAvailable {
			n++
		}
	}
	return n
}

// TestKilledAnywhere kills a bake before and after each of its calls. gc then
// leaves nothing but an image that was finished; resume finishes exactly one.
func TestKilledAnywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("kills a bake some hundred times")
	}
	whole := newCrashWorld(t)
	p := whole.play(&player{})
	if whole.bake("", false) {
		t.Fatal("killed without a point")
	}
	whole.nothingLeaked()
	if whole.doneImages() != 1 {
		t.Fatal("the bake that nobody killed made no image")
	}
	p.stop()
	whole.g.mu.Lock()
	points := slices.Clone(whole.g.order)
	whole.g.mu.Unlock()
	if len(points) < 20 {
		t.Fatalf("only %d calls: %v", len(points), points)
	}
	killed, leaked, duplicated := 0, 0, 0
	for _, point := range points {
		for _, after := range []bool{false, true} {
			for _, then := range []string{"gc", "resume"} {
				when := "before"
				if after {
					when = "after"
				}
				ok := t.Run(fmt.Sprintf("%s %s, %s", when, strings.NewReplacer("/", "_", "#", "-").Replace(point), then), func(t *testing.T) {
					l, d, hit := killOnce(t, point, after, then)
					if hit {
						killed++
					}
					leaked += l
					duplicated += d
				})
				if !ok && t.Context().Err() != nil {
					return
				}
			}
		}
	}
	t.Logf("%d calls killed at, each before and after, each followed by gc and by resume", len(points))
	fmt.Printf("kill points %d leaked %d duplicated %d\n", killed, leaked, duplicated)
	if killed < 4*len(points)*9/10 {
		t.Errorf("only %d of %d kills hit", killed, 4*len(points))
	}
}

func killOnce(t *testing.T, point string, after bool, then string) (leaked, duplicated int, hit bool) {
	w := newCrashWorld(t)
	p := w.play(&player{})
	hit = w.bake(point, after)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	before := w.doneImages()
	id := w.bakeID()
	switch then {
	case "gc":
		found, err := bake.GC(ctx, bake.GCOptions{Config: w.Config(), Staging: []string{"s3://" + bucket + "/lecafe-bakes"}, Remove: true, Poll: 10 * time.Millisecond, Settle: time.Millisecond})
		if err != nil {
			t.Errorf("gc: %v", err)
		}
		for _, g := range found {
			if !g.Removed {
				t.Errorf("gc left %+v", g)
			}
		}
		if w.doneImages() < before {
			t.Error("gc removed an image that was done")
		}
	case "resume":
		if id == "" {
			break // nothing was begun, or all was done
		}
		out, err := bake.Resume(ctx, crashOptions(w.URL, w.dir, w.r), id, "")
		if err != nil {
			t.Errorf("resume: %v", err)
			break
		}
		if w.doneImages() != 1 || out.ImageID == "" {
			t.Errorf("resume made %d images", w.doneImages())
		}
	}
	_ = p
	if l := w.leaked(); len(l) > 0 {
		t.Errorf("left behind: %s", strings.Join(l, ", "))
		leaked = len(l)
	}
	if n := w.doneImages(); n > 1 {
		t.Errorf("%d images", n)
		duplicated = n - 1
	}
	return leaked, duplicated, hit
}

// On the machine where it was begun, the ID alone is enough to go on.
func TestResumeByIDAlone(t *testing.T) {
	w := newCrashWorld(t)
	w.play(&player{})
	if !w.bake("StopInstances#1", true) {
		t.Fatal("not killed")
	}
	id := w.bakeID()
	o := crashOptions(w.URL, w.dir, nil)
	if _, err := bake.Resume(t.Context(), o, id, ""); !errors.Is(err, bake.ErrUnknown) {
		t.Errorf("without a copy of the journal: %v", err)
	}
	o.StateDir = filepath.Join(w.dir, "state")
	if _, err := bake.Resume(t.Context(), o, "bake-0000000000000000", ""); !errors.Is(err, bake.ErrUnknown) {
		t.Errorf("of an unknown bake: %v", err)
	}
	out, err := bake.Resume(t.Context(), o, id, "")
	if err != nil || out.BakeID != id || w.doneImages() != 1 {
		t.Errorf("%+v, %v", out, err)
	}
	w.nothingLeaked()
	if _, err := bake.Resume(t.Context(), crashOptions(w.URL, w.dir, w.r), id, ""); !errors.Is(err, bake.ErrUnknown) {
		t.Errorf("of a bake that has ended: %v", err)
	}
}
