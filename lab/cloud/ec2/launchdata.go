package ec2

import (
	"encoding/base64"
	"reflect"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// launchData is what a launch template version holds and RunInstances takes:
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RequestLaunchTemplateData.html
type launchData struct {
	ImageID               string           `q:"ImageId" out:"imageId"`
	InstanceType          string           `out:"instanceType"`
	KeyName               string           `out:"keyName"`
	UserData              string           `out:"userData"`
	IamInstanceProfile    *profileSpec     `out:"iamInstanceProfile"`
	BlockDevices          []blockDevice    `q:"BlockDeviceMapping" out:"blockDeviceMappingSet>item"`
	NetworkInterfaces     []interfaceSpec  `q:"NetworkInterface" out:"networkInterfaceSet>item"`
	SecurityGroupIDs      []string         `q:"SecurityGroupId" out:"securityGroupIdSet>item"`
	SecurityGroups        []string         `q:"SecurityGroup" out:"securityGroupSet>item"`
	TagSpecs              []tagSpec        `q:"TagSpecification" out:"tagSpecificationSet>item"`
	MetadataOptions       *metadataSpec    `out:"metadataOptions"`
	Monitoring            *enabled         `out:"monitoring"`
	Placement             *placement       `out:"placement"`
	ShutdownBehavior      string           `q:"InstanceInitiatedShutdownBehavior" out:"instanceInitiatedShutdownBehavior"`
	DisableAPITermination *bool            `q:"DisableApiTermination" out:"disableApiTermination"`
	DisableAPIStop        *bool            `q:"DisableApiStop" out:"disableApiStop"`
	EbsOptimized          *bool            `out:"ebsOptimized"`
	CreditSpecification   *creditSpec      `out:"creditSpecification"`
	MarketOptions         *marketOptions   `q:"InstanceMarketOptions" out:"instanceMarketOptions"`
	EnclaveOptions        *enabled         `out:"enclaveOptions"`
	MaintenanceOptions    *autoRecovery    `out:"maintenanceOptions"`
	PrivateDNSNameOptions *privateDNSNames `q:"PrivateDnsNameOptions" out:"privateDnsNameOptions"`
	// The lab has no reservations: each preference means the same here.
	CapacityReservation *reservationSpec `q:"CapacityReservationSpecification" out:"capacityReservationSpecification"`
}

type reservationSpec struct {
	CapacityReservationPreference string `out:"capacityReservationPreference"`
}

type profileSpec struct {
	Arn  string `out:"arn"`
	Name string `out:"name"`
}

type blockDevice struct {
	DeviceName  string  `out:"deviceName"`
	Ebs         *ebs    `out:"ebs"`
	NoDevice    *string `out:"noDevice"`
	VirtualName string  `out:"virtualName"`
}

type ebs struct {
	DeleteOnTermination *bool  `out:"deleteOnTermination"`
	Encrypted           *bool  `out:"encrypted"`
	Iops                *int   `out:"iops"`
	KmsKeyID            string `q:"KmsKeyId" out:"kmsKeyId"`
	SnapshotID          string `q:"SnapshotId" out:"snapshotId"`
	Throughput          *int   `out:"throughput"`
	VolumeSize          *int   `out:"volumeSize"`
	VolumeType          string `out:"volumeType"`
}

type interfaceSpec struct {
	DeviceIndex              *int     `out:"deviceIndex"`
	NetworkCardIndex         *int     `out:"networkCardIndex"`
	AssociatePublicIPAddress *bool    `q:"AssociatePublicIpAddress" out:"associatePublicIpAddress"`
	DeleteOnTermination      *bool    `out:"deleteOnTermination"`
	Description              string   `out:"description"`
	Groups                   []string `q:"SecurityGroupId" out:"groupSet>groupId"`
	InterfaceType            string   `out:"interfaceType"`
	PrivateIPAddress         string   `q:"PrivateIpAddress" out:"privateIpAddress"`
	SubnetID                 string   `q:"SubnetId" out:"subnetId"`
}

type metadataSpec struct {
	HTTPEndpoint            string `q:"HttpEndpoint" out:"httpEndpoint"`
	HTTPProtocolIPv6        string `q:"HttpProtocolIpv6" out:"httpProtocolIpv6"`
	HTTPPutResponseHopLimit *int   `q:"HttpPutResponseHopLimit" out:"httpPutResponseHopLimit"`
	HTTPTokens              string `q:"HttpTokens" out:"httpTokens"`
	InstanceMetadataTags    string `out:"instanceMetadataTags"`
}

type enabled struct {
	Enabled bool `out:"enabled"`
}

type placement struct {
	Affinity         string `out:"affinity"`
	AvailabilityZone string `out:"availabilityZone"`
	GroupName        string `out:"groupName"`
	Tenancy          string `out:"tenancy"`
}

type creditSpec struct {
	CPUCredits string `q:"CpuCredits" out:"cpuCredits"`
}

type marketOptions struct {
	MarketType  string       `out:"marketType"`
	SpotOptions *spotOptions `out:"spotOptions"`
}

type spotOptions struct {
	MaxPrice             string `out:"maxPrice"`
	SpotInstanceType     string `out:"spotInstanceType"`
	InterruptionBehavior string `q:"InstanceInterruptionBehavior" out:"instanceInterruptionBehavior"`
}

type autoRecovery struct {
	AutoRecovery string `out:"autoRecovery"`
}

type privateDNSNames struct {
	HostnameType                 string `out:"hostnameType"`
	EnableResourceNameDNSARecord *bool  `q:"EnableResourceNameDnsARecord" out:"enableResourceNameDnsARecord"`
}

// over returns base with every parameter that d has in place of its own. A
// parameter is replaced whole, not merged into.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateLaunchTemplateVersion.html, SourceVersion
func (d launchData) over(base launchData) launchData {
	to, from := reflect.ValueOf(&base).Elem(), reflect.ValueOf(d)
	for i := range from.NumField() {
		if f := from.Field(i); !f.IsZero() {
			to.Field(i).Set(f)
		}
	}
	return base
}

const maxUserData = 16 << 10

// decodeUserData checks user data as it stands in a request, base64, against
// the limit of 16 KB before encoding.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/user-data.html
func decodeUserData(s, code string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, query.Errorf(code, "Invalid BASE64 encoding of user data.")
	}
	if len(b) > maxUserData {
		return nil, query.Errorf(code, "User data is limited to %d bytes", maxUserData)
	}
	return b, nil
}

// check refuses values that no launch could take, as RunInstances and
// CreateLaunchTemplate both do.
func (d *launchData) check() error {
	if m := d.MetadataOptions; m != nil {
		if err := m.check(); err != nil {
			return err
		}
	}
	switch d.ShutdownBehavior {
	case "", "stop", "terminate":
	default:
		return query.Errorf("InvalidParameterValue", "Value (%s) for parameter instanceInitiatedShutdownBehavior is invalid. Unknown instance initiated shutdown behavior", d.ShutdownBehavior)
	}
	if p := d.IamInstanceProfile; p != nil && p.Arn != "" && p.Name != "" {
		return query.Errorf("InvalidParameterCombination", "The parameter 'iamInstanceProfile.name' may not be used in combination with 'iamInstanceProfile.arn'")
	}
	// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html, SecurityGroupIds
	if len(d.NetworkInterfaces) > 0 && len(d.SecurityGroupIDs)+len(d.SecurityGroups) > 0 {
		return query.Errorf("InvalidParameterCombination", "Network interfaces and an instance-level security groups may not be specified on the same request")
	}
	for _, b := range d.BlockDevices {
		if err := b.check(); err != nil {
			return err
		}
	}
	return nil
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceMetadataOptionsRequest.html
func (m *metadataSpec) check() error {
	for _, v := range []struct{ name, value, a, b string }{
		{"HttpEndpoint", m.HTTPEndpoint, "enabled", "disabled"},
		{"HttpTokens", m.HTTPTokens, "optional", "required"},
		{"HttpProtocolIpv6", m.HTTPProtocolIPv6, "enabled", "disabled"},
		{"InstanceMetadataTags", m.InstanceMetadataTags, "enabled", "disabled"},
	} {
		if v.value != "" && v.value != v.a && v.value != v.b {
			return query.Errorf("InvalidParameterValue", "Invalid value '%s' for %s. Valid values: %s, %s", v.value, v.name, v.a, v.b)
		}
	}
	if h := m.HTTPPutResponseHopLimit; h != nil && (*h < 1 || *h > 64) {
		return query.Errorf("InvalidParameterValue", "Invalid value '%d' for HttpPutResponseHopLimit. Valid values: 1 to 64", *h)
	}
	return nil
}

// https://docs.aws.amazon.com/ebs/latest/userguide/ebs-volume-types.html
func (b *blockDevice) check() error {
	if b.DeviceName == "" {
		return query.Errorf("MissingParameter", "The request must contain the parameter BlockDeviceMapping.DeviceName")
	}
	e := b.Ebs
	if e == nil {
		return nil
	}
	switch e.VolumeType {
	case "", "gp2", "gp3", "io1", "io2", "st1", "sc1", "standard":
	default:
		return query.Errorf("InvalidParameterValue", "Value (%s) for parameter volumeType is invalid.", e.VolumeType)
	}
	if e.Throughput != nil && e.VolumeType != "gp3" {
		return query.Errorf("InvalidParameterCombination", "The parameter throughput is not supported for %s volumes", e.VolumeType)
	}
	if e.Iops != nil && e.VolumeType != "gp3" && e.VolumeType != "io1" && e.VolumeType != "io2" {
		return query.Errorf("InvalidParameterCombination", "The parameter iops is not supported for %s volumes", e.VolumeType)
	}
	if e.KmsKeyID != "" && (e.Encrypted == nil || !*e.Encrypted) {
		return query.Errorf("InvalidParameterDependency", "The parameter KmsKeyId requires the parameter Encrypted to be set.")
	}
	if e.VolumeSize != nil && (*e.VolumeSize < 1 || *e.VolumeSize > 65536) {
		return query.Errorf("InvalidParameterValue", "Volume of %dGiB is outside the limits", *e.VolumeSize)
	}
	return nil
}
