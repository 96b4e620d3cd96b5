package audit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/userdata"
)

// risky ports that nobody has to reach from everywhere.
var risky = []struct {
	port int32
	name string
}{
	{22, "ssh"}, {23, "telnet"}, {3389, "remote desktop"}, {5900, "VNC"}, {5985, "WinRM"}, {5986, "WinRM"},
	{1433, "SQL Server"}, {1521, "Oracle"}, {3306, "MySQL"}, {5432, "PostgreSQL"}, {5439, "Redshift"}, {6379, "Redis"}, {9042, "Cassandra"},
	{9200, "Elasticsearch"}, {11211, "memcached"}, {27017, "MongoDB"}, {2375, "Docker"}, {2379, "etcd"},
}

func openPorts(r *Region, found func(resource, message string)) {
	for _, g := range r.Groups {
		for _, p := range g.IpPermissions {
			var open []string
			for _, ip := range p.IpRanges {
				if c := aws.ToString(ip.CidrIp); c == "0.0.0.0/0" {
					open = append(open, c)
				}
			}
			for _, ip := range p.Ipv6Ranges {
				if c := aws.ToString(ip.CidrIpv6); c == "::/0" {
					open = append(open, c)
				}
			}
			protocol := aws.ToString(p.IpProtocol)
			if len(open) == 0 || protocol != "-1" && protocol != "tcp" && protocol != "6" {
				continue
			}
			from, to := aws.ToInt32(p.FromPort), aws.ToInt32(p.ToPort)
			if protocol == "-1" || p.FromPort == nil {
				found(aws.ToString(g.GroupId), fmt.Sprintf("all ports are open to %s", strings.Join(open, " and ")))
				continue
			}
			for _, k := range risky {
				if from <= k.port && k.port <= to {
					found(aws.ToString(g.GroupId), fmt.Sprintf("port %d (%s) is open to %s", k.port, k.name, strings.Join(open, " and ")))
				}
			}
		}
	}
}

func unusedGroups(r *Region, found func(resource, message string)) {
	used := map[string]bool{}
	for _, i := range r.Interfaces {
		for _, g := range i.Groups {
			used[aws.ToString(g.GroupId)] = true
		}
	}
	for _, i := range r.Instances {
		for _, g := range i.SecurityGroups {
			used[aws.ToString(g.GroupId)] = true
		}
	}
	for _, t := range r.Templates {
		for _, v := range t.Versions {
			for _, id := range v.LaunchTemplateData.SecurityGroupIds {
				used[id] = true
			}
			for _, n := range v.LaunchTemplateData.NetworkInterfaces {
				for _, id := range n.Groups {
					used[id] = true
				}
			}
		}
	}
	for _, g := range r.Groups {
		for _, p := range slices.Concat(g.IpPermissions, g.IpPermissionsEgress) {
			for _, pair := range p.UserIdGroupPairs {
				if id := aws.ToString(pair.GroupId); id != aws.ToString(g.GroupId) {
					used[id] = true
				}
			}
		}
	}
	for _, g := range r.Groups {
		// A VPC's default group cannot be deleted.
		if id := aws.ToString(g.GroupId); !used[id] && aws.ToString(g.GroupName) != "default" {
			found(id, fmt.Sprintf("security group %s is used by no interface, instance, launch template or rule", aws.ToString(g.GroupName)))
		}
	}
}

func imdsV1(r *Region, found func(resource, message string)) {
	for _, i := range r.Instances {
		if m := i.MetadataOptions; m == nil || m.HttpEndpoint != ec2types.InstanceMetadataEndpointStateDisabled && m.HttpTokens != ec2types.HttpTokensStateRequired {
			found(aws.ToString(i.InstanceId), "the instance answers IMDSv1")
		}
	}
	images := map[string]ec2types.Image{}
	for _, i := range r.Images {
		images[aws.ToString(i.ImageId)] = i
		if r.owned(i) && i.ImdsSupport != ec2types.ImdsSupportValuesV20 {
			found(aws.ToString(i.ImageId), fmt.Sprintf("image %s does not require IMDSv2 of its instances", aws.ToString(i.Name)))
		}
	}
	for _, t := range r.Templates {
		for _, v := range t.Versions {
			d := v.LaunchTemplateData
			m := d.MetadataOptions
			switch {
			case m != nil && m.HttpEndpoint == ec2types.LaunchTemplateInstanceMetadataEndpointStateDisabled,
				m != nil && m.HttpTokens == ec2types.LaunchTemplateHttpTokensStateRequired,
				// Where the template is silent, the image decides.
				(m == nil || m.HttpTokens == "") && images[aws.ToString(d.ImageId)].ImdsSupport == ec2types.ImdsSupportValuesV20:
			default:
				found(version(t, v), "instances from this launch template version answer IMDSv1")
			}
		}
	}
}

func version(t Template, v ec2types.LaunchTemplateVersion) string {
	return fmt.Sprintf("%s:%d", aws.ToString(t.LaunchTemplateId), aws.ToInt64(v.VersionNumber))
}

func oldImages(r *Region, found func(resource, message string)) {
	images := map[string]ec2types.Image{}
	for _, i := range r.Images {
		images[aws.ToString(i.ImageId)] = i
	}
	for _, i := range r.Instances {
		id := aws.ToString(i.ImageId)
		image, ok := images[id]
		if !ok {
			found(aws.ToString(i.InstanceId), fmt.Sprintf("its image %s is deregistered, or no longer shared", id))
			continue
		}
		if image.State == ec2types.ImageStateDisabled {
			found(aws.ToString(i.InstanceId), fmt.Sprintf("its image %s is disabled", id))
			continue
		}
		if t, err := time.Parse(time.RFC3339, aws.ToString(image.DeprecationTime)); err == nil && t.Before(r.opts.Now) {
			found(aws.ToString(i.InstanceId), fmt.Sprintf("its image %s is deprecated since %s", id, t.Format(time.DateOnly)))
			continue
		}
		if t, err := time.Parse(time.RFC3339, aws.ToString(image.CreationDate)); err == nil && r.opts.Now.Sub(t) > r.opts.MaxImageAge {
			found(aws.ToString(i.InstanceId), fmt.Sprintf("its image %s is %d days old", id, int(r.opts.Now.Sub(t).Hours()/24)))
		}
	}
}

func templateOf(g astypes.AutoScalingGroup) *astypes.LaunchTemplateSpecification {
	if g.LaunchTemplate != nil {
		return g.LaunchTemplate
	}
	if m := g.MixedInstancesPolicy; m != nil && m.LaunchTemplate != nil {
		return m.LaunchTemplate.LaunchTemplateSpecification
	}
	return nil
}

func unpromoted(r *Region, found func(resource, message string)) {
	for _, g := range r.Scaling {
		name := aws.ToString(g.AutoScalingGroupName)
		s := templateOf(g)
		if s == nil {
			found(name, "the group has no launch template")
			continue
		}
		i := slices.IndexFunc(r.Templates, func(t Template) bool {
			return aws.ToString(t.LaunchTemplateId) == aws.ToString(s.LaunchTemplateId) && s.LaunchTemplateId != nil || aws.ToString(t.LaunchTemplateName) == aws.ToString(s.LaunchTemplateName) && s.LaunchTemplateName != nil
		})
		if i < 0 {
			found(name, "the group's launch template is gone")
			continue
		}
		def := aws.ToInt64(r.Templates[i].DefaultVersionNumber)
		switch v := aws.ToString(s.Version); v {
		case "$Latest":
			found(name, "the group takes $Latest: whatever is published goes into the next scale-out unproved")
		case "", "$Default", fmt.Sprint(def):
		default:
			found(name, fmt.Sprintf("the group is on version %s; the promoted one, the default, is %d", v, def))
		}
	}
}

func shared(r *Region, found func(resource, message string)) {
	report := func(kind, id string, with []string) {
		for _, w := range with {
			switch {
			case w == "all":
				found(id, "the "+kind+" is public")
			case !slices.Contains(r.opts.Accounts, w):
				found(id, fmt.Sprintf("the %s is shared with %s", kind, w))
			}
		}
	}
	for _, i := range r.Images {
		id := aws.ToString(i.ImageId)
		if r.owned(i) {
			report("image", id, r.ImageShares[id])
		}
	}
	for _, s := range r.Snapshots {
		id := aws.ToString(s.SnapshotId)
		report("snapshot", id, r.SnapshotShares[id])
	}
}

func unencrypted(r *Region, found func(resource, message string)) {
	for _, s := range r.Snapshots {
		if !aws.ToBool(s.Encrypted) {
			found(aws.ToString(s.SnapshotId), "the snapshot is not encrypted")
		}
	}
}

func orphans(r *Region, found func(resource, message string)) {
	used := map[string]bool{}
	for _, i := range r.Images {
		for _, b := range i.BlockDeviceMappings {
			if b.Ebs != nil {
				used[aws.ToString(b.Ebs.SnapshotId)] = true
			}
		}
	}
	for _, s := range r.Snapshots {
		// CreateImage and CopyImage say so in the description; other
		// snapshots are backups, which stand alone by design.
		d := aws.ToString(s.Description)
		made := strings.HasPrefix(d, "Created by CreateImage(") || strings.HasPrefix(d, "Copied for DestinationAmi ")
		if id := aws.ToString(s.SnapshotId); made && !used[id] {
			found(id, "the snapshot's image is gone")
		}
	}
	for _, v := range r.Volumes {
		if v.State == ec2types.VolumeStateAvailable {
			found(aws.ToString(v.VolumeId), fmt.Sprintf("the volume of %d GiB is attached to nothing", aws.ToInt32(v.Size)))
		}
	}
}

func wildcards(r *Region, found func(resource, message string)) {
	for _, p := range r.Profiles {
		for name, doc := range p.Policies {
			for _, s := range doc.Statement {
				if s.Effect != "Allow" {
					continue
				}
				for _, a := range s.Action {
					service, call, _ := strings.Cut(a, ":")
					if a == "*" || call == "*" && slices.Contains(s.Resource, "*") || service == "iam" && strings.Contains(call, "*") && !strings.HasPrefix(call, "Get") && !strings.HasPrefix(call, "List") {
						found(p.Name, fmt.Sprintf("policy %s allows %s on %s", name, a, strings.Join(s.Resource, ", ")))
					}
				}
			}
		}
	}
}

func badUserData(r *Region, found func(resource, message string)) {
	for _, t := range r.Templates {
		for _, v := range t.Versions {
			payload := userData(v)
			if payload == nil {
				continue
			}
			for _, f := range userdata.Lint(payload, userdata.Options{}) {
				// Warnings of style are the author's business; what cannot
				// work and what gives secrets away is the account's.
				if f.Severity == userdata.Error || f.Rule == "secret" {
					found(version(t, v), fmt.Sprintf("user data line %d: %s: %s", f.Line, f.Rule, f.Message))
				}
			}
		}
	}
}
