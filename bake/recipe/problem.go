package recipe

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/internal/spelling"
	"github.com/lecafe/lecafe/internal/strictyaml"
)

// Invalid is the error of a recipe with problems. Their files are named as they
// were to Load, or "--set".
type Invalid struct{ Problems strictyaml.Problems }

func (e *Invalid) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	for _, p := range e.Problems {
		lines = append(lines, p.Error())
	}
	n := "1 problem"
	if len(e.Problems) != 1 {
		n = fmt.Sprintf("%d problems", len(e.Problems))
	}
	return strings.Join(append(lines, n+" in the recipe; nothing was done"), "\n")
}

func sorted(ps strictyaml.Problems) strictyaml.Problems {
	slices.SortStableFunc(ps, func(a, b strictyaml.Problem) int {
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
