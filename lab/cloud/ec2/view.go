package ec2

import (
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// instanceOut is https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Instance.html
type instanceOut struct {
	InstanceID      string         `out:"instanceId"`
	ImageID         string         `out:"imageId"`
	State           state          `out:"instanceState"`
	PrivateDNS      string         `out:"privateDnsName,keep"`
	PublicDNS       string         `out:"dnsName,keep"`
	Reason          string         `out:"reason,keep"`
	KeyName         string         `out:"keyName"`
	Index           int            `out:"amiLaunchIndex"`
	Type            string         `out:"instanceType"`
	LaunchTime      time.Time      `out:"launchTime"`
	Placement       placementOut   `out:"placement"`
	Monitoring      monitoringOut  `out:"monitoring"`
	SubnetID        string         `out:"subnetId"`
	VpcID           string         `out:"vpcId"`
	PrivateIP       string         `out:"privateIpAddress"`
	PublicIP        string         `out:"ipAddress"`
	SourceDestCheck bool           `out:"sourceDestCheck"`
	Groups          []groupRef     `out:"groupSet>item"`
	StateReason     *reason        `out:"stateReason"`
	Architecture    string         `out:"architecture"`
	RootDeviceType  string         `out:"rootDeviceType"`
	RootDeviceName  string         `out:"rootDeviceName"`
	Devices         []deviceOut    `out:"blockDeviceMapping>item"`
	Virtualization  string         `out:"virtualizationType"`
	Lifecycle       string         `out:"instanceLifecycle"`
	ClientToken     string         `out:"clientToken,keep"`
	Tags            []tag          `out:"tagSet>item"`
	Hypervisor      string         `out:"hypervisor"`
	Interfaces      []interfaceOut `out:"networkInterfaceSet>item"`
	Profile         *profileOut    `out:"iamInstanceProfile"`
	EbsOptimized    bool           `out:"ebsOptimized"`
	EnaSupport      bool           `out:"enaSupport"`
	Metadata        metadataOut    `out:"metadataOptions"`
	Enclave         enabled        `out:"enclaveOptions"`
	PlatformDetails string         `out:"platformDetails"`
	UsageOperation  string         `out:"usageOperation"`
	CurrentBootMode string         `out:"currentInstanceBootMode"`
	BootMode        string         `out:"bootMode"`
}

type placementOut struct {
	AZ        string `out:"availabilityZone"`
	GroupName string `out:"groupName,keep"`
	Tenancy   string `out:"tenancy"`
}

type monitoringOut struct {
	State string `out:"state"`
}

type profileOut struct {
	Arn string `out:"arn"`
	ID  string `out:"id"`
}

type deviceOut struct {
	Name string       `out:"deviceName"`
	Ebs  deviceEbsOut `out:"ebs"`
}

type deviceEbsOut struct {
	VolumeID string    `out:"volumeId"`
	Status   string    `out:"status"`
	Attached time.Time `out:"attachTime"`
	Deletes  bool      `out:"deleteOnTermination"`
}

type interfaceOut struct {
	ID          string          `out:"networkInterfaceId"`
	SubnetID    string          `out:"subnetId"`
	VpcID       string          `out:"vpcId"`
	Description string          `out:"description,keep"`
	OwnerID     string          `out:"ownerId"`
	Status      string          `out:"status"`
	MAC         string          `out:"macAddress"`
	PrivateIP   string          `out:"privateIpAddress"`
	PrivateDNS  string          `out:"privateDnsName"`
	Check       bool            `out:"sourceDestCheck"`
	Type        string          `out:"interfaceType"`
	Groups      []groupRef      `out:"groupSet>item"`
	Attachment  eniAttachment   `out:"attachment"`
	Association *eniAssociation `out:"association"`
	Addresses   []eniAddress    `out:"privateIpAddressesSet>item"`
}

type eniAttachment struct {
	ID       string    `out:"attachmentId"`
	Index    int       `out:"deviceIndex"`
	Status   string    `out:"status"`
	Attached time.Time `out:"attachTime"`
	Deletes  bool      `out:"deleteOnTermination"`
}

type eniAssociation struct {
	PublicIP  string `out:"publicIp"`
	PublicDNS string `out:"publicDnsName"`
	Owner     string `out:"ipOwnerId"`
}

type eniAddress struct {
	PrivateIP   string          `out:"privateIpAddress"`
	PrivateDNS  string          `out:"privateDnsName"`
	Primary     bool            `out:"primary"`
	Association *eniAssociation `out:"association"`
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
	Reservations []reservationOut `out:"reservationSet>item"`
	NextToken    string           `out:"nextToken"`
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
