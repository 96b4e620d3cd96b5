package ec2

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type securityGroup struct {
	meta
	name, description string
	vpc               *vpc
	ingress, egress   []rule // replaced, never written to
}

// rule is one source or destination of one permission.
type rule struct {
	id          string
	protocol    string
	from, to    *int
	cidr4       string
	cidr6       string
	group       string
	prefixList  string
	description string
	tags        []tag
}

func (r rule) same(o rule) bool {
	port := func(p *int) int {
		if p == nil {
			return -1
		}
		return *p
	}
	return r.protocol == o.protocol && port(r.from) == port(o.from) && port(r.to) == port(o.to) && r.cidr4 == o.cidr4 && r.cidr6 == o.cidr6 && r.group == o.group && r.prefixList == o.prefixList
}

var groupNotFound = notFoundf("InvalidGroup.NotFound", "The security group '%s' does not exist")

// defaultGroup makes the default group of a VPC: members reach each other, and
// everything may go out.
// https://docs.aws.amazon.com/vpc/latest/userguide/default-security-group.html
func (s *Server) defaultGroup(r *region, v *vpc) {
	g := &securityGroup{meta: s.stamp(r, newID("sg"), nil), name: "default", description: "default VPC security group", vpc: v}
	g.ingress = []rule{{id: newID("sgr"), protocol: "-1", group: g.id}}
	g.egress = []rule{{id: newID("sgr"), protocol: "-1", cidr4: "0.0.0.0/0"}}
	r.groups.add(g)
}

// groupRefs resolves a launch's groups, all of the subnet's VPC; without any
// it is the VPC's default group.
func (r *region) groupRefs(v *vpc, ids, names []string) ([]groupRef, error) {
	var refs []groupRef
	for _, id := range ids {
		g, err := r.group(id, "")
		if err != nil {
			return nil, err
		}
		if g.vpc != v {
			return nil, query.Errorf("InvalidParameter", "Security group %s and subnet belong to different networks.", g.id)
		}
		refs = append(refs, groupRef{g.id, g.name})
	}
	for _, name := range append(slices.Clone(names), defaultName(ids, names)...) {
		found := false
		for g := range r.groups.all() {
			if g.name == name && g.vpc == v {
				refs, found = append(refs, groupRef{g.id, g.name}), true
			}
		}
		if !found {
			return nil, query.Errorf("InvalidGroup.NotFound", "The security group '%s' does not exist in VPC '%s'", name, v.id)
		}
	}
	return refs, nil
}

func defaultName(ids, names []string) []string {
	if len(ids)+len(names) == 0 {
		return []string{"default"}
	}
	return nil
}

// group finds one by ID, or by name in the default VPC.
func (r *region) group(id, name string) (*securityGroup, error) {
	if id != "" {
		if err := checkID("sg", "InvalidGroupId.Malformed", id); err != nil {
			return nil, err
		}
		if g, ok := r.groups.get(id); ok {
			return g, nil
		}
		return nil, groupNotFound(id)
	}
	if name == "" {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter GroupName or GroupId")
	}
	for g := range r.groups.all() {
		if g.name == name && g.vpc.isDefault {
			return g, nil
		}
	}
	return nil, groupNotFound(name)
}

type createGroupIn struct {
	dry
	GroupName        string
	GroupDescription string
	VpcID            string    `q:"VpcId"`
	TagSpecs         []tagSpec `q:"TagSpecification"`
}

type createGroupOut struct {
	ID   string `out:"groupId"`
	Arn  string `out:"securityGroupArn"`
	Tags []tag  `out:"tagSet>item"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateSecurityGroup.html
func (c *call) createSecurityGroup(in *createGroupIn) (any, error) {
	if in.GroupName == "" || len(in.GroupName) > 255 || strings.HasPrefix(in.GroupName, "sg-") || in.GroupName == "default" {
		return nil, query.Errorf("InvalidParameterValue", "Value (%s) for parameter GroupName is invalid. A name has 1 to 255 characters, is not 'default' and does not start with sg-", in.GroupName)
	}
	if in.GroupDescription == "" {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter GroupDescription")
	}
	v, err := c.vpc(in.VpcID)
	if err != nil {
		return nil, err
	}
	for g := range c.r.groups.every() {
		if g.name == in.GroupName && g.vpc == v {
			return nil, query.Errorf("InvalidGroup.Duplicate", "The security group '%s' already exists for VPC '%s'", g.name, v.id)
		}
	}
	tags, err := specified(in.TagSpecs, "security-group")
	if err != nil {
		return nil, err
	}
	g := &securityGroup{meta: c.s.stamp(c.r, newID("sg"), tags), name: in.GroupName, description: in.GroupDescription, vpc: v}
	g.egress = []rule{{id: newID("sgr"), protocol: "-1", cidr4: "0.0.0.0/0"}}
	c.r.groups.add(g)
	c.s.reveal(g)
	return &createGroupOut{g.id, arn(c.r.name, "security-group", g.id), tags}, nil
}

func (c *call) vpc(id string) (*vpc, error) {
	if id == "" {
		for v := range c.r.vpcs.all() {
			if v.isDefault {
				return v, nil
			}
		}
		return nil, query.Errorf("VPCIdNotSpecified", "No default VPC for this user")
	}
	v, ok := c.r.vpcs.get(id)
	if !ok {
		return nil, vpcNotFound(id)
	}
	return v, nil
}

type groupIn struct {
	dry
	GroupID   string `q:"GroupId"`
	GroupName string
}

type deleteGroupOut struct {
	Return bool   `out:"return"`
	ID     string `out:"groupId"`
}

// deleteSecurityGroup refuses while an instance or another group uses it.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteSecurityGroup.html
func (c *call) deleteSecurityGroup(in *groupIn) (any, error) {
	g, err := c.r.group(in.GroupID, in.GroupName)
	if err != nil {
		return nil, err
	}
	if g.name == "default" {
		return nil, query.Errorf("CannotDelete", "the specified group: \"%s\" name: \"default\" cannot be deleted by a user", g.id)
	}
	for i := range c.r.instances.every() {
		if i.state != terminated && slices.Contains(groupIDs(i.groups), g.id) {
			return nil, query.Errorf("DependencyViolation", "resource %s has a dependent object", g.id)
		}
	}
	for o := range c.r.groups.every() {
		if o != g && slices.ContainsFunc(slices.Concat(o.ingress, o.egress), func(r rule) bool { return r.group == g.id }) {
			return nil, query.Errorf("DependencyViolation", "resource %s has a dependent object", g.id)
		}
	}
	c.r.groups.remove(g)
	return &deleteGroupOut{true, g.id}, nil
}

type permission struct {
	Protocol    string       `q:"IpProtocol" out:"ipProtocol"`
	From        *int         `q:"FromPort" out:"fromPort"`
	To          *int         `q:"ToPort" out:"toPort"`
	Groups      []groupPair  `q:"Groups" out:"groups>item"`
	Ranges      []ipRange    `q:"IpRanges" out:"ipRanges>item"`
	Ranges6     []ipRange6   `q:"Ipv6Ranges" out:"ipv6Ranges>item"`
	PrefixLists []prefixList `q:"PrefixListIds" out:"prefixListIds>item"`
}

type groupPair struct {
	GroupID     string `q:"GroupId" out:"groupId"`
	GroupName   string `out:"groupName"`
	UserID      string `q:"UserId" out:"userId"`
	VpcID       string `q:"VpcId" out:"vpcId"`
	Description string `out:"description"`
}

type ipRange struct {
	Cidr        string `q:"CidrIp" out:"cidrIp"`
	Description string `out:"description"`
}

type ipRange6 struct {
	Cidr        string `q:"CidrIpv6" out:"cidrIpv6"`
	Description string `out:"description"`
}

type prefixList struct {
	ID          string `q:"PrefixListId" out:"prefixListId"`
	Description string `out:"description"`
}

type ruleIn struct {
	groupIn
	Permissions []permission `q:"IpPermissions"`
	CidrIP      string       `q:"CidrIp"`
	IPProtocol  string       `q:"IpProtocol"`
	FromPort    *int
	ToPort      *int
	Source      string    `q:"SourceSecurityGroupName"`
	SourceOwner string    `q:"SourceSecurityGroupOwnerId"`
	RuleIDs     []string  `q:"SecurityGroupRuleId"`
	TagSpecs    []tagSpec `q:"TagSpecification"`
}

// rules spells a request's permissions out, one source each.
func (c *call) rules(in *ruleIn, v *vpc) ([]rule, error) {
	perms := in.Permissions
	if in.IPProtocol != "" || in.CidrIP != "" || in.Source != "" {
		p := permission{Protocol: in.IPProtocol, From: in.FromPort, To: in.ToPort}
		if in.CidrIP != "" {
			p.Ranges = []ipRange{{Cidr: in.CidrIP}}
		}
		if in.Source != "" {
			p.Groups = []groupPair{{GroupName: in.Source}}
		}
		perms = append(perms, p)
	}
	var rules []rule
	for _, p := range perms {
		r, err := p.head()
		if err != nil {
			return nil, err
		}
		one := func(set func(*rule)) {
			next := r
			next.id = newID("sgr")
			set(&next)
			rules = append(rules, next)
		}
		for _, x := range p.Ranges {
			if q, err := netip.ParsePrefix(x.Cidr); err != nil || !q.Addr().Is4() {
				return nil, query.Errorf("InvalidParameterValue", "CIDR block %s is malformed", x.Cidr)
			}
			one(func(r *rule) { r.cidr4, r.description = x.Cidr, x.Description })
		}
		for _, x := range p.Ranges6 {
			if q, err := netip.ParsePrefix(x.Cidr); err != nil || !q.Addr().Is6() {
				return nil, query.Errorf("InvalidParameterValue", "CIDR block %s is malformed", x.Cidr)
			}
			one(func(r *rule) { r.cidr6, r.description = x.Cidr, x.Description })
		}
		for _, x := range p.Groups {
			g, err := c.r.group(x.GroupID, x.GroupName)
			if err != nil {
				return nil, err
			}
			if g.vpc != v {
				return nil, query.Errorf("InvalidGroup.NotFound", "You have specified two resources that belong to different networks.")
			}
			one(func(r *rule) { r.group, r.description = g.id, x.Description })
		}
		for _, x := range p.PrefixLists {
			one(func(r *rule) { r.prefixList, r.description = x.ID, x.Description })
		}
	}
	return rules, nil
}

// head checks protocol and ports.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_IpPermission.html
func (p *permission) head() (rule, error) {
	r := rule{protocol: strings.ToLower(p.Protocol), from: p.From, to: p.To}
	switch r.protocol {
	case "6":
		r.protocol = "tcp"
	case "17":
		r.protocol = "udp"
	case "1":
		r.protocol = "icmp"
	}
	switch r.protocol {
	case "tcp", "udp":
		if r.from == nil || r.to == nil || *r.from < 0 || *r.to > 65535 || *r.from > *r.to {
			return rule{}, query.Errorf("InvalidParameterValue", "Invalid value for portRange. Must specify both from and to ports with TCP/UDP, from 0 to 65535.")
		}
	case "icmp", "icmpv6", "58":
	case "-1":
		r.from, r.to = nil, nil
	default:
		return rule{}, query.Errorf("InvalidPermission.Malformed", "Unsupported IP protocol %q", p.Protocol)
	}
	return r, nil
}
