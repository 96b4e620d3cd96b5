package recipe_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/lecafe/lecafe/bake/recipe"
)

var update = flag.Bool("update", false, "rewrite golden files and docs/recipe.schema.json")

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got), go test -update rewrites it:\n%s", path, diff)
	}
}

func TestBrokenRecipes(t *testing.T) {
	t.Chdir("testdata/broken") // so that messages name the file alone
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d broken recipes, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(file, ".yaml"), func(t *testing.T) {
			_, err := recipe.Load(file)
			var invalid *recipe.Invalid
			if !errors.As(err, &invalid) {
				t.Fatalf("Load: %v, want *Invalid", err)
			}
			for _, p := range invalid.Problems {
				if p.File == "" || p.Line == 0 || p.Column == 0 || p.Message == "" || p.Hint == "" {
					t.Errorf("a problem without its place or without what to do: %+v", p)
				}
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", []byte(err.Error()+"\n"))
		})
	}
}

func TestDefaults(t *testing.T) {
	r, err := recipe.Load("testdata/good/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if r.Architecture != "x86_64" || r.Builder.Timeout != time.Hour || r.MaxAge != 7*24*time.Hour ||
		r.Staging.Prefix != "lecafe-bakes" || r.Clean.MaxUsed != 5 || r.Builder.InstanceTypes[0] != "t3.small" {
		t.Errorf("defaults: %+v", r)
	}
	r, err = recipe.Load("testdata/good/small.yaml", "architecture=arm64")
	if err != nil {
		t.Fatal(err)
	}
	if r.Builder.InstanceTypes[0] != "t4g.small" {
		t.Errorf("arm64 builds on %v", r.Builder.InstanceTypes)
	}
}

func TestOverrides(t *testing.T) {
	r, err := recipe.Load("testdata/good/full.yaml",
		"image.tags.team=bakery", "image.tags.version=1.10", "builder.instance_types=[m7i.large, m6i.large]",
		"provision[2].timeout=7m", "image.deregistration_protection=false", "source={image_id: ami-0123456789abcdef0}",
		"builder.subnets=", "image.share.accounts[1]=210987654321", "canary.test[0].name=still answers")
	if err != nil {
		t.Fatal(err)
	}
	got := []any{
		r.Image.Tags["team"], r.Image.Tags["version"], strings.Join(r.Builder.InstanceTypes, " "), r.Provision[2].Timeout,
		r.Image.DeregistrationProtection, r.Source.ImageID, r.Source.Filter == nil, len(r.Builder.Subnets),
		strings.Join(r.Image.Share.Accounts, " "), r.Canary.Test[0].Name,
	}
	want := []any{"bakery", "1.10", "m7i.large m6i.large", 7 * time.Minute, false, "ami-0123456789abcdef0", true, 0, "123456789012 210987654321", "still answers"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestBrokenOverrides(t *testing.T) {
	for _, c := range []struct{ set, want string }{
		{"nonsense", `--set: "nonsense": is not path=value; write for instance --set image.tags.team=shop`},
		{"imagee.name=x", `--set: imagee.name: no field "imagee", did you mean image?; see lecafe recipe schema for the fields`},
		{"name.x=y", `--set: name.x: name has no fields; see lecafe recipe schema for the fields`},
		{"provision[9].name=y", `--set: provision[9].name: provision has no item 9; see lecafe recipe schema for the fields`},
		{"provision[x].name=y", `--set: provision[x].name: is not a path; see lecafe recipe schema for the fields`},
		{"builder.timeout=1s", `--set: builder.timeout: "1s": is outside 5m to 1d; choose a duration in between`},
		{"builder.instance_types=t3.small", `--set: builder.instance_types: "t3.small": must be a list, not text; write [a, b] or one item a line, each behind a dash`},
		{"clean.zero_free_space=maybe", `--set: clean.zero_free_space: "maybe": must be true or false, not text; write true or false, without quotes`},
		{"image.public=[", `--set: image.public: `},
	} {
		_, err := recipe.Load("testdata/good/full.yaml", c.set)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("--set %s:\n got %v\nwant %s", c.set, err, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	r, err := recipe.Load("testdata/good/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n := recipe.Naming{Name: r.Name, Time: "20261122-023000", GitCommit: "0123456789ab", Hash: "ba9876543210"}
	name, err := r.Image.RenderName(n)
	if err != nil || name != "lecafe-app-20261122-023000-0123456789ab-ba9876543210" {
		t.Errorf("name %q, %v", name, err)
	}
	tags, err := r.Image.RenderTags(n)
	if err != nil || tags["commit"] != "0123456789ab" {
		t.Errorf("tags %v, %v", tags, err)
	}
}

func TestMissingFile(t *testing.T) {
	if _, err := recipe.Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of a missing file: %v", err)
	}
}

// The published schema is the one of the Go types, takes every good recipe
// and refuses an unknown key.
func TestSchema(t *testing.T) {
	data, err := recipe.Schema()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../../docs/recipe.schema.json", data)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("recipe.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("recipe.json")
	if err != nil {
		t.Fatal(err)
	}
	validate := func(file string) error {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		js, err := yaml.YAMLToJSON(src)
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(js))
		if err != nil {
			t.Fatal(err)
		}
		return schema.Validate(v)
	}
	for _, f := range []string{"testdata/good/full.yaml", "testdata/good/small.yaml"} {
		if err := validate(f); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
	for _, f := range []string{"unknown-key", "unknown-key-nested", "wrong-types", "missing-everything", "agent-unknown"} {
		if err := validate("testdata/broken/" + f + ".yaml"); err == nil {
			t.Errorf("%s passes the schema", f)
		}
	}
}

// Two recipes that differ are never normalised to the same JSON.
func TestJSONRoundTrip(t *testing.T) {
	r, err := recipe.Load("testdata/good/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back recipe.Recipe
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	back.Dir = r.Dir
	if diff := cmp.Diff(*r, back); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*/*.yaml")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := recipe.Parse("testdata/good/fuzz.yaml", data)
		var invalid *recipe.Invalid
		if err != nil && !errors.As(err, &invalid) {
			t.Errorf("an error that is not *Invalid: %v", err)
		}
		if (r == nil) == (err == nil) {
			t.Errorf("recipe %v with error %v", r, err)
		}
	})
}
