package trap_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/lecafe/lecafe/userdata/trap"
)

// outcome is all that a script shows of itself.
type outcome struct {
	Stdout, Stderr string
	Exit           string
	Files          map[string]string // below the working directory: mode and content
}

type bench struct {
	t       *testing.T
	dir     string
	records string
}

func newBench(t *testing.T) *bench {
	dir := t.TempDir()
	return &bench{t: t, dir: dir, records: filepath.Join(dir, "records")}
}

// run executes a script from the scripts directory, always the same path, in
// an empty working directory.
func (b *bench) run(script []byte, interpreter string, env ...string) outcome {
	b.t.Helper()
	work, path := filepath.Join(b.dir, "work"), filepath.Join(b.dir, "scripts", "part-001")
	for _, dir := range []string{work, b.records} {
		if err := os.RemoveAll(dir); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, dir := range []string{work, filepath.Dir(path)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, script, 0o755); err != nil {
		b.t.Fatal(err)
	}
	c := exec.CommandContext(b.t.Context(), interpreter, path, "one", "two words")
	c.Dir = work
	c.Env = append([]string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "_=/usr/bin/env"}, env...)
	c.Stdin = strings.NewReader("first line\nsecond line\n")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	out := outcome{Stdout: stdout.String(), Stderr: stderr.String(), Exit: c.ProcessState.String(), Files: make(map[string]string)}
	err = filepath.WalkDir(work, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		out.Files[strings.TrimPrefix(p, work)] = fmt.Sprintf("%v %s", info.Mode(), data)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// briefs are the records as LINE EXIT COMMAND, without repetitions.
func (b *bench) briefs() []string {
	b.t.Helper()
	records, err := trap.Read(b.records)
	if err != nil {
		b.t.Fatal(err)
	}
	out := []string{}
	for _, r := range records {
		if s := fmt.Sprintf("%d %d %s", r.Line, r.ExitCode, r.Command); !slices.Contains(out, s) {
			out = append(out, s)
		}
		if !strings.HasPrefix(r.File, b.dir) && !strings.HasPrefix(r.File, "./") {
			b.t.Errorf("record of file %q", r.File)
		}
	}
	return out
}

type subject struct {
	name    string
	script  []byte
	records []string // nil: any
}

func subjects(t *testing.T, file string) []subject {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []subject
	records := make(map[string][]string)
	archive := txtar.Parse(data)
	for _, f := range archive.Files {
		if name, ok := strings.CutSuffix(f.Name, ".records"); ok {
			records[name] = []string{}
			for line := range strings.Lines(string(f.Data)) {
				records[name] = append(records[name], strings.TrimSuffix(line, "\n"))
			}
		}
	}
	for _, f := range archive.Files {
		if !strings.HasSuffix(f.Name, ".records") {
			out = append(out, subject{f.Name, f.Data, records[f.Name]})
		}
	}
	return out
}

func TestBashScriptsDoTheSame(t *testing.T) {
	all := subjects(t, "testdata/bash.txtar")
	if len(all) < 60 {
		t.Errorf("%d scripts, want 60 or more", len(all))
	}
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			library := filepath.Join(b.dir, "trap.sh")
			if err := os.WriteFile(library, []byte(trap.LibraryAt(filepath.Join(b.dir, "scripts"), b.records)), 0o644); err != nil {
				t.Fatal(err)
			}
			plain := b.run(s.script, "/bin/bash")

			trapped := b.run(s.script, "/bin/bash", "BASH_ENV="+library)
			if diff := cmp.Diff(plain, trapped); diff != "" {
				t.Errorf("with the library (-without +with):\n%s", diff)
			}
			if s.records != nil {
				if diff := cmp.Diff(s.records, b.briefs()); diff != "" {
					t.Errorf("records (-want +got):\n%s", diff)
				}
			}

			wrapped := b.run(trap.Preload(s.script, library), "/bin/bash")
			if diff := cmp.Diff(plain, wrapped); diff != "" {
				t.Errorf("with the library loaded by the script (-without +with):\n%s", diff)
			}
			if s.records != nil {
				if diff := cmp.Diff(s.records, b.briefs()); diff != "" {
					t.Errorf("records, loaded by the script (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestShScriptsDoTheSame(t *testing.T) {
	// sh is dash on Debian and Ubuntu, bash on Amazon Linux and Red Hat's.
	bashAsSh := filepath.Join(t.TempDir(), "sh")
	if err := os.Symlink("/bin/bash", bashAsSh); err != nil {
		t.Fatal(err)
	}
	for _, s := range subjects(t, "testdata/sh.txtar") {
		for _, sh := range []string{"/bin/dash", bashAsSh} {
			t.Run(s.name+"/"+filepath.Base(sh), func(t *testing.T) {
				t.Parallel()
				b := newBench(t)
				plain := b.run(s.script, sh)
				changed, err := trap.Instrument(s.script, filepath.Join(b.dir, "scripts", "part-001"), b.records)
				if errors.Is(err, trap.ErrUninstrumented) {
					if s.records != nil {
						t.Fatal(err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				instrumented := b.run(changed, sh)
				if diff := cmp.Diff(plain, instrumented); diff != "" {
					t.Errorf("instrumented (-without +with):\n%s", diff)
				}
				if s.records != nil {
					if diff := cmp.Diff(s.records, b.briefs()); diff != "" {
						t.Errorf("records (-want +got):\n%s", diff)
					}
				}
				again, err := trap.Instrument(changed, "x", "y")
				if err != nil || !bytes.Equal(again, changed) {
					t.Errorf("instrumented twice: %v", err)
				}
			})
		}
	}
}
