package autoscaling

import (
	"fmt"
)

// GroupOf names the group that an instance is a member of, "" for none.
func (s *Server) GroupOf(id string) string {
	s.lock()
	defer s.unlock()
	if m := s.members[id]; m != nil {
		return m.group.name
	}
	return ""
}

func (c *call) member(id string) (*member, error) {
	m := c.s.members[id]
	if m == nil || m.group.region != c.r {
		return nil, invalid("Instance Id not found - No managed instance found for instance ID: %s", id)
	}
	return m, nil
}

func (c *call) membersOf(groupName string, ids []string) (*group, []*member, error) {
	g, err := c.group(groupName)
	if err != nil {
		return nil, nil, err
	}
	if len(ids) == 0 {
		return nil, nil, invalid("InstanceIds is required")
	}
	var all []*member
	for _, id := range ids {
		m := c.s.members[id]
		if m == nil || m.group != g {
			return nil, nil, invalid("The instance %s is not part of Auto Scaling group %s.", id, g.name)
		}
		all = append(all, m)
	}
	return g, all, nil
}

type healthIn struct {
	Instance string `q:"InstanceId"`
	Status   string `q:"HealthStatus"`
	Respect  *bool  `q:"ShouldRespectGracePeriod"`
}

// setInstanceHealth replaces an unhealthy instance, but not within the grace
// period where that is respected, as it is by default.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_SetInstanceHealth.html
func (c *call) setInstanceHealth(in *healthIn) (any, error) {
	m, err := c.member(in.Instance)
	if err != nil {
		return nil, err
	}
	switch in.Status {
	case "Healthy":
		m.unhealthy = false
	case "Unhealthy":
		respect := in.Respect == nil || *in.Respect
		if respect && m.group.grace > 0 && (m.state != "InService" || c.s.inGrace(m)) {
			return nil, nil
		}
		m.unhealthy = true
		if m.state == "InService" {
			c.s.unhealthy(m, "a user health-check")
		}
	default:
		return nil, invalid("HealthStatus is Healthy or Unhealthy, not '%s'", in.Status)
	}
	return nil, nil
}

type instancesIn struct {
	Group     string   `q:"AutoScalingGroupName"`
	IDs       []string `q:"InstanceIds"`
	Protected *bool    `q:"ProtectedFromScaleIn"`
	Decrement *bool    `q:"ShouldDecrementDesiredCapacity"`
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_SetInstanceProtection.html
func (c *call) setInstanceProtection(in *instancesIn) (any, error) {
	_, all, err := c.membersOf(in.Group, in.IDs)
	if err != nil {
		return nil, err
	}
	if in.Protected == nil {
		return nil, invalid("ProtectedFromScaleIn is required")
	}
	for _, m := range all {
		m.protected = *in.Protected
	}
	return nil, nil
}

type terminateIn struct {
	Group     string `q:"AutoScalingGroupName"`
	Instance  string `q:"InstanceId"`
	Decrement *bool  `q:"ShouldDecrementDesiredCapacity"`
}

type oneActivityOut struct {
	Activity activityOut `out:"Activity"`
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_TerminateInstanceInAutoScalingGroup.html
func (c *call) terminateInstance(in *terminateIn) (any, error) {
	m, err := c.member(in.Instance)
	if err != nil {
		return nil, err
	}
	g := m.group
	if in.Decrement == nil {
		return nil, invalid("ShouldDecrementDesiredCapacity is required")
	}
	if m.going() {
		return &oneActivityOut{m.activity.out(g)}, nil
	}
	if *in.Decrement && counts(m.state) {
		if g.desired-1 < g.min {
			return nil, invalid("Currently, desiredSize equals minSize (%d). Terminating instance without replacement will violate group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower group's min size.", g.min)
		}
		g.desired--
	}
	c.s.terminate(m, fmt.Sprintf("At %s instance %s was taken out of service in response to a user request.", stampOf(c.s.now()), m.id), true)
	c.s.schedule(g, c.s.opts.Times.Scale)
	return &oneActivityOut{m.activity.out(g)}, nil
}

type activityListOut struct {
	Activities []activityOut `out:"Activities>member"`
}

// leave lowers the desired capacity by n, which the minimum must allow.
func (g *group) leave(n int, decrement *bool) error {
	if decrement == nil {
		return invalid("ShouldDecrementDesiredCapacity is required")
	}
	if !*decrement {
		return nil
	}
	if g.desired-n < g.min {
		return invalid("AutoScalingGroup %s has min-size=%d, max-size=%d, and desired-size=%d. To place into standby or detach %d instances, please update the AutoScalingGroup sizes appropriately.", g.name, g.min, g.max, g.desired, n)
	}
	g.desired -= n
	return nil
}

// enterStandby takes members out of service without ending them; unless the
// capacity is lowered too, they are replaced.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_EnterStandby.html
func (c *call) enterStandby(in *instancesIn) (any, error) {
	g, all, err := c.membersOf(in.Group, in.IDs)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.state != "InService" {
			return nil, invalid("The instance %s is not in InService. It is in %s", m.id, m.state)
		}
	}
	if err := g.leave(len(all), in.Decrement); err != nil {
		return nil, err
	}
	out := &activityListOut{}
	for _, m := range all {
		a := c.s.newActivity(g, "Moving EC2 instance to Standby: "+m.id, fmt.Sprintf("At %s instance %s was moved to standby in response to a user request.", stampOf(c.s.now()), m.id), m.zone)
		c.s.setState(m, "Standby")
		a.close(c.s.now(), "Successful", "")
		out.Activities = append(out.Activities, a.out(g))
	}
	c.s.schedule(g, c.s.opts.Times.Scale)
	return out, nil
}

// exitStandby puts members back into service and raises the capacity.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_ExitStandby.html
func (c *call) exitStandby(in *instancesIn) (any, error) {
	g, all, err := c.membersOf(in.Group, in.IDs)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.state != "Standby" {
			return nil, invalid("The instance %s is not in Standby. It is in %s", m.id, m.state)
		}
	}
	if g.desired+len(all) > g.max {
		return nil, invalid("AutoScalingGroup %s has min-size=%d, max-size=%d, and desired-size=%d. To exit %d instances from standby, please update the AutoScalingGroup sizes appropriately.", g.name, g.min, g.max, g.desired, len(all))
	}
	g.desired += len(all)
	out := &activityListOut{}
	for _, m := range all {
		m.activity = c.s.newActivity(g, "Moving EC2 instance out of Standby: "+m.id, fmt.Sprintf("At %s instance %s was moved out of standby in response to a user request.", stampOf(c.s.now()), m.id), m.zone)
		c.s.setState(m, "Pending")
		out.Activities = append(out.Activities, m.activity.out(g))
		c.s.queueLook(m)
	}
	return out, nil
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DetachInstances.html
func (c *call) detachInstances(in *instancesIn) (any, error) {
	g, all, err := c.membersOf(in.Group, in.IDs)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.state != "InService" && m.state != "Standby" {
			return nil, invalid("The instance %s is not in InService or Standby. It is in %s", m.id, m.state)
		}
	}
	if err := g.leave(len(all), in.Decrement); err != nil {
		return nil, err
	}
	out := &activityListOut{}
	for _, m := range all {
		a := c.s.newActivity(g, "Detaching EC2 instance: "+m.id, fmt.Sprintf("At %s instance %s was detached in response to a user request.", stampOf(c.s.now()), m.id), m.zone)
		a.close(c.s.now(), "Successful", "")
		out.Activities = append(out.Activities, a.out(g))
		c.s.forget(m)
		c.s.opts.Instances.SetTargetLifecycleState(m.id, "Detached")
	}
	c.s.schedule(g, c.s.opts.Times.Scale)
	return out, nil
}

type templateOut struct {
	ID      string `out:"LaunchTemplateId"`
	Name    string `out:"LaunchTemplateName"`
	Version string `out:"Version"`
}

// memberOut is an instance both of a group and of DescribeAutoScalingInstances.
type memberOut struct {
	Instance  string      `out:"InstanceId"`
	Type      string      `out:"InstanceType"`
	Group     string      `out:"AutoScalingGroupName"` // of the latter only
	Zone      string      `out:"AvailabilityZone"`
	State     string      `out:"LifecycleState"`
	Health    string      `out:"HealthStatus"`
	Template  templateOut `out:"LaunchTemplate"`
	Protected bool        `out:"ProtectedFromScaleIn"`
}

func (m *member) out() memberOut {
	out := memberOut{
		Instance: m.id, Type: m.instanceType, Zone: m.zone.az, State: m.state, Health: "Healthy", Protected: m.protected,
		Template: templateOut{m.template.ID, m.template.Name, fmt.Sprint(m.template.Version)},
	}
	if m.unhealthy {
		out.Health = "Unhealthy"
	}
	return out
}

type describeInstancesIn struct {
	IDs        []string `q:"InstanceIds"`
	MaxRecords *int
	NextToken  string
}

type describeInstancesOut struct {
	Instances []memberOut `out:"AutoScalingInstances>member"`
	NextToken string      `out:"NextToken"`
}

// describeInstances lists at most 50 a page, and takes at most 50 IDs; one that
// is in no group is left out.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeAutoScalingInstances.html
func (c *call) describeInstances(in *describeInstancesIn) (any, error) {
	if len(in.IDs) > 50 {
		return nil, invalid("The number of instance ids that may be passed in is limited to 50")
	}
	var rows []*member
	if len(in.IDs) > 0 {
		for _, id := range in.IDs {
			if m := c.s.members[id]; m != nil && m.group.region == c.r {
				rows = append(rows, m)
			}
		}
	} else {
		for _, g := range c.r.order {
			rows = append(rows, g.members...)
		}
	}
	page, next, err := pageOf(rows, in.NextToken, in.MaxRecords, 50, 50)
	if err != nil {
		return nil, err
	}
	out := &describeInstancesOut{NextToken: next}
	for _, m := range page {
		o := m.out()
		o.Group = m.group.name
		out.Instances = append(out.Instances, o)
	}
	return out, nil
}
