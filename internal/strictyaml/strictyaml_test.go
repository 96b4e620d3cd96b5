package strictyaml_test

import (
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/internal/strictyaml"
)

type inner struct {
	URL   string `yaml:"url"`
	Codes []int  `yaml:"codes,omitempty"`
}

type file struct {
	Name    string            `yaml:"name"`
	Wait    time.Duration     `yaml:"wait,omitempty"`
	On      *bool             `yaml:"on,omitempty"`
	Size    int64             `yaml:"size,omitempty"`
	Items   []inner           `yaml:"items,omitempty"`
	Command [][]string        `yaml:"command,omitempty"`
	Extra   map[string]string `yaml:"extra,omitempty"`
	Inner   inner             `yaml:"inner,omitempty"`
	Hidden  string            `yaml:"-"`
}

func TestDecodeOverExisting(t *testing.T) {
	yes := true
	f := file{Name: "keep", Extra: map[string]string{"a": "1"}, Inner: inner{URL: "u", Codes: []int{1}}, Items: []inner{{URL: "old"}}}
	_, err := strictyaml.Decode("f.yaml", []byte(`# comment
wait: 1m30s
on: true
size: 1_000
command: [[a, "b c"], [1.20, 0640]]
items:
  - url: x
extra:
  b: |
    two
inner:
  codes: [200, 204]
`), 1, &f)
	if err != nil {
		t.Fatal(err)
	}
	want := file{
		Name: "keep", Wait: 90 * time.Second, On: &yes, Size: 1000, Items: []inner{{URL: "x"}},
		Command: [][]string{{"a", "b c"}, {"1.20", "0640"}},
		Extra:   map[string]string{"a": "1", "b": "two\n"}, Inner: inner{URL: "u", Codes: []int{200, 204}},
	}
	if d := cmp.Diff(want, f); d != "" {
		t.Error(d)
	}
}

func TestDecodeProblems(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"unknown key":      {"nam: x", `f.yaml:1:1: nam: unknown key; did you mean "name"?`},
		"far key":          {"zzzzzzzz: x", `f.yaml:1:1: zzzzzzzz: unknown key; known here: name, wait, on, size, items, command, extra, inner`},
		"twice":            {"name: x\nname: y", ""},
		"type":             {"name: [a]", `f.yaml:1:7: name: must be text, not a list; put it in quotes`},
		"bool":             {"on: yes please", `f.yaml:1:5: on: "yes please": must be true or false, not text; write true or false, without quotes`},
		"duration":         {"wait: soon", `f.yaml:1:7: wait: "soon": is no duration; write it with its unit, as "90s" or "10m"`},
		"duration, bare":   {"wait: 10", `f.yaml:1:7: wait: "10": is no duration; write it with its unit, as "90s" or "10m"`},
		"list":             {"items: x", `f.yaml:1:8: items: "x": must be a list, not text; write [a, b] or one item a line, each behind a dash`},
		"nested":           {"items:\n  - url: a\n    kodes: [1]", `f.yaml:3:5: items[0].kodes: unknown key; did you mean "codes"?`},
		"number":           {"size: 1.5", `f.yaml:1:7: size: "1.5": must be a whole number, not a number; write digits, without quotes`},
		"not a mapping":    {"- a", `f.yaml:1:1: must be a mapping of keys to values, not a list; one of name, wait, on, size, items, command, extra, inner`},
		"alias":            {"name: &a x\nextra: {b: *a}", `f.yaml:2:12: extra.b: aliases are not understood; write the value out`},
		"two documents":    {"name: x\n---\nname: y", `f.yaml:3:1: a second YAML document; use one document a file`},
		"all at once":      {"nam: x\nwait: soon\n", "f.yaml:1:1: nam: unknown key; did you mean \"name\"?\nf.yaml:2:7: wait: \"soon\": is no duration; write it with its unit, as \"90s\" or \"10m\""},
		"broken":           {"name: 'x\nwait: 1s", ""},
		"hidden is no key": {"hidden: x", `f.yaml:1:1: hidden: unknown key; known here: name, wait, on, size, items, command, extra, inner`},
	} {
		t.Run(name, func(t *testing.T) {
			var f file
			_, err := strictyaml.Decode("f.yaml", []byte(c.in), 1, &f)
			if err == nil {
				t.Fatalf("no problem found; decoded %+v", f)
			}
			if c.want == "" {
				if !strings.HasPrefix(err.Error(), "f.yaml:") {
					t.Errorf("got %s", err)
				}
				return
			}
			if err.Error() != c.want {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
		})
	}
}

func TestDecodeShiftsLines(t *testing.T) {
	var f file
	doc, err := strictyaml.Decode("user data", []byte("name: x\nwait: soon\n"), 41, &f)
	if err == nil || !strings.HasPrefix(err.Error(), "user data:42:7: wait") {
		t.Errorf("got %v", err)
	}
	if got := doc.At("name"); got != (strictyaml.Position{Line: 41, Column: 7}) {
		t.Errorf("At(name) = %v", got)
	}
	if got := doc.At("name.deeper[3]"); got != (strictyaml.Position{Line: 41, Column: 7}) {
		t.Errorf("a missing field has its parent's place, got %v", got)
	}
}

func TestDecodeEmpty(t *testing.T) {
	for _, in := range []string{"", "# only a comment\n", "---\n", "inner:\n"} {
		f := file{Name: "keep"}
		if _, err := strictyaml.Decode("f", []byte(in), 1, &f); err != nil || f.Name != "keep" {
			t.Errorf("%q: %v %+v", in, err, f)
		}
	}
}

// What recipes have besides.
func TestRules(t *testing.T) {
	all := strictyaml.Rules{Replace: true, Aliases: true, Days: true, Quoted: true}
	f := file{Name: "old", Extra: map[string]string{"old": "1"}, Inner: inner{URL: "old"}, Size: 7}
	doc, err := all.Decode("f.yaml", []byte("name: &n x\nwait: 1d12h\nextra: {a: *n}\ninner:\nsize: ~\n"), &f)
	if err != nil {
		t.Fatal(err)
	}
	want := file{Name: "x", Wait: 36 * time.Hour, Extra: map[string]string{"a": "x"}}
	if d := cmp.Diff(want, f); d != "" {
		t.Error(d)
	}
	places := maps.Collect(doc.All())
	if p := places["wait"]; p.Line != 2 || p.Column != 7 || p.Value != "1d12h" {
		t.Errorf("wait stands at %+v", p)
	}
	if !doc.Has("") || !doc.Has("inner") || doc.Has("items") {
		t.Errorf("places %v", places)
	}
	for in, want := range map[string]string{
		"name: 5":             `f.yaml:1:7: name: "5": must be text, not a number; put it in quotes`,
		"name: *n":            `f.yaml:1:7: name: no anchor of this name before it; define it with & first`,
		"extra: {<<: {a: b}}": `f.yaml:1:9: extra.<<: merge keys are not understood; write the keys out`,
		"wait: 7x":            `f.yaml:1:7: wait: "7x": is no duration; write it with its unit, as 90s, 10m, 2h or 7d`,
		"name: a\nname: b":    `f.yaml:2:1: name: given twice; keep one of the two`,
		"a: &a [*a, *a]":      "",
		"items: &a [x, *a]":   "",
	} {
		var f file
		_, err := all.Decode("f.yaml", []byte(in), &f)
		if err == nil || want != "" && err.Error() != want {
			t.Errorf("%q: got  %v\nwant %s", in, err, want)
		}
	}
	var list []string
	if _, err := all.DecodeField("--set", []byte("[a, 1]"), "builder.types", reflect.ValueOf(&list).Elem()); err == nil || !strings.Contains(err.Error(), `--set:1:5: builder.types[1]: "1": must be text`) {
		t.Errorf("DecodeField: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("name: x\nitems: [{url: a}]\n"))
	f.Add([]byte("? [a]\n: b\n<<: *x\n--- !!str\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v file
		_, _ = strictyaml.Decode("f", data, 1, &v)
		_, _ = strictyaml.Rules{Replace: true, Aliases: true, Days: true, Quoted: true}.Decode("f", data, &v)
	})
}
