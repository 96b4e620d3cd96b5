// Package cleanup owns what must not be in an image: rules that clean a root
// directory and, the same rules from the other side, prove it clean. It works
// on any tree (a builder's "/", a mounted disk, a test's directory), never
// follows a symbolic link, and imports no AWS SDK. It refuses to report a
// secret's value: findings carry the path and the rule alone.
package cleanup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Options select the tree and the rules.
type Options struct {
	Root string   // directory that is "/" of the image
	Keep []string // names of rules that are left out, as the recipe's clean.keep

	// SetuidBaseline lists the set-uid and set-gid files (slash paths from the
	// root) that the source image had; others are findings. Nil: no check.
	SetuidBaseline []string

	// Scanner looks for secrets in files that no package installed. Nil: only
	// the built-in check for private keys.
	Scanner Scanner
	Log     *slog.Logger // nil: silent
}

// Scanner finds secrets in one file's content. It returns the names of the
// rules that matched, never what matched.
type Scanner interface {
	Scan(path string, content []byte) []Match
}

// Match is one secret that a Scanner found.
type Match struct {
	Rule string // the scanner's name of it, as aws-access-token
	Line int    // from 1, 0 where unknown
}

// Finding is one thing that must not be in an image.
type Finding struct {
	Rule   string `json:"rule"`
	Path   string `json:"path"` // from the root, with a leading slash
	Line   int    `json:"line,omitempty"`
	Why    string `json:"why"`
	Detail string `json:"detail,omitempty"` // the scanner's rule, the user's name, ...
}

func (f Finding) String() string {
	at := f.Path
	if f.Line > 0 {
		at = fmt.Sprintf("%s:%d", f.Path, f.Line)
	}
	if f.Detail != "" {
		return fmt.Sprintf("%s: %s (%s): %s", at, f.Rule, f.Detail, f.Why)
	}
	return fmt.Sprintf("%s: %s: %s", at, f.Rule, f.Why)
}

// rule is one kind of leftover. clean may be nil: such a rule can only find.
type rule struct {
	name  string
	why   string
	clean func(*tree) error
	check func(*tree) []Finding
}

// Rule describes a rule to people.
type Rule struct {
	Name   string `json:"name"`
	Why    string `json:"why"`
	Cleans bool   `json:"cleans"` // false: it only finds
}

// Rules lists all rules in the order in which they run.
func Rules() []Rule {
	var out []Rule
	for _, r := range rules() {
		out = append(out, Rule{r.name, r.why, r.clean != nil})
	}
	return out
}

// CheckKeep reports every name in keep that is no rule.
func CheckKeep(keep []string) error {
	var errs []error
	for _, k := range keep {
		if !slices.ContainsFunc(rules(), func(r rule) bool { return r.name == k }) {
			errs = append(errs, fmt.Errorf("no cleanup rule %q", k))
		}
	}
	return errors.Join(errs...)
}

// Clean applies every rule that is not kept. It goes on after an error and
// returns all of them: what is left then shows in Inspect.
func Clean(ctx context.Context, o Options) error {
	t, err := openTree(o)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range rules() {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if r.clean == nil || slices.Contains(o.Keep, r.name) {
			continue
		}
		if err := r.clean(t); err != nil {
			errs = append(errs, fmt.Errorf("clean %s: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
}

// Inspect returns what every rule that is not kept still finds, in order of
// path. An error means that the tree could not be read to the end: it is then
// not proved clean.
func Inspect(ctx context.Context, o Options) ([]Finding, error) {
	t, err := openTree(o)
	if err != nil {
		return nil, err
	}
	var out []Finding
	for _, r := range rules() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if slices.Contains(o.Keep, r.name) {
			continue
		}
		for _, f := range r.check(t) {
			f.Rule = r.name
			f.Why = cmp.Or(f.Why, r.why)
			out = append(out, f)
		}
	}
	found, err := t.scan(ctx)
	if err != nil {
		return nil, err
	}
	out = append(out, found...)
	slices.SortFunc(out, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Rule, b.Rule), cmp.Compare(a.Line, b.Line))
	})
	return slices.Compact(out), errors.Join(t.errs...)
}

// Setuid lists the tree's set-uid and set-gid files: the baseline to take
// before provisioning starts.
func Setuid(ctx context.Context, root string) ([]string, error) {
	t, err := openTree(Options{Root: root})
	if err != nil {
		return nil, err
	}
	return t.setuid(ctx)
}
