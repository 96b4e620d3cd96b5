package autoscaling

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// refresh is an instance refresh.
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/instance-refresh-overview.html
type refresh struct {
	id           string
	status       string
	reason       string
	start, ended time.Time
	prefs        preferences
	desired      *templateSpec // nil: the group's own template
	before       templateSpec  // the group's at the start
	todo         map[*member]bool
	total        int
	progress     int // how often something came nearer to the end
	rollback     *rollbackDetails
	baking       bool
}

type rollbackDetails struct {
	reason  string
	start   time.Time
	percent int
	left    int
}

type preferences struct {
	MinHealthy   *int   `q:"MinHealthyPercentage" out:"MinHealthyPercentage"`
	MaxHealthy   *int   `q:"MaxHealthyPercentage" out:"MaxHealthyPercentage"`
	Warmup       *int   `q:"InstanceWarmup" out:"InstanceWarmup"`
	SkipMatching *bool  `out:"SkipMatching"`
	AutoRollback *bool  `out:"AutoRollback"`
	Protected    string `q:"ScaleInProtectedInstances" out:"ScaleInProtectedInstances"`
	Standby      string `q:"StandbyInstances" out:"StandbyInstances"`
	BakeTime     *int   `out:"BakeTime"`
}

type startIn struct {
	Group       string `q:"AutoScalingGroupName"`
	Strategy    string
	Desired     *desiredConfig `q:"DesiredConfiguration"`
	Preferences preferences
}

type desiredConfig struct {
	LaunchTemplate *templateSpec `out:"LaunchTemplate"`
	Mixed          *mixedSpec    `q:"MixedInstancesPolicy" out:"MixedInstancesPolicy"`
}

type refreshIDOut struct {
	ID string `out:"InstanceRefreshId"`
}

func (g *group) refreshing() *refresh {
	if n := len(g.refreshes); n > 0 && g.refreshes[n-1].ended.IsZero() {
		return g.refreshes[n-1]
	}
	return nil
}

func (r *refresh) rollingBack() bool { return r.rollback != nil }

func (p *preferences) min() int {
	if p.MinHealthy == nil {
		return 90
	}
	return *p.MinHealthy
}

func (p *preferences) max() int {
	if p.MaxHealthy == nil {
		return 100
	}
	return *p.MaxHealthy
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_RefreshPreferences.html
func (p *preferences) check() error {
	switch {
	case p.min() < 0 || p.min() > 100:
		return invalid("MinHealthyPercentage is between 0 and 100, not %d", p.min())
	case p.MaxHealthy != nil && p.MinHealthy == nil:
		return invalid("MaxHealthyPercentage needs MinHealthyPercentage too")
	case p.max() < 100 || p.max() > 200:
		return invalid("MaxHealthyPercentage is between 100 and 200, not %d", p.max())
	case p.max()-p.min() > 100:
		return invalid("MaxHealthyPercentage and MinHealthyPercentage may be at most 100 apart")
	case p.Warmup != nil && *p.Warmup < -1:
		return invalid("InstanceWarmup is not negative")
	case p.BakeTime != nil && (*p.BakeTime < 0 || *p.BakeTime > 172800):
		return invalid("BakeTime is between 0 and 172800 seconds, not %d", *p.BakeTime)
	case !slices.Contains([]string{"", "Refresh", "Ignore", "Wait"}, p.Protected):
		return invalid("ScaleInProtectedInstances is Refresh, Ignore or Wait, not '%s'", p.Protected)
	case !slices.Contains([]string{"", "Terminate", "Ignore", "Wait"}, p.Standby):
		return invalid("StandbyInstances is Terminate, Ignore or Wait, not '%s'", p.Standby)
	}
	return nil
}

// warmup is how long after InService a new instance counts.
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/understand-instance-refresh-default-values.html
func (r *refresh) warmup(g *group) time.Duration {
	seconds := g.grace
	if g.warmup != nil {
		seconds = *g.warmup
	}
	if r.prefs.Warmup != nil && *r.prefs.Warmup >= 0 {
		seconds = *r.prefs.Warmup
	}
	return time.Duration(seconds) * time.Second
}

// reversible says why a refresh could not be rolled back, if it could not.
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/instance-refresh-rollback.html
func (c *call) reversible(desired *templateSpec, before templateSpec) (why string) {
	if desired == nil {
		return "there is no desired configuration"
	}
	if v := before.Version; v == "$Latest" || v == "$Default" {
		return "the Auto Scaling group uses the launch template's " + v + " version"
	}
	for _, t := range []templateSpec{before, *desired} {
		r, err := c.s.opts.Instances.ResolveTemplate(c.r.name, t.ec2())
		if err == nil && strings.HasPrefix(r.ImageID, "resolve:ssm:") {
			return "the launch template uses an AWS Systems Manager parameter instead of an AMI ID"
		}
	}
	return ""
}

// startRefresh refuses a second one beside an active one.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_StartInstanceRefresh.html
func (c *call) startRefresh(in *startIn) (any, error) {
	g, err := c.group(in.Group)
	if err != nil {
		return nil, err
	}
	if r := g.refreshing(); r != nil {
		return nil, query.Errorf("InstanceRefreshInProgress", "An Instance Refresh is already in progress and blocks the execution of this Instance Refresh.")
	}
	if in.Strategy != "" && in.Strategy != "Rolling" {
		return nil, invalid("The strategy '%s' is not modelled: Rolling", in.Strategy)
	}
	if err := in.Preferences.check(); err != nil {
		return nil, err
	}
	r := &refresh{id: query.RequestID(), status: "Pending", start: c.s.now(), prefs: in.Preferences, before: g.template, todo: map[*member]bool{}}
	if in.Desired == nil {
		in.Desired = &desiredConfig{}
	}
	t, err := c.goal(in.Desired.LaunchTemplate, in.Desired.Mixed, g.template)
	if err != nil {
		return nil, err
	}
	if t != nil {
		if err := c.checkLaunch(*t, g.zones[0].subnet); err != nil && query.As(err).Status < 500 {
			return nil, invalid("You must use a valid fully-formed launch template. %s", query.As(err).Message)
		}
		r.desired = t
	}
	if r.prefs.AutoRollback != nil && *r.prefs.AutoRollback {
		if why := c.reversible(r.desired, r.before); why != "" {
			return nil, invalid("AutoRollback cannot be used: %s", why)
		}
	}
	skip := r.prefs.SkipMatching != nil && *r.prefs.SkipMatching
	goal := g.template
	if r.desired != nil {
		goal = *r.desired
	}
	resolved, err := c.s.opts.Instances.ResolveTemplate(c.r.name, goal.ec2())
	if err != nil {
		return nil, invalid("%s", query.As(err).Message)
	}
	for _, m := range g.members {
		switch {
		case m.going():
		case skip && m.template == resolved:
		case m.protected && r.prefs.Protected == "Ignore":
		case m.state == "Standby" && r.prefs.Standby == "Ignore":
		default:
			r.todo[m] = true
		}
	}
	r.total = len(r.todo)
	g.refreshes = append(g.refreshes, r)
	c.s.later(c.s.opts.Times.Scale, func() {
		if r.status == "Pending" {
			r.status = "InProgress"
			c.s.refreshTick(g)
		}
	})
	c.s.watchdog(g, r)
	return &refreshIDOut{r.id}, nil
}

// watchdog ends a refresh that has got nowhere for an hour.
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/troubleshooting-instance-refresh.html
func (s *Server) watchdog(g *group, r *refresh) {
	at := r.progress
	s.later(time.Hour, func() {
		if !r.ended.IsZero() {
			return
		}
		if r.progress != at {
			s.watchdog(g, r)
			return
		}
		why := "The refresh could not make progress for 1 hour"
		switch {
		case r.rollingBack():
			r.end(s, "RollbackFailed", why)
		case r.prefs.AutoRollback != nil && *r.prefs.AutoRollback:
			s.rollBack(g, r, why)
		default:
			r.end(s, "Failed", why)
		}
		g.surplus = 0
	})
}

func (r *refresh) end(s *Server, status, reason string) {
	r.status, r.reason, r.ended = status, reason, s.now()
}

// refreshTick takes a refresh as far as the group's health allows: as many old
// instances go as leave MinHealthyPercentage of the desired capacity in
// service and warm, new ones above it first where MaxHealthyPercentage has
// room.
func (s *Server) refreshTick(g *group) {
	r := g.refreshing()
	if r == nil || r.status != "InProgress" && r.status != "RollbackInProgress" || g.suspended["InstanceRefresh"] {
		return
	}
	healthy, waiting := 0, 0
	var ready, useless []*member // the latter serve nobody: they can go at once
	for _, m := range g.members {
		if m.going() {
			continue
		}
		warm := m.state == "InService" && !m.unhealthy
		if warm && m.born == r && !r.todo[m] {
			warm = m.warm
		}
		if warm {
			healthy++
		} else if counts(m.state) && !r.todo[m] {
			waiting++
		}
		switch {
		case !r.todo[m] || !r.replaceable(m):
		case warm:
			ready = append(ready, m)
		default:
			useless = append(useless, m)
		}
	}
	for m := range r.todo {
		if m.going() || m.state == "Terminated" {
			delete(r.todo, m)
			r.progress++
		}
	}
	want := g.desired
	if len(r.todo) == 0 && waiting == 0 && g.active >= want && healthy >= want {
		s.refreshed(g, r)
		return
	}
	for _, m := range useless {
		s.replace(m, r)
	}
	if len(ready) == 0 {
		g.setSurplus(s, 0)
		return
	}
	if r.prefs.max() > 100 {
		g.setSurplus(s, min(len(ready), max(1, want*r.prefs.max()/100-want)))
	}
	n := healthy - (want*r.prefs.min()+99)/100
	if n <= 0 && waiting+len(useless) == 0 && g.surplus == 0 && g.active >= want {
		n = 1 // it must go on somehow: a group of one, or 100 %
	}
	for _, m := range ready[:max(0, min(n, len(ready)))] {
		s.replace(m, r)
	}
	if g.active < g.desired+g.surplus {
		s.schedule(g, s.opts.Times.Scale)
	}
}

func (s *Server) replace(m *member, r *refresh) {
	delete(r.todo, m)
	r.progress++
	s.terminate(m, fmt.Sprintf("At %s an instance was taken out of service in response to an instance refresh.", stampOf(s.now())), true)
	s.schedule(m.group, s.opts.Times.Scale)
}

// replaceable says whether a member can go now; otherwise the refresh waits.
func (r *refresh) replaceable(m *member) bool {
	switch {
	case m.state == "Standby":
		return r.prefs.Standby == "Terminate"
	case m.protected:
		return r.prefs.Protected == "Refresh"
	}
	return true
}

func (g *group) setSurplus(s *Server, n int) {
	if g.surplus == n {
		return
	}
	g.surplus = n
	s.schedule(g, s.opts.Times.Scale)
}

// refreshed ends a refresh that has replaced everything. Only now does the
// group get the desired configuration.
func (s *Server) refreshed(g *group, r *refresh) {
	g.surplus = 0
	if r.rollingBack() {
		r.end(s, "RollbackSuccessful", r.reason)
		return
	}
	if r.prefs.BakeTime != nil && *r.prefs.BakeTime > 0 && !r.baking {
		r.baking, r.status = true, "Baking"
		s.later(time.Duration(*r.prefs.BakeTime)*time.Second, func() {
			if r.status == "Baking" {
				r.status = "InProgress"
				s.refreshTick(g)
			}
		})
		return
	}
	if r.desired != nil {
		g.template = *r.desired
	}
	r.end(s, "Successful", "")
}

type refreshGroupIn struct {
	Group string `q:"AutoScalingGroupName"`
	Wait  *bool  `q:"WaitForTransitioningInstances"`
}

func (c *call) activeRefresh(name string) (*group, *refresh, error) {
	g, err := c.group(name)
	if err != nil {
		return nil, nil, err
	}
	r := g.refreshing()
	if r == nil {
		return nil, nil, query.Errorf("ActiveInstanceRefreshNotFound", "No in progress or pending Instance Refresh found for Auto Scaling group %s", name)
	}
	return g, r, nil
}

// cancelRefresh leaves what has been replaced as it is.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_CancelInstanceRefresh.html
func (c *call) cancelRefresh(in *refreshGroupIn) (any, error) {
	g, r, err := c.activeRefresh(in.Group)
	if err != nil {
		return nil, err
	}
	g.surplus = 0
	r.end(c.s, "Cancelled", "Cancelled by user request.")
	return &refreshIDOut{r.id}, nil
}

// rollbackRefresh refuses what AWS refuses, and is too late when the refresh
// has ended.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_RollbackInstanceRefresh.html
func (c *call) rollbackRefresh(in *refreshGroupIn) (any, error) {
	g, r, err := c.activeRefresh(in.Group)
	if err != nil {
		return nil, err
	}
	if why := c.reversible(r.desired, r.before); why != "" {
		return nil, query.Errorf("IrreversibleInstanceRefresh", "The instance refresh cannot be rolled back: %s", why)
	}
	if r.rollingBack() {
		return nil, query.Errorf("IrreversibleInstanceRefresh", "The instance refresh is being rolled back already")
	}
	c.s.rollBack(g, r, "Rollback requested by user.")
	return &refreshIDOut{r.id}, nil
}

// rollBack replaces what the refresh has launched, with the configuration that
// was there before.
func (s *Server) rollBack(g *group, r *refresh, why string) {
	r.rollback = &rollbackDetails{reason: why, start: s.now(), percent: r.percent(g), left: r.left(g)}
	r.status, r.reason = "RollbackInProgress", why
	r.progress++
	r.todo = map[*member]bool{}
	for _, m := range g.members {
		if m.born == r && !m.going() {
			r.todo[m] = true
		}
	}
	r.total = max(len(r.todo), g.desired-g.active)
	s.watchdog(g, r)
	s.schedule(g, s.opts.Times.Scale)
	s.refreshTick(g)
}

// left is how many instances are still to be replaced, or whose replacement is
// not yet warm.
func (r *refresh) left(g *group) int {
	n := len(r.todo)
	replaced := 0
	for _, m := range g.members {
		if m.born == r && !r.todo[m] && m.state == "InService" {
			replaced++
		}
	}
	return max(n, min(r.total, r.total-replaced))
}

func (r *refresh) percent(g *group) int {
	if r.total == 0 {
		return 100
	}
	return (r.total - r.left(g)) * 100 / r.total
}

type describeRefreshesIn struct {
	Group      string   `q:"AutoScalingGroupName"`
	IDs        []string `q:"InstanceRefreshIds"`
	MaxRecords *int
	NextToken  string
}

// refreshOut is https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_InstanceRefresh.html
type refreshOut struct {
	ID          string         `out:"InstanceRefreshId"`
	Group       string         `out:"AutoScalingGroupName"`
	Status      string         `out:"Status"`
	Reason      string         `out:"StatusReason"`
	Start       time.Time      `out:"StartTime"`
	End         time.Time      `out:"EndTime"`
	Percent     *int           `out:"PercentageComplete"`
	Left        *int           `out:"InstancesToUpdate"`
	Strategy    string         `out:"Strategy"`
	Preferences preferences    `out:"Preferences"`
	Desired     *desiredConfig `out:"DesiredConfiguration"`
	Rollback    *rollbackOut   `out:"RollbackDetails"`
}

type rollbackOut struct {
	Reason  string    `out:"RollbackReason"`
	Start   time.Time `out:"RollbackStartTime"`
	Percent int       `out:"PercentageCompleteOnRollback"`
	Left    int       `out:"InstancesToUpdateOnRollback"`
}

type describeRefreshesOut struct {
	Refreshes []refreshOut `out:"InstanceRefreshes>member"`
	NextToken string       `out:"NextToken"`
}

// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeInstanceRefreshes.html
func (c *call) describeRefreshes(in *describeRefreshesIn) (any, error) {
	g, err := c.group(in.Group)
	if err != nil {
		return nil, err
	}
	var rows []*refresh
	for _, r := range slices.Backward(g.refreshes) {
		if len(in.IDs) == 0 || slices.Contains(in.IDs, r.id) {
			rows = append(rows, r)
		}
	}
	page, next, err := pageOf(rows, in.NextToken, in.MaxRecords, 50, 100)
	if err != nil {
		return nil, err
	}
	out := &describeRefreshesOut{NextToken: next}
	for _, r := range page {
		o := refreshOut{ID: r.id, Group: g.name, Status: r.status, Reason: r.reason, Start: r.start, End: r.ended, Strategy: "Rolling", Preferences: r.prefs}
		if r.desired != nil {
			o.Desired = &desiredConfig{}
			o.Desired.LaunchTemplate, o.Desired.Mixed = r.desired.shown()
		}
		if r.status != "Pending" {
			o.Percent, o.Left = new(r.percent(g)), new(r.left(g))
		}
		if r.status == "Successful" || r.status == "RollbackSuccessful" {
			o.Percent, o.Left = new(100), new(0)
		}
		if b := r.rollback; b != nil {
			o.Rollback = &rollbackOut{b.reason, b.start, b.percent, b.left}
		}
		out.Refreshes = append(out.Refreshes, o)
	}
	return out, nil
}
