package ec2

import (
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// instanceOut is https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Instance.html
type instanceOut struct {
	InstanceID      string         `xml:"instanceId"`
	ImageID         string         `xml:"imageId"`
	State           state          `xml:"instanceState"`
	PrivateDNS      string         `xml:"privateDnsName,keep"`
	PublicDNS       string         `xml:"dnsName,keep"`
	Reason          string         `xml:"reason,keep"`
	KeyName         string         `xml:"keyName"`
	Index           int            `xml:"amiLaunchIndex"`
	Type            string         `xml:"instanceType"`
	LaunchTime      time.Time      `xml:"launchTime"`
	Placement       placementOut   `xml:"placement"`
	Monitoring      monitoringOut  `xml:"monitoring"`
	SubnetID        string         `xml:"subnetId"`
	VpcID           string         `xml:"vpcId"`
	PrivateIP       string         `xml:"privateIpAddress"`
	PublicIP        string         `xml:"ipAddress"`
	SourceDestCheck bool           `xml:"sourceDestCheck"`
	Groups          []groupRef     `xml:"groupSet>item"`
	StateReason     *reason        `xml:"stateReason"`
	Architecture    string         `xml:"architecture"`
	RootDeviceType  string         `xml:"rootDeviceType"`
	RootDeviceName  string         `xml:"rootDeviceName"`
	Devices         []deviceOut    `xml:"blockDeviceMapping>item"`
	Virtualization  string         `xml:"virtualizationType"`
	Lifecycle       string         `xml:"instanceLifecycle"`
	ClientToken     string         `xml:"clientToken,keep"`
	Tags            []tag          `xml:"tagSet>item"`
	Hypervisor      string         `xml:"hypervisor"`
	Interfaces      []interfaceOut `xml:"networkInterfaceSet>item"`
	Profile         *profileOut    `xml:"iamInstanceProfile"`
	EbsOptimized    bool           `xml:"ebsOptimized"`
	EnaSupport      bool           `xml:"enaSupport"`
	Metadata        metadataOut    `xml:"metadataOptions"`
	Enclave         enabled        `xml:"enclaveOptions"`
	PlatformDetails string         `xml:"platformDetails"`
	UsageOperation  string         `xml:"usageOperation"`
	CurrentBootMode string         `xml:"currentInstanceBootMode"`
	BootMode        string         `xml:"bootMode"`
}

type placementOut struct {
	AZ        string `xml:"availabilityZone"`
	GroupName string `xml:"groupName,keep"`
	Tenancy   string `xml:"tenancy"`
}

type monitoringOut struct {
	State string `xml:"state"`
}

type profileOut struct {
	Arn string `xml:"arn"`
	ID  string `xml:"id"`
}

type deviceOut struct {
	Name string       `xml:"deviceName"`
	Ebs  deviceEbsOut `xml:"ebs"`
}

type deviceEbsOut struct {
	VolumeID string    `xml:"volumeId"`
	Status   string    `xml:"status"`
	Attached time.Time `xml:"attachTime"`
	Deletes  bool      `xml:"deleteOnTermination"`
}

type interfaceOut struct {
	ID          string          `xml:"networkInterfaceId"`
	SubnetID    string          `xml:"subnetId"`
	VpcID       string          `xml:"vpcId"`
	Description string          `xml:"description,keep"`
	OwnerID     string          `xml:"ownerId"`
	Status      string          `xml:"status"`
	MAC         string          `xml:"macAddress"`
	PrivateIP   string          `xml:"privateIpAddress"`
	PrivateDNS  string          `xml:"privateDnsName"`
	Check       bool            `xml:"sourceDestCheck"`
	Type        string          `xml:"interfaceType"`
	Groups      []groupRef      `xml:"groupSet>item"`
	Attachment  eniAttachment   `xml:"attachment"`
	Association *eniAssociation `xml:"association"`
	Addresses   []eniAddress    `xml:"privateIpAddressesSet>item"`
}

type eniAttachment struct {
	ID       string    `xml:"attachmentId"`
	Index    int       `xml:"deviceIndex"`
	Status   string    `xml:"status"`
	Attached time.Time `xml:"attachTime"`
	Deletes  bool      `xml:"deleteOnTermination"`
}

type eniAssociation struct {
	PublicIP  string `xml:"publicIp"`
	PublicDNS string `xml:"publicDnsName"`
	Owner     string `xml:"ipOwnerId"`
}

type eniAddress struct {
	PrivateIP   string          `xml:"privateIpAddress"`
	PrivateDNS  string          `xml:"privateDnsName"`
	Primary     bool            `xml:"primary"`
	Association *eniAssociation `xml:"association"`
}

func (i *instance) privateDNS() string {
	if i.state == terminated {
		return ""
	}
	host := "ip-" + strings.ReplaceAll(i.privateIP, ".", "-")
	if i.region.name == "us-east-1" {
		return host + ".ec2.internal"
	}
	return host + "." + i.region.name + ".compute.internal"
}

func (i *instance) publicDNS() string {
	if i.publicIP == "" {
		return ""
	}
	host := "ec2-" + strings.ReplaceAll(i.publicIP, ".", "-")
	if i.region.name == "us-east-1" {
		return host + ".compute-1.amazonaws.com"
	}
	return host + "." + i.region.name + ".compute.amazonaws.com"
}

func (i *instance) out() instanceOut {
	out := instanceOut{
		InstanceID: i.id, ImageID: i.image.id, State: i.state, PrivateDNS: i.privateDNS(), PublicDNS: i.publicDNS(), Reason: i.transition,
		KeyName: i.data.KeyName, Index: i.index, Type: i.data.InstanceType, LaunchTime: i.launched,
		Placement: placementOut{AZ: i.subnet.az, Tenancy: "default"}, Monitoring: monitoringOut{i.monitored}, StateReason: i.reason,
		Architecture: i.image.arch, RootDeviceType: "ebs", RootDeviceName: i.image.rootDevice, Virtualization: "hvm", ClientToken: i.token,
		Tags: i.tags, Hypervisor: "xen", EbsOptimized: isTrue(i.data.EbsOptimized), EnaSupport: i.image.ena, Metadata: i.metadata,
		PlatformDetails: "Linux/UNIX", UsageOperation: "RunInstances", BootMode: i.image.bootMode, CurrentBootMode: "legacy-bios",
	}
	if i.spot != "" {
		out.Lifecycle = "spot"
	}
	if i.image.arch == "arm64" {
		out.CurrentBootMode = "uefi"
	}
	if i.profile != nil {
		out.Profile = &profileOut{i.profile.arn, i.profile.id}
	}
	if i.state == terminated { // a terminated instance has lost its network and its volumes
		return out
	}
	out.SubnetID, out.VpcID, out.PrivateIP, out.PublicIP, out.SourceDestCheck, out.Groups = i.subnet.id, i.subnet.vpc.id, i.privateIP, i.publicIP, true, i.groups
	out.Devices = make([]deviceOut, len(i.devices))
	for n, d := range i.devices {
		out.Devices[n] = deviceOut{d.device, deviceEbsOut{d.volume.id, "attached", d.volume.created, d.deleteOnTermination}}
	}
	var assoc *eniAssociation
	if i.publicIP != "" {
		assoc = &eniAssociation{i.publicIP, out.PublicDNS, "amazon"}
	}
	out.Interfaces = []interfaceOut{{
		ID: i.eni.id, SubnetID: i.subnet.id, VpcID: i.subnet.vpc.id, OwnerID: account, Status: "in-use", MAC: i.mac, PrivateIP: i.privateIP,
		PrivateDNS: out.PrivateDNS, Check: true, Type: "interface", Groups: i.groups, Association: assoc,
		Attachment: eniAttachment{i.eni.attachment, 0, "attached", i.created, true},
		Addresses:  []eniAddress{{i.privateIP, out.PrivateDNS, true, assoc}},
	}}
	return out
}

type describeInstancesIn struct {
	dry
	paging
	InstanceIDs []string `q:"InstanceId"`
	Filters     []filter `q:"Filter"`
}

type describeInstancesOut struct {
	Reservations []reservationOut `xml:"reservationSet>item"`
	NextToken    string           `xml:"nextToken"`
}

var instanceNotFound = notFoundf("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist")

// instanceFilters are those of
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html
// that the modelled instance has a value for.
var instanceFilters = filters[*instance]{
	"architecture":        func(i *instance) []string { return one(i.image.arch) },
	"availability-zone":   func(i *instance) []string { return one(i.subnet.az) },
	"client-token":        func(i *instance) []string { return one(i.token) },
	"dns-name":            func(i *instance) []string { return one(i.publicDNS()) },
	"hypervisor":          func(i *instance) []string { return one("xen") },
	"image-id":            func(i *instance) []string { return one(i.image.id) },
	"instance-id":         func(i *instance) []string { return one(i.id) },
	"instance-state-code": func(i *instance) []string { return one(strconv.Itoa(i.state.Code)) },
	"instance-state-name": func(i *instance) []string { return one(i.state.Name) },
	"instance-type":       func(i *instance) []string { return one(i.data.InstanceType) },
	"ip-address":          func(i *instance) []string { return one(i.publicIP) },
	"key-name":            func(i *instance) []string { return one(i.data.KeyName) },
	"launch-index":        func(i *instance) []string { return one(strconv.Itoa(i.index)) },
	"launch-time":         func(i *instance) []string { return one(i.launched.Format(query.TimeFormat)) },
	"monitoring-state":    func(i *instance) []string { return one(i.monitored) },
	"owner-id":            func(i *instance) []string { return one(account) },
	"private-dns-name":    func(i *instance) []string { return one(i.privateDNS()) },
	"private-ip-address":  func(i *instance) []string { return one(i.privateIP) },
	"reason":              func(i *instance) []string { return one(i.transition) },
	"reservation-id":      func(i *instance) []string { return one(i.reservation) },
	"root-device-name":    func(i *instance) []string { return one(i.image.rootDevice) },
	"root-device-type":    func(i *instance) []string { return one("ebs") },
	"subnet-id":           func(i *instance) []string { return one(i.subnet.id) },
	"vpc-id":              func(i *instance) []string { return one(i.subnet.vpc.id) },
	"virtualization-type": func(i *instance) []string { return one("hvm") },
	"tenancy":             func(i *instance) []string { return one("default") },
	"instance-lifecycle": func(i *instance) []string {
		if i.spot == "" {
			return nil
		}
		return one("spot")
	},
	"iam-instance-profile.arn": func(i *instance) []string {
		if i.profile == nil {
			return nil
		}
		return one(i.profile.arn)
	},
	"iam-instance-profile.id": func(i *instance) []string {
		if i.profile == nil {
			return nil
		}
		return one(i.profile.id)
	},
	"iam-instance-profile.name": func(i *instance) []string {
		if i.profile == nil {
			return nil
		}
		return one(i.profile.name)
	},
	"state-reason-code": func(i *instance) []string {
		if i.reason == nil {
			return nil
		}
		return one(i.reason.Code)
	},
	"state-reason-message": func(i *instance) []string {
		if i.reason == nil {
			return nil
		}
		return one(i.reason.Message)
	},
	"group-id":            func(i *instance) []string { return groupIDs(i.groups) },
	"group-name":          func(i *instance) []string { return groupNames(i.groups) },
	"instance.group-id":   func(i *instance) []string { return groupIDs(i.groups) },
	"instance.group-name": func(i *instance) []string { return groupNames(i.groups) },
	"block-device-mapping.volume-id": func(i *instance) []string {
		var ids []string
		for _, d := range i.devices {
			ids = append(ids, d.volume.id)
		}
		return ids
	},
	"network-interface.network-interface-id":         func(i *instance) []string { return one(i.eni.id) },
	"network-interface.mac-address":                  func(i *instance) []string { return one(i.mac) },
	"network-interface.addresses.private-ip-address": func(i *instance) []string { return one(i.privateIP) },
	"metadata-options.http-tokens":                   func(i *instance) []string { return one(i.metadata.HTTPTokens) },
	"metadata-options.http-endpoint":                 func(i *instance) []string { return one(i.metadata.HTTPEndpoint) },
	"metadata-options.http-put-response-hop-limit":   func(i *instance) []string { return one(strconv.Itoa(i.metadata.HTTPPutResponseHopLimit)) },
	"metadata-options.instance-metadata-tags":        func(i *instance) []string { return one(i.metadata.InstanceMetadataTags) },
}

func groupIDs(groups []groupRef) []string {
	ids := make([]string, len(groups))
	for n, g := range groups {
		ids[n] = g.ID
	}
	return ids
}

func groupNames(groups []groupRef) []string {
	names := make([]string, len(groups))
	for n, g := range groups {
		names[n] = g.Name
	}
	return names
}

func (c *call) describeInstances(in *describeInstancesIn) (any, error) {
	match, err := instanceFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	for _, id := range in.InstanceIDs {
		if err := checkID("i", "InvalidInstanceID.Malformed", id); err != nil {
			return nil, err
		}
	}
	page, next, err := list(&c.r.instances, in.InstanceIDs, in.paging, 5, instanceNotFound, match)
	if err != nil {
		return nil, err
	}
	out := &describeInstancesOut{NextToken: next}
	at := map[string]int{}
	for _, i := range page {
		n, ok := at[i.reservation]
		if !ok {
			n = len(out.Reservations)
			at[i.reservation] = n
			out.Reservations = append(out.Reservations, reservationOut{ReservationID: i.reservation, OwnerID: account})
		}
		out.Reservations[n].Instances = append(out.Reservations[n].Instances, i.out())
	}
	return out, nil
}

// instance finds one by ID.
func (c *call) instance(id string) (*instance, error) {
	if id == "" {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter InstanceId")
	}
	if err := checkID("i", "InvalidInstanceID.Malformed", id); err != nil {
		return nil, err
	}
	i, ok := c.r.instances.get(id)
	if !ok {
		return nil, instanceNotFound(id)
	}
	return i, nil
}

func (c *call) instancesOf(ids []string) ([]*instance, error) {
	if len(ids) == 0 {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter InstanceId")
	}
	var all []*instance
	for _, id := range ids {
		i, err := c.instance(id)
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}
