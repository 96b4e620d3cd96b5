package recipe

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/lecafe/lecafe/internal/strictyaml"
)

// maxSize bounds a recipe file; scripts and files stand beside it.
const maxSize = 1 << 20

// Load reads the recipe at path, applies overrides ("field=value") in order,
// fills in defaults and checks it and the files it names. The error is
// *Invalid when the recipe is wrong.
func Load(path string, overrides ...string) (*Recipe, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read recipe: %w; name an existing file", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSize {
		return nil, fmt.Errorf("read recipe: %s is not a regular file of at most 1 MiB", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read recipe: %w", err)
	}
	return Parse(path, data, overrides...)
}

// Parse is Load of data that was read from file.
func Parse(file string, data []byte, overrides ...string) (*Recipe, error) {
	r := &Recipe{Dir: filepath.Dir(file)}
	d := newDecoder()
	d.file = file
	d.places[""] = place{file: file, line: 1, column: 1}
	broken := !d.value(data, reflect.ValueOf(r).Elem(), "")
	if r.Dir = filepath.Dir(file); broken && len(d.problems) == 0 {
		d.add(strictyaml.Problem{File: file, Line: 1, Column: 1, Message: "the recipe is empty", Hint: "see examples/lecafe-app/recipe.yaml"})
	}
	for _, o := range overrides {
		d.override(o, reflect.ValueOf(r).Elem())
	}
	r.defaults()
	if !broken { // a file that is not YAML lacks everything: say only that
		c := &checker{d: d, r: r}
		c.all()
	}
	if len(d.problems) > 0 {
		return nil, &Invalid{Problems: sorted(d.problems)}
	}
	return r, nil
}

func (r *Recipe) defaults() {
	r.Architecture = cmp.Or(r.Architecture, X8664)
	r.Image.Name = cmp.Or(r.Image.Name, "{{.Name}}-{{.Time}}")
	r.Builder.Timeout = cmp.Or(r.Builder.Timeout, time.Hour)
	r.Staging.Prefix = cmp.Or(r.Staging.Prefix, "lecafe-bakes")
	r.MaxAge = cmp.Or(r.MaxAge, 7*24*time.Hour)
	r.Clean.MaxUsed = cmp.Or(r.Clean.MaxUsed, 5)
	if len(r.Builder.InstanceTypes) == 0 {
		r.Builder.InstanceTypes = []string{"t3.small"}
		if r.Architecture == ARM64 {
			r.Builder.InstanceTypes = []string{"t4g.small"}
		}
	}
	for i := range r.Provision {
		for j := range r.Provision[i].Files {
			f := &r.Provision[i].Files[j]
			f.Mode, f.Owner, f.Group = cmp.Or(f.Mode, "0644"), cmp.Or(f.Owner, "root"), cmp.Or(f.Group, "root")
		}
	}
	if r.Canary != nil {
		r.Canary.Deadline = cmp.Or(r.Canary.Deadline, 10*time.Minute)
		for i := range r.Canary.Test {
			r.Canary.Test[i].Timeout = cmp.Or(r.Canary.Test[i].Timeout, 2*time.Minute)
		}
	}
}
