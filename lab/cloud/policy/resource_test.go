package policy_test

import (
	"strings"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud/policy"
)

const (
	owner   = "000000000000"
	foreign = "111111111111"
	sent    = "arn:aws:sqs:us-east-1:000000000000:orders"
)

// Who is named may, or may not; what a root's ARN stands for depends on whose.
func TestPrincipals(t *testing.T) {
	role := policy.Caller{Account: owner, ARNs: []string{"arn:aws:sts::" + owner + ":assumed-role/app/i-1", "arn:aws:iam::" + owner + ":role/app"}}
	stranger := policy.Caller{Account: foreign, ARNs: []string{"arn:aws:sts::" + foreign + ":assumed-role/app/i-1", "arn:aws:iam::" + foreign + ":role/app"}}
	service := policy.Caller{Service: "s3.amazonaws.com"}
	for name, tt := range map[string]struct {
		effect, principal string
		by                policy.Caller
		want              policy.Decision
	}{
		"everyone":                   {"Allow", `"*"`, stranger, policy.Allowed},
		"everyone, written out":      {"Allow", `{"AWS":"*"}`, role, policy.Allowed},
		"everyone, a service":        {"Allow", `"*"`, service, policy.Allowed},
		"the role":                   {"Allow", `{"AWS":"arn:aws:iam::000000000000:role/app"}`, role, policy.Allowed},
		"the session":                {"Allow", `{"AWS":["arn:aws:sts::000000000000:assumed-role/app/i-1"]}`, role, policy.Allowed},
		"another session":            {"Allow", `{"AWS":["arn:aws:sts::000000000000:assumed-role/app/i-2"]}`, role, policy.Silent},
		"a role of the same name":    {"Allow", `{"AWS":"arn:aws:iam::000000000000:role/app"}`, stranger, policy.Silent},
		"one's own account":          {"Allow", `{"AWS":"000000000000"}`, role, policy.Silent}, // its own policies say
		"one's own root":             {"Allow", `{"AWS":"arn:aws:iam::000000000000:root"}`, role, policy.Silent},
		"another account":            {"Allow", `{"AWS":"111111111111"}`, stranger, policy.Allowed},
		"another account, not mine":  {"Allow", `{"AWS":"111111111111"}`, role, policy.Silent},
		"deny one's own account":     {"Deny", `{"AWS":"000000000000"}`, role, policy.Denied},
		"deny another account":       {"Deny", `{"AWS":"arn:aws:iam::111111111111:root"}`, role, policy.Silent},
		"deny everyone":              {"Deny", `"*"`, service, policy.Denied},
		"the service":                {"Allow", `{"Service":"s3.amazonaws.com"}`, service, policy.Allowed},
		"another service":            {"Allow", `{"Service":["sns.amazonaws.com"]}`, service, policy.Silent},
		"a service, asked by a role": {"Allow", `{"Service":"s3.amazonaws.com"}`, role, policy.Silent},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := policy.ParseResource(document(`{"Effect":"` + tt.effect + `","Principal":` + tt.principal + `,"Action":"sqs:SendMessage","Resource":"` + sent + `"}`))
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Evaluate(policy.Request{Action: "sqs:SendMessage", Resource: sent}, tt.by, owner); got != tt.want {
				t.Errorf("decision %v, want %v", got, tt.want)
			}
			if got := p.Evaluate(policy.Request{Action: "sqs:DeleteMessage", Resource: sent}, tt.by, owner); got != policy.Silent {
				t.Errorf("decision %v of another action", got)
			}
		})
	}
}

func TestResourceConditions(t *testing.T) {
	for condition, yes := range map[string]map[string]string{
		`"Bool":{"aws:SecureTransport":false}`:                                     {"aws:securetransport": "false"},
		`"Bool":{"aws:SecureTransport":"false"}`:                                   {"aws:securetransport": "false"},
		`"ArnEquals":{"aws:SourceArn":"arn:aws:s3:::b*"}`:                          {"aws:sourcearn": "arn:aws:s3:::bucket"},
		`"ArnNotLike":{"aws:PrincipalArn":"arn:aws:iam::*:role/app"}`:              {"aws:principalarn": "arn:aws:iam::000000000000:role/other"},
		`"ArnNotEquals":{"aws:PrincipalArn":"arn:aws:iam::000000000000:role/app"}`: {"aws:principalarn": "arn:aws:iam::000000000000:role/other"},
		`"Null":{"aws:SourceArn":"true"}`:                                          {},
		`"Null":{"aws:SourceArn":false}`:                                           {"aws:sourcearn": "arn:aws:s3:::b"},
		`"StringNotEquals":{"aws:PrincipalOrgID":"o-1"}`:                           {},
		`"StringLike":{"aws:userid":"AROA1:*"}`:                                    {"aws:userid": "AROA1:i-1"},
	} {
		p, err := policy.ParseResource(document(`{"Effect":"Deny","Principal":"*","Action":"sqs:*","Resource":"*","Condition":{` + condition + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		no := map[string]string{
			"aws:securetransport": "true", "aws:principalarn": "arn:aws:iam::000000000000:role/app", "aws:principalorgid": "o-1", "aws:userid": "AROA2:i-1",
		}
		if !strings.Contains(condition, "false") {
			no["aws:sourcearn"] = "arn:aws:sns:::t"
		}
		for want, context := range map[policy.Decision]map[string]string{policy.Denied: yes, policy.Silent: no} {
			if got := p.Evaluate(policy.Request{Action: "sqs:SendMessage", Resource: sent, Context: context}, policy.Caller{Account: owner}, owner); got != want {
				t.Errorf("%s with %v: %v, want %v", condition, context, got, want)
			}
		}
	}
}

func TestParseResourceRefuses(t *testing.T) {
	const rest = `"Action":"sqs:*","Resource":"*"`
	for name, doc := range map[string]string{
		"no principal":        document(`{"Effect":"Deny",` + rest + `}`),
		"an empty one":        document(`{"Effect":"Deny","Principal":{},` + rest + `}`),
		"all but one":         document(`{"Effect":"Deny","NotPrincipal":"*",` + rest + `}`),
		"a word":              document(`{"Effect":"Deny","Principal":"me",` + rest + `}`),
		"a pattern":           document(`{"Effect":"Deny","Principal":{"AWS":"arn:aws:iam::*:role/app"},` + rest + `}`),
		"federated":           document(`{"Effect":"Deny","Principal":{"Federated":"x"},` + rest + `}`),
		"an operator":         document(`{"Effect":"Deny","Principal":"*",` + rest + `,"Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}`),
		"a set operator":      document(`{"Effect":"Deny","Principal":"*",` + rest + `,"Condition":{"ForAnyValue:StringEquals":{"aws:userid":"x"}}}`),
		"a key":               document(`{"Effect":"Deny","Principal":"*",` + rest + `,"Condition":{"StringEquals":{"aws:SourceVpce":"vpce-1"}}}`),
		"a variable":          document(`{"Effect":"Deny","Principal":"*","Action":"sqs:*","Resource":"arn:aws:sqs:::${aws:PrincipalTag/team}"}`),
		"a value's variable":  document(`{"Effect":"Deny","Principal":"*",` + rest + `,"Condition":{"StringEquals":{"aws:userid":"x${aws:SourceIp}"}}}`),
		"another version":     `{"Version":"2020-01-01","Statement":[{"Effect":"Deny","Principal":"*",` + rest + `}]}`,
		"old, with variables": `{"Version":"2008-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"sqs:*","Resource":"${aws:userid}"}]}`,
	} {
		if _, err := policy.ParseResource(doc); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := policy.ParseResource(`{"Version":"2008-10-17","Id":"__default_policy_ID","Statement":{"Effect":"Deny","Principal":"*",` + rest + `}}`); err != nil {
		t.Error(err)
	}
}

func TestPublic(t *testing.T) {
	for statement, want := range map[string]bool{
		`{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"*"}`:                                                                           true,
		`{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"s3:GetObject","Resource":"*"}`:                                                                   true,
		`{"Effect":"Deny","Principal":"*","Action":"s3:GetObject","Resource":"*"}`:                                                                            false,
		`{"Effect":"Allow","Principal":{"AWS":"111111111111"},"Action":"s3:GetObject","Resource":"*"}`:                                                        false,
		`{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalOrgID":"o-1"}}}`:                 false,
		`{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"*","Condition":{"StringLike":{"aws:PrincipalArn":"arn:aws:iam::*:role/app"}}}`: true,
		`{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"*","Condition":{"StringNotEquals":{"aws:PrincipalAccount":"111111111111"}}}`:   true,
		`{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"true"}}}`:                       true,
	} {
		p, err := policy.ParseResource(document(statement))
		if err != nil {
			t.Fatal(err)
		}
		if p.Public() != want {
			t.Errorf("%s: public %v", statement, !want)
		}
	}
}
