package ec2

import (
	"strconv"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type filter struct {
	Name   string
	Values []string `q:"Value"`
}

// filters says which values a kind of resource has under each filter name.
type filters[T resource] map[string]func(T) []string

// compile checks fs against what the kind has, and against tag, tag-key and
// tag:KEY, and returns the test. All filters must match, each by any of its
// values; values are case-sensitive and may have the wildcards * and ?. A
// filter that the kind does not have is an error.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html
func (known filters[T]) compile(fs []filter) (func(T) bool, error) {
	tests := make([]func(T) bool, 0, len(fs))
	for _, f := range fs {
		if f.Name == "" {
			return nil, query.Errorf("InvalidParameterValue", "The filter '' is invalid")
		}
		// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html: 200 values a filter
		if len(f.Values) > 200 {
			return nil, query.Errorf("FilterLimitExceeded", "The maximum number of filter values specified on a single call is 200")
		}
		if len(f.Values) == 0 {
			return nil, query.Errorf("InvalidParameterValue", "The filter '%s' has no value", f.Name)
		}
		match := matcher(f.Values)
		switch key, isTag := strings.CutPrefix(f.Name, "tag:"); {
		case isTag:
			tests = append(tests, func(v T) bool {
				value, ok := tagValue(v.base().tags, key)
				return ok && match(value)
			})
		case f.Name == "tag-key", f.Name == "tag-value":
			byKey := f.Name == "tag-key"
			tests = append(tests, func(v T) bool {
				for _, t := range v.base().tags {
					if byKey && match(t.Key) || !byKey && match(t.Value) {
						return true
					}
				}
				return false
			})
		default:
			values, ok := known[f.Name]
			if !ok {
				return nil, query.Errorf("InvalidParameterValue", "The filter '%s' is invalid", f.Name)
			}
			tests = append(tests, func(v T) bool {
				for _, value := range values(v) {
					if match(value) {
						return true
					}
				}
				return false
			})
		}
	}
	return func(v T) bool {
		for _, t := range tests {
			if !t(v) {
				return false
			}
		}
		return true
	}, nil
}

// matcher tests a value against patterns, of which any may match.
func matcher(patterns []string) func(string) bool {
	plain := map[string]bool{}
	var wild []string
	for _, p := range patterns {
		if strings.ContainsAny(p, `*?\`) {
			wild = append(wild, p)
		} else {
			plain[p] = true
		}
	}
	return func(v string) bool {
		if plain[v] {
			return true
		}
		for _, p := range wild {
			if glob(p, v) {
				return true
			}
		}
		return false
	}
}

// glob matches * (any run of characters), ? (one) and \ before any of them.
// It goes back to the last star only, so it takes len(p)*len(v) at most.
func glob(p, v string) bool {
	pi, vi, star, mark := 0, 0, -1, 0
	for vi < len(v) {
		switch {
		case pi < len(p) && p[pi] == '*':
			star, mark = pi, vi
			pi++
		case pi+1 < len(p) && p[pi] == '\\' && p[pi+1] == v[vi]:
			pi, vi = pi+2, vi+1
		case pi < len(p) && p[pi] != '\\' && (p[pi] == '?' || p[pi] == v[vi]):
			pi, vi = pi+1, vi+1
		case star >= 0:
			mark++
			pi, vi = star+1, mark
		default:
			return false
		}
	}
	for pi < len(p) && p[pi] == '*' {
		pi++
	}
	return pi == len(p)
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func yes(b bool) []string { return []string{strconv.FormatBool(b)} }
