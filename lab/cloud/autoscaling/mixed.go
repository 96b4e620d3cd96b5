package autoscaling

import (
	"github.com/lecafe/lecafe/lab/cloud/ec2"
)

// mixedSpec is a mixed instances policy. Of it the lab has the launch template
// and a list of instance types, tried in their order ("prioritized"); all
// instances are On-Demand. Weights, templates of overrides and Spot are refused
// rather than modelled.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_MixedInstancesPolicy.html
type mixedSpec struct {
	Template     *mixedTemplate `q:"LaunchTemplate" out:"LaunchTemplate"`
	Distribution *distribution  `q:"InstancesDistribution" out:"InstancesDistribution"`
}

type mixedTemplate struct {
	Spec      *templateSpec `q:"LaunchTemplateSpecification" out:"LaunchTemplateSpecification"`
	Overrides []override    `q:"Overrides" out:"Overrides>member"`
}

type override struct {
	InstanceType string `out:"InstanceType"`
}

type distribution struct {
	OnDemand string `q:"OnDemandAllocationStrategy" out:"OnDemandAllocationStrategy"`
	Base     *int   `q:"OnDemandBaseCapacity" out:"OnDemandBaseCapacity"`
	Above    *int   `q:"OnDemandPercentageAboveBaseCapacity" out:"OnDemandPercentageAboveBaseCapacity"`
	Spot     string `q:"SpotAllocationStrategy" out:"SpotAllocationStrategy"`
	Pools    *int   `q:"SpotInstancePools" out:"SpotInstancePools"`
	Price    string `q:"SpotMaxPrice" out:"SpotMaxPrice"`
}

// goal is the template that a request names, directly or in a mixed instances
// policy; nil where it names none. A policy that leaves something out keeps
// what was there.
func (c *call) goal(direct *templateSpec, mixed *mixedSpec, before templateSpec) (*templateSpec, error) {
	switch {
	case direct != nil && mixed != nil:
		return nil, invalid("Valid requests must contain either LaunchTemplate or MixedInstancesPolicy, not both")
	case direct != nil:
		t, err := c.complete(*direct)
		return &t, err
	case mixed == nil:
		return nil, nil
	}
	next := mixedSpec{Template: &mixedTemplate{}, Distribution: mixed.Distribution}
	if before.mixed != nil {
		*next.Template = *before.mixed.Template
		if next.Distribution == nil {
			next.Distribution = before.mixed.Distribution
		}
	}
	if d := next.Distribution; d != nil && d.Above != nil && *d.Above < 100 {
		return nil, invalid("OnDemandPercentageAboveBaseCapacity %d: the lab models On-Demand instances alone", *d.Above)
	}
	spec := before
	if t := mixed.Template; t != nil {
		if t.Overrides != nil {
			next.Template.Overrides = t.Overrides
		}
		if t.Spec != nil {
			spec = *t.Spec
		}
	}
	if spec.ID == "" && spec.Name == "" {
		return nil, invalid("You must specify a launch template in the mixed instances policy")
	}
	if spec == before { // complete already, which names it twice
		spec.Name = ""
	}
	spec.mixed = nil
	t, err := c.complete(spec)
	if err != nil {
		return nil, err
	}
	next.Template.Spec = nil // it is t's own
	t.mixed = &next
	return &t, nil
}

// types are the instance types to try, in order; "" is the template's own.
func (t templateSpec) types() []string {
	if t.mixed == nil || len(t.mixed.Template.Overrides) == 0 {
		return []string{""}
	}
	var list []string
	for _, o := range t.mixed.Template.Overrides {
		list = append(list, o.InstanceType)
	}
	return list
}

// checkLaunch is refused where none of the types can be launched.
func (c *call) checkLaunch(t templateSpec, subnet string) (err error) {
	for _, instanceType := range t.types() {
		if err = c.s.opts.Instances.CheckLaunch(c.r.name, ec2.Launch{Template: t.ec2(), InstanceType: instanceType, SubnetID: subnet, Count: 1}); err == nil {
			return nil
		}
	}
	return err
}

// shown is how a group or a refresh shows its template: directly or in a mixed
// instances policy.
func (t templateSpec) shown() (*templateSpec, *mixedSpec) {
	if t.mixed == nil {
		return &t, nil
	}
	policy, inner := *t.mixed, *t.mixed.Template
	spec := t
	spec.mixed = nil
	inner.Spec = &spec
	policy.Template = &inner
	return nil, &policy
}
