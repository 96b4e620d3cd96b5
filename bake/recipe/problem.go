package recipe

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/internal/spelling"
)

// Problem is one thing that is wrong with a recipe.
type Problem struct {
	File   string // as it was named to Load, or "--set"
	Line   int    // from 1; 0 where unknown
	Column int    // from 1
	Field  string // as image.tags.team or provision[2].files[0].mode
	Value  string // as it stands there, shortened; may be empty
	What   string // what is wrong
	Fix    string // what to do
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Field != "" {
		fmt.Fprintf(&b, "%s: ", p.Field)
	}
	if p.Value != "" {
		fmt.Fprintf(&b, "%q: ", p.Value)
	}
	b.WriteString(p.What)
	if p.Fix != "" {
		b.WriteString("; " + p.Fix)
	}
	return b.String()
}

// Invalid is the error of a recipe with problems.
type Invalid struct{ Problems []Problem }

func (e *Invalid) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	n := "1 problem"
	if len(e.Problems) != 1 {
		n = fmt.Sprintf("%d problems", len(e.Problems))
	}
	return strings.Join(append(lines, n+" in the recipe; nothing was done"), "\n")
}

func sorted(ps []Problem) []Problem {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Field, b.Field))
	})
	return slices.Compact(ps)
}

func shorten(s string) string {
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		s = s[:i] + "…"
	}
	if r := []rune(s); len(r) > 80 {
		s = string(r[:79]) + "…"
	}
	return s
}

// nearest returns the candidate closest to word, if it is close enough to be
// what was meant.
func nearest(word string, candidates []string) (string, bool) {
	best, bestD := "", 3
	for _, c := range candidates {
		if d := spelling.Distance(word, c); d < bestD && d < max(2, len(c)/2) {
			best, bestD = c, d
		}
	}
	return best, best != ""
}
