package ec2

import (
	"time"

	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// InstanceInfo is one instance as it is at one moment: what its IMDS serves.
type InstanceInfo struct {
	Region, AccountID, AvailabilityZone string
	InstanceID, ImageID, InstanceType   string
	Architecture, RootDevice            string
	ReservationID                       string
	LaunchIndex                         int
	LaunchTime                          time.Time // of the last start: identity document's pendingTime
	State                               string    // pending, running, ...
	PrivateIP, PublicIP                 string
	PrivateDNS, PublicDNS               string
	MAC, InterfaceID                    string
	SubnetID, SubnetCIDR                string
	VPCID, VPCCIDR, Gateway             string
	SecurityGroups, SecurityGroupIDs    []string
	KeyName, PublicKey                  string
	UserData                            []byte // decoded; nil when there is none
	Tags                                map[string]string
	Spot                                bool
	ShutdownBehavior                    string
	HTTPTokens, HTTPEndpoint            string // required|optional, enabled|disabled
	HopLimit                            int
	MetadataTags                        bool   // tags are served in instance metadata
	TargetLifecycleState                string // Auto Scaling's; empty outside of a group

	// Of the instance profile; all empty without one.
	ProfileARN, ProfileID, RoleName string
	Credentials                     wire.Credentials
}

// Role credentials are vended for six hours; new ones are there well before the
// old ones expire (at least five minutes, AWS says):
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html
const (
	credentialLife  = 6 * time.Hour
	credentialRenew = time.Hour
)

// Instance returns an instance as it is now; ok is false when there is none of
// that ID.
func (s *Server) Instance(instanceID string) (info InstanceInfo, ok bool) {
	s.lock()
	i := s.anyInstance(instanceID)
	s.unlock()
	if i == nil {
		return InstanceInfo{}, false
	}
	return s.info(i), true
}

func (s *Server) info(i *instance) InstanceInfo {
	s.lock()
	defer s.unlock()
	info := InstanceInfo{
		Region: i.region.name, AccountID: account, AvailabilityZone: i.subnet.az, InstanceID: i.id, ImageID: i.image.id,
		InstanceType: i.data.InstanceType, Architecture: i.image.arch, RootDevice: i.image.rootDevice, ReservationID: i.reservation,
		LaunchIndex: i.index, LaunchTime: i.launched, State: i.state.Name, PrivateIP: i.privateIP, PublicIP: i.publicIP,
		PrivateDNS: i.privateDNS(), PublicDNS: i.publicDNS(), MAC: i.mac, InterfaceID: i.eni.id, SubnetID: i.subnet.id,
		SubnetCIDR: i.subnet.cidr.String(), VPCID: i.subnet.vpc.id, VPCCIDR: i.subnet.vpc.cidr.String(), Gateway: i.subnet.gateway().String(),
		SecurityGroups: groupNames(i.groups), SecurityGroupIDs: groupIDs(i.groups), KeyName: i.data.KeyName, UserData: i.userData,
		Tags: make(map[string]string, len(i.tags)), Spot: i.spot != "", ShutdownBehavior: i.shutdown, HTTPTokens: i.metadata.HTTPTokens,
		HTTPEndpoint: i.metadata.HTTPEndpoint, HopLimit: i.metadata.HTTPPutResponseHopLimit,
		MetadataTags: i.metadata.InstanceMetadataTags == "enabled", TargetLifecycleState: i.targetState,
	}
	if len(i.userData) == 0 {
		info.UserData = nil
	}
	for _, t := range i.tags {
		info.Tags[t.Key] = t.Value
	}
	if k := i.region.key(i.data.KeyName); k != nil {
		info.PublicKey = k.public
	}
	if i.profile != nil {
		info.ProfileARN, info.ProfileID, info.RoleName = i.profile.arn, i.profile.id, i.profile.role
		if s.opts.Vault != nil && i.profile.role != "" && i.state != terminated {
			if i.credentials.AccessKeyID == "" || i.credentials.Caller.Role != i.profile.role || s.opts.Clock.Now().After(i.credentials.Expiration.Add(-credentialRenew)) {
				i.credentials = s.opts.Vault.Vend(i.profile.role, i.id, credentialLife)
			}
			info.Credentials = i.credentials
		}
	}
	return info
}
