package ec2

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type vpcOut struct {
	ID        string `out:"vpcId"`
	State     string `out:"state"`
	CIDR      string `out:"cidrBlock"`
	DHCP      string `out:"dhcpOptionsId"`
	Tenancy   string `out:"instanceTenancy"`
	IsDefault bool   `out:"isDefault"`
	Owner     string `out:"ownerId"`
	Tags      []tag  `out:"tagSet>item"`
}

type describeVpcsIn struct {
	dry
	paging
	IDs     []string `q:"VpcId"`
	Filters []filter `q:"Filter"`
}

type describeVpcsOut struct {
	Vpcs      []vpcOut `out:"vpcSet>item"`
	NextToken string   `out:"nextToken"`
}

var vpcFilters = filters[*vpc]{
	"vpc-id":     func(v *vpc) []string { return one(v.id) },
	"cidr":       func(v *vpc) []string { return one(v.cidr.String()) },
	"cidr-block": func(v *vpc) []string { return one(v.cidr.String()) },
	"state":      func(*vpc) []string { return one("available") },
	"owner-id":   func(*vpc) []string { return one(account) },
	"is-default": func(v *vpc) []string { return yes(v.isDefault) },
	"isDefault":  func(v *vpc) []string { return yes(v.isDefault) }, // as the console and Packer name it
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeVpcs.html
func (c *call) describeVpcs(in *describeVpcsIn) (any, error) {
	match, err := vpcFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	page, next, err := list(&c.r.vpcs, in.IDs, in.paging, 5, vpcNotFound, match)
	if err != nil {
		return nil, err
	}
	out := &describeVpcsOut{NextToken: next}
	for _, v := range page {
		out.Vpcs = append(out.Vpcs, vpcOut{v.id, "available", v.cidr.String(), "dopt-0000000000000000a", "default", v.isDefault, account, v.tags})
	}
	return out, nil
}

type subnetOut struct {
	ID           string `out:"subnetId"`
	Arn          string `out:"subnetArn"`
	State        string `out:"state"`
	VpcID        string `out:"vpcId"`
	CIDR         string `out:"cidrBlock"`
	Free         int    `out:"availableIpAddressCount"`
	AZ           string `out:"availabilityZone"`
	AZID         string `out:"availabilityZoneId"`
	DefaultForAz bool   `out:"defaultForAz"`
	MapPublicIP  bool   `out:"mapPublicIpOnLaunch"`
	Owner        string `out:"ownerId"`
	Tags         []tag  `out:"tagSet>item"`
}

type describeSubnetsIn struct {
	dry
	paging
	IDs     []string `q:"SubnetId"`
	Filters []filter `q:"Filter"`
}

type describeSubnetsOut struct {
	Subnets   []subnetOut `out:"subnetSet>item"`
	NextToken string      `out:"nextToken"`
}

var subnetFilters = filters[*subnet]{
	"subnet-id":                  func(s *subnet) []string { return one(s.id) },
	"vpc-id":                     func(s *subnet) []string { return one(s.vpc.id) },
	"availability-zone":          func(s *subnet) []string { return one(s.az) },
	"availabilityZone":           func(s *subnet) []string { return one(s.az) },
	"availability-zone-id":       func(s *subnet) []string { return one(zoneID(s.az)) },
	"available-ip-address-count": func(s *subnet) []string { return one(strconv.Itoa(s.size() - s.used)) },
	"cidr-block":                 func(s *subnet) []string { return one(s.cidr.String()) },
	"default-for-az":             func(s *subnet) []string { return yes(s.isDefault) },
	"defaultForAz":               func(s *subnet) []string { return yes(s.isDefault) },
	"map-public-ip-on-launch":    func(s *subnet) []string { return yes(s.public) },
	"state":                      func(*subnet) []string { return one("available") },
	"owner-id":                   func(*subnet) []string { return one(account) },
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSubnets.html
func (c *call) describeSubnets(in *describeSubnetsIn) (any, error) {
	match, err := subnetFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	page, next, err := list(&c.r.subnets, in.IDs, in.paging, 5, subnetNotFound, match)
	if err != nil {
		return nil, err
	}
	out := &describeSubnetsOut{NextToken: next}
	for _, s := range page {
		out.Subnets = append(out.Subnets, subnetOut{
			s.id, arn(c.r.name, "subnet", s.id), "available", s.vpc.id, s.cidr.String(), s.size() - s.used, s.az, zoneID(s.az), s.isDefault, s.public, account, s.tags,
		})
	}
	return out, nil
}

// zoneID makes up an ID such as euc1-az1 for eu-central-1a.
func zoneID(az string) string {
	parts := strings.Split(az, "-")
	last := parts[len(parts)-1] // 1a
	short := parts[0]
	for _, p := range parts[1 : len(parts)-1] {
		short += p[:1]
	}
	return short + last[:len(last)-1] + "-az" + strconv.Itoa(int(last[len(last)-1]-'a')+1)
}

type zonesIn struct {
	dry
	Names   []string `q:"ZoneName"`
	IDs     []string `q:"ZoneId"`
	All     bool     `q:"AllAvailabilityZones"`
	Filters []filter `q:"Filter"`
}

type zoneOut struct {
	Name   string `out:"zoneName"`
	ID     string `out:"zoneId"`
	State  string `out:"zoneState"`
	Region string `out:"regionName"`
	Type   string `out:"zoneType"`
	OptIn  string `out:"optInStatus"`
	Group  string `out:"groupName"`
}

type zonesOut struct {
	Zones []zoneOut `out:"availabilityZoneInfo>item"`
}

// zoneRow makes a zone filterable.
type zoneRow struct {
	meta
	out zoneOut
}

var zoneFilters = filters[*zoneRow]{
	"zone-name":     func(z *zoneRow) []string { return one(z.out.Name) },
	"zone-id":       func(z *zoneRow) []string { return one(z.out.ID) },
	"zone-type":     func(z *zoneRow) []string { return one(z.out.Type) },
	"region-name":   func(z *zoneRow) []string { return one(z.out.Region) },
	"state":         func(z *zoneRow) []string { return one(z.out.State) },
	"opt-in-status": func(z *zoneRow) []string { return one(z.out.OptIn) },
	"group-name":    func(z *zoneRow) []string { return one(z.out.Group) },
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeAvailabilityZones.html
func (c *call) describeZones(in *zonesIn) (any, error) {
	match, err := zoneFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	for _, name := range in.Names {
		if !slices.Contains(c.r.zones(), name) {
			return nil, query.Errorf("InvalidParameterValue", "Invalid availability zone: [%s]", name)
		}
	}
	out := &zonesOut{}
	for _, az := range c.r.zones() {
		row := &zoneRow{out: zoneOut{az, zoneID(az), "available", c.r.name, "availability-zone", "opt-in-not-required", c.r.name}}
		if (len(in.Names) == 0 || slices.Contains(in.Names, az)) && (len(in.IDs) == 0 || slices.Contains(in.IDs, row.out.ID)) && match(row) {
			out.Zones = append(out.Zones, row.out)
		}
	}
	return out, nil
}

type regionsIn struct {
	dry
	Names   []string `q:"RegionName"`
	All     bool     `q:"AllRegions"`
	Filters []filter `q:"Filter"`
}

type regionRow struct {
	meta
	Name     string `out:"regionName"`
	Endpoint string `out:"regionEndpoint"`
	OptIn    string `out:"optInStatus"`
}

type regionsOut struct {
	Regions []*regionRow `out:"regionInfo>item"`
}

var regionFilters = filters[*regionRow]{
	"region-name":   func(r *regionRow) []string { return one(r.Name) },
	"endpoint":      func(r *regionRow) []string { return one(r.Endpoint) },
	"opt-in-status": func(r *regionRow) []string { return one(r.OptIn) },
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeRegions.html
func (c *call) describeRegions(in *regionsIn) (any, error) {
	match, err := regionFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	for _, name := range in.Names {
		if !slices.Contains(knownRegions, name) {
			return nil, query.Errorf("InvalidParameterValue", "Invalid region: [%s]", name)
		}
	}
	out := &regionsOut{}
	for _, name := range knownRegions {
		row := &regionRow{Name: name, Endpoint: "ec2." + name + ".amazonaws.com", OptIn: "opt-in-not-required"}
		if (len(in.Names) == 0 || slices.Contains(in.Names, name)) && match(row) {
			out.Regions = append(out.Regions, row)
		}
	}
	return out, nil
}

// Route tables and internet gateways are one a VPC, made up from it: a default
// VPC's main table has a route to its gateway.
// https://docs.aws.amazon.com/vpc/latest/userguide/default-vpc.html

type routeTableRow struct {
	meta
	vpc          *vpc
	ID           string             `out:"routeTableId"`
	VpcID        string             `out:"vpcId"`
	Owner        string             `out:"ownerId"`
	Routes       []routeOut         `out:"routeSet>item"`
	Associations []routeAssociation `out:"associationSet>item"`
}

type routeOut struct {
	CIDR    string `out:"destinationCidrBlock"`
	Gateway string `out:"gatewayId"`
	State   string `out:"state"`
	Origin  string `out:"origin"`
}

type routeAssociation struct {
	ID    string `out:"routeTableAssociationId"`
	Table string `out:"routeTableId"`
	Main  bool   `out:"main"`
}

func (v *vpc) suffix() string { return strings.TrimPrefix(v.id, "vpc-") }

func (v *vpc) routeTable() *routeTableRow {
	id := "rtb-" + v.suffix()
	t := &routeTableRow{
		vpc: v, ID: id, VpcID: v.id, Owner: account, Routes: []routeOut{{v.cidr.String(), "local", "active", "CreateRouteTable"}},
		Associations: []routeAssociation{{"rtbassoc-" + v.suffix(), id, true}},
	}
	if v.isDefault {
		t.Routes = append(t.Routes, routeOut{"0.0.0.0/0", "igw-" + v.suffix(), "active", "CreateRoute"})
	}
	return t
}

var routeTableFilters = filters[*routeTableRow]{
	"route-table-id":             func(t *routeTableRow) []string { return one(t.ID) },
	"association.route-table-id": func(t *routeTableRow) []string { return one(t.ID) },
	"vpc-id":                     func(t *routeTableRow) []string { return one(t.VpcID) },
	"owner-id":                   func(*routeTableRow) []string { return one(account) },
	"association.main":           func(*routeTableRow) []string { return one("true") },
	"association.subnet-id":      func(*routeTableRow) []string { return nil }, // subnets have the main table
	"route.gateway-id": func(t *routeTableRow) []string {
		var ids []string
		for _, r := range t.Routes {
			ids = append(ids, r.Gateway)
		}
		return ids
	},
	"route.destination-cidr-block": func(t *routeTableRow) []string {
		var cidrs []string
		for _, r := range t.Routes {
			cidrs = append(cidrs, r.CIDR)
		}
		return cidrs
	},
}

type routeTablesIn struct {
	dry
	paging
	IDs     []string `q:"RouteTableId"`
	Filters []filter `q:"Filter"`
}

type routeTablesOut struct {
	Tables []*routeTableRow `out:"routeTableSet>item"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeRouteTables.html
func (c *call) describeRouteTables(in *routeTablesIn) (any, error) {
	match, err := routeTableFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	out := &routeTablesOut{}
	for v := range c.r.vpcs.all() {
		if t := v.routeTable(); (len(in.IDs) == 0 || slices.Contains(in.IDs, t.ID)) && match(t) {
			out.Tables = append(out.Tables, t)
		}
	}
	if len(out.Tables) < len(in.IDs) && len(in.Filters) == 0 {
		return nil, query.Errorf("InvalidRouteTableID.NotFound", "The routeTable ID '%s' does not exist", strings.Join(in.IDs, ", "))
	}
	return out, nil
}

type gatewayRow struct {
	meta
	ID          string              `out:"internetGatewayId"`
	Owner       string              `out:"ownerId"`
	Attachments []gatewayAttachment `out:"attachmentSet>item"`
}

type gatewayAttachment struct {
	VpcID string `out:"vpcId"`
	State string `out:"state"`
}

var gatewayFilters = filters[*gatewayRow]{
	"internet-gateway-id": func(g *gatewayRow) []string { return one(g.ID) },
	"attachment.vpc-id":   func(g *gatewayRow) []string { return one(g.Attachments[0].VpcID) },
	"attachment.state":    func(*gatewayRow) []string { return one("available") },
	"owner-id":            func(*gatewayRow) []string { return one(account) },
}

type gatewaysIn struct {
	dry
	paging
	IDs     []string `q:"InternetGatewayId"`
	Filters []filter `q:"Filter"`
}

type gatewaysOut struct {
	Gateways []*gatewayRow `out:"internetGatewaySet>item"`
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInternetGateways.html
func (c *call) describeInternetGateways(in *gatewaysIn) (any, error) {
	match, err := gatewayFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	out := &gatewaysOut{}
	for v := range c.r.vpcs.all() {
		g := &gatewayRow{ID: "igw-" + v.suffix(), Owner: account, Attachments: []gatewayAttachment{{v.id, "available"}}}
		if v.isDefault && (len(in.IDs) == 0 || slices.Contains(in.IDs, g.ID)) && match(g) {
			out.Gateways = append(out.Gateways, g)
		}
	}
	return out, nil
}

type interfacesIn struct {
	dry
	paging
	IDs     []string `q:"NetworkInterfaceId"`
	Filters []filter `q:"Filter"`
}

type interfacesOut struct {
	Interfaces []eniOut `out:"networkInterfaceSet>item"`
	NextToken  string   `out:"nextToken"`
}

type eniOut struct {
	ID          string          `out:"networkInterfaceId"`
	SubnetID    string          `out:"subnetId"`
	VpcID       string          `out:"vpcId"`
	AZ          string          `out:"availabilityZone"`
	OwnerID     string          `out:"ownerId"`
	Status      string          `out:"status"`
	MAC         string          `out:"macAddress"`
	PrivateIP   string          `out:"privateIpAddress"`
	PrivateDNS  string          `out:"privateDnsName"`
	Check       bool            `out:"sourceDestCheck"`
	Type        string          `out:"interfaceType"`
	Groups      []groupRef      `out:"groupSet>item"`
	Attachment  eniInstance     `out:"attachment"`
	Association *eniAssociation `out:"association"`
	Tags        []tag           `out:"tagSet>item"`
}

type eniInstance struct {
	ID       string    `out:"attachmentId"`
	Instance string    `out:"instanceId"`
	Owner    string    `out:"instanceOwnerId"`
	Index    int       `out:"deviceIndex"`
	Status   string    `out:"status"`
	Attached time.Time `out:"attachTime"`
	Deletes  bool      `out:"deleteOnTermination"`
}

var interfaceFilters = filters[*networkInterface]{
	"network-interface-id":         func(n *networkInterface) []string { return one(n.id) },
	"attachment.attachment-id":     func(n *networkInterface) []string { return one(n.attachment) },
	"attachment.instance-id":       func(n *networkInterface) []string { return one(n.instance.id) },
	"attachment.status":            func(*networkInterface) []string { return one("attached") },
	"availability-zone":            func(n *networkInterface) []string { return one(n.instance.subnet.az) },
	"addresses.private-ip-address": func(n *networkInterface) []string { return one(n.instance.privateIP) },
	"private-ip-address":           func(n *networkInterface) []string { return one(n.instance.privateIP) },
	"association.public-ip":        func(n *networkInterface) []string { return one(n.instance.publicIP) },
	"mac-address":                  func(n *networkInterface) []string { return one(n.instance.mac) },
	"group-id":                     func(n *networkInterface) []string { return groupIDs(n.instance.groups) },
	"group-name":                   func(n *networkInterface) []string { return groupNames(n.instance.groups) },
	"subnet-id":                    func(n *networkInterface) []string { return one(n.instance.subnet.id) },
	"vpc-id":                       func(n *networkInterface) []string { return one(n.instance.subnet.vpc.id) },
	"status":                       func(*networkInterface) []string { return one("in-use") },
	"interface-type":               func(*networkInterface) []string { return one("interface") },
	"owner-id":                     func(*networkInterface) []string { return one(account) },
}

// describeNetworkInterfaces lists the one interface of each instance.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeNetworkInterfaces.html
func (c *call) describeNetworkInterfaces(in *interfacesIn) (any, error) {
	match, err := interfaceFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	page, next, err := list(&c.r.enis, in.IDs, in.paging, 5, interfaceNotFound, match)
	if err != nil {
		return nil, err
	}
	out := &interfacesOut{NextToken: next}
	for _, n := range page {
		i := n.instance
		o := eniOut{
			ID: n.id, SubnetID: i.subnet.id, VpcID: i.subnet.vpc.id, AZ: i.subnet.az, OwnerID: account, Status: "in-use", MAC: i.mac,
			PrivateIP: i.privateIP, PrivateDNS: i.privateDNS(), Check: true, Type: "interface", Groups: i.groups, Tags: n.tags,
			Attachment: eniInstance{n.attachment, i.id, account, 0, "attached", n.created, true},
		}
		if i.publicIP != "" {
			o.Association = &eniAssociation{i.publicIP, i.publicDNS(), "amazon"}
		}
		out.Interfaces = append(out.Interfaces, o)
	}
	return out, nil
}
