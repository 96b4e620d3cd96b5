package config_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/config"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/lab/cloud"
)

// upload makes the bucket hold exactly these objects.
func (b *bench) upload(objects map[string]string) {
	b.t.Helper()
	for _, key := range b.cloud.S3.Objects("assets", "") {
		if _, ok := objects[key]; !ok {
			if _, err := b.api.DeleteObject(b.t.Context(), &s3.DeleteObjectInput{Bucket: aws.String("assets"), Key: &key}); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		if _, err := b.api.PutObject(b.t.Context(), &s3.PutObjectInput{Bucket: aws.String("assets"), Key: &key, Body: strings.NewReader(objects[key])}); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) directory(change ...func(*settings.Object)) *config.Object {
	b.t.Helper()
	return b.object(append([]func(*settings.Object){func(o *settings.Object) {
		o.Source, o.Path = "s3://assets/app/conf.d/", "/opt/app/conf"
	}}, change...)...)
}

// files is what the directory's path shows.
func (b *bench) files() map[string]string {
	b.t.Helper()
	out := map[string]string{}
	dir, err := filepath.EvalSymlinks(filepath.Join(b.root, "opt/app/conf"))
	if err != nil {
		return out
	}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = string(text)
		return err
	}); err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bench) wantFiles(want map[string]string) {
	b.t.Helper()
	if got := b.files(); !maps.Equal(got, want) {
		b.t.Errorf("the directory has %v, want %v", got, want)
	}
}

// countGets counts GETs of objects.
func (b *bench) gets(f func()) int {
	before := len(b.got)
	f()
	return len(b.got) - before
}

func TestDirectory(t *testing.T) {
	b := newBench(t)
	b.upload(map[string]string{"app/conf.d/a": "1", "app/conf.d/sub/deep/b": "2", "app/conf.d/sub/": "", "app/conf.dx": "no", "app/other": "no"})
	c := b.directory(func(o *settings.Object) { o.Mode = "0604" })
	if n := b.gets(func() { b.sync(c, true, nil) }); n != 2 {
		t.Errorf("%d objects fetched, want 2", n)
	}
	b.wantFiles(map[string]string{"a": "1", "sub/deep/b": "2"})
	for path, mode := range map[string]fs.FileMode{"conf/a": 0o604, "conf/sub": 0o705 | fs.ModeDir, "conf/.": 0o705 | fs.ModeDir} {
		if info, err := os.Stat(filepath.Join(b.root, "opt/app", path)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, want %s", path, info.Mode(), mode)
		}
	}
	if n := b.gets(func() { b.sync(c, false, nil) }); n != 0 {
		t.Errorf("%d objects fetched although nothing changed", n)
	}

	// Added, removed, changed: one switch, and only what is new is fetched.
	old, err := os.Open(filepath.Join(b.root, "opt/app/conf"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	b.upload(map[string]string{"app/conf.d/a": "1", "app/conf.d/sub/c": "3"})
	b.got = nil
	b.sync(c, true, nil)
	if slices.Sort(b.got); !slices.Equal(b.got, []string{"app/conf.d/a", "app/conf.d/sub/c"}) {
		// The ETag of the same content is the same here; S3 tells only the
		// listing whether it was uploaded again.
		if !slices.Equal(b.got, []string{"app/conf.d/sub/c"}) {
			t.Errorf("fetched %v", b.got)
		}
	}
	b.wantFiles(map[string]string{"a": "1", "sub/c": "3"})
	if names, err := old.Readdirnames(0); err != nil || len(names) != 2 {
		t.Errorf("who had the generation before open sees %v, %v", names, err)
	}
	if s := c.Status(); s.Generation != 2 || s.Files != 2 || !s.Fresh {
		t.Errorf("%+v", s)
	}

	// The next process goes on from there; an edited file is put right without
	// a single fetch.
	c = b.directory()
	b.sync(c, false, nil)
	if err := os.WriteFile(filepath.Join(b.root, "opt/app/conf/a"), []byte("edited"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := b.gets(func() { b.sync(c, true, nil) }); n != 0 {
		t.Errorf("%d objects fetched to put an edited file right", n)
	}
	b.wantFiles(map[string]string{"a": "1", "sub/c": "3"})
	for n := range 4 {
		b.upload(map[string]string{"app/conf.d/a": fmt.Sprint(n)})
		b.sync(c, true, nil)
	}
	b.wantFiles(map[string]string{"a": "3"})
	if kept, _ := filepath.Glob(filepath.Join(b.root, "opt/app/.conf.lecafe/*")); len(kept) != 2 {
		t.Errorf("%d generations kept, want this one and the one before: %v", len(kept), kept)
	}
	if kept, _ := filepath.Glob(filepath.Join(b.root, "var/lib/lecafe/config/*/blobs/*")); len(kept) != 1 {
		t.Errorf("contents kept: %v", kept)
	}
}

func TestDirectoryIsCheckedAndToldAsAWhole(t *testing.T) {
	b := newBench(t)
	setup := func(o *settings.Object) {
		o.Validate = settings.Command{"/usr/bin/app", "--check", "{}/main"}
		o.ReloadUnit = "app.service"
	}
	good := map[string]string{"app/conf.d/main": "good", "app/conf.d/part": "1"}
	b.upload(good)
	c := b.directory(setup)
	b.sync(c, true, nil)
	if !slices.Equal(b.done, []string{"run /usr/bin/app", "reload app.service"}) || b.seen[0] != "good" {
		t.Errorf("%v saw %q", b.done, b.seen)
	}
	is := map[string]string{"main": "good", "part": "1"}

	b.upload(map[string]string{"app/conf.d/main": "bad"})
	b.fail["run /usr/bin/app"] = errors.New("exit 1")
	b.sync(c, true, config.ErrInvalid)
	b.wantFiles(is)
	b.sync(c, false, config.ErrRolledBack)

	b.fail = map[string]error{"reload app.service": errors.New("job failed")}
	b.upload(map[string]string{"app/conf.d/main": "poison", "app/conf.d/more": "x"})
	err := b.sync(c, true, config.ErrRolledBack)
	if c.Cause(err).Code != report.CodeConfigRolledBack {
		t.Errorf("%+v", c.Cause(err))
	}
	b.wantFiles(is)
	n := len(b.done)
	for _, again := range []*config.Object{c, b.directory(setup)} {
		if n := b.gets(func() { b.sync(again, false, config.ErrRolledBack) }); n != 0 {
			t.Errorf("%d objects of a bad generation fetched again", n)
		}
	}
	if len(b.done) != n {
		t.Errorf("a bad one was tried again: %v", b.done[n:])
	}
	// Other settings may have it succeed.
	b.fail = map[string]error{}
	b.sync(b.directory(setup, func(o *settings.Object) { o.ReloadUnit = ""; o.RestartUnit = "app.service" }), true, nil)
	b.wantFiles(map[string]string{"main": "poison", "more": "x"})
}

func TestDirectoryThatCannotBe(t *testing.T) {
	many := map[string]string{}
	for i := range 12 {
		many[fmt.Sprintf("app/conf.d/%02d", i)] = "x"
	}
	for name, c := range map[string]struct {
		objects map[string]string
		change  func(*settings.Object)
		fault   *cloud.Fault
		want    error
		says    string
	}{
		"traversal":       {map[string]string{"app/conf.d/../../etc/passwd": "x"}, nil, nil, config.ErrInvalid, "leads elsewhere"},
		"dot":             {map[string]string{"app/conf.d/a/./b": "x"}, nil, nil, config.ErrInvalid, "leads elsewhere"},
		"absolute":        {map[string]string{"app/conf.d//etc/passwd": "x"}, nil, nil, config.ErrInvalid, "empty level"},
		"trailing slash":  {map[string]string{"app/conf.d/a/": "not empty"}, nil, nil, config.ErrInvalid, "empty level"},
		"control":         {map[string]string{"app/conf.d/a\nb": "x"}, nil, nil, config.ErrInvalid, "control character"},
		"backslash":       {map[string]string{`app/conf.d/a\b`: "x"}, nil, nil, config.ErrInvalid, "backslash"},
		"long":            {map[string]string{"app/conf.d/" + strings.Repeat("x", 300): "x"}, nil, nil, config.ErrInvalid, "255 bytes"},
		"file and dir":    {map[string]string{"app/conf.d/a": "x", "app/conf.d/a/b": "x"}, nil, nil, config.ErrInvalid, "has objects below it"},
		"too many":        {many, func(o *settings.Object) { o.MaxFiles = 11 }, nil, config.ErrInvalid, "max_files"},
		"too large":       {many, func(o *settings.Object) { o.MaxBytes = 11 }, nil, config.ErrInvalid, "max_bytes"},
		"other sum":       {many, func(o *settings.Object) { o.SHA256 = strings.Repeat("0", 64) }, nil, config.ErrInvalid, "pinned"},
		"nothing":         {map[string]string{"app/conf.d/": ""}, nil, nil, config.ErrMissing, "no object below"},
		"no bucket":       {nil, func(o *settings.Object) { o.Source = "s3://nowhere/x/" }, nil, config.ErrMissing, "does not exist"},
		"denied list":     {many, nil, &cloud.Fault{Service: "s3", Action: "ListObjectsV2", Kind: cloud.AccessDenied}, config.ErrDenied, "s3:ListBucket"},
		"denied object":   {many, nil, &cloud.Fault{Service: "s3", Action: "GetObject", Kind: cloud.AccessDenied}, config.ErrDenied, "s3:GetObject"},
		"list fails":      {many, nil, &cloud.Fault{Service: "s3", Action: "ListObjectsV2", Kind: cloud.Error5xx}, config.ErrUnreachable, ""},
		"object is reset": {many, nil, &cloud.Fault{Service: "s3", Action: "GetObject", Kind: cloud.Reset}, config.ErrUnreachable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			// There is a good one before, and it stays.
			b.upload(map[string]string{"app/conf.d/good": "yes"})
			b.sync(b.directory(), true, nil)
			b.upload(c.objects)
			if c.fault != nil {
				b.cloud.Inject(*c.fault)
			}
			var changes []func(*settings.Object)
			if c.change != nil {
				changes = append(changes, c.change)
			}
			o := b.directory(changes...)
			_, err := o.Sync(t.Context())
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v saying %q", err, c.want, c.says)
			}
			b.wantFiles(map[string]string{"good": "yes"})
			outside, _ := filepath.Glob(filepath.Join(b.root, "etc/*"))
			if left, _ := filepath.Glob(filepath.Join(b.root, "opt/app/.conf.lecafe/*")); len(left) != 1 || len(outside) > 0 {
				t.Errorf("left: %v %v", left, outside)
			}
		})
	}
}

func TestDirectoryLeavesTheLastGoodOneServing(t *testing.T) {
	b := newBench(t)
	b.upload(map[string]string{"app/conf.d/a": "1", "app/conf.d/b/c": "2"})
	b.sync(b.directory(), true, nil)
	if err := os.RemoveAll(filepath.Join(b.root, "opt")); err != nil {
		t.Fatal(err)
	}
	b.cloud.Inject(cloud.Fault{Service: "s3", Kind: cloud.Reset})
	b.sync(b.directory(), false, config.ErrUnreachable)
	b.wantFiles(map[string]string{"a": "1", "b/c": "2"})
}

// TestDirectoryThatChangesWhileItIsRead replaces an object between listing and
// fetch: no generation is a mixture.
func TestDirectoryThatChangesWhileItIsRead(t *testing.T) {
	b := newBench(t)
	b.upload(map[string]string{"app/conf.d/a": "1", "app/conf.d/b": "1"})
	times := 1
	b.onGet = func(string) {
		if times > 0 {
			times--
			b.upload(map[string]string{"app/conf.d/a": "2", "app/conf.d/c": "2"})
		}
	}
	c := b.directory()
	b.sync(c, true, nil)
	b.wantFiles(map[string]string{"a": "2", "c": "2"})
	// One that never holds still is given up for now.
	n := 2
	b.onGet = func(string) {
		n++
		b.upload(map[string]string{"app/conf.d/a": fmt.Sprint(n), "app/conf.d/b": fmt.Sprint(n)})
	}
	b.upload(map[string]string{"app/conf.d/a": "x", "app/conf.d/b": "x"})
	b.sync(c, false, config.ErrUnreachable)
	b.wantFiles(map[string]string{"a": "2", "c": "2"})
}

func TestDirectoryOverWhatWasThere(t *testing.T) {
	b := newBench(t)
	b.upload(map[string]string{"app/conf.d/a": "1"})
	path := filepath.Join(b.root, "opt/app/conf")
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(path, "a-package's")
	if err := os.WriteFile(own, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.sync(b.directory(), true, config.ErrInvalid)
	if _, err := os.Stat(own); err != nil {
		t.Error("a directory that the agent did not make is gone")
	}
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	b.sync(b.directory(), true, nil)
	b.wantFiles(map[string]string{"a": "1"})
}

// TestDirectoryOfAnApplication has the application, which may own its
// directory, put traps there.
func TestDirectoryOfAnApplication(t *testing.T) {
	b := newBench(t)
	b.upload(map[string]string{"app/conf.d/a": "1", "app/conf.d/d/b": "2"})
	c := b.directory()
	b.sync(c, true, nil)
	path := filepath.Join(b.root, "opt/app/conf")
	if err := os.WriteFile(filepath.Join(path, "cache"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.sync(c, false, nil) // its own files are its own
	outside := filepath.Join(b.root, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(path, "a")), syscall.Mkfifo(filepath.Join(path, "a"), 0o600),
		os.RemoveAll(filepath.Join(path, "d")), os.Symlink(outside, filepath.Join(path, "d"))); err != nil {
		t.Fatal(err)
	}
	b.sync(c, true, nil)
	b.wantFiles(map[string]string{"a": "1", "d/b": "2"})
	if got, _ := os.ReadDir(outside); len(got) > 0 {
		t.Errorf("written outside: %v", got)
	}
}

// TestDirectorysSum pins a directory with what the documented command prints.
func TestDirectorysSum(t *testing.T) {
	b := newBench(t)
	b.upload(map[string]string{"app/conf.d/a b": "1", "app/conf.d/z": "", "app/conf.d/sub/ü": "2"})
	c := b.directory()
	b.sync(c, true, nil)
	cmd := exec.Command("sh", "-c", `find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum`)
	cmd.Dir, _ = filepath.EvalSymlinks(filepath.Join(b.root, "opt/app/conf"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	sum := strings.Fields(string(out))[0]
	if got := c.Status().SHA256; got != sum {
		t.Fatalf("SHA-256 %s, the command says %s", got, sum)
	}
	b.sync(b.directory(func(o *settings.Object) { o.SHA256 = sum }), false, nil)
}

func TestDirectoryOfManyPages(t *testing.T) {
	b := newBench(t)
	b.cloud.S3.CreateBucket("many", "us-east-1")
	for i := range 1203 {
		if _, err := b.api.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("many"), Key: aws.String(fmt.Sprintf("p/%d/%d", i%7, i)), Body: strings.NewReader(fmt.Sprint(i))}); err != nil {
			t.Fatal(err)
		}
	}
	many := func(o *settings.Object) { o.Source = "s3://many/p/"; o.MaxFiles = 2000 }
	b.sync(b.directory(many), true, nil)
	if got := b.files(); len(got) != 1203 || got["6/1000"] != "1000" {
		t.Errorf("%d files", len(got))
	}
}
