package e2e

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/test/boots"
)

// hooked is a group of one instance that waits at a launch hook until its
// agent has judged it.
type hooked struct {
	o    *operator
	name string
	api  *autoscaling.Client
}

const (
	hookScale   = 10  // of the cloud's time
	hookTimeout = 300 // seconds of the cloud's: 30 here
)

func (o *operator) hookedGroup(image, name, settings, userData string) *hooked {
	o.t.Helper()
	o.launchGroup(image, fleetGroup{name: name, settings: settings + "report: {lifecycle_hook: {name: ready}}\n", userData: userData})
	h := &hooked{o, name, autoscaling.NewFromConfig(boots.Config(o.l))}
	if _, err := h.api.PutLifecycleHook(o.t.Context(), &autoscaling.PutLifecycleHookInput{
		AutoScalingGroupName: &name, LifecycleHookName: aws.String("ready"), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_LAUNCHING"),
		HeartbeatTimeout: aws.Int32(hookTimeout), DefaultResult: aws.String("ABANDON"),
	}); err != nil {
		o.t.Fatal(err)
	}
	h.size(1)
	return h
}

func (h *hooked) size(n int32) {
	h.o.t.Helper()
	if _, err := h.api.UpdateAutoScalingGroup(h.o.t.Context(), &autoscaling.UpdateAutoScalingGroupInput{
		AutoScalingGroupName: &h.name, MinSize: aws.Int32(0), MaxSize: aws.Int32(2), DesiredCapacity: &n,
	}); err != nil {
		h.o.t.Fatal(err)
	}
}

// members are the group's instances now: ID → lifecycle state.
func (h *hooked) members() map[string]string {
	h.o.t.Helper()
	d, err := h.api.DescribeAutoScalingGroups(h.o.t.Context(), &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{h.name}})
	if err != nil || len(d.AutoScalingGroups) != 1 {
		h.o.t.Fatalf("group %s: %v", h.name, err)
	}
	out := map[string]string{}
	for _, i := range d.AutoScalingGroups[0].Instances {
		out[*i.InstanceId] = string(i.LifecycleState)
	}
	return out
}

// first waits for the group's first instance.
func (h *hooked) first() (id string) {
	h.o.t.Helper()
	boots.Eventually(h.o.t, "an instance of "+h.name, func() bool {
		for id = range h.members() {
		}
		return id != ""
	}, boots.Nothing)
	return id
}

// replaced waits until the group has another instance instead.
func (h *hooked) replaced(id string) {
	h.o.t.Helper()
	boots.Eventually(h.o.t, "another instance than "+id+" in "+h.name, func() bool {
		m := h.members()
		_, there := m[id]
		return !there && len(m) > 0
	}, func() string { return strings.Join(h.activities(), "\n") + "\n" + boots.Console(h.o.l, id) })
}

func (h *hooked) activities() (out []string) {
	h.o.t.Helper()
	d, err := h.api.DescribeScalingActivities(h.o.t.Context(), &autoscaling.DescribeScalingActivitiesInput{AutoScalingGroupName: &h.name})
	if err != nil {
		h.o.t.Fatal(err)
	}
	for _, a := range d.Activities {
		out = append(out, string(a.StatusCode)+": "+aws.ToString(a.Description)+": "+aws.ToString(a.StatusMessage))
	}
	return out
}

func (h *hooked) delete() {
	h.o.t.Helper()
	if _, err := h.api.DeleteAutoScalingGroup(h.o.t.Context(), &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: &h.name, ForceDelete: aws.Bool(true)}); err != nil {
		h.o.t.Error(err)
	}
}

// saidOfHook are an instance's own calls about its lifecycle action.
func saidOfHook(l *lab.Lab, id, action string) []cloud.Call {
	return slices.DeleteFunc(l.Calls(), func(c cloud.Call) bool {
		return c.Service != "autoscaling" || c.Action != action || c.Caller.InstanceID != id
	})
}

// TestLifecycleHook follows instances through a launch hook: what came up goes
// into service by the agent's CONTINUE, what failed is abandoned by it and
// replaced, and for what hangs nobody sends heartbeats, so that the hook runs
// out long before the agent's own deadline.
func TestLifecycleHook(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-13"}, func(o *lab.Options) { o.TimeScale = hookScale })
	o := newOperator(t, l)
	baked := o.bake("debian-13")

	hanging := o.hookedGroup(baked.ImageID, "hanging", "bootstrap: {deadline: 1h}\n", "#!/bin/sh\nsleep 10000\n")
	stuck := hanging.first()

	good := o.hookedGroup(baked.ImageID, "good", "", "#!/bin/sh\ntrue\n")
	// The script fails, and its kind of failure alone is made to weigh less.
	lenient := o.hookedGroup(baked.ImageID, "lenient", "bootstrap: {severity: {script_exit: degraded}}\n", "#!/bin/sh\nexit 4\n")
	for _, h := range []*hooked{good, lenient} {
		id := h.first()
		boots.Eventually(t, h.name+" in service", func() bool { return h.members()[id] == string(types.LifecycleStateInService) },
			func() string { return strings.Join(h.activities(), "\n") + "\n" + boots.Console(l, id) })
		r := boots.ReportOf(t, l, id)
		want := map[string]report.Verdict{"good": report.Success, "lenient": report.Degraded}[h.name]
		if r.Verdict != want || r.Instance.AutoScalingGroup != h.name {
			t.Errorf("%s: %s, %+v, instance %+v", h.name, r.Verdict, r.Causes, r.Instance)
		}
		if r.Instance.BakeID != baked.BakeID || r.Instance.ImageID != baked.ImageID || r.Instance.LaunchTemplateVersion != "1" {
			t.Errorf("%s: the report names bake %q, image %s, version %q; it is of bake %s, image %s", h.name,
				r.Instance.BakeID, r.Instance.ImageID, r.Instance.LaunchTemplateVersion, baked.BakeID, baked.ImageID)
		}
		if c := saidOfHook(l, id, "CompleteLifecycleAction"); len(c) != 1 || c[0].Status != http.StatusOK {
			t.Errorf("%s: completed by %+v", h.name, c)
		}
		if c := saidOfHook(l, id, "RecordLifecycleActionHeartbeat"); len(c) == 0 || c[0].Status != http.StatusOK {
			t.Errorf("%s: heartbeats %+v", h.name, c)
		}
		out, err := l.Machines.Exec(t.Context(), id, "lecafe-agent", "status", "--json")
		var status struct {
			Bootstrap *report.Report `json:"bootstrap"`
		}
		if jerr := json.Unmarshal(out, &status); err != nil || jerr != nil || status.Bootstrap == nil || status.Bootstrap.ID != r.ID {
			t.Errorf("%s: lecafe-agent status: %v, %v\n%s", h.name, err, jerr, out)
		}
		h.delete()
	}

	failing := o.hookedGroup(baked.ImageID, "failing", "", "#!/bin/sh\nexit 4\n")
	id := failing.first()
	failing.replaced(id)
	if r := boots.ReportOf(t, l, id); r.Verdict != report.Failure || r.Causes[0].Code != report.CodeScriptExit {
		t.Errorf("failing: %s, %+v", r.Verdict, r.Causes)
	}
	if c := saidOfHook(l, id, "CompleteLifecycleAction"); len(c) != 1 || c[0].Status != http.StatusOK {
		t.Errorf("failing: completed by %+v", c)
	}
	if a := failing.activities(); !slices.ContainsFunc(a, func(s string) bool { return strings.Contains(s, "Lifecycle Action Completed with ABANDON Result") }) {
		t.Errorf("failing: no ABANDON in %q", a)
	}
	boots.WaitState(t, l, id, "terminated")
	failing.delete()

	hanging.replaced(stuck)
	if a := hanging.activities(); !slices.ContainsFunc(a, func(s string) bool { return strings.Contains(s, "Heartbeat Timeout") }) {
		t.Errorf("hanging: no Heartbeat Timeout in %q", a)
	}
	if c := saidOfHook(l, stuck, "CompleteLifecycleAction"); len(c) != 0 {
		t.Errorf("hanging: completed by %+v", c)
	}
	// One for each change of a stage, and nothing while the script slept.
	beats := saidOfHook(l, stuck, "RecordLifecycleActionHeartbeat")
	if len(beats) == 0 || len(beats) > 8 {
		t.Errorf("hanging: %d heartbeats", len(beats))
	}
	hanging.delete()
}
