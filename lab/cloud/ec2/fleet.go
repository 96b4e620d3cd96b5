package ec2

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// What Auto Scaling does with instances, as Go calls: it is not a client of
// the API with credentials, but a service beside it. Errors are *query.Error,
// with EC2's own codes and messages.

// Template names a version of a launch template, by ID or by name.
type Template struct {
	ID, Name string
	Version  string // a number, $Default, $Latest; empty means $Default
}

// Resolved is a launch template version found.
type Resolved struct {
	ID, Name     string
	Version      int64
	ImageID      string
	InstanceType string
}

// Launch is what a group asks for.
type Launch struct {
	Template     Template
	InstanceType string            // in place of the template's
	SubnetID     string            // or
	Zone         string            // for its default subnet
	Tags         map[string]string // of the instances; keys may be aws:autoscaling:...
	Count        int
}

// ResolveTemplate finds a launch template version.
func (s *Server) ResolveTemplate(regionName string, t Template) (Resolved, error) {
	s.lock()
	defer s.unlock()
	r, err := s.region(regionName)
	if err != nil {
		return Resolved{}, err
	}
	tpl, v, err := r.templateVersion(&templateSpec{t.ID, t.Name, t.Version})
	if err != nil {
		return Resolved{}, err
	}
	return Resolved{tpl.id, tpl.name, v.number, v.data.ImageID, v.data.InstanceType}, nil
}

func (s *Server) planLaunch(regionName string, l Launch) (*region, *launchPlan, error) {
	r, err := s.region(regionName)
	if err != nil {
		return nil, nil, err
	}
	in := &runIn{MinCount: new(1), MaxCount: new(l.Count), LaunchTemplate: &templateSpec{l.Template.ID, l.Template.Name, l.Template.Version}}
	in.InstanceType = l.InstanceType
	_, v, err := r.templateVersion(in.LaunchTemplate)
	if err != nil {
		return nil, nil, err
	}
	subnetID := l.SubnetID
	if subnetID == "" {
		sn, err := r.defaultSubnet(l.Zone)
		if err != nil {
			return nil, nil, err
		}
		subnetID = sn.id
	}
	// The group's subnet goes to the template's network interface, where it has
	// one.
	if n := len(v.data.NetworkInterfaces); n > 0 {
		in.NetworkInterfaces = slices.Clone(v.data.NetworkInterfaces)
		in.NetworkInterfaces[0].SubnetID = subnetID
	} else {
		in.SubnetID = subnetID
	}
	c := &call{s: s, r: r, caller: wire.Caller{ARN: "arn:aws:iam::" + account + ":role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"}}
	p, err := c.plan(in)
	if err != nil {
		return nil, nil, err
	}
	var tags []tag
	for _, k := range slices.Sorted(maps.Keys(l.Tags)) {
		tags = append(tags, tag{k, l.Tags[k]})
	}
	p.tags = mergeTags(p.tags, tags)
	return r, p, nil
}

// CheckLaunch says what Launch would say now.
func (s *Server) CheckLaunch(regionName string, l Launch) error {
	s.lock()
	defer s.unlock()
	_, _, err := s.planLaunch(regionName, l)
	return err
}

// Launch starts up to l.Count instances, fewer where the subnet has no more
// addresses, and returns their IDs.
func (s *Server) Launch(regionName string, l Launch) ([]string, error) {
	s.lock()
	defer s.unlock()
	r, p, err := s.planLaunch(regionName, l)
	if err != nil {
		return nil, err
	}
	batch := s.launch(r, p)
	ids := make([]string, len(batch))
	for n, i := range batch {
		ids[n] = i.id
	}
	return ids, nil
}

// Terminate ends an instance on a service's behalf; one that is gone stays
// gone.
func (s *Server) Terminate(instanceID string) {
	s.lock()
	defer s.unlock()
	if i := s.anyInstance(instanceID); i != nil {
		c := call{s: s}
		s.userTerminate(i, c.initiated())
	}
}

// InstanceState returns an instance's state; an unknown instance is
// terminated. impaired is that its status check fails; why is the state's
// reason, empty without one.
func (s *Server) InstanceState(instanceID string) (state string, impaired bool, why string) {
	s.lock()
	defer s.unlock()
	i := s.anyInstance(instanceID)
	if i == nil {
		return terminated.Name, false, ""
	}
	if i.reason != nil {
		why = i.reason.Message
	}
	return i.state.Name, i.impaired, why
}

// SetTargetLifecycleState sets what the instance's IMDS serves as
// autoscaling/target-lifecycle-state.
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html
func (s *Server) SetTargetLifecycleState(instanceID, target string) {
	s.lock()
	defer s.unlock()
	if i := s.anyInstance(instanceID); i != nil {
		i.targetState = target
	}
}

// Zone returns the availability zone of a subnet.
func (s *Server) Zone(regionName, subnetID string) (string, error) {
	s.lock()
	defer s.unlock()
	r, err := s.region(regionName)
	if err != nil {
		return "", err
	}
	sn, ok := r.subnets.get(subnetID)
	if !ok {
		return "", subnetNotFound(subnetID)
	}
	return sn.az, nil
}

// DefaultSubnet returns the ID of a zone's default subnet.
func (s *Server) DefaultSubnet(regionName, zone string) (string, error) {
	s.lock()
	defer s.unlock()
	r, err := s.region(regionName)
	if err != nil {
		return "", err
	}
	if !slices.Contains(r.zones(), zone) {
		return "", query.Errorf("InvalidParameterValue", "Invalid availability zone: [%s]", zone)
	}
	sn, err := r.defaultSubnet(zone)
	if err != nil {
		return "", err
	}
	return sn.id, nil
}

// String names the version as messages do.
func (t Template) String() string { return fmt.Sprintf("%s%s:%s", t.ID, t.Name, t.Version) }

// Numbered reports whether the template names a version by number, the only
// way that stays what it was.
func (t Template) Numbered() bool {
	n, err := strconv.ParseInt(t.Version, 10, 64)
	return err == nil && n > 0
}
