package autoscaling

import (
	"slices"
	"strings"
	"time"
)

// groupOut is https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_AutoScalingGroup.html
type groupOut struct {
	Name       string         `out:"AutoScalingGroupName"`
	ARN        string         `out:"AutoScalingGroupARN"`
	Template   *templateSpec  `out:"LaunchTemplate"`
	Mixed      *mixedSpec     `out:"MixedInstancesPolicy"`
	Min        int            `out:"MinSize"`
	Max        int            `out:"MaxSize"`
	Desired    int            `out:"DesiredCapacity"`
	Cooldown   int            `out:"DefaultCooldown"`
	Warmup     *int           `out:"DefaultInstanceWarmup"`
	Zones      []string       `out:"AvailabilityZones>member"`
	CheckType  string         `out:"HealthCheckType"`
	Grace      int            `out:"HealthCheckGracePeriod"`
	Instances  []memberOut    `out:"Instances>member"`
	Created    time.Time      `out:"CreatedTime"`
	Suspended  []suspendedOut `out:"SuspendedProcesses>member"`
	VPCZones   string         `out:"VPCZoneIdentifier"`
	Status     string         `out:"Status"`
	Tags       []tagOut       `out:"Tags>member"`
	Policies   []string       `out:"TerminationPolicies>member"`
	Protect    bool           `out:"NewInstancesProtectedFromScaleIn"`
	LinkedRole string         `out:"ServiceLinkedRoleARN"`
}

type suspendedOut struct {
	Name   string `out:"ProcessName"`
	Reason string `out:"SuspensionReason"`
}

func (g *group) arn() string {
	return "arn:aws:autoscaling:" + g.region.name + ":" + account + ":autoScalingGroup:00000000-0000-0000-0000-000000000000:autoScalingGroupName/" + g.name
}

func (g *group) out() groupOut {
	out := groupOut{
		Name: g.name, ARN: g.arn(), Min: g.min, Max: g.max, Desired: g.desired, Cooldown: g.cooldown,
		Warmup: g.warmup, CheckType: g.checkType, Grace: g.grace, Created: g.created, VPCZones: g.vpcZones, Tags: g.tagsOut(),
		Policies: g.policies, Protect: g.protect,
		LinkedRole: "arn:aws:iam::" + account + ":role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling",
	}
	out.Template, out.Mixed = g.template.shown()
	for _, z := range g.zones {
		if !slices.Contains(out.Zones, z.az) {
			out.Zones = append(out.Zones, z.az)
		}
	}
	out.Instances = make([]memberOut, len(g.members))
	for i, m := range g.members {
		out.Instances[i] = m.out()
	}
	for _, p := range processes {
		if g.suspended[p] {
			out.Suspended = append(out.Suspended, suspendedOut{p, "User suspended"})
		}
	}
	if g.deleted {
		out.Status = "Delete in progress"
	}
	return out
}

type filter struct {
	Name   string
	Values []string
}

type describeGroupsIn struct {
	Names            []string `q:"AutoScalingGroupNames"`
	Filters          []filter
	IncludeInstances *bool
	MaxRecords       *int
	NextToken        string
}

type describeGroupsOut struct {
	Groups    []groupOut `out:"AutoScalingGroups>member"`
	NextToken string     `out:"NextToken"`
}

// match reports whether a group has the tags that filters ask for; names that
// are no filter are refused.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_Filter.html
func match(g *group, fs []filter) (bool, error) {
	for _, f := range fs {
		ok := false
		for _, t := range g.tags {
			switch {
			case f.Name == "tag-key":
				ok = ok || slices.Contains(f.Values, t.Key)
			case f.Name == "tag-value":
				ok = ok || slices.Contains(f.Values, t.Value)
			case strings.HasPrefix(f.Name, "tag:"):
				ok = ok || t.Key == f.Name[len("tag:"):] && slices.Contains(f.Values, t.Value)
			}
		}
		if f.Name != "tag-key" && f.Name != "tag-value" && !strings.HasPrefix(f.Name, "tag:") {
			return false, invalid("The filter %s is not supported. Valid filters: tag-key, tag-value, tag:key", f.Name)
		}
		if !ok {
			return false, nil
		}
	}
	return true, nil
}

// describeGroups leaves out names that are no group's. A page has 50 groups,
// 100 at most.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeAutoScalingGroups.html
func (c *call) describeGroups(in *describeGroupsIn) (any, error) {
	if _, err := match(&group{}, in.Filters); err != nil {
		return nil, err
	}
	var rows []*group
	for _, g := range c.r.order {
		if len(in.Names) > 0 && !slices.Contains(in.Names, g.name) {
			continue
		}
		if ok, _ := match(g, in.Filters); ok {
			rows = append(rows, g)
		}
	}
	page, next, err := pageOf(rows, in.NextToken, in.MaxRecords, 50, 100)
	if err != nil {
		return nil, err
	}
	out := &describeGroupsOut{NextToken: next}
	for _, g := range page {
		o := g.out()
		if in.IncludeInstances != nil && !*in.IncludeInstances {
			o.Instances = nil
		}
		out.Groups = append(out.Groups, o)
	}
	return out, nil
}
