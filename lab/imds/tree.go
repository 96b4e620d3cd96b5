package imds

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// Versions are the metadata versions answered, all with the same content.
// cloud-init asks for the dated ones of its list, SDKs for latest.
var Versions = []string{
	"1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01",
	"2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25", "2014-11-05", "2015-10-20", "2016-04-19",
	"2016-06-30", "2016-09-02", "2018-03-28", "2018-08-17", "2018-09-24", "2019-10-01", "2020-10-27", "2021-01-03",
	"2021-03-23", "2021-07-15", "2022-09-24", "2024-04-11", "latest",
}

// hidden marks entries of the tree that no path reaches.
const (
	hidden        = "\x00"
	publicKeyName = hidden + "public-key-name"
)

// unsigned stands where EC2 has a signature. It is no valid PKCS7 or base64
// on purpose: whoever verifies it must fail.
const unsigned = "UNSIGNED: this identity document was made by lecafe's lab, not by AWS"

// tree returns every leaf by its path below a version. Directories are implied
// by their leaves. The caller holds s.mu.
func (s *Server) tree(now time.Time) map[string]func() string {
	i := &s.inst
	t := map[string]func() string{}
	set := func(path, value string) { t[path] = func() string { return value } }
	meta := func(path, value string) {
		if value != "" {
			set("meta-data/"+path, value)
		}
	}
	if len(i.UserData) > 0 {
		set("user-data", string(i.UserData))
	}
	meta("ami-id", i.ImageID)
	meta("ami-launch-index", strconv.Itoa(i.AMILaunchIndex))
	set("meta-data/ami-manifest-path", "(unknown)")
	meta("block-device-mapping/ami", i.RootDevice)
	meta("block-device-mapping/root", i.RootDevice)
	set("meta-data/events/maintenance/history", "[]")
	set("meta-data/events/maintenance/scheduled", "[]")
	if at := i.RebalanceRecommendation; !at.IsZero() {
		meta("events/recommendations/rebalance", encode(map[string]string{"noticeTime": stamp(at)}, ""))
	}
	meta("hostname", i.Hostname)
	set("meta-data/identity-credentials/ec2/info", encode(map[string]string{
		"Code": "Success", "LastUpdated": stamp(i.PendingTime), "AccountId": i.Account,
	}, "  "))
	meta("instance-action", "none")
	meta("instance-id", i.InstanceID)
	meta("instance-life-cycle", i.LifeCycle)
	meta("instance-type", i.InstanceType)
	meta("local-hostname", i.Hostname)
	meta("local-ipv4", i.PrivateIP)
	meta("mac", i.MAC)
	meta("metrics/vhostmd", `<?xml version="1.0" encoding="UTF-8"?>`)
	s.network(meta)
	meta("placement/availability-zone", i.AvailabilityZone)
	meta("placement/availability-zone-id", zoneID(i.AvailabilityZone))
	meta("placement/region", i.Region)
	meta("profile", "default-hvm")
	meta("reservation-id", i.ReservationID)
	meta("security-groups", strings.Join(i.SecurityGroups, "\n"))
	domain, partition := "amazonaws.com", "aws"
	switch {
	case strings.HasPrefix(i.Region, "cn-"):
		domain, partition = "amazonaws.com.cn", "aws-cn"
	case strings.HasPrefix(i.Region, "us-gov-"):
		partition = "aws-us-gov"
	}
	meta("services/domain", domain)
	meta("services/partition", partition)
	if i.PublicKey != "" {
		set(publicKeyName, i.KeyName)
		meta("public-keys/0/openssh-key", i.PublicKey)
	}
	if i.TagsInMetadata {
		for k, v := range i.Tags {
			// A tag whose key cannot be a path cannot be had from IMDS; EC2
			// refuses to enable tags then.
			set("meta-data/tags/instance/"+k, v)
		}
	}
	if i.Role != "" {
		meta("iam/info", encode(map[string]string{
			"Code": "Success", "LastUpdated": stamp(s.lastUpdated(now)),
			"InstanceProfileArn": i.ProfileARN, "InstanceProfileId": i.ProfileID,
		}, "  "))
		if i.Credentials != nil && s.faults.CredentialsMissing == 0 {
			t["meta-data/iam/security-credentials/"+i.Role] = func() string { return s.credentials(now) }
		}
	}
	if a := i.SpotAction; a != nil {
		meta("spot/instance-action", encode(struct {
			Action string `json:"action"`
			Time   string `json:"time"`
		}{a.Action, stamp(a.Time)}, ""))
		if a.Action == "terminate" {
			meta("spot/termination-time", stamp(a.Time))
		}
	}
	meta("autoscaling/target-lifecycle-state", i.TargetLifecycleState)

	set("dynamic/instance-identity/document", i.document())
	set("dynamic/instance-identity/pkcs7", unsigned)
	set("dynamic/instance-identity/rsa2048", unsigned)
	set("dynamic/instance-identity/signature", unsigned)
	return t
}

// network is the one interface, eth0.
func (s *Server) network(meta func(path, value string)) {
	i := &s.inst
	p := "network/interfaces/macs/" + i.MAC + "/"
	meta(p+"device-number", "0")
	meta(p+"interface-id", "eni-"+strings.TrimPrefix(i.InstanceID, "i-"))
	meta(p+"local-hostname", i.Hostname)
	meta(p+"local-ipv4s", i.PrivateIP)
	meta(p+"mac", i.MAC)
	meta(p+"owner-id", i.Account)
	meta(p+"security-groups", strings.Join(i.SecurityGroups, "\n"))
	meta(p+"security-group-ids", strings.Join(i.SecurityGroupIDs, "\n"))
	meta(p+"subnet-id", i.SubnetID)
	meta(p+"subnet-ipv4-cidr-block", i.SubnetCIDR)
	meta(p+"vpc-id", i.VPCID)
	meta(p+"vpc-ipv4-cidr-block", i.VPCCIDR)
	meta(p+"vpc-ipv4-cidr-blocks", i.VPCCIDR)
}

func (i *Instance) document() string {
	return encode(map[string]any{
		"accountId": i.Account, "architecture": i.Architecture, "availabilityZone": i.AvailabilityZone,
		"billingProducts": nil, "devpayProductCodes": nil, "marketplaceProductCodes": nil,
		"imageId": i.ImageID, "instanceId": i.InstanceID, "instanceType": i.InstanceType,
		"kernelId": nil, "ramdiskId": nil, "pendingTime": stamp(i.PendingTime), "privateIp": i.PrivateIP,
		"region": i.Region, "version": "2017-09-30",
	}, "  ")
}

// credentials returns the role's credentials document, vending new ones in
// time. The caller holds s.mu.
func (s *Server) credentials(now time.Time) string {
	c, updated := s.current(now)
	return encode(map[string]string{
		"Code": "Success", "LastUpdated": stamp(updated), "Type": "AWS-HMAC",
		"AccessKeyId": c.AccessKeyID, "SecretAccessKey": c.SecretAccessKey, "Token": c.SessionToken,
		"Expiration": stamp(c.Expiration),
	}, "  ")
}

func (s *Server) current(now time.Time) (wire.Credentials, time.Time) {
	if s.faults.CredentialsExpired {
		if s.expired.AccessKeyID == "" {
			s.expired = s.inst.Credentials(-time.Hour)
		}
		return s.expired, now.Add(-time.Hour - credentialsLife)
	}
	if s.creds.AccessKeyID == "" || (!s.faults.CredentialsStuck && !s.creds.Expiration.After(now.Add(rotateBefore))) {
		s.creds, s.updated = s.inst.Credentials(credentialsLife), now
	}
	return s.creds, s.updated
}

func (s *Server) lastUpdated(now time.Time) time.Time {
	if s.updated.IsZero() {
		return now
	}
	return s.updated
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// zoneID is the shape of a zone's ID, as use1-az1; the true pairing of names
// and IDs differs from account to account.
func zoneID(zone string) string {
	parts := strings.Split(zone, "-")
	if len(parts) < 3 || len(parts[2]) < 2 {
		return ""
	}
	last := parts[len(parts)-1]
	return fmt.Sprintf("%s%s%s-az%d", parts[0], parts[1][:1], last[:len(last)-1], last[len(last)-1]-'a'+1)
}

func encode(v any, indent string) string {
	b, err := json.MarshalIndent(v, "", indent)
	if err != nil { // only maps of strings and plain structs come here
		return ""
	}
	if indent == "" {
		b, _ = json.Marshal(v)
	}
	return string(b)
}
