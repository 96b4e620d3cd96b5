package policy_test

import (
	"strings"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud/policy"
)

const instance = "AROA0123456789:i-0123456789abcdef0"

func document(statements ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

func TestEvaluate(t *testing.T) {
	own := `{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::reports/lecafe/${aws:userid}/*"}`
	for name, tt := range map[string]struct {
		doc              string
		action, resource string
		context          map[string]string
		want             policy.Decision
	}{
		"silence":                {document(own), "s3:GetObject", "arn:aws:s3:::reports/x", nil, policy.Silent},
		"its own prefix":         {document(own), "s3:PutObject", "arn:aws:s3:::reports/lecafe/" + instance + "/boot.json", nil, policy.Allowed},
		"another's prefix":       {document(own), "s3:PutObject", "arn:aws:s3:::reports/lecafe/AROA0123456789:i-0fedcba/boot.json", nil, policy.Silent},
		"prefix of a longer ID":  {document(own), "s3:PutObject", "arn:aws:s3:::reports/lecafe/" + instance + "9/boot.json", nil, policy.Silent},
		"action in another case": {document(own), "S3:putobject", "arn:aws:s3:::reports/lecafe/" + instance + "/boot.json", nil, policy.Allowed},
		"unknown variable":       {document(strings.Replace(own, "aws:userid", "aws:PrincipalTag/team", 1)), "s3:PutObject", "arn:aws:s3:::reports/lecafe//x", nil, policy.Silent},
		"variable with default":  {document(`{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::b/${aws:PrincipalTag/team, 'core'}/*"}`), "s3:GetObject", "arn:aws:s3:::b/core/x", nil, policy.Allowed},
		"deny wins":              {document(`{"Effect":"Allow","Action":"*","Resource":"*"}`, `{"Effect":"Deny","Action":["s3:Delete*"],"Resource":["arn:aws:s3:::b/*"]}`), "s3:DeleteObject", "arn:aws:s3:::b/x", nil, policy.Denied},
		"deny of another action": {document(`{"Effect":"Allow","Action":"*","Resource":"*"}`, `{"Effect":"Deny","Action":["s3:Delete*"],"Resource":["arn:aws:s3:::b/*"]}`), "s3:GetObject", "arn:aws:s3:::b/x", nil, policy.Allowed},
		"not action":             {document(`{"Effect":"Allow","NotAction":"iam:*","Resource":"*"}`), "iam:CreateUser", "*", nil, policy.Silent},
		"not resource":           {document(`{"Effect":"Deny","Action":"s3:*","NotResource":"arn:aws:s3:::mine/*"}`), "s3:GetObject", "arn:aws:s3:::other/x", nil, policy.Denied},
		"literal star":           {document(`{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::b/${*}"}`), "s3:GetObject", "arn:aws:s3:::b/x", nil, policy.Silent},
		"condition holds":        {document(`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringLike":{"s3:prefix":["${aws:userid}/*"]}}}`), "s3:ListBucket", "arn:aws:s3:::b", map[string]string{"s3:prefix": instance + "/"}, policy.Allowed},
		"condition fails":        {document(`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringEquals":{"s3:prefix":"a/"}}}`), "s3:ListBucket", "arn:aws:s3:::b", map[string]string{"s3:prefix": "b/"}, policy.Silent},
		"condition's key absent": {document(`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringEquals":{"s3:prefix":"a/"}}}`), "s3:ListBucket", "arn:aws:s3:::b", nil, policy.Silent},
		"negated, key absent":    {document(`{"Effect":"Deny","Action":"s3:ListBucket","Resource":"*","Condition":{"StringNotEquals":{"s3:prefix":"a/"}}}`), "s3:ListBucket", "arn:aws:s3:::b", nil, policy.Denied},
		"if it exists, absent":   {document(`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringEqualsIfExists":{"s3:prefix":"a/"}}}`), "s3:ListBucket", "arn:aws:s3:::b", nil, policy.Allowed},
		"if it exists, another":  {document(`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"*","Condition":{"StringEqualsIfExists":{"s3:prefix":"a/"}}}`), "s3:ListBucket", "arn:aws:s3:::b", map[string]string{"s3:prefix": "b/"}, policy.Silent},
		"Boolean":                {document(`{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}`), "s3:ListBucket", "arn:aws:s3:::b", map[string]string{"aws:securetransport": "false"}, policy.Denied},
		"one statement, no list": {`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"sqs:SendMessage","Resource":"*"}}`, "sqs:SendMessage", "arn:aws:sqs:us-east-1:000000000000:q", nil, policy.Allowed},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := policy.Parse(tt.doc)
			if err != nil {
				t.Fatal(err)
			}
			context := map[string]string{"aws:userid": instance}
			for k, v := range tt.context {
				context[k] = v
			}
			if got := d.Evaluate(policy.Request{Action: tt.action, Resource: tt.resource, Context: context}); got != tt.want {
				t.Errorf("decision %v, want %v", got, tt.want)
			}
		})
	}
}

// A caller whose session is named with wildcards gains nothing by it.
func TestVariableValuesAreLiteral(t *testing.T) {
	d, err := policy.Parse(document(`{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/${aws:userid}/x"}`))
	if err != nil {
		t.Fatal(err)
	}
	r := policy.Request{Action: "s3:GetObject", Resource: "arn:aws:s3:::b/anyone/x", Context: map[string]string{"aws:userid": "*"}}
	if got := d.Evaluate(r); got != policy.Silent {
		t.Errorf("decision %v", got)
	}
	r.Resource = "arn:aws:s3:::b/*/x"
	if got := d.Evaluate(r); got != policy.Allowed {
		t.Errorf("decision %v on the literal", got)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, doc := range map[string]string{
		"not JSON":           `{`,
		"the old version":    `{"Version":"2008-10-17","Statement":[]}`,
		"unknown element":    document(`{"Effect":"Allow","Action":"*","Resource":"*","Principal":"*"}`),
		"effect":             document(`{"Effect":"allow","Action":"*","Resource":"*"}`),
		"no action":          document(`{"Effect":"Allow","Resource":"*"}`),
		"two kinds":          document(`{"Effect":"Allow","Action":"*","NotAction":"*","Resource":"*"}`),
		"no resource":        document(`{"Effect":"Allow","Action":"*"}`),
		"condition operator": document(`{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}`),
	} {
		if _, err := policy.Parse(doc); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"*", "", true}, {"a*c", "abbbc", true}, {"a*c", "abbbd", false}, {"a?c", "abc", true}, {"a?c", "ac", false},
		{"*a*b*", "xxaxxbxx", true}, {"*a*b*", "xxbxxaxx", false}, {"a", "ab", false}, {"**", "x", true},
	} {
		if got := policy.Match(tt.pattern, tt.s); got != tt.want {
			t.Errorf("Match(%q, %q) = %v", tt.pattern, tt.s, got)
		}
	}
}
