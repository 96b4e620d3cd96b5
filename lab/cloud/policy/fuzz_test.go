package policy_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud/policy"
)

// Match agrees with a regular expression of the same meaning.
func FuzzMatch(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Add("**?", "")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if strings.ContainsAny(pattern, "\x00\x01") || strings.ContainsFunc(pattern+s, func(r rune) bool { return r > 127 }) || len(pattern) > 50 {
			return
		}
		expr := regexp.QuoteMeta(pattern)
		expr = strings.NewReplacer(`\*`, `[\s\S]*`, `\?`, `[\s\S]`).Replace(expr)
		if want := regexp.MustCompile(`\A` + expr + `\z`).MatchString(s); policy.Match(pattern, s) != want {
			t.Errorf("Match(%q, %q) is not %v", pattern, s, want)
		}
	})
}

// No document makes Evaluate panic, and an empty one allows nothing.
func FuzzParse(f *testing.F) {
	f.Add(document(`{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::b/${aws:userid}/*"}`), "s3:GetObject", "arn:aws:s3:::b/x")
	f.Add(document(`{"Effect":"Allow","Action":"*","Resource":"${","Condition":{"StringLike":{"aws:userid":["${*}"]}}}`), "", "")
	f.Fuzz(func(t *testing.T, doc, action, resource string) {
		d, err := policy.Parse(doc)
		if err != nil {
			return
		}
		got := d.Evaluate(policy.Request{Action: action, Resource: resource, Context: map[string]string{"aws:userid": "AROA:i-1"}})
		if got == policy.Allowed && !strings.Contains(doc, "Allow") {
			t.Errorf("%s allows", doc)
		}
	})
}
