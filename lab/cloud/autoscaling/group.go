package autoscaling

import (
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/query"
)

type group struct {
	region  *region
	name    string
	created time.Time
	deleted bool // being deleted: waits for its instances to go

	template  templateSpec
	min, max  int
	desired   int
	surplus   int // above desired, while a refresh launches before it terminates
	zones     []zone
	vpcZones  string
	tags      []tag
	hooks     []*hook
	grace     int // seconds
	cooldown  int
	warmup    *int
	protect   bool
	policies  []string
	checkType string
	suspended map[string]bool

	members    []*member // in order of launch
	active     int       // members that count for desired
	activities []*activity
	refreshes  []*refresh
	failures   int // launches failed in a row
	scheduled  bool
	retrying   bool // launches wait after one that failed
}

// zone is one subnet that the group launches in.
type zone struct {
	subnet, az string
}

type templateSpec struct {
	ID      string `q:"LaunchTemplateId" out:"LaunchTemplateId"`
	Name    string `q:"LaunchTemplateName" out:"LaunchTemplateName"`
	Version string `out:"Version"`

	mixed *mixedSpec // without its template, which is this
}

// ec2 names the template by its ID, once that is known.
func (t templateSpec) ec2() ec2.Template {
	if t.ID != "" {
		return ec2.Template{ID: t.ID, Version: t.Version}
	}
	return ec2.Template{Name: t.Name, Version: t.Version}
}

type groupIn struct {
	Name            string `q:"AutoScalingGroupName"`
	LaunchTemplate  *templateSpec
	Mixed           *mixedSpec `q:"MixedInstancesPolicy"`
	MinSize         *int
	MaxSize         *int
	DesiredCapacity *int
	Zones           []string `q:"AvailabilityZones"`
	VPCZones        string   `q:"VPCZoneIdentifier"`
	CheckType       string   `q:"HealthCheckType"`
	Grace           *int     `q:"HealthCheckGracePeriod"`
	DefaultCooldown *int
	Warmup          *int     `q:"DefaultInstanceWarmup"`
	Protect         *bool    `q:"NewInstancesProtectedFromScaleIn"`
	Policies        []string `q:"TerminationPolicies"`
}

type createIn struct {
	groupIn
	Tags  []tag
	Hooks []hookIn `q:"LifecycleHookSpecificationList"`
}

var policies = []string{"AllocationStrategy", "ClosestToNextInstanceHour", "Default", "NewestInstance", "OldestInstance", "OldestLaunchConfiguration", "OldestLaunchTemplate"}

type policyTypesOut struct {
	Types []string `out:"TerminationPolicyTypes>member"`
}

// group finds one by name.
func (c *call) group(name string) (*group, error) {
	if name == "" {
		return nil, invalid("1 validation error detected: Value at 'autoScalingGroupName' failed to satisfy constraint: Member must not be null")
	}
	g, ok := c.r.groups[name]
	if !ok {
		return nil, invalid("AutoScalingGroup name not found - no such group: %s", name)
	}
	return g, nil
}

// createGroup checks that the template can be launched before there is a
// group.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_CreateAutoScalingGroup.html
func (c *call) createGroup(in *createIn) (any, error) {
	if in.Name == "" || len(in.Name) > 255 {
		return nil, invalid("AutoScalingGroupName has 1 to 255 characters")
	}
	if _, ok := c.r.groups[in.Name]; ok {
		return nil, query.Errorf("AlreadyExists", "AutoScalingGroup by this name already exists - A group with the name %s already exists", in.Name)
	}
	if in.MinSize == nil || in.MaxSize == nil {
		return nil, invalid("MinSize and MaxSize are required")
	}
	if in.LaunchTemplate == nil && in.Mixed == nil {
		return nil, invalid("Valid requests must contain either LaunchTemplate, LaunchConfigurationName, InstanceId or MixedInstancesPolicy parameter; the lab models LaunchTemplate and MixedInstancesPolicy")
	}
	g := &group{region: c.r, name: in.Name, created: c.s.now(), cooldown: 300, checkType: "EC2", policies: []string{"Default"}, suspended: map[string]bool{}}
	if in.VPCZones == "" && len(in.Zones) == 0 {
		return nil, invalid("At least one Availability Zone or VPC Subnet is required.")
	}
	if err := c.apply(g, &in.groupIn, true); err != nil {
		return nil, err
	}
	for _, t := range in.Tags {
		if err := t.check(g.name); err != nil {
			return nil, err
		}
	}
	g.tags = ownTags(g.name, in.Tags)
	for _, h := range in.Hooks {
		if err := g.put(h, true); err != nil {
			return nil, err
		}
	}
	c.r.groups[g.name] = g
	c.r.order = append(c.r.order, g)
	c.s.schedule(g, c.s.opts.Times.Scale)
	return nil, nil
}

// apply sets what the request has, after all of it has been checked.
func (c *call) apply(g *group, in *groupIn, create bool) error {
	next := *g
	set := func(to *int, from *int) {
		if from != nil {
			*to = *from
		}
	}
	set(&next.min, in.MinSize)
	set(&next.max, in.MaxSize)
	if next.min < 0 || next.max < next.min {
		return invalid("Max bound, %d, must be greater than or equal to min bound, %d", next.max, next.min)
	}
	switch {
	case in.DesiredCapacity != nil:
		next.desired = *in.DesiredCapacity
	case create:
		next.desired = next.min
	default: // new bounds move the capacity
		next.desired = min(max(next.desired, next.min), next.max)
	}
	if next.desired < next.min || next.desired > next.max {
		return invalid("Desired capacity:%d must be between the specified min size:%d and max size:%d", next.desired, next.min, next.max)
	}
	set(&next.grace, in.Grace)
	set(&next.cooldown, in.DefaultCooldown)
	if in.Warmup != nil {
		next.warmup = in.Warmup
		if *in.Warmup == -1 { // removes the setting
			next.warmup = nil
		}
	}
	if in.Protect != nil {
		next.protect = *in.Protect
	}
	if in.CheckType != "" {
		if in.CheckType != "EC2" && in.CheckType != "ELB" {
			return invalid("Invalid health check type %s. Valid values: EC2, ELB", in.CheckType)
		}
		next.checkType = in.CheckType
	}
	for _, p := range in.Policies {
		if !slices.Contains(policies, p) {
			return invalid("Termination policy %s is not supported", p)
		}
	}
	if len(in.Policies) > 0 {
		next.policies = in.Policies
	}
	if err := c.place(&next, in); err != nil {
		return err
	}
	t, err := c.goal(in.LaunchTemplate, in.Mixed, next.template)
	if err != nil {
		return err
	}
	if t != nil {
		next.template = *t
	}
	if t != nil || len(in.Zones) > 0 || in.VPCZones != "" {
		err := c.checkLaunch(next.template, next.zones[0].subnet)
		if err != nil && query.As(err).Status < 500 { // a lack of capacity shows in the activities
			return invalid("You must use a valid fully-formed launch template. %s", query.As(err).Message)
		}
	}
	*g = next
	return nil
}

// place resolves subnets or, without any, zones with their default subnets.
func (c *call) place(g *group, in *groupIn) error {
	if in.VPCZones == "" && len(in.Zones) == 0 {
		return nil
	}
	g.zones, g.vpcZones = nil, in.VPCZones
	if in.VPCZones == "" {
		for _, az := range in.Zones {
			id, err := c.s.opts.Instances.DefaultSubnet(c.r.name, az)
			if err != nil {
				return invalid("%s", query.As(err).Message)
			}
			g.zones = append(g.zones, zone{id, az})
		}
		return nil
	}
	for id := range strings.SplitSeq(in.VPCZones, ",") {
		id = strings.TrimSpace(id)
		az, err := c.s.opts.Instances.Zone(c.r.name, id)
		if err != nil {
			return invalid("The subnet ID '%s' does not exist", id)
		}
		if len(in.Zones) > 0 && !slices.Contains(in.Zones, az) {
			return invalid("The availability zones of the specified subnets and the Auto Scaling group do not match")
		}
		g.zones = append(g.zones, zone{id, az})
	}
	return nil
}

// complete gives a template its ID and its name; the version stays as it was
// asked for, $Default where nothing was.
func (c *call) complete(t templateSpec) (templateSpec, error) {
	if t.ID != "" && t.Name != "" {
		return t, invalid("Valid requests must contain either launchTemplateId or LaunchTemplateName")
	}
	if t.Version == "" {
		t.Version = "$Default"
	}
	r, err := c.s.opts.Instances.ResolveTemplate(c.r.name, t.ec2())
	if err != nil {
		return t, invalid("You must use a valid fully-formed launch template. %s", query.As(err).Message)
	}
	return templateSpec{ID: r.ID, Name: r.Name, Version: t.Version}, nil
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_UpdateAutoScalingGroup.html
func (c *call) updateGroup(in *groupIn) (any, error) {
	g, err := c.group(in.Name)
	if err != nil {
		return nil, err
	}
	if err := c.apply(g, in, false); err != nil {
		return nil, err
	}
	c.s.schedule(g, c.s.opts.Times.Scale)
	return nil, nil
}

type desiredIn struct {
	Name     string `q:"AutoScalingGroupName"`
	Desired  *int   `q:"DesiredCapacity"`
	Cooldown bool   `q:"HonorCooldown"`
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_SetDesiredCapacity.html
func (c *call) setDesiredCapacity(in *desiredIn) (any, error) {
	g, err := c.group(in.Name)
	if err != nil {
		return nil, err
	}
	switch {
	case in.Desired == nil:
		return nil, invalid("DesiredCapacity is required")
	case *in.Desired > g.max:
		return nil, invalid("New SetDesiredCapacity value %d is above max value %d for the AutoScalingGroup.", *in.Desired, g.max)
	case *in.Desired < g.min:
		return nil, invalid("New SetDesiredCapacity value %d is below min value %d for the AutoScalingGroup.", *in.Desired, g.min)
	}
	g.desired = *in.Desired
	c.s.schedule(g, c.s.opts.Times.Scale)
	return nil, nil
}

type deleteIn struct {
	Name  string `q:"AutoScalingGroupName"`
	Force bool   `q:"ForceDelete"`
}

// deleteGroup refuses a group with instances unless forced; a forced one goes
// with them, without waiting for hooks.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DeleteAutoScalingGroup.html
func (c *call) deleteGroup(in *deleteIn) (any, error) {
	g, err := c.group(in.Name)
	if err != nil {
		return nil, err
	}
	if !in.Force && (len(g.members) > 0 || g.desired > 0 && !g.deleted) {
		return nil, query.Errorf("ResourceInUse", "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance request(s) still in the group.")
	}
	g.deleted = true
	g.min, g.max, g.desired, g.surplus = 0, 0, 0, 0
	if r := g.refreshing(); r != nil {
		r.end(c.s, "Cancelled", "The group is being deleted")
	}
	for _, m := range slices.Clone(g.members) {
		m.dropActions()
		if !m.going() {
			c.s.terminate(m, "At "+stampOf(c.s.now())+" an instance was taken out of service because its group is being deleted.", false)
		} else if m.state == "Terminating:Wait" {
			c.s.proceed(m)
		}
	}
	c.s.goneIfEmpty(g)
	return nil, nil
}

func (s *Server) goneIfEmpty(g *group) {
	if !g.deleted || len(g.members) > 0 {
		return
	}
	delete(g.region.groups, g.name)
	g.region.order = slices.DeleteFunc(g.region.order, func(o *group) bool { return o == g })
}

type processesIn struct {
	Name      string   `q:"AutoScalingGroupName"`
	Processes []string `q:"ScalingProcesses"`
}

var processes = []string{"AZRebalance", "AddToLoadBalancer", "AlarmNotification", "HealthCheck", "InstanceRefresh", "Launch", "ReplaceUnhealthy", "ScheduledActions", "Terminate"}

// https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-suspend-resume-processes.html
func (c *call) suspendProcesses(in *processesIn) (any, error) { return c.processes(in, true) }

func (c *call) resumeProcesses(in *processesIn) (any, error) { return c.processes(in, false) }

func (c *call) processes(in *processesIn, suspend bool) (any, error) {
	g, err := c.group(in.Name)
	if err != nil {
		return nil, err
	}
	names := in.Processes
	if len(names) == 0 {
		names = processes
	}
	for _, p := range names {
		if !slices.Contains(processes, p) {
			return nil, invalid("%s is not a valid scaling process", p)
		}
	}
	for _, p := range names {
		if suspend {
			g.suspended[p] = true
		} else {
			delete(g.suspended, p)
		}
	}
	if !suspend {
		c.s.schedule(g, c.s.opts.Times.Scale)
		for _, m := range g.members {
			c.s.look(m)
		}
	}
	return nil, nil
}
