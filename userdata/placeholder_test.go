package userdata

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Lines without any of a placeholder's words are not looked at by its form.
// That must pass over no placeholder of the corpus.
func TestPlaceholderNeedsPassOverNothing(t *testing.T) {
	found := make([]int, len(placeholderForms))
	err := filepath.WalkDir("testdata", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			for i := range placeholderForms {
				want := placeholderForms[i].form().FindStringIndex(line)
				if want != nil {
					found[i]++
				}
				if got := placeholderForms[i].find(line); !slices.Equal(got, want) {
					t.Errorf("%s: %q: found at %v, want %v", path, line, got, want)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range found {
		if n == 0 {
			t.Errorf("no line of the corpus has %s", placeholderForms[i].form())
		}
	}
}
