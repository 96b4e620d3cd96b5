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

// No document makes a resource's policy panic; one without an Allow allows
// nothing, and one without a Deny denies nothing.
func FuzzParseResource(f *testing.F) {
	f.Add(document(`{"Effect":"Allow","Principal":{"AWS":["000000000000","arn:aws:iam::000000000000:role/app"]},"Action":"s3:*","Resource":"arn:aws:s3:::b/${aws:userid}/*"}`), "s3:GetObject", "arn:aws:s3:::b/x")
	f.Add(document(`{"Effect":"Deny","Principal":"*","Action":"*","Resource":"${","Condition":{"Bool":{"aws:SecureTransport":false}}}`), "", "")
	f.Fuzz(func(t *testing.T, doc, action, resource string) {
		p, err := policy.ParseResource(doc)
		if err != nil {
			return
		}
		by := policy.Caller{Account: "000000000000", ARNs: []string{"arn:aws:iam::000000000000:role/app"}}
		got := p.Evaluate(policy.Request{Action: action, Resource: resource, Context: map[string]string{"aws:userid": "AROA:i-1", "aws:securetransport": "false"}}, by, "000000000000")
		if got == policy.Allowed && !strings.Contains(doc, "Allow") || got == policy.Denied && !strings.Contains(doc, "Deny") {
			t.Errorf("%s: %v", doc, got)
		}
	})
}
