package autoscaling

import (
	"fmt"
	"slices"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

const (
	launching   = "autoscaling:EC2_INSTANCE_LAUNCHING"
	terminating = "autoscaling:EC2_INSTANCE_TERMINATING"
)

type hookTypesOut struct {
	Types []string `out:"LifecycleHookTypes>member"`
}

// hook is a lifecycle hook of a group.
type hook struct {
	name, transition, result, metadata string
	heartbeat                          int // seconds
}

// global is how long a wait can be kept up by heartbeats: 48 hours or 100
// times the heartbeat timeout, whichever is less.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_LifecycleHook.html
func (h *hook) global() time.Duration {
	return min(48*time.Hour, 100*time.Duration(h.heartbeat)*time.Second)
}

// lifecycleAction is one member waiting at one hook.
type lifecycleAction struct {
	hook  *hook
	token string
	began time.Time
	stop  func() bool // of the timer
	done  bool
}

type hookIn struct {
	Name       string `q:"LifecycleHookName"`
	Group      string `q:"AutoScalingGroupName"`
	Transition string `q:"LifecycleTransition"`
	Result     string `q:"DefaultResult"`
	Heartbeat  *int   `q:"HeartbeatTimeout"`
	Metadata   string `q:"NotificationMetadata"`
}

// put makes or changes a hook; the transition of an existing one need not be
// said.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_PutLifecycleHook.html
func (g *group) put(in hookIn, create bool) error {
	i := slices.IndexFunc(g.hooks, func(h *hook) bool { return h.name == in.Name })
	h := hook{name: in.Name, heartbeat: 3600, result: "ABANDON"}
	if i >= 0 {
		if create {
			return invalid("The lifecycle hook %s is there twice", in.Name)
		}
		h = *g.hooks[i]
	}
	if in.Transition != "" {
		h.transition = in.Transition
	}
	if in.Result != "" {
		h.result = in.Result
	}
	if in.Heartbeat != nil {
		h.heartbeat = *in.Heartbeat
	}
	if in.Metadata != "" {
		h.metadata = in.Metadata
	}
	switch {
	case h.name == "" || len(h.name) > 255:
		return invalid("A lifecycle hook's name has 1 to 255 characters")
	case h.transition != launching && h.transition != terminating:
		return invalid("Invalid lifecycle transition '%s'. Valid values: %s, %s", h.transition, launching, terminating)
	case h.result != "ABANDON" && h.result != "CONTINUE":
		return invalid("DefaultResult is CONTINUE or ABANDON, not '%s'", h.result)
	case h.heartbeat < 30 || h.heartbeat > 7200:
		return invalid("HeartbeatTimeout is between 30 and 7200 seconds, not %d", h.heartbeat)
	case i < 0 && len(g.hooks) >= 50:
		return query.Errorf("LimitExceeded", "A group has at most 50 lifecycle hooks")
	}
	if i >= 0 {
		*g.hooks[i] = h
		return nil
	}
	g.hooks = append(g.hooks, &h)
	return nil
}

func (c *call) putHook(in *hookIn) (any, error) {
	g, err := c.group(in.Group)
	if err != nil {
		return nil, err
	}
	return nil, g.put(*in, false)
}

// deleteHook ends the waits at it: launching instances are abandoned,
// terminating ones continue.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DeleteLifecycleHook.html
func (c *call) deleteHook(in *hookIn) (any, error) {
	g, err := c.group(in.Group)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(g.hooks, func(h *hook) bool { return h.name == in.Name })
	if i < 0 {
		return nil, invalid("No Lifecycle Hook found")
	}
	h := g.hooks[i]
	g.hooks = slices.Delete(g.hooks, i, i+1)
	result := "CONTINUE"
	if h.transition == launching {
		result = "ABANDON"
	}
	for _, m := range slices.Clone(g.members) {
		for _, a := range slices.Clone(m.actions) {
			if a.hook == h && !a.done {
				c.s.finish(m, a, result, "Lifecycle Hook Deleted")
			}
		}
	}
	return nil, nil
}

type describeHooksIn struct {
	Group string   `q:"AutoScalingGroupName"`
	Names []string `q:"LifecycleHookNames"`
}

type hookOut struct {
	Name       string `out:"LifecycleHookName"`
	Group      string `out:"AutoScalingGroupName"`
	Transition string `out:"LifecycleTransition"`
	Metadata   string `out:"NotificationMetadata"`
	Heartbeat  int    `out:"HeartbeatTimeout"`
	Global     int    `out:"GlobalTimeout"`
	Result     string `out:"DefaultResult"`
}

type describeHooksOut struct {
	Hooks []hookOut `out:"LifecycleHooks>member"`
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeLifecycleHooks.html
func (c *call) describeHooks(in *describeHooksIn) (any, error) {
	g, err := c.group(in.Group)
	if err != nil {
		return nil, err
	}
	out := &describeHooksOut{}
	for _, h := range g.hooks {
		if len(in.Names) == 0 || slices.Contains(in.Names, h.name) {
			out.Hooks = append(out.Hooks, hookOut{h.name, g.name, h.transition, h.metadata, h.heartbeat, int(h.global().Seconds()), h.result})
		}
	}
	return out, nil
}

// wait lets a member wait at the hooks of a transition and reports whether
// there are any.
func (s *Server) wait(m *member, transition string) bool {
	for _, h := range m.group.hooks {
		if h.transition != transition {
			continue
		}
		a := &lifecycleAction{hook: h, token: query.RequestID(), began: s.now()}
		s.arm(m, a)
		m.actions = append(m.actions, a)
	}
	if len(m.actions) == 0 {
		return false
	}
	state := "Pending:Wait"
	if transition == terminating {
		state = "Terminating:Wait"
	}
	s.setState(m, state)
	m.activity.status = "MidLifecycleAction"
	return true
}

// arm starts the heartbeat's timer anew.
func (s *Server) arm(m *member, a *lifecycleAction) {
	if a.stop != nil {
		a.stop()
	}
	d := min(time.Duration(a.hook.heartbeat)*time.Second, a.began.Add(a.hook.global()).Sub(s.now()))
	a.stop = s.later(d, func() {
		if !a.done {
			s.finish(m, a, a.hook.result, "Heartbeat Timeout")
		}
	})
}

func (m *member) dropActions() {
	for _, a := range m.actions {
		a.done = true
		if a.stop != nil {
			a.stop()
		}
	}
	m.actions = nil
}

// finish ends one wait. A launching member goes into service once every hook
// has said CONTINUE; one ABANDON ends it. A terminating one goes on either
// way, with ABANDON at once.
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/lifecycle-hooks-overview.html
func (s *Server) finish(m *member, a *lifecycleAction, result, why string) {
	a.done = true
	a.stop()
	if m.state == "Pending:Wait" && result == "ABANDON" {
		s.launchFailed(m, fmt.Sprintf("Instance failed to complete user's Lifecycle Action: Lifecycle Action with token %s was abandoned: %s", a.token, why), "Cancelled")
		return
	}
	waiting := slices.ContainsFunc(m.actions, func(a *lifecycleAction) bool { return !a.done })
	switch {
	case m.state == "Pending:Wait" && !waiting:
		s.setState(m, "Pending:Proceed")
		s.inService(m)
	case m.state == "Terminating:Wait" && (!waiting || result == "ABANDON"):
		s.proceed(m)
	}
	s.refreshTick(m.group)
}

type actionIn struct {
	Hook     string `q:"LifecycleHookName"`
	Group    string `q:"AutoScalingGroupName"`
	Token    string `q:"LifecycleActionToken"`
	Result   string `q:"LifecycleActionResult"`
	Instance string `q:"InstanceId"`
}

// action finds the wait that a caller names by instance or by token.
func (c *call) action(in *actionIn) (*member, *lifecycleAction, error) {
	g, err := c.group(in.Group)
	if err != nil {
		return nil, nil, err
	}
	if in.Instance == "" && in.Token == "" {
		return nil, nil, invalid("Either a lifecycle action token or an instance ID must be provided")
	}
	match := func(m *member) *lifecycleAction {
		for _, a := range m.actions {
			if !a.done && a.hook.name == in.Hook && (in.Token == "" || a.token == in.Token) {
				return a
			}
		}
		return nil
	}
	if in.Instance != "" {
		if m := c.s.members[in.Instance]; m != nil && m.group == g {
			if a := match(m); a != nil {
				return m, a, nil
			}
		}
		return nil, nil, invalid("No active Lifecycle Action found with instance ID %s", in.Instance)
	}
	for _, m := range g.members {
		if a := match(m); a != nil {
			return m, a, nil
		}
	}
	return nil, nil, invalid("No active Lifecycle Action found with token %s", in.Token)
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_CompleteLifecycleAction.html
func (c *call) completeAction(in *actionIn) (any, error) {
	if in.Result != "CONTINUE" && in.Result != "ABANDON" {
		return nil, invalid("LifecycleActionResult is CONTINUE or ABANDON, not '%s'", in.Result)
	}
	m, a, err := c.action(in)
	if err != nil {
		return nil, err
	}
	c.s.finish(m, a, in.Result, "Lifecycle Action Completed with "+in.Result+" Result")
	return nil, nil
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_RecordLifecycleActionHeartbeat.html
func (c *call) heartbeat(in *actionIn) (any, error) {
	m, a, err := c.action(in)
	if err != nil {
		return nil, err
	}
	c.s.arm(m, a)
	return nil, nil
}
