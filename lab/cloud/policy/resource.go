package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Resource is the policy of a bucket or a queue: who may do what with it.
type Resource struct{ statements []grant }

// grant is a statement that names who it is for.
type grant struct {
	statement
	Principal principals
}

// principals are those of one statement.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_principal.html
type principals struct {
	Everyone bool
	AWS      list // accounts, and ARNs of roles, users and sessions
	Service  list
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *principals) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		if one != "*" {
			return fmt.Errorf("principal %q: want * or an object of AWS and Service", one)
		}
		p.Everyone = true
		return nil
	}
	var by struct{ AWS, Service list }
	if err := strict(b, &by); err != nil {
		return fmt.Errorf("principal: %w; AWS and Service are modelled", err)
	}
	p.AWS, p.Service = by.AWS, by.Service
	p.Everyone = slices.Contains(p.AWS, "*")
	return nil
}

// Caller is who makes a request, as a Principal element may name it.
type Caller struct {
	Account string   // empty of a service
	ARNs    []string // its own, and its role's
	Service string   // s3.amazonaws.com, of a service that acts by itself
}

// keys are the condition keys and variables that the cloud gives. A key that it
// does not know would be absent from every request, and a Deny that rests on it
// would never be: a resource's policy that names one is refused.
var keys = []string{
	"aws:userid", "aws:username", "aws:principalarn", "aws:principaltype", "aws:principalaccount", "aws:principalorgid",
	"aws:principalisawsservice", "aws:principalservicename", "aws:sourcearn", "aws:sourceaccount", "aws:requestedregion",
	"aws:securetransport", "ec2:sourceinstancearn", "s3:prefix", "s3:delimiter", "s3:max-keys",
}

// ParseResource reads the policy of a resource.
func ParseResource(doc string) (*Resource, error) {
	statements, version, err := parse[grant](doc)
	if err != nil {
		return nil, err
	}
	switch version {
	case current:
	case "", "2008-10-17":
		if strings.Contains(doc, "${") {
			return nil, fmt.Errorf("parse policy: Version %q: policy variables need %s", version, current)
		}
	default:
		return nil, fmt.Errorf("parse policy: Version %q: want %s", version, current)
	}
	return &Resource{statements}, nil
}

func (g grant) check() error {
	if err := g.statement.check(); err != nil {
		return err
	}
	if !g.Principal.Everyone && len(g.Principal.AWS)+len(g.Principal.Service) == 0 {
		return fmt.Errorf("a Principal is needed")
	}
	for _, p := range g.Principal.AWS {
		if p != "*" && accountOf(p) == "" {
			return fmt.Errorf("principal %q is no account and no ARN of a role, user or session", p)
		}
	}
	texts := slices.Concat(g.Resource, g.NotResource)
	for _, conditions := range g.Condition {
		for key, v := range conditions {
			if !slices.Contains(keys, strings.ToLower(key)) {
				return fmt.Errorf("condition key %s is not modelled", key)
			}
			texts = append(texts, v...)
		}
	}
	for _, text := range texts {
		for rest := text; ; {
			_, after, ok := strings.Cut(rest, "${")
			if !ok {
				break
			}
			name, _, _ := strings.Cut(after, "}")
			name, _, _ = strings.Cut(name, ",")
			if name = strings.TrimSpace(name); !slices.Contains([]string{"*", "?", "$"}, name) && !slices.Contains(keys, strings.ToLower(name)) {
				return fmt.Errorf("variable ${%s} is not modelled", name)
			}
			rest = after
		}
	}
	return nil
}

// accountOf is the account of a principal: twelve digits, or in an ARN.
func accountOf(principal string) string {
	account := principal
	if parts := strings.SplitN(principal, ":", 6); len(parts) == 6 && parts[0] == "arn" && (parts[2] == "iam" || parts[2] == "sts") {
		account = parts[4]
	}
	if len(account) != 12 || strings.Trim(account, "0123456789") != "" {
		return ""
	}
	return account
}

// wholeAccount says whether a principal stands for all of an account.
func wholeAccount(principal string) bool {
	return !strings.Contains(principal, ":") || strings.HasSuffix(principal, ":root")
}

// Evaluate decides on one request of by. owner is the account that the resource
// is of: to name it whole allows its roles nothing, their own policies do.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic_policy-eval-basics-request.html
func (p *Resource) Evaluate(r Request, by Caller, owner string) Decision {
	result := Silent
	for _, g := range p.statements {
		if !g.statement.matches(r) {
			continue
		}
		switch {
		case g.Effect == "Deny" && g.Principal.are(by):
			return Denied
		case g.Effect == "Allow" && g.Principal.are(by) && (by.Account != owner || g.Principal.name(by)):
			result = Allowed
		}
	}
	return result
}

// are says whether by is one of those meant.
func (p principals) are(by Caller) bool {
	return p.name(by) || by.Account != "" && slices.ContainsFunc(p.AWS, func(s string) bool { return wholeAccount(s) && accountOf(s) == by.Account })
}

// name says whether by is meant, and not only as one of its account.
func (p principals) name(by Caller) bool {
	return p.Everyone ||
		slices.ContainsFunc(p.AWS, func(s string) bool { return slices.Contains(by.ARNs, s) }) ||
		by.Service != "" && slices.Contains(p.Service, by.Service)
}

// narrow are the conditions that make a statement for everyone one for some.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-control-block-public-access.html#access-control-block-public-access-policy-status
var narrow = []string{"aws:principalarn", "aws:principalaccount", "aws:principalorgid", "aws:sourcearn", "aws:sourceaccount", "aws:userid"}

// Public says whether the policy allows anything to everyone.
func (p *Resource) Public() bool {
	return slices.ContainsFunc(p.statements, func(g grant) bool {
		if g.Effect != "Allow" || !g.Principal.Everyone {
			return false
		}
		for op, conditions := range g.Condition {
			for key, v := range conditions {
				fixed := !slices.ContainsFunc(v, func(s string) bool { return strings.ContainsAny(s, "*?$") })
				if fixed && !strings.Contains(op, "Not") && !strings.HasSuffix(op, "IfExists") && op != "Null" && slices.Contains(narrow, strings.ToLower(key)) {
					return false
				}
			}
		}
		return true
	})
}

// Actions are the patterns that the statements name, and Resources likewise;
// services check that they are their own.
func (p *Resource) Actions() []string {
	var out []string
	for _, g := range p.statements {
		out = append(out, slices.Concat(g.Action, g.NotAction)...)
	}
	return out
}

// Resources are the patterns of ARNs that the statements name.
func (p *Resource) Resources() []string {
	var out []string
	for _, g := range p.statements {
		out = append(out, slices.Concat(g.Resource, g.NotResource)...)
	}
	return out
}
