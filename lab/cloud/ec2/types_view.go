package ec2

import (
	"slices"
	"strconv"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// typeRow makes an instance type listable as resources are.
type typeRow struct {
	meta
	*instanceType
}

type typeOut struct {
	Name           string       `out:"instanceType"`
	Current        bool         `out:"currentGeneration"`
	FreeTier       bool         `out:"freeTierEligible"`
	Usage          []string     `out:"supportedUsageClasses>item"`
	RootDevices    []string     `out:"supportedRootDeviceTypes>item"`
	Virtualization []string     `out:"supportedVirtualizationTypes>item"`
	BareMetal      bool         `out:"bareMetal"`
	Hypervisor     string       `out:"hypervisor"`
	Processor      processorOut `out:"processorInfo"`
	VCpus          vcpusOut     `out:"vCpuInfo"`
	Memory         memoryOut    `out:"memoryInfo"`
	LocalStorage   bool         `out:"instanceStorageSupported"`
	Network        networkOut   `out:"networkInfo"`
	Burstable      bool         `out:"burstablePerformanceSupported"`
	BootModes      []string     `out:"supportedBootModes>item"`
}

type processorOut struct {
	Architectures []string `out:"supportedArchitectures>item"`
}

type vcpusOut struct {
	Default int `out:"defaultVCpus"`
}

type memoryOut struct {
	MiB int `out:"sizeInMiB"`
}

type networkOut struct {
	Ena string `out:"enaSupport"`
}

func (t *instanceType) current() bool { return t.nitro || t.burstable }

func (t *instanceType) out() typeOut {
	out := typeOut{
		Name: t.name, Current: t.current(), FreeTier: t.name == "t2.micro" || t.name == "t3.micro", Usage: []string{"on-demand", "spot"},
		RootDevices: []string{"ebs"}, Virtualization: []string{"hvm"}, Hypervisor: "xen", Processor: processorOut{[]string{t.arch}},
		VCpus: vcpusOut{t.vcpus}, Memory: memoryOut{t.mib}, Network: networkOut{"unsupported"}, Burstable: t.burstable, BootModes: []string{"legacy-bios"},
	}
	if t.nitro {
		out.Hypervisor, out.Network.Ena, out.BootModes = "nitro", "required", []string{"legacy-bios", "uefi"}
	}
	if t.arch == "arm64" {
		out.BootModes = []string{"uefi"}
	}
	return out
}

var typeFilters = filters[*typeRow]{
	"instance-type":                         func(t *typeRow) []string { return one(t.name) },
	"processor-info.supported-architecture": func(t *typeRow) []string { return one(t.arch) },
	"current-generation":                    func(t *typeRow) []string { return yes(t.current()) },
	"burstable-performance-supported":       func(t *typeRow) []string { return yes(t.burstable) },
	"hypervisor":                            func(t *typeRow) []string { return one(t.out().Hypervisor) },
	"bare-metal":                            func(*typeRow) []string { return yes(false) },
	"free-tier-eligible":                    func(t *typeRow) []string { return yes(t.out().FreeTier) },
	"instance-storage-supported":            func(*typeRow) []string { return yes(false) },
	"memory-info.size-in-mib":               func(t *typeRow) []string { return one(strconv.Itoa(t.mib)) },
	"vcpu-info.default-vcpus":               func(t *typeRow) []string { return one(strconv.Itoa(t.vcpus)) },
	"supported-boot-mode":                   func(t *typeRow) []string { return t.out().BootModes },
	"supported-virtualization-type":         func(*typeRow) []string { return one("hvm") },
	"supported-root-device-type":            func(*typeRow) []string { return one("ebs") },
	"supported-usage-class":                 func(*typeRow) []string { return []string{"on-demand", "spot"} },
	"network-info.ena-support":              func(t *typeRow) []string { return one(t.out().Network.Ena) },
}

type describeTypesIn struct {
	dry
	paging
	Types   []string `q:"InstanceType"`
	Filters []filter `q:"Filter"`
}

type describeTypesOut struct {
	Types     []typeOut `out:"instanceTypeSet>item"`
	NextToken string    `out:"nextToken"`
}

// typeTable holds every type, in order of name.
func typeTable() *table[*typeRow] {
	t := &table[*typeRow]{}
	for n := range instanceTypes {
		t.add(&typeRow{meta{id: instanceTypes[n].name, seq: uint64(n + 1)}, &instanceTypes[n]})
	}
	return t
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceTypes.html
func (c *call) describeInstanceTypes(in *describeTypesIn) (any, error) {
	match, err := typeFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	if in.MaxResults != nil && *in.MaxResults > 100 {
		return nil, query.Errorf("InvalidParameterValue", "Value ( %d ) for parameter maxResults is invalid. Expecting a value between 5 and 100.", *in.MaxResults)
	}
	page, next, err := list(typeTable(), in.Types, in.paging, 5, notFoundf("InvalidInstanceType", "The following supplied instance types do not exist: [%s]"), match)
	if err != nil {
		return nil, err
	}
	out := &describeTypesOut{NextToken: next}
	for _, t := range page {
		out.Types = append(out.Types, t.out())
	}
	return out, nil
}

type offeringsIn struct {
	dry
	paging
	LocationType string
	Filters      []filter `q:"Filter"`
}

type offeringRow struct {
	meta
	Type     string `out:"instanceType"`
	Kind     string `out:"locationType"`
	Location string `out:"location"`
}

type offeringsOut struct {
	Offerings []*offeringRow `out:"instanceTypeOfferingSet>item"`
	NextToken string         `out:"nextToken"`
}

var offeringFilters = filters[*offeringRow]{
	"instance-type": func(o *offeringRow) []string { return one(o.Type) },
	"location":      func(o *offeringRow) []string { return one(o.Location) },
}

// describeInstanceTypeOfferings offers every type in every zone.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceTypeOfferings.html
func (c *call) describeInstanceTypeOfferings(in *offeringsIn) (any, error) {
	match, err := offeringFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	kind, places := in.LocationType, c.r.zones()
	switch kind {
	case "", "region":
		kind, places = "region", []string{c.r.name}
	case "availability-zone":
	case "availability-zone-id":
		for n, az := range places {
			places[n] = zoneID(az)
		}
	default:
		return nil, query.Errorf("InvalidParameterValue", "Invalid value '%s' for locationType", kind)
	}
	t := &table[*offeringRow]{}
	for _, it := range instanceTypes {
		for _, place := range places {
			t.add(&offeringRow{meta{id: it.name + "/" + place, seq: uint64(len(t.rows) + 1)}, it.name, kind, place})
		}
	}
	page, next, err := list(t, nil, in.paging, 5, nil, match)
	if err != nil {
		return nil, err
	}
	return &offeringsOut{page, next}, nil
}

type associationsIn struct {
	paging
	IDs     []string `q:"AssociationId"`
	Filters []filter `q:"Filter"`
}

type associationOut struct {
	ID       string     `out:"associationId"`
	Instance string     `out:"instanceId"`
	Profile  profileOut `out:"iamInstanceProfile"`
	State    string     `out:"state"`
}

type associationsOut struct {
	Associations []associationOut `out:"iamInstanceProfileAssociationSet>item"`
	NextToken    string           `out:"nextToken"`
}

func (i *instance) associationOut() associationOut {
	return associationOut{i.association, i.id, profileOut{i.profile.arn, i.profile.id}, "associated"}
}

var associationFilters = filters[*instance]{
	"instance-id": func(i *instance) []string { return one(i.id) },
	"state":       func(*instance) []string { return one("associated") },
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeIamInstanceProfileAssociations.html
func (c *call) describeProfileAssociations(in *associationsIn) (any, error) {
	match, err := associationFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	page, next, err := list(&c.r.instances, nil, in.paging, 5, nil, func(i *instance) bool {
		return i.profile != nil && i.state != terminated && (len(in.IDs) == 0 || slices.Contains(in.IDs, i.association)) && match(i)
	})
	if err != nil {
		return nil, err
	}
	out := &associationsOut{NextToken: next}
	for _, i := range page {
		out.Associations = append(out.Associations, i.associationOut())
	}
	return out, nil
}

type associateIn struct {
	AssociationID string       `q:"AssociationId"`
	InstanceID    string       `q:"InstanceId"`
	Profile       *profileSpec `q:"IamInstanceProfile"`
}

type oneAssociationOut struct {
	Association associationOut `out:"iamInstanceProfileAssociation"`
}

// associateProfile gives an instance without a profile one.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AssociateIamInstanceProfile.html
func (c *call) associateProfile(in *associateIn) (any, error) {
	i, err := c.instance(in.InstanceID)
	if err != nil {
		return nil, err
	}
	p, err := c.s.profileOf(in.Profile)
	if err != nil {
		return nil, err
	}
	switch {
	case p == nil:
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter IamInstanceProfile")
	case i.profile != nil:
		return nil, query.Errorf("IncorrectState", "There is an existing association for instance %s", i.id)
	case i.state != running && i.state != stopped:
		return nil, query.Errorf("IncorrectInstanceState", "The instance '%s' is %s", i.id, i.state.Name)
	}
	i.profile, i.association = p, newID("iip-assoc")
	return &oneAssociationOut{i.associationOut()}, nil
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DisassociateIamInstanceProfile.html
func (c *call) disassociateProfile(in *associateIn) (any, error) {
	for i := range c.r.instances.all() {
		if i.profile != nil && i.association == in.AssociationID && i.state != terminated {
			out := &oneAssociationOut{i.associationOut()}
			out.Association.State = "disassociating"
			i.profile, i.association = nil, ""
			return out, nil
		}
	}
	return nil, query.Errorf("InvalidAssociationID.NotFound", "An invalid association-id of '%s' was given", in.AssociationID)
}
