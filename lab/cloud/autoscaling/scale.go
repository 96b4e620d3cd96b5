package autoscaling

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/query"
)

// member is an instance of a group.
// Its states are those of
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-lifecycle.html
type member struct {
	id           string
	group        *group
	zone         zone
	instanceType string
	template     ec2.Resolved
	state        string
	unhealthy    bool
	protected    bool
	activity     *activity
	actions      []*lifecycleAction
	graced       bool     // the grace period since InService has passed
	warm         bool     // the refresh's warm-up since InService has passed
	born         *refresh // the refresh that launched it
	checking     bool
}

func (m *member) going() bool { return strings.HasPrefix(m.state, "Terminating") }

func counts(state string) bool {
	return state == "InService" || strings.HasPrefix(state, "Pending")
}

func (s *Server) setState(m *member, state string) {
	g := m.group
	if counts(m.state) {
		g.active--
	}
	if counts(state) {
		g.active++
	}
	before := target(m.state)
	m.state, s.dirty = state, true
	if t := target(state); t != before {
		s.opts.Instances.SetTargetLifecycleState(m.id, t)
	}
}

// target is the state that IMDS shows the instance as bound for.
func target(state string) string {
	switch {
	case state == "":
		return ""
	case strings.HasPrefix(state, "Pending"), state == "InService":
		return "InService"
	case strings.HasPrefix(state, "Terminating"):
		return "Terminated"
	}
	return state // Standby
}

func stampOf(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// schedule reconciles the group in d, once for all that asks meanwhile.
func (s *Server) schedule(g *group, d time.Duration) {
	if g.scheduled {
		return
	}
	g.scheduled = true
	s.later(d, func() {
		g.scheduled = false
		s.reconcile(g)
	})
}

// reconcile launches or terminates what desired and actual capacity differ by.
func (s *Server) reconcile(g *group) {
	if g.deleted {
		return
	}
	want := g.desired + g.surplus
	switch {
	case g.active < want && !g.suspended["Launch"]:
		if !g.retrying {
			s.launch(g, want-g.active)
		}
	case g.active > want && !g.suspended["Terminate"]:
		s.scaleIn(g, g.active-want)
	}
	s.refreshTick(g)
}

// launch spreads n new instances over the group's zones, the emptiest first. A
// zone that fails is left out of this attempt; what no zone takes is tried
// again later.
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/auto-scaling-benefits.html#arch-AutoScalingMultiAZ
func (s *Server) launch(g *group, n int) {
	have := map[zone]int{}
	for _, m := range g.members {
		if counts(m.state) {
			have[m.zone]++
		}
	}
	usable := slices.Clone(g.zones)
	for n > 0 && len(usable) > 0 {
		share := map[zone]int{}
		for range n {
			best := usable[0]
			for _, z := range usable[1:] {
				if have[z]+share[z] < have[best]+share[best] {
					best = z
				}
			}
			share[best]++
		}
		for _, z := range slices.Clone(usable) {
			if share[z] == 0 {
				continue
			}
			launched, err := s.launchIn(g, z, share[z])
			n -= launched
			have[z] += launched
			if err != nil || launched < share[z] {
				usable = slices.DeleteFunc(usable, func(o zone) bool { return o == z })
			}
		}
	}
	if n == 0 {
		g.failures = 0
		return
	}
	wait := min(s.opts.Times.Retry<<min(g.failures, 10), 15*time.Minute)
	g.failures++
	g.retrying = true
	s.later(wait, func() {
		g.retrying = false
		s.reconcile(g)
	})
}

func (s *Server) launchIn(g *group, z zone, n int) (int, error) {
	spec := g.launchTemplate()
	resolved, err := s.opts.Instances.ResolveTemplate(g.region.name, spec.ec2())
	var ids []string
	launchedType := resolved.InstanceType
	if err == nil {
		spec.Version = fmt.Sprint(resolved.Version)
		tags := map[string]string{"aws:autoscaling:groupName": g.name}
		for _, t := range g.tags {
			if t.Propagate {
				tags[t.Key] = t.Value
			}
		}
		for _, instanceType := range spec.types() {
			ids, err = s.opts.Instances.Launch(g.region.name, ec2.Launch{Template: spec.ec2(), InstanceType: instanceType, SubnetID: z.subnet, Tags: tags, Count: n})
			if instanceType != "" {
				launchedType = instanceType
			}
			if err == nil {
				break // what the first type with room has; the rest is asked for again
			}
		}
	}
	cause := fmt.Sprintf("At %s an instance was started in response to a difference between desired and actual capacity, increasing the capacity from %d to %d.", stampOf(s.now()), g.active, g.active+n)
	if err != nil {
		a := s.newActivity(g, "Launching a new EC2 instance", cause, z)
		message := query.As(err).Message + " Launching EC2 instance failed."
		a.description += ".  Status Reason: " + message
		a.close(s.now(), "Failed", message)
		return 0, err
	}
	for _, id := range ids {
		m := &member{id: id, group: g, zone: z, template: resolved, instanceType: launchedType, protected: g.protect, born: g.refreshing()}
		if m.instanceType == "" {
			m.instanceType = "m1.small"
		}
		m.activity = s.newActivity(g, "Launching a new EC2 instance: "+id, cause, z)
		g.members = append(g.members, m)
		s.members[id] = m
		s.setState(m, "Pending")
	}
	return len(ids), nil
}

// scaleIn terminates n members, unprotected ones from the fullest zone, those
// of the oldest template version first, then the oldest.
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-termination-policies.html
func (s *Server) scaleIn(g *group, n int) {
	var open []*member
	perZone := map[zone]int{}
	for _, m := range g.members {
		if counts(m.state) {
			perZone[m.zone]++
			if !m.protected {
				open = append(open, m)
			}
		}
	}
	newest := slices.Contains(g.policies, "NewestInstance")
	if newest {
		slices.Reverse(open)
	} else {
		slices.SortStableFunc(open, func(a, b *member) int { return int(a.template.Version - b.template.Version) })
	}
	for n > 0 && len(open) > 0 {
		fullest := 0
		for i, m := range open {
			if perZone[m.zone] > perZone[open[fullest].zone] {
				fullest = i
			}
		}
		m := open[fullest]
		open = slices.Delete(open, fullest, fullest+1)
		perZone[m.zone]--
		n--
		s.terminate(m, fmt.Sprintf("At %s an instance was taken out of service in response to a difference between desired and actual capacity, shrinking the capacity from %d to %d.", stampOf(s.now()), g.active, g.active-1), true)
	}
}

// terminate takes a member out of the group, through its termination hooks
// where hooked says so.
func (s *Server) terminate(m *member, cause string, hooked bool) {
	if m.going() {
		return
	}
	if m.activity != nil && m.activity.end.IsZero() {
		m.activity.close(s.now(), "Cancelled", "The instance was terminated before it was in service")
	}
	m.dropActions()
	m.activity = s.newActivity(m.group, "Terminating EC2 instance: "+m.id, cause, m.zone)
	s.setState(m, "Terminating")
	if hooked && s.wait(m, terminating) {
		return
	}
	s.opts.Instances.Terminate(m.id)
	s.queueLook(m)
}

// proceed ends a wait at termination hooks.
func (s *Server) proceed(m *member) {
	m.dropActions()
	s.setState(m, "Terminating:Proceed")
	s.opts.Instances.Terminate(m.id)
	s.queueLook(m)
}

// gone removes a member whose instance is terminated.
func (s *Server) gone(m *member) {
	if m.activity != nil {
		m.activity.close(s.now(), "Successful", "")
	}
	s.forget(m)
	s.schedule(m.group, s.opts.Times.Scale)
}

func (s *Server) forget(m *member) {
	m.dropActions()
	if counts(m.state) {
		m.group.active--
	}
	m.state, s.dirty = "Terminated", true
	delete(s.members, m.id)
	g := m.group
	if i := slices.Index(g.members, m); i >= 0 {
		g.members = slices.Delete(g.members, i, i+1)
	}
	s.goneIfEmpty(g)
}

// look brings a member in line with its instance.
func (s *Server) look(m *member) {
	state, impaired, why := s.opts.Instances.InstanceState(m.id)
	dead := state == "stopping" || state == "stopped" || state == "shutting-down" || state == "terminated"
	switch {
	case m.state == "Pending" && state == "running":
		if !s.wait(m, launching) {
			s.inService(m)
		}
	case strings.HasPrefix(m.state, "Pending") && dead:
		s.launchFailed(m, "Instance became unhealthy while waiting for instance to be in InService state. Termination Reason: "+why, "Failed")
	case m.going() && state == "terminated":
		s.gone(m)
	case m.state == "InService" && (dead || impaired && !s.inGrace(m)) && !m.checking:
		// Stopped and terminated instances are unhealthy in the grace period too:
		// https://docs.aws.amazon.com/autoscaling/ec2/userguide/health-check-grace-period.html
		if m.group.suspended["HealthCheck"] {
			return
		}
		cause := "an EC2 instance status checks failure"
		if dead {
			cause = "an EC2 health check indicating it has been terminated or stopped"
		}
		s.unhealthy(m, cause)
	}
}

// inGrace is told by a timer, as all that passes is: a clock that runs faster
// than real time still says what time it really is.
func (s *Server) inGrace(m *member) bool { return !m.graced }

// unhealthy marks a member and replaces it at the next look, if it is still in
// service.
func (s *Server) unhealthy(m *member, cause string) {
	m.unhealthy = true
	if m.checking {
		return
	}
	m.checking = true
	s.later(s.opts.Times.HealthCheck, func() {
		m.checking = false
		if m.state != "InService" || !m.unhealthy || m.group.suspended["ReplaceUnhealthy"] || m.group.suspended["Terminate"] {
			return
		}
		s.terminate(m, fmt.Sprintf("At %s an instance was taken out of service in response to %s.", stampOf(s.now()), cause), true)
		s.reconcile(m.group)
	})
}

// queueLook has a look at a member whose instance may be gone already: EC2 has
// nothing more to tell of it.
func (s *Server) queueLook(m *member) {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	s.queue = append(s.queue, m.id)
}

func (s *Server) inService(m *member) {
	g := m.group
	m.dropActions()
	m.graced, m.warm = g.grace == 0, false
	s.setState(m, "InService")
	m.activity.close(s.now(), "Successful", "")
	g.failures = 0
	if m.unhealthy {
		s.unhealthy(m, "a user health-check")
	}
	if g.grace > 0 {
		s.later(time.Duration(g.grace)*time.Second, func() {
			m.graced = true
			if m.state == "InService" {
				s.look(m) // what the grace period kept from being seen
			}
		})
	}
	if r := g.refreshing(); r != nil && m.born == r {
		r.progress++
		s.later(r.warmup(g), func() {
			m.warm = true
			s.refreshTick(g)
		})
	}
}

// launchFailed ends a member that never got into service and replaces it.
func (s *Server) launchFailed(m *member, message, status string) {
	g := m.group
	m.activity.description += ".  Status Reason: " + message
	m.activity.close(s.now(), status, message)
	state, _, _ := s.opts.Instances.InstanceState(m.id)
	if state == "terminated" {
		s.forget(m)
	} else {
		m.activity = nil
		m.dropActions()
		s.setState(m, "Terminating")
		m.activity = s.newActivity(g, "Terminating EC2 instance: "+m.id, fmt.Sprintf("At %s an instance was taken out of service because its launch failed.", stampOf(s.now())), m.zone)
		s.opts.Instances.Terminate(m.id)
	}
	s.schedule(g, s.opts.Times.Scale)
}

// launchTemplate is what the group launches now: a refresh in progress has its
// own.
func (g *group) launchTemplate() templateSpec {
	if r := g.refreshing(); r != nil {
		if r.rollingBack() {
			return r.before
		}
		if r.desired != nil {
			return *r.desired
		}
	}
	return g.template
}
