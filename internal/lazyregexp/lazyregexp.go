// Package lazyregexp compiles regular expressions when they are first used. A
// program that links dozens of them and needs a few, as lecafe-agent at a boot,
// would else pay for all of them at every start.
package lazyregexp

import (
	"os"
	"regexp"
	"strings"
	"sync"
)

// New returns expr, compiled at the first call. In tests it is compiled at once,
// so that a wrong one panics there and not on an instance.
func New(expr string) func() *regexp.Regexp {
	form := sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
	if strings.HasSuffix(os.Args[0], ".test") {
		form()
	}
	return form
}
