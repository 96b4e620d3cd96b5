package ec2

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type runIn struct {
	dry
	launchData
	MinCount, MaxCount *int
	ClientToken        string
	SubnetID           string `q:"SubnetId"`
	PrivateIPAddress   string `q:"PrivateIpAddress"`
	LaunchTemplate     *templateSpec
}

type templateSpec struct {
	LaunchTemplateID   string `q:"LaunchTemplateId"`
	LaunchTemplateName string
	Version            string
}

// runToken remembers what a client token was used for.
type runToken struct {
	params      string
	reservation string
	instances   []*instance
}

type reservationOut struct {
	ReservationID string        `out:"reservationId"`
	OwnerID       string        `out:"ownerId"`
	Groups        []groupRef    `out:"groupSet>item"`
	Instances     []instanceOut `out:"instancesSet>item"`
	RequesterID   string        `out:"requesterId"`
}

// runInstances is RunInstances.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html
func (c *call) runInstances(in *runIn) (any, error) {
	// A client token used before answers with what it made then, or with an
	// error where the parameters are others.
	// https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html
	params, err := fingerprint(in)
	if err != nil {
		return nil, err
	}
	if len(in.ClientToken) > 64 {
		return nil, query.Errorf("InvalidParameterValue", "The client token has more than 64 characters")
	}
	if in.ClientToken != "" {
		if t, ok := c.r.runTokens[in.ClientToken]; ok {
			if t.params != params {
				return nil, query.Errorf("IdempotentParameterMismatch", "The provided client token '%s' was used for a request with other parameters", in.ClientToken)
			}
			return c.reservation(t.reservation, t.instances), nil
		}
	}
	plan, err := c.plan(in)
	if err != nil {
		return nil, err
	}
	batch := c.s.launch(c.r, plan)
	if in.ClientToken != "" {
		c.r.runTokens[in.ClientToken] = &runToken{params, batch[0].reservation, batch}
	}
	return c.reservation(batch[0].reservation, batch), nil
}

// fingerprint is what two requests with one client token must agree in.
func fingerprint(in any) (string, error) {
	b, err := json.Marshal(in)
	return string(b), err
}

func (c *call) reservation(id string, batch []*instance) *reservationOut {
	out := &reservationOut{ReservationID: id, OwnerID: account}
	for _, i := range batch {
		out.Instances = append(out.Instances, i.out())
	}
	return out
}

// launchPlan is a launch that has passed every check.
type launchPlan struct {
	data     launchData
	image    *image
	subnet   *subnet
	count    int
	groups   []groupRef
	profile  *profile
	userData []byte
	tags     []tag // of instances
	volTags  []tag
	eniTags  []tag
	metadata metadataOut
	devices  []blockDevice
	public   bool
	token    string
}

func (c *call) plan(in *runIn) (*launchPlan, error) {
	p := &launchPlan{data: in.launchData, token: in.ClientToken}
	if in.MinCount == nil || in.MaxCount == nil {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameters MinCount and MaxCount")
	}
	if *in.MinCount < 1 || *in.MaxCount < *in.MinCount {
		return nil, query.Errorf("InvalidParameterValue", "MinCount must be at least 1 and MaxCount at least MinCount")
	}
	p.count = *in.MaxCount
	system, err := c.fromTemplate(in.LaunchTemplate, p)
	if err != nil {
		return nil, err
	}
	d := &p.data
	if err := d.check(); err != nil {
		return nil, err
	}
	if p.image, err = c.launchable(d.ImageID); err != nil {
		return nil, err
	}
	if d.InstanceType == "" {
		d.InstanceType = "m1.small"
	}
	if err := fits(d.InstanceType, p.image); err != nil {
		return nil, err
	}
	if p.userData, err = decodeUserData(d.UserData, "InvalidParameterValue"); err != nil {
		return nil, err
	}
	if err := c.place(in, p); err != nil {
		return nil, err
	}
	if d.KeyName != "" && c.r.key(d.KeyName) == nil {
		return nil, query.Errorf("InvalidKeyPair.NotFound", "The key pair '%s' does not exist", d.KeyName)
	}
	if p.profile, err = c.s.profileOf(d.IamInstanceProfile); err != nil {
		return nil, err
	}
	if p.tags, err = specified(d.TagSpecs, "instance", "volume", "network-interface", "spot-instances-request"); err != nil {
		return nil, err
	}
	if p.volTags, err = specified(d.TagSpecs, "volume", "instance", "network-interface", "spot-instances-request"); err != nil {
		return nil, err
	}
	if p.eniTags, err = specified(d.TagSpecs, "network-interface", "instance", "volume", "spot-instances-request"); err != nil {
		return nil, err
	}
	p.tags = mergeTags(p.tags, system)
	p.metadata = metadataFor(d.MetadataOptions, p.image)
	if p.devices, err = devicesFor(p.image, d.BlockDevices); err != nil {
		return nil, err
	}
	// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/troubleshooting-launch.html, a server error: HTTP 500
	if !c.s.faults.hasCapacity(d.InstanceType, p.subnet) {
		return nil, &query.Error{Status: http.StatusInternalServerError, Code: "InsufficientInstanceCapacity",
			Message: fmt.Sprintf("We currently do not have sufficient %s capacity in the Availability Zone you requested (%s). Our system will be working on provisioning additional capacity.", d.InstanceType, p.subnet.az)}
	}
	if free := p.subnet.size() - p.subnet.used; free < *in.MinCount {
		return nil, query.Errorf("InsufficientFreeAddressesInSubnet", "There are not enough free addresses in subnet '%s' to satisfy the requested number of instances.", p.subnet.id)
	} else if free < p.count {
		p.count = free
	}
	return p, nil
}

// fromTemplate puts the request over the launch template version it names. In
// tags the two are merged, the request's value winning. It returns the tags
// that EC2 itself puts on instances from launch templates.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/launch-instances-from-launch-template.html
func (c *call) fromTemplate(spec *templateSpec, p *launchPlan) ([]tag, error) {
	if spec == nil {
		if p.data.ImageID == "" {
			return nil, query.Errorf("MissingParameter", "The request must contain the parameter ImageId")
		}
		return nil, nil
	}
	t, v, err := c.r.templateVersion(spec)
	if err != nil {
		return nil, err
	}
	base := v.data
	// Security groups of the request replace those of the template's interface.
	if len(p.data.SecurityGroupIDs)+len(p.data.SecurityGroups) > 0 {
		base.SecurityGroupIDs, base.SecurityGroups = nil, nil
	}
	merged := p.data.over(base)
	merged.TagSpecs = mergeSpecs(base.TagSpecs, p.data.TagSpecs)
	if merged.ImageID == "" {
		return nil, query.Errorf("MissingParameter", "The request must contain the parameter ImageId: neither the request nor version %d of launch template %s has it", v.number, t.id)
	}
	p.data = merged
	return []tag{{"aws:ec2launchtemplate:id", t.id}, {"aws:ec2launchtemplate:version", strconv.FormatInt(v.number, 10)}}, nil
}

func mergeSpecs(base, over []tagSpec) []tagSpec {
	out := slices.Clone(base)
	for _, spec := range over {
		i := slices.IndexFunc(out, func(o tagSpec) bool { return o.ResourceType == spec.ResourceType })
		if i < 0 {
			out = append(out, spec)
			continue
		}
		out[i].Tags = mergeTags(out[i].Tags, spec.Tags)
	}
	return out
}

// place finds the subnet, the security groups and the addresses.
func (c *call) place(in *runIn, p *launchPlan) error {
	d := &p.data
	subnetID, ids, names, address := in.SubnetID, d.SecurityGroupIDs, d.SecurityGroups, in.PrivateIPAddress
	public := (*bool)(nil)
	if len(d.NetworkInterfaces) > 1 {
		return query.Unsupported("more than one network interface an instance")
	}
	if len(d.NetworkInterfaces) == 1 {
		n := d.NetworkInterfaces[0]
		if n.DeviceIndex != nil && *n.DeviceIndex != 0 {
			return query.Errorf("InvalidParameterValue", "The first network interface must have device index 0")
		}
		if in.SubnetID != "" {
			return query.Errorf("InvalidParameterCombination", "Network interfaces and an instance-level subnet ID may not be specified on the same request")
		}
		subnetID, ids, names, public = n.SubnetID, n.Groups, nil, n.AssociatePublicIPAddress
		if n.PrivateIPAddress != "" {
			address = n.PrivateIPAddress
		}
	}
	az := ""
	if d.Placement != nil {
		az = d.Placement.AvailabilityZone
	}
	if subnetID != "" {
		if err := checkID("subnet", "InvalidSubnetID.Malformed", subnetID); err != nil {
			return err
		}
		sn, ok := c.r.subnets.get(subnetID)
		if !ok {
			return subnetNotFound(subnetID)
		}
		if az != "" && az != sn.az {
			return query.Errorf("InvalidParameterValue", "The availability zone '%s' does not match the zone '%s' of subnet '%s'", az, sn.az, sn.id)
		}
		p.subnet = sn
	} else {
		sn, err := c.r.defaultSubnet(az)
		if err != nil {
			return err
		}
		p.subnet = sn
	}
	p.public = p.subnet.public
	if public != nil {
		p.public = *public
	}
	if address != "" {
		a, err := netip.ParseAddr(address)
		if err != nil || !p.subnet.cidr.Contains(a) {
			return query.Errorf("InvalidParameterValue", "Address %s does not fall within the subnet's address range", address)
		}
		return query.Unsupported("a private address of the caller's choice")
	}
	var err error
	p.groups, err = c.r.groupRefs(p.subnet.vpc, ids, names)
	return err
}

// metadataFor resolves the metadata options: the launch's, then the image's,
// then EC2's defaults. An image with ImdsSupport v2.0 makes tokens required
// and the hop limit 2.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-options.html
func metadataFor(spec *metadataSpec, img *image) metadataOut {
	out := metadataOut{State: "pending", HTTPTokens: "optional", HTTPPutResponseHopLimit: 1, HTTPEndpoint: "enabled", HTTPProtocolIPv6: "disabled", InstanceMetadataTags: "disabled"}
	if img.imdsSupport == "v2.0" {
		out.HTTPTokens, out.HTTPPutResponseHopLimit = "required", 2
	}
	out.apply(spec)
	return out
}

func (m *metadataOut) apply(spec *metadataSpec) {
	if spec == nil {
		return
	}
	set := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	set(&m.HTTPTokens, spec.HTTPTokens)
	set(&m.HTTPEndpoint, spec.HTTPEndpoint)
	set(&m.HTTPProtocolIPv6, spec.HTTPProtocolIPv6)
	set(&m.InstanceMetadataTags, spec.InstanceMetadataTags)
	if spec.HTTPPutResponseHopLimit != nil {
		m.HTTPPutResponseHopLimit = *spec.HTTPPutResponseHopLimit
	}
}

// launch makes the instances of a plan, all pending.
func (s *Server) launch(r *region, p *launchPlan) []*instance {
	reservation := newID("r")
	shutdown := p.data.ShutdownBehavior
	if shutdown == "" {
		shutdown = "stop" // the default of RunInstances
	}
	batch := make([]*instance, p.count)
	for n := range batch {
		i := &instance{
			meta: s.stamp(r, newID("i"), p.tags), region: r, reservation: reservation, index: n, token: p.token,
			data: p.data, image: p.image, subnet: p.subnet, mac: newMAC(),
			groups: p.groups, metadata: p.metadata, userData: p.userData, profile: p.profile, shutdown: shutdown,
			keepAPI: isTrue(p.data.DisableAPITermination), keepRunning: isTrue(p.data.DisableAPIStop), monitored: "disabled",
		}
		i.launched = i.created
		if p.profile != nil {
			i.association = newID("iip-assoc")
		}
		if m := p.data.MarketOptions; m != nil && m.MarketType == "spot" {
			i.spot = "one-time"
			if m.SpotOptions != nil && m.SpotOptions.SpotInstanceType != "" {
				i.spot = m.SpotOptions.SpotInstanceType
			}
		}
		if p.data.Monitoring != nil && p.data.Monitoring.Enabled {
			i.monitored = "enabled"
		}
		i.address = p.subnet.take()
		i.privateIP = i.address.String()
		if p.public {
			i.publicIP = r.publicAddr()
		}
		for _, b := range p.devices {
			i.devices = append(i.devices, s.attach(i, b, p.volTags))
		}
		i.eni = &networkInterface{meta: s.stamp(r, newID("eni"), p.eniTags), instance: i, attachment: newID("eni-attach")}
		r.enis.add(i.eni)
		s.reveal(i.eni)
		i.state = pending
		r.instances.add(i)
		s.reveal(i)
		s.events = append(s.events, stateChange{r.name, i.id})
		batch[n] = i
	}
	p.image.lastLaunched = s.opts.Clock.Now().Truncate(time.Second)
	s.boot(batch)
	return batch
}

func newMAC() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] = 0x02            // locally administered
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}

func isTrue(b *bool) bool { return b != nil && *b }
