// Package traptest owns the bench on which scripts are shown to do the same with
// and without the trap. It is for tests.
package traptest

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

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/lecafe/lecafe/userdata/trap"
)

// Outcome is all that a script shows of itself.
type Outcome struct {
	Stdout, Stderr string
	Exit           string
	Files          map[string]string // below the working directory: mode and content
}

// Bench runs scripts from a scripts directory of its own.
type Bench struct {
	Dir     string // holds the scripts in "scripts" and the working directory
	Records string // where records of the trap go
	t       *testing.T
}

// New returns a Bench that ends with the test.
func New(t *testing.T) *Bench {
	dir := t.TempDir()
	return &Bench{t: t, Dir: dir, Records: filepath.Join(dir, "records")}
}

// Script is the path that scripts are run from.
func (b *Bench) Script() string { return filepath.Join(b.Dir, "scripts", "part-001") }

// Library writes the trap's library for this bench and returns its path.
func (b *Bench) Library() string {
	b.t.Helper()
	path := filepath.Join(b.Dir, "trap.sh")
	if err := os.WriteFile(path, []byte(trap.LibraryAt(filepath.Join(b.Dir, "scripts"), b.Records)), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// Run executes a script from the scripts directory, always the same path, in
// an empty working directory.
func (b *Bench) Run(script []byte, interpreter string, env ...string) Outcome {
	b.t.Helper()
	work, path := filepath.Join(b.Dir, "work"), b.Script()
	for _, dir := range []string{work, b.Records} {
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
	out := Outcome{Stdout: stdout.String(), Stderr: stderr.String(), Exit: c.ProcessState.String(), Files: make(map[string]string)}
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

// Briefs are the records as LINE EXIT COMMAND, without repetitions.
func (b *Bench) Briefs() []string {
	b.t.Helper()
	records, err := trap.Read(b.Records)
	if err != nil {
		b.t.Fatal(err)
	}
	out := []string{}
	for _, r := range records {
		if s := fmt.Sprintf("%d %d %s", r.Line, r.ExitCode, r.Command); !slices.Contains(out, s) {
			out = append(out, s)
		}
		if !strings.HasPrefix(r.File, b.Dir) && !strings.HasPrefix(r.File, "./") {
			b.t.Errorf("record of file %q", r.File)
		}
	}
	return out
}

// Subject is a script and what is to be recorded of it.
type Subject struct {
	Name    string
	Script  []byte
	Records []string // nil: any
}

// Subjects reads scripts from a txtar file, where NAME.records lists the records
// of NAME as Briefs does.
func Subjects(t *testing.T, file string) []Subject {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []Subject
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
			out = append(out, Subject{f.Name, f.Data, records[f.Name]})
		}
	}
	return out
}
