package ec2

import (
	"slices"
	"strconv"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type ruleOut struct {
	ID          string           `out:"securityGroupRuleId"`
	GroupID     string           `out:"groupId"`
	Owner       string           `out:"groupOwnerId"`
	Egress      bool             `out:"isEgress"`
	Protocol    string           `out:"ipProtocol"`
	From        int              `out:"fromPort"`
	To          int              `out:"toPort"`
	CIDR4       string           `out:"cidrIpv4"`
	CIDR6       string           `out:"cidrIpv6"`
	PrefixList  string           `out:"prefixListId"`
	Referenced  *referencedGroup `out:"referencedGroupInfo"`
	Description string           `out:"description"`
	Tags        []tag            `out:"tagSet>item"`
}

type referencedGroup struct {
	GroupID string `out:"groupId"`
	UserID  string `out:"userId"`
	VpcID   string `out:"vpcId"`
}

func (r rule) out(g *securityGroup, egress bool) ruleOut {
	out := ruleOut{ID: r.id, GroupID: g.id, Owner: account, Egress: egress, Protocol: r.protocol, From: -1, To: -1, CIDR4: r.cidr4, CIDR6: r.cidr6, PrefixList: r.prefixList, Description: r.description, Tags: r.tags}
	if r.from != nil {
		out.From = *r.from
	}
	if r.to != nil {
		out.To = *r.to
	}
	if r.group != "" {
		out.Referenced = &referencedGroup{r.group, account, g.vpc.id}
	}
	return out
}

type authorizeOut struct {
	Return bool      `out:"return"`
	Rules  []ruleOut `out:"securityGroupRuleSet>item"`
}

func (c *call) authorizeIngress(in *ruleIn) (any, error) { return c.authorize(in, false) }
func (c *call) authorizeEgress(in *ruleIn) (any, error)  { return c.authorize(in, true) }

// authorize adds rules; one that is there already is refused, and then none is
// added.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AuthorizeSecurityGroupIngress.html
func (c *call) authorize(in *ruleIn, egress bool) (any, error) {
	g, err := c.r.group(in.GroupID, in.GroupName)
	if err != nil {
		return nil, err
	}
	add, err := c.rules(in, g.vpc)
	if err != nil {
		return nil, err
	}
	if len(add) == 0 {
		return nil, query.Errorf("MissingParameter", "The request must contain a permission with a source or destination")
	}
	tags, err := specified(in.TagSpecs, "security-group-rule")
	if err != nil {
		return nil, err
	}
	to := &g.ingress
	if egress {
		to = &g.egress
	}
	next := slices.Clone(*to)
	out := &authorizeOut{Return: true}
	for _, r := range add {
		if slices.ContainsFunc(next, r.same) {
			return nil, query.Errorf("InvalidPermission.Duplicate", "the specified rule \"peer: %s%s%s, %s\" already exists", r.cidr4, r.cidr6, r.group, r.protocol)
		}
		r.tags = tags
		next = append(next, r)
		out.Rules = append(out.Rules, r.out(g, egress))
	}
	// https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html
	if len(next) > 60 {
		return nil, query.Errorf("RulesPerSecurityGroupLimitExceeded", "The maximum number of rules per security group has been reached.")
	}
	*to = next
	return out, nil
}

type revokeOut struct {
	Return bool         `out:"return"`
	Rules  []revokedOut `out:"revokedSecurityGroupRuleSet>item"`
}

type revokedOut struct {
	ID       string `out:"securityGroupRuleId"`
	GroupID  string `out:"groupId"`
	Egress   bool   `out:"isEgress"`
	Protocol string `out:"ipProtocol"`
}

func (c *call) revokeIngress(in *ruleIn) (any, error) { return c.revoke(in, false) }
func (c *call) revokeEgress(in *ruleIn) (any, error)  { return c.revoke(in, true) }

// revoke removes rules by ID or by their values; what is not there is an error
// in a VPC that is not the default one, and here always.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RevokeSecurityGroupIngress.html
func (c *call) revoke(in *ruleIn, egress bool) (any, error) {
	g, err := c.r.group(in.GroupID, in.GroupName)
	if err != nil {
		return nil, err
	}
	remove, err := c.rules(in, g.vpc)
	if err != nil {
		return nil, err
	}
	from := &g.ingress
	if egress {
		from = &g.egress
	}
	next := slices.Clone(*from)
	out := &revokeOut{Return: true}
	drop := func(is func(rule) bool) bool {
		i := slices.IndexFunc(next, is)
		if i < 0 {
			return false
		}
		out.Rules = append(out.Rules, revokedOut{next[i].id, g.id, egress, next[i].protocol})
		next = slices.Delete(next, i, i+1)
		return true
	}
	for _, id := range in.RuleIDs {
		if !drop(func(r rule) bool { return r.id == id }) {
			return nil, query.Errorf("InvalidSecurityGroupRuleId.NotFound", "The security group rule ID '%s' does not exist", id)
		}
	}
	for _, r := range remove {
		if !drop(r.same) {
			return nil, query.Errorf("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
		}
	}
	*from = next
	return out, nil
}

type groupOut struct {
	ID          string       `out:"groupId"`
	Arn         string       `out:"securityGroupArn"`
	Name        string       `out:"groupName"`
	Description string       `out:"groupDescription"`
	Owner       string       `out:"ownerId"`
	VpcID       string       `out:"vpcId"`
	Ingress     []permission `out:"ipPermissions>item"`
	Egress      []permission `out:"ipPermissionsEgress>item"`
	Tags        []tag        `out:"tagSet>item"`
}

// permissions puts rules of the same protocol and ports together, as
// DescribeSecurityGroups shows them.
func permissions(g *securityGroup, rules []rule) []permission {
	var out []permission
	for _, r := range rules {
		i := slices.IndexFunc(out, func(p permission) bool {
			return rule{protocol: p.Protocol, from: p.From, to: p.To}.same(rule{protocol: r.protocol, from: r.from, to: r.to})
		})
		if i < 0 {
			i = len(out)
			out = append(out, permission{Protocol: r.protocol, From: r.from, To: r.to})
		}
		p := &out[i]
		switch {
		case r.cidr4 != "":
			p.Ranges = append(p.Ranges, ipRange{r.cidr4, r.description})
		case r.cidr6 != "":
			p.Ranges6 = append(p.Ranges6, ipRange6{r.cidr6, r.description})
		case r.group != "":
			p.Groups = append(p.Groups, groupPair{GroupID: r.group, UserID: account, Description: r.description})
		case r.prefixList != "":
			p.PrefixLists = append(p.PrefixLists, prefixList{r.prefixList, r.description})
		}
	}
	return out
}

type describeGroupsIn struct {
	dry
	paging
	IDs     []string `q:"GroupId"`
	Names   []string `q:"GroupName"`
	Filters []filter `q:"Filter"`
}

type describeGroupsOut struct {
	Groups    []groupOut `out:"securityGroupInfo>item"`
	NextToken string     `out:"nextToken"`
}

func each(rules []rule, f func(rule) string) []string {
	var values []string
	for _, r := range rules {
		if v := f(r); v != "" {
			values = append(values, v)
		}
	}
	return values
}

func portOf(p *int) string {
	if p == nil {
		return ""
	}
	return strconv.Itoa(*p)
}

var groupFilters = filters[*securityGroup]{
	"group-id":    func(g *securityGroup) []string { return one(g.id) },
	"group-name":  func(g *securityGroup) []string { return one(g.name) },
	"description": func(g *securityGroup) []string { return one(g.description) },
	"vpc-id":      func(g *securityGroup) []string { return one(g.vpc.id) },
	"owner-id":    func(*securityGroup) []string { return one(account) },

	"ip-permission.cidr":             func(g *securityGroup) []string { return each(g.ingress, func(r rule) string { return r.cidr4 }) },
	"ip-permission.ipv6-cidr":        func(g *securityGroup) []string { return each(g.ingress, func(r rule) string { return r.cidr6 }) },
	"ip-permission.from-port":        func(g *securityGroup) []string { return each(g.ingress, func(r rule) string { return portOf(r.from) }) },
	"ip-permission.to-port":          func(g *securityGroup) []string { return each(g.ingress, func(r rule) string { return portOf(r.to) }) },
	"ip-permission.protocol":         func(g *securityGroup) []string { return each(g.ingress, func(r rule) string { return r.protocol }) },
	"ip-permission.group-id":         func(g *securityGroup) []string { return each(g.ingress, func(r rule) string { return r.group }) },
	"egress.ip-permission.cidr":      func(g *securityGroup) []string { return each(g.egress, func(r rule) string { return r.cidr4 }) },
	"egress.ip-permission.ipv6-cidr": func(g *securityGroup) []string { return each(g.egress, func(r rule) string { return r.cidr6 }) },
	"egress.ip-permission.from-port": func(g *securityGroup) []string { return each(g.egress, func(r rule) string { return portOf(r.from) }) },
	"egress.ip-permission.to-port":   func(g *securityGroup) []string { return each(g.egress, func(r rule) string { return portOf(r.to) }) },
	"egress.ip-permission.protocol":  func(g *securityGroup) []string { return each(g.egress, func(r rule) string { return r.protocol }) },
	"egress.ip-permission.group-id":  func(g *securityGroup) []string { return each(g.egress, func(r rule) string { return r.group }) },
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSecurityGroups.html
func (c *call) describeSecurityGroups(in *describeGroupsIn) (any, error) {
	match, err := groupFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	ids := slices.Clone(in.IDs)
	for _, name := range in.Names {
		g, err := c.r.group("", name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, g.id)
	}
	page, next, err := list(&c.r.groups, ids, in.paging, 5, groupNotFound, match)
	if err != nil {
		return nil, err
	}
	out := &describeGroupsOut{NextToken: next}
	for _, g := range page {
		out.Groups = append(out.Groups, groupOut{
			g.id, arn(c.r.name, "security-group", g.id), g.name, g.description, account, g.vpc.id, permissions(g, g.ingress), permissions(g, g.egress), g.tags,
		})
	}
	return out, nil
}

type describeRulesIn struct {
	dry
	paging
	IDs     []string `q:"SecurityGroupRuleId"`
	Filters []filter `q:"Filter"`
}

type describeRulesOut struct {
	Rules []ruleOut `out:"securityGroupRuleSet>item"`
}

// ruleRow makes a rule filterable.
type ruleRow struct {
	meta
	out ruleOut
}

var ruleFilters = filters[*ruleRow]{
	"group-id":               func(r *ruleRow) []string { return one(r.out.GroupID) },
	"security-group-rule-id": func(r *ruleRow) []string { return one(r.out.ID) },
}

// describeSecurityGroupRules is not paged: a group has at most 60 rules each way.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSecurityGroupRules.html
func (c *call) describeSecurityGroupRules(in *describeRulesIn) (any, error) {
	match, err := ruleFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	out := &describeRulesOut{}
	for g := range c.r.groups.all() {
		for n, r := range slices.Concat(g.ingress, g.egress) {
			row := &ruleRow{meta{tags: r.tags}, r.out(g, n >= len(g.ingress))}
			if (len(in.IDs) == 0 || slices.Contains(in.IDs, r.id)) && match(row) {
				out.Rules = append(out.Rules, row.out)
			}
		}
	}
	return out, nil
}
