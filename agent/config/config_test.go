package config_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/config"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// bench is a bucket, a root directory and an application's unit.
type bench struct {
	t     *testing.T
	cloud *cloudtest.Cloud
	api   *s3.Client
	root  string
	done  []string // what was asked of systemd
	seen  []string // the file's content whenever a command or the unit looked
	fail  map[string]error
	ready error

	mu     sync.Mutex
	got    []string                                 // keys of GETs
	onGet  func(key string)                         // before each
	answer func(*s3.GetObjectOutput)                // changes the answer to each
	part   func(n int) (*s3.GetObjectOutput, error) // answers for parts
	asked  int                                      // for parts
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, cloud: cloudtest.New(t, cloud.Options{}), root: t.TempDir(), fail: map[string]error{}}
	b.cloud.S3.CreateBucket("assets", "us-east-1")
	b.api = s3.NewFromConfig(b.cloud.Config(), func(o *s3.Options) { o.UsePathStyle = true })
	return b
}

func (b *bench) look(what, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		content = []byte("missing")
	}
	b.done = append(b.done, what)
	b.seen = append(b.seen, string(content))
	return b.fail[what]
}

func (b *bench) Run(_ context.Context, argv []string, _ time.Duration) error {
	return b.look("run "+argv[0], argv[len(argv)-1])
}
func (b *bench) Reload(_ context.Context, unit string) error {
	return b.look("reload "+unit, b.path())
}
func (b *bench) Restart(_ context.Context, unit string) error {
	return b.look("restart "+unit, b.path())
}

func (b *bench) path() string { return filepath.Join(b.root, "/opt/app/config.txt") }

func (b *bench) put(text string) {
	b.t.Helper()
	if _, err := b.api.PutObject(b.t.Context(), &s3.PutObjectInput{Bucket: aws.String("assets"), Key: aws.String("app/config.txt"), Body: strings.NewReader(text)}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) content() string {
	b.t.Helper()
	got, err := os.ReadFile(b.path())
	if err != nil {
		return "missing"
	}
	return string(got)
}

func (b *bench) object(change ...func(*settings.Object)) *config.Object {
	b.t.Helper()
	o := settings.Object{Source: "s3://assets/app/config.txt", Path: "/opt/app/config.txt"}
	for _, f := range change {
		f(&o)
	}
	o = settings.Settings{Config: []settings.Object{o}}.WithDefaults().Config[0]
	c, err := config.New(o, config.Options{
		Get: b.get, List: b.api.ListObjectsV2, Units: b, Dir: filepath.Join(b.root, "var/lib/lecafe/config"), Root: b.root,
		Ready: func(context.Context, string) error { return b.ready },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) sync(c *config.Object, wantChanged bool, wantErr error) error {
	b.t.Helper()
	changed, err := c.Sync(b.t.Context())
	if changed != wantChanged || !errors.Is(err, wantErr) {
		b.t.Errorf("changed %t, %v; want %t, %v", changed, err, wantChanged, wantErr)
	}
	return err
}

func TestGenerations(t *testing.T) {
	b := newBench(t)
	b.put("one")
	c := b.object(func(o *settings.Object) { o.Mode = "0604" })
	b.sync(c, true, nil)
	if info, err := os.Stat(b.path()); err != nil || info.Mode().Perm() != 0o604 || b.content() != "one" {
		t.Errorf("%q, %v, %v", b.content(), info, err)
	}
	b.sync(c, false, nil) // 304
	b.put("two")
	b.sync(c, true, nil)
	if s := c.Status(); s.Generation != 2 || !s.Fresh || s.Error != "" || s.AppliedAt == nil || b.content() != "two" {
		t.Errorf("%q, %+v", b.content(), s)
	}
	// The next process goes on from there.
	c = b.object()
	if s := c.Status(); s.Generation != 2 || s.Fresh {
		t.Errorf("after a restart %+v", s)
	}
	b.sync(c, false, nil)
	// Somebody edits the file: S3's word counts.
	if err := os.WriteFile(b.path(), []byte("edited"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.sync(c, true, nil)
	if b.content() != "two" {
		t.Errorf("%q", b.content())
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(b.path()), ".*")); len(left) > 0 {
		t.Errorf("left beside the file: %v", left)
	}
}

func TestUploadedAgainUnchanged(t *testing.T) {
	b := newBench(t)
	b.put("one")
	c := b.object(func(o *settings.Object) { o.ReloadUnit = "app.service" })
	b.sync(c, true, nil)
	b.put("one")
	b.sync(c, false, nil)
	if s := c.Status(); s.Generation != 1 || len(b.done) != 1 {
		t.Errorf("%+v, %v", s, b.done)
	}
}

func TestTheUnitIsTold(t *testing.T) {
	b := newBench(t)
	b.put("one")
	b.sync(b.object(func(o *settings.Object) {
		o.Validate = settings.Command{"/usr/bin/app", "--check", "{}"}
		o.RestartUnit = "app.service"
	}), true, nil)
	if !slices.Equal(b.done, []string{"run /usr/bin/app", "restart app.service"}) || !slices.Equal(b.seen, []string{"one", "one"}) {
		t.Errorf("%v saw %q", b.done, b.seen)
	}
}

func TestValidationKeepsTheOldOne(t *testing.T) {
	b := newBench(t)
	check := func(o *settings.Object) {
		o.Validate = settings.Command{"/usr/bin/app", "{}"}
		o.ReloadUnit = "app.service"
	}
	b.put("good")
	c := b.object(check)
	b.sync(c, true, nil)
	b.put("bad")
	b.fail["run /usr/bin/app"] = errors.New("exit 1")
	err := b.sync(c, true, config.ErrInvalid)
	if b.content() != "good" || c.Cause(err).Code != report.CodeConfigInvalid || c.Cause(err).Severity != report.SeverityDegraded {
		t.Errorf("%q, %+v", b.content(), c.Cause(err))
	}
	n := len(b.done)
	b.sync(c, false, config.ErrRolledBack)
	b.sync(b.object(check), false, config.ErrRolledBack) // also by the next process
	if len(b.done) != n {
		t.Errorf("a bad one was tried again: %v", b.done[n:])
	}
	b.fail = map[string]error{}
	b.put("better")
	b.sync(c, true, nil)
	if b.content() != "better" {
		t.Errorf("%q", b.content())
	}
}

func TestRollback(t *testing.T) {
	for name, breakIt := range map[string]func(*bench){
		"the unit does not take it":    func(b *bench) { b.fail["reload app.service"] = errors.New("job failed") },
		"the application is not ready": func(b *bench) { b.ready = errors.New("connection refused") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.put("good")
			c := b.object(func(o *settings.Object) { o.ReloadUnit = "app.service" })
			b.sync(c, true, nil)
			b.put("bad")
			breakIt(b)
			err := b.sync(c, true, config.ErrRolledBack)
			if b.content() != "good" || c.Cause(err).Code != report.CodeConfigRolledBack {
				t.Errorf("%q, %v", b.content(), err)
			}
			if last := b.seen[len(b.seen)-1]; last != "good" {
				t.Errorf("the unit was last told of %q", last)
			}
			n := len(b.done)
			b.sync(c, false, config.ErrRolledBack)
			if len(b.done) != n {
				t.Error("it was tried again")
			}
			if s := c.Status(); s.Generation != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestWhatIsWrongIsTold(t *testing.T) {
	sum := sha256.Sum256([]byte("one"))
	for name, c := range map[string]struct {
		change func(*settings.Object)
		fault  *cloud.Fault
		want   error
		code   report.Code
	}{
		"missing":        {func(o *settings.Object) { o.Source = "s3://assets/nothing" }, nil, config.ErrMissing, report.CodeConfigMissing},
		"missing bucket": {func(o *settings.Object) { o.Source = "s3://nowhere/x" }, nil, config.ErrMissing, report.CodeConfigMissing},
		"denied":         {nil, &cloud.Fault{Service: "s3", Kind: cloud.AccessDenied}, config.ErrDenied, report.CodeConfigDenied},
		"error":          {nil, &cloud.Fault{Service: "s3", Kind: cloud.Error5xx}, config.ErrUnreachable, report.CodeConfigUnreachable},
		"reset":          {nil, &cloud.Fault{Service: "s3", Kind: cloud.Reset}, config.ErrUnreachable, report.CodeConfigUnreachable},
		"too large":      {func(o *settings.Object) { o.MaxBytes = 2 }, nil, config.ErrInvalid, report.CodeConfigInvalid},
		"wrong sum":      {func(o *settings.Object) { o.SHA256 = strings.Repeat("0", 64) }, nil, config.ErrInvalid, report.CodeConfigInvalid},
		"right sum":      {func(o *settings.Object) { o.SHA256 = hex.EncodeToString(sum[:]) }, nil, nil, ""},
		"no such owner":  {func(o *settings.Object) { o.Owner = "nobody-of-this-name" }, nil, nil, report.CodeConfigInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.put("one")
			var changes []func(*settings.Object)
			if c.change != nil {
				changes = append(changes, c.change)
			}
			o := b.object(changes...)
			if c.fault != nil {
				b.cloud.Inject(*c.fault)
			}
			_, err := o.Sync(t.Context())
			if c.code == "" {
				if err != nil || b.content() != "one" {
					t.Errorf("%v, %q", err, b.content())
				}
				return
			}
			if err == nil || c.want != nil && !errors.Is(err, c.want) || o.Cause(err).Code != c.code || b.content() != "missing" {
				t.Errorf("%v, cause %+v, file %q", err, o.Cause(err), b.content())
			}
		})
	}
}

func TestTheCachedGenerationServes(t *testing.T) {
	b := newBench(t)
	b.put("one")
	b.sync(b.object(), true, nil)
	// An image or a volume that came up without the file, and S3 away.
	if err := os.Remove(b.path()); err != nil {
		t.Fatal(err)
	}
	b.cloud.Inject(cloud.Fault{Service: "s3", Kind: cloud.Reset})
	c := b.object()
	err := b.sync(c, false, config.ErrUnreachable)
	if b.content() != "one" || c.Cause(err).Severity != report.SeverityDegraded {
		t.Errorf("%q, %+v", b.content(), c.Cause(err))
	}
}

func TestPollsAreSpread(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 50 {
		d := config.NextPoll(time.Minute)
		if d < 48*time.Second || d > 72*time.Second {
			t.Fatalf("%s", d)
		}
		seen[d] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d different", len(seen))
	}
}
