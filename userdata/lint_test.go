package userdata_test

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/lecafe/lecafe/userdata"
)

// label is one finding that there is or should be.
type label struct {
	rule     string
	line     int
	severity userdata.Severity
}

type labelled struct {
	name    string
	payload []byte
	want    []label
}

// corpus reads testdata/lint: NAME is a payload, NAME.want its labels.
func corpus(t testing.TB) []labelled {
	t.Helper()
	severities := make(map[string]userdata.Severity)
	for _, r := range userdata.Rules() {
		severities[r.ID] = r.Severity
	}
	files, err := filepath.Glob("testdata/lint/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	var out []labelled
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		wants := make(map[string][]label)
		archive := txtar.Parse(data)
		for _, f := range archive.Files {
			name, ok := strings.CutSuffix(f.Name, ".want")
			if !ok {
				continue
			}
			wants[name] = []label{}
			for _, line := range strings.Fields(string(f.Data)) {
				fields := strings.Split(line, ":")
				severity, known := severities[fields[0]]
				n, err := strconv.Atoi(fields[1])
				if err != nil || !known {
					t.Fatalf("%s: %s: label %q", file, f.Name, line)
				}
				if len(fields) > 2 {
					severity = userdata.Severity(fields[2])
				}
				wants[name] = append(wants[name], label{fields[0], n, severity})
			}
		}
		for _, f := range archive.Files {
			if strings.HasSuffix(f.Name, ".want") {
				continue
			}
			want, ok := wants[f.Name]
			if !ok {
				t.Fatalf("%s: %s has no labels", file, f.Name)
			}
			out = append(out, labelled{strings.TrimSuffix(filepath.Base(file), ".txtar") + "/" + f.Name, directive(t, f.Data), want})
		}
	}
	return out
}

// directive makes of a file's text what its first line asks for.
func directive(t testing.TB, text []byte) []byte {
	first, rest, _ := bytes.Cut(text, []byte("\n"))
	steps, ok := strings.CutPrefix(string(first), "encode: ")
	if !ok {
		return text
	}
	rest = bytes.Clone(rest)
	for _, step := range strings.Fields(steps) {
		switch step {
		case "bom":
			rest = append([]byte("\xef\xbb\xbf"), rest...)
		case "crlf":
			rest = bytes.ReplaceAll(rest, []byte("\n"), []byte("\r\n"))
		case "crlf-tail":
			head, tail, _ := bytes.Cut(rest, []byte("\n"))
			rest = slices.Concat(head, []byte("\n"), bytes.ReplaceAll(tail, []byte("\n"), []byte("\r\n")))
		case "base64":
			rest = []byte(base64.StdEncoding.EncodeToString(rest))
		case "gzip":
			rest = zip(t, string(rest))
		case "cut":
			rest = rest[:len(rest)*2/3]
		case "elf":
			rest = []byte("\x7fELF\x02\x01\x01\x00\x00\xff\xfe")
		case "pad-script":
			rest = append(rest, bytes.Repeat([]byte("# padding that compresses well\n"), 700)...)
		case "noise":
			state := uint32(7)
			for range 300 {
				rest = append(rest, '#', ' ')
				for range 70 {
					state = state*1664525 + 1013904223
					rest = append(rest, 'A'+byte(state>>24)%58)
				}
				rest = append(rest, '\n')
			}
		case "nothing":
			rest = nil
		default:
			t.Fatalf("directive %q", step)
		}
	}
	return rest
}

// TestLintCorpus counts what Lint finds against what a person labelled.
func TestLintCorpus(t *testing.T) {
	type score struct{ hit, missed, wrong int }
	scores := make(map[string]*score)
	for _, r := range userdata.Rules() {
		scores[r.ID] = &score{}
	}
	cases := corpus(t)
	if len(cases) < 80 {
		t.Errorf("%d payloads, want 80 or more", len(cases))
	}
	for _, c := range cases {
		got := []label{}
		for _, f := range userdata.Lint(c.payload, userdata.Options{}) {
			got = append(got, label{f.Rule, f.Line, f.Severity})
			if f.Message == "" || f.Fix == "" {
				t.Errorf("%s: %s says nothing: %+v", c.name, f.Rule, f)
			}
		}
		for _, w := range c.want {
			if slices.Contains(got, w) {
				scores[w.rule].hit++
			} else {
				scores[w.rule].missed++
				t.Logf("%s: missed %v; found %v", c.name, w, got)
			}
		}
		for _, g := range got {
			if !slices.Contains(c.want, g) {
				scores[g.rule].wrong++
				t.Logf("%s: wrong %v", c.name, g)
			}
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%d payloads\n%-20s %6s %6s %6s %9s %6s\n", len(cases), "rule", "hit", "missed", "wrong", "precision", "recall")
	for _, rule := range slices.SortedFunc(maps.Keys(scores), cmp.Compare[string]) {
		s := scores[rule]
		precision, recall := 1.0, 1.0
		if s.hit+s.wrong > 0 {
			precision = float64(s.hit) / float64(s.hit+s.wrong)
		}
		if s.hit+s.missed > 0 {
			recall = float64(s.hit) / float64(s.hit+s.missed)
		} else {
			t.Errorf("%s: no payload of the corpus has it", rule)
		}
		fmt.Fprintf(&table, "%-20s %6d %6d %6d %9.2f %6.2f\n", rule, s.hit, s.missed, s.wrong, precision, recall)
		if precision < 0.95 || recall < 0.95 {
			t.Errorf("%s: precision %.2f, recall %.2f, want 0.95", rule, precision, recall)
		}
	}
	t.Log("\n" + table.String())
}
