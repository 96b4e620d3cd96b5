package ec2

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const account = wire.Account

// region holds everything of one region.
type region struct {
	name string
	seq  uint64

	instances table[*instance]
	images    table[*image]
	snapshots table[*snapshot]
	volumes   table[*volume]
	templates table[*template]
	groups    table[*securityGroup]
	keys      table[*keyPair]
	vpcs      table[*vpc]
	subnets   table[*subnet]
	enis      table[*networkInterface]

	runTokens    map[string]*runToken
	otherTokens  map[string]otherToken // of image copies and launch templates
	imageNames   map[string]*image     // of images owned by the account
	deregistered map[string]bool       // IDs of images
	publicIPs    int
}

func newRegion(name string) *region {
	return &region{name: name, runTokens: map[string]*runToken{}, otherTokens: map[string]otherToken{}, imageNames: map[string]*image{}, deregistered: map[string]bool{}}
}

type vpc struct {
	meta
	cidr      netip.Prefix
	isDefault bool
}

type subnet struct {
	meta
	region    *region
	vpc       *vpc
	az        string
	cidr      netip.Prefix
	isDefault bool
	public    bool
	next      netip.Addr // never yet given
	freed     []netip.Addr
	used      int
}

// defaultNetwork makes a default VPC with a subnet in each of three zones and
// its default security group, as every region of an account has:
// https://docs.aws.amazon.com/vpc/latest/userguide/default-vpc.html
func (s *Server) defaultNetwork(r *region) {
	v := &vpc{meta: s.stamp(r, newID("vpc"), nil), cidr: netip.MustParsePrefix("172.31.0.0/16"), isDefault: true}
	r.vpcs.add(v)
	s.defaultGroup(r, v)
	for i, zone := range []string{"a", "b", "c"} {
		s.addSubnet(r, v, r.name+zone, netip.MustParsePrefix(fmt.Sprintf("172.31.%d.0/20", i*16)), true)
	}
}

func (s *Server) addSubnet(r *region, v *vpc, az string, cidr netip.Prefix, isDefault bool) *subnet {
	sn := &subnet{meta: s.stamp(r, newID("subnet"), nil), region: r, vpc: v, az: az, cidr: cidr, isDefault: isDefault, public: isDefault}
	// The first four addresses and the last are AWS's own:
	// https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html
	sn.next = cidr.Addr()
	for range 4 {
		sn.next = sn.next.Next()
	}
	r.subnets.add(sn)
	return sn
}

// size is how many addresses a subnet has to give.
func (sn *subnet) size() int { return 1<<(32-sn.cidr.Bits()) - 5 }

func (sn *subnet) gateway() netip.Addr { return sn.cidr.Addr().Next() }

// take returns a free address. The caller has checked that there is one.
func (sn *subnet) take() netip.Addr {
	sn.used++
	if n := len(sn.freed); n > 0 {
		a := sn.freed[n-1]
		sn.freed = sn.freed[:n-1]
		return a
	}
	a := sn.next
	sn.next = a.Next()
	return a
}

func (sn *subnet) give(a netip.Addr) {
	sn.used--
	sn.freed = append(sn.freed, a)
}

// publicAddr makes up an address from the block kept for benchmarks, so that
// nobody's real host is ever named.
func (r *region) publicAddr() string {
	r.publicIPs++
	n := r.publicIPs % (1 << 17)
	return fmt.Sprintf("198.%d.%d.%d", 18+n>>16, n>>8&0xff, n&0xff)
}

// AddSubnet makes a subnet, in a VPC of its own, that instances can be
// launched in; tests of large fleets need more addresses than a default VPC
// has. It returns the subnet's ID.
func (s *Server) AddSubnet(regionName, az, cidr string) (string, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return "", fmt.Errorf("add subnet: %w", err)
	}
	s.lock()
	defer s.unlock()
	r, err := s.region(regionName)
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(az, r.name) {
		return "", fmt.Errorf("add subnet: zone %s is not in region %s", az, r.name)
	}
	v := &vpc{meta: s.stamp(r, newID("vpc"), nil), cidr: p}
	r.vpcs.add(v)
	s.defaultGroup(r, v)
	return s.addSubnet(r, v, az, p, false).id, nil
}

func (r *region) zones() []string { return []string{r.name + "a", r.name + "b", r.name + "c"} }

// defaultSubnet returns the default subnet of a zone, or of any zone for "".
func (r *region) defaultSubnet(az string) (*subnet, error) {
	for sn := range r.subnets.all() {
		if sn.isDefault && (az == "" || sn.az == az) {
			return sn, nil
		}
	}
	if az != "" && !slices.Contains(r.zones(), az) {
		return nil, query.Errorf("InvalidParameterValue", "Invalid availability zone: [%s]", az)
	}
	return nil, query.Errorf("MissingInput", "No subnets found for the default VPC. Please specify a subnet.")
}

var subnetNotFound = notFoundf("InvalidSubnetID.NotFound", "The subnet ID '%s' does not exist")

// networkInterface is the one interface of an instance; it goes with it.
type networkInterface struct {
	meta
	instance   *instance
	attachment string
}

var interfaceNotFound = notFoundf("InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '%s' does not exist")

// resources yields every visible resource with its type's name.
func (r *region) resources() iter.Seq2[string, *meta] {
	return func(yield func(string, *meta) bool) {
		_ = walk(&r.instances, "instance", yield) && walk(&r.images, "image", yield) && walk(&r.snapshots, "snapshot", yield) &&
			walk(&r.volumes, "volume", yield) && walk(&r.templates, "launch-template", yield) && walk(&r.groups, "security-group", yield) &&
			walk(&r.keys, "key-pair", yield) && walk(&r.enis, "network-interface", yield) && walk(&r.vpcs, "vpc", yield) && walk(&r.subnets, "subnet", yield)
	}
}

func walk[T resource](t *table[T], kind string, yield func(string, *meta) bool) bool {
	for v := range t.all() {
		if !yield(kind, v.base()) {
			return false
		}
	}
	return true
}

// find returns any resource by its ID.
func (r *region) find(id string) (*meta, error) {
	kind, _, _ := strings.Cut(id, "-")
	switch kind {
	case "i":
		return found(&r.instances, id, instanceNotFound)
	case "ami":
		return found(&r.images, id, imageNotFound)
	case "snap":
		return found(&r.snapshots, id, snapshotNotFound)
	case "vol":
		return found(&r.volumes, id, volumeNotFound)
	case "lt":
		return found(&r.templates, id, templateNotFound)
	case "sg":
		return found(&r.groups, id, groupNotFound)
	case "key":
		return found(&r.keys, id, keyNotFound)
	case "eni":
		return found(&r.enis, id, interfaceNotFound)
	case "vpc":
		return found(&r.vpcs, id, vpcNotFound)
	case "subnet":
		return found(&r.subnets, id, subnetNotFound)
	}
	return nil, query.Errorf("InvalidID", "The ID '%s' is not valid", id)
}

var vpcNotFound = notFoundf("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist")

func found[T resource](t *table[T], id string, notFound func(string) error) (*meta, error) {
	v, ok := t.get(id)
	if !ok {
		return nil, notFound(id)
	}
	return v.base(), nil
}
