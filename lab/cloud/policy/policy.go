// Package policy evaluates IAM policies, a role's and a resource's, as far as
// lecafe's cloud needs them: Effect, Principal, Action, Resource with wildcards,
// policy variables and conditions on strings, ARNs and Booleans. It owns what
// one policy says of one request (an explicit Deny wins, silence denies) and
// refuses, at parsing, what it does not model: a policy that AWS would read more
// strictly must not pass here. Several policies are weighed by package cloud.
//
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Decision is what a policy says of one request.
type Decision int

// Decisions. Silent denies too, but another policy's Allow overrides it.
const (
	Silent Decision = iota
	Allowed
	Denied
)

// Request is one question: may Action be done to Resource?
type Request struct {
	Action   string            // s3:GetObject
	Resource string            // ARN, or * for actions without resources
	Context  map[string]string // condition keys and variables in lower case: aws:userid, s3:prefix
}

// Document is one parsed policy.
type Document struct{ statements []statement }

type statement struct {
	Sid         string
	Effect      string
	Action      list
	NotAction   list
	Resource    list
	NotResource list
	Condition   map[string]map[string]values
}

// list is a JSON string or array of strings.
type list []string

// UnmarshalJSON implements json.Unmarshaler.
func (l *list) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*l = list{one}
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return fmt.Errorf("want a string or an array of strings, not %s", b)
	}
	*l = many
	return nil
}

// values are what a condition compares with: a list whose Booleans need no
// quotes.
type values list

// UnmarshalJSON implements json.Unmarshaler.
func (v *values) UnmarshalJSON(b []byte) error {
	var one bool
	if json.Unmarshal(b, &one) == nil {
		*v = values{strconv.FormatBool(one)}
		return nil
	}
	return (*list)(v).UnmarshalJSON(b)
}

// Parse reads a policy document.
func Parse(doc string) (*Document, error) {
	statements, version, err := parse[statement](doc)
	if err != nil {
		return nil, err
	}
	if version != current {
		return nil, fmt.Errorf("parse policy: Version %q: policy variables need %s", version, current)
	}
	return &Document{statements}, nil
}

const current = "2012-10-17"

// parse reads a document of one statement or several.
func parse[S interface{ check() error }](doc string) ([]S, string, error) {
	var top struct {
		Version   string
		ID        string `json:"Id"`
		Statement json.RawMessage
	}
	if err := strict([]byte(doc), &top); err != nil {
		return nil, "", fmt.Errorf("parse policy: %w", err)
	}
	var out []S
	if err := strict(top.Statement, &out); err != nil {
		var one S
		if strict(top.Statement, &one) != nil {
			return nil, "", fmt.Errorf("parse policy: Statement: %w", err)
		}
		out = []S{one}
	}
	for i, s := range out {
		if err := s.check(); err != nil {
			return nil, "", fmt.Errorf("parse policy: Statement %d: %w", i, err)
		}
	}
	return out, top.Version, nil
}

func strict(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}

func (s statement) check() error {
	if s.Effect != "Allow" && s.Effect != "Deny" {
		return fmt.Errorf("effect %q is neither Allow nor Deny", s.Effect)
	}
	if (len(s.Action) == 0) == (len(s.NotAction) == 0) {
		return fmt.Errorf("one of Action and NotAction is needed")
	}
	if (len(s.Resource) == 0) == (len(s.NotResource) == 0) {
		return fmt.Errorf("one of Resource and NotResource is needed")
	}
	for op := range s.Condition {
		if _, ok := operators[strings.TrimSuffix(op, "IfExists")]; !ok {
			return fmt.Errorf("condition operator %s is not modelled", op)
		}
	}
	return nil
}

// Evaluate decides on one request.
func (d *Document) Evaluate(r Request) Decision {
	result := Silent
	for _, s := range d.statements {
		if !s.matches(r) {
			continue
		}
		if s.Effect == "Deny" {
			return Denied
		}
		result = Allowed
	}
	return result
}

func (s statement) matches(r Request) bool {
	action := func(p string) bool { return Match(strings.ToLower(p), strings.ToLower(r.Action)) }
	resource := func(p string) bool { return r.matchVariable(p, r.Resource) }
	switch {
	case len(s.Action) > 0 && !slices.ContainsFunc(s.Action, action),
		len(s.NotAction) > 0 && slices.ContainsFunc(s.NotAction, action),
		len(s.Resource) > 0 && !slices.ContainsFunc(s.Resource, resource),
		len(s.NotResource) > 0 && slices.ContainsFunc(s.NotResource, resource):
		return false
	}
	for op, keys := range s.Condition {
		for key, values := range keys {
			key = strings.ToLower(key)
			name, ifExists := strings.CutSuffix(op, "IfExists")
			if _, have := r.Context[key]; ifExists && !have {
				continue
			}
			if !operators[name](r, key, list(values)) {
				return false
			}
		}
	}
	return true
}

// operators are those of string, ARN and Boolean conditions. A missing key fails the
// positive ones and satisfies the negative ones:
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
var operators = map[string]func(r Request, key string, values list) bool{
	"StringEquals":    equals,
	"StringNotEquals": func(r Request, k string, v list) bool { return !equals(r, k, v) },
	"StringLike":      like,
	"StringNotLike":   func(r Request, k string, v list) bool { return !like(r, k, v) },
	"Bool":            equals,
	"ArnEquals":       like,
	"ArnLike":         like,
	"ArnNotEquals":    func(r Request, k string, v list) bool { return !like(r, k, v) },
	"ArnNotLike":      func(r Request, k string, v list) bool { return !like(r, k, v) },
	"Null": func(r Request, k string, v list) bool {
		_, have := r.Context[k]
		return slices.Contains(v, strconv.FormatBool(!have))
	},
}

func equals(r Request, key string, values list) bool {
	have, ok := r.Context[key]
	return ok && slices.ContainsFunc(values, func(v string) bool {
		want, known := r.expand(v, func(s string) string { return s })
		return known && want == have
	})
}

func like(r Request, key string, values list) bool {
	have, ok := r.Context[key]
	return ok && slices.ContainsFunc(values, func(v string) bool { return r.matchVariable(v, have) })
}

// matchVariable expands variables before wildcards are matched: a value's own
// * stays a star.
func (r Request) matchVariable(pattern, value string) bool {
	p, known := r.expand(pattern, func(s string) string {
		return strings.NewReplacer("*", literalStar, "?", literalMark).Replace(s)
	})
	return known && Match(p, value)
}

// expand replaces ${key}; an unknown key makes the element match nothing.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html
func (r Request) expand(s string, quote func(string) string) (string, bool) {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			b.WriteString(s)
			return b.String(), true
		}
		j := strings.IndexByte(s[i:], '}')
		if j < 0 {
			b.WriteString(s)
			return b.String(), true
		}
		b.WriteString(s[:i])
		name := s[i+2 : i+j]
		switch name {
		case "*", "?", "$":
			b.WriteString(quote(name))
		default:
			key, fallback, hasDefault := strings.Cut(name, ",")
			value, ok := r.Context[strings.ToLower(strings.TrimSpace(key))]
			if !ok {
				if !hasDefault {
					return "", false
				}
				value = strings.Trim(strings.TrimSpace(fallback), "'")
			}
			b.WriteString(quote(value))
		}
		s = s[i+j+1:]
	}
}

// Stars and question marks that stand for themselves.
const (
	literalStar = "\x00"
	literalMark = "\x01"
)

// Match says whether s is what pattern describes; * is any run of characters,
// ? any one.
func Match(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i] ||
			pattern[p] == literalStar[0] && s[i] == '*' || pattern[p] == literalMark[0] && s[i] == '?'):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
