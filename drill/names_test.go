package drill_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/drill"
)

// TestTheAgentKnowsNoCase pins that the program that judges has never heard of
// the cases it is tried with: neither their names nor their payloads.
func TestTheAgentKnowsNoCase(t *testing.T) {
	cases, err := drill.Cases()
	if err != nil {
		t.Fatal(err)
	}
	table, err := drill.ReadTable("foreign.yaml")
	if err != nil {
		t.Fatal(err)
	}
	marks := []string{"drill", "foreign-"}
	for _, c := range append(cases, table.Cases...) {
		// One word may be any word.
		if strings.Contains(c.Name, "-") {
			marks = append(marks, `"`+c.Name+`"`)
		}
	}
	looked := 0
	err = filepath.WalkDir("../agent", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		looked++
		for _, m := range marks {
			if strings.Contains(string(b), m) {
				t.Errorf("%s has %s", path, m)
			}
		}
		return nil
	})
	if err != nil || looked < 20 {
		t.Errorf("%d files, %v", looked, err)
	}
}
