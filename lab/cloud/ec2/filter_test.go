package ec2

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestGlob compares glob with the regular expression that means the same.
func TestGlob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab*?]{0,8}(\\[*?\\])?[ab*]{0,4}`).Draw(t, "pattern")
		value := rapid.StringMatching(`[ab*?\\]{0,10}`).Draw(t, "value")
		var re strings.Builder
		for i := 0; i < len(pattern); i++ {
			switch c := pattern[i]; {
			case c == '*':
				re.WriteString(".*")
			case c == '?':
				re.WriteString(".")
			case c == '\\' && i+1 < len(pattern):
				i++
				re.WriteString(regexp.QuoteMeta(string(pattern[i])))
			default:
				re.WriteString(regexp.QuoteMeta(string(c)))
			}
		}
		want := regexp.MustCompile("^(?s:" + re.String() + ")$").MatchString(value)
		if got := glob(pattern, value); got != want {
			t.Fatalf("glob(%q, %q) is %v", pattern, value, got)
		}
	})
}
