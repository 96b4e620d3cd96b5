package userdata

import (
	"bytes"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/lecafe/lecafe/internal/lazyregexp"
)

var yamlPrefix = lazyregexp.New(`^yaml: (?:unmarshal errors:\s*)?(?:line \d+: )?`)

// maxSearch bounds lines times bytes of a search: a payload of 16 KB has
// about 500 lines.
const maxSearch = 1 << 24

// yamlError returns the line on which text stops being YAML, and why. The
// parser's own line is where the surrounding map or list began, which may be
// far above. So this asks which lines do parse by themselves.
func yamlError(err error, text []byte) (int, string) {
	message := yamlPrefix().ReplaceAllString(strings.TrimSpace(err.Error()), "")
	lines := bytes.SplitAfter(text, []byte("\n"))
	if len(lines)*len(text) > maxSearch {
		return 1, message
	}
	end, n := len(text), len(lines)
	for n > 1 {
		var doc yaml.Node
		end -= len(lines[n-1])
		if yaml.Unmarshal(text[:end], &doc) == nil {
			break
		}
		n--
	}
	// An error at the very end is one on the last line with text.
	for n > 1 && len(bytes.TrimSpace(lines[n-1])) == 0 {
		n--
	}
	return n, message
}
