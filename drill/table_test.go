package drill_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/drill"
	"github.com/lecafe/lecafe/userdata"
)

// TestForeignTable pins that the payloads of others are pinned, many, of every
// verdict, and that each row says why.
func TestForeignTable(t *testing.T) {
	table, err := drill.ReadTable("foreign.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range table.Sources {
		if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(s.SHA256) || s.Version == "" || s.Suite == "" {
			t.Errorf("%s is not pinned: %+v", s.Name, s)
		}
	}
	verdicts := map[report.Verdict]int{}
	for _, c := range table.Cases {
		verdicts[c.Expect.Verdict]++
		if c.UserData != "" || len(c.Files) == 0 {
			t.Errorf("%s is not a payload of somebody else", c.Name)
		}
		if c.Expect.Verdict != report.Success && (c.Expect.Code == "" || c.Expect.Stage == "") {
			t.Errorf("%s expects no cause", c.Name)
		}
	}
	if len(table.Cases) < 20 || verdicts[report.Success] < 5 || verdicts[report.Degraded] < 3 || verdicts[report.Failure] < 10 {
		t.Errorf("%v", verdicts)
	}
	b, err := os.ReadFile("foreign.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n    why: "); n != len(table.Cases) {
		t.Errorf("%d of %d rows say why", n, len(table.Cases))
	}
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTableOfFiles reads payloads beside the table: one as it is, several as
// one message.
func TestTableOfFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.sh", "#!/bin/sh\necho a\n")
	write(t, dir, "b.yaml", "#cloud-config\npackages: [jq]\n")
	table, err := drill.ReadTable(write(t, dir, "table.yaml", `
cases:
  - {name: one, about: x, files: [a.sh], expect: {verdict: success}}
  - {name: both, about: x, files: [b.yaml, a.sh], expect: {verdict: success}}
  - {name: zipped, about: x, files: [a.sh], encode: gzip, expect: {verdict: success}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Fetch(t.Context(), dir, "http://127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"shell-script", "multipart", "gzip shell-script"} {
		data, err := table.Cases[i].Payload()
		if err != nil {
			t.Fatal(err)
		}
		p, err := userdata.Parse(data)
		if err != nil || p.Format != want || string(p.Scripts()[0].Body) != "#!/bin/sh\necho a\n" {
			t.Errorf("%s: %v, %+v", table.Cases[i].Name, err, p)
		}
		if want == "multipart" && (len(p.Parts) != 2 || p.Parts[0].Kind != userdata.KindCloudConfig || p.Parts[0].Name != "b.yaml") {
			t.Errorf("parts %+v", p.Parts)
		}
		if f := userdata.Lint(data, userdata.Options{}); want == "multipart" && len(f) > 0 && f[0].Severity.AtLeast(userdata.Error) {
			t.Errorf("the message is not well made: %+v", f)
		}
	}
}

func TestTablesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"unknown field":   "casses: []\n",
		"no payload":      "cases: [{name: a, expect: {verdict: success}}]\n",
		"payload twice":   "cases: [{name: a, user_data: x, files: [b]}]\n",
		"missing file":    "cases: [{name: a, files: [none]}]\n",
		"unknown source":  "cases: [{name: a, files: ['none:x']}]\n",
		"not that packet": "sources: [{name: s, package: p, version: '1', suite: x, sha256: 'aa'}]\ncases: [{name: a, files: ['s:x']}]\n",
	} {
		if name == "not that packet" {
			if err := os.MkdirAll(filepath.Join(dir, "payloads"), 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, dir, "payloads/aa.deb", "something else")
		}
		table, err := drill.ReadTable(write(t, dir, "table.yaml", text))
		if err == nil {
			err = table.Fetch(t.Context(), dir, "http://127.0.0.1:1")
		}
		if !errors.Is(err, drill.ErrTable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
