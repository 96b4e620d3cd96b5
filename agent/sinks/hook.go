package sinks

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"

	"github.com/lecafe/lecafe/agent/report"
)

// The calls the hook makes, as functions: in a program that links
// text/template the linker keeps every method of a client held in an interface.
type (
	completeAction func(context.Context, *autoscaling.CompleteLifecycleActionInput, ...func(*autoscaling.Options)) (*autoscaling.CompleteLifecycleActionOutput, error)
	recordBeat     func(context.Context, *autoscaling.RecordLifecycleActionHeartbeatInput, ...func(*autoscaling.Options)) (*autoscaling.RecordLifecycleActionHeartbeatOutput, error)
)

// hookPatience is how often a completion is tried that Auto Scaling knows no
// action for. Too early is rare (the instance is in Pending:Wait before it
// boots); too late is final: the hook's timeout has decided.
const hookPatience = 6

// abandonAfter is how long ABANDON waits for the report to reach the other
// sinks: it terminates the instance, and what has not been sent by then is lost
// with it.
const abandonAfter = time.Minute

// Hook completes an Auto Scaling lifecycle action.
type Hook struct {
	Complete   completeAction
	Beat       recordBeat
	Hook       string
	Group      func() string // known late: "" while it is not
	InstanceID func() string

	mu    sync.Mutex
	tries int
}

// Name is NameHook.
func (*Hook) Name() string { return NameHook }

// Patience is how long the other sinks go first.
func (*Hook) Patience(r *report.Report) time.Duration {
	if r.Verdict == report.Failure {
		return abandonAfter
	}
	return 0 // nothing is lost with an instance that goes on
}

// Send completes the action: ABANDON for a failure, else CONTINUE.
func (h *Hook) Send(ctx context.Context, r *report.Report) error {
	result := "CONTINUE"
	if r.Verdict == report.Failure {
		result = "ABANDON"
	}
	group := h.Group()
	if group == "" {
		return fmt.Errorf("complete lifecycle hook %s: the Auto Scaling group is not known; set report.lifecycle_hook.group, or turn instance tags in metadata on", h.Hook)
	}
	id := r.Instance.ID
	_, err := h.Complete(ctx, &autoscaling.CompleteLifecycleActionInput{
		AutoScalingGroupName: &group, LifecycleHookName: &h.Hook, InstanceId: &id, LifecycleActionResult: &result,
	})
	if err == nil {
		return nil
	}
	// ValidationError stands for a wrong group or hook name and for "No active
	// Lifecycle Action found" alike.
	if code(err) == "ValidationError" {
		h.mu.Lock()
		h.tries++
		over := h.tries >= hookPatience
		h.mu.Unlock()
		if over {
			return fmt.Errorf("complete lifecycle hook %s of group %s: %w: %w; its time was over, or report.lifecycle_hook names another", h.Hook, group, ErrRefused, err)
		}
	}
	return describe(fmt.Sprintf("lifecycle hook %s of group %s", h.Hook, group), err, "allow the role autoscaling:CompleteLifecycleAction on the group")
}

// Heartbeat restarts the action's timeout. The caller does so only when a
// stage has advanced, so that a hang lets the timeout run out.
func (h *Hook) Heartbeat(ctx context.Context) error {
	group, id := h.Group(), h.InstanceID()
	if group == "" || id == "" {
		return nil
	}
	_, err := h.Beat(ctx, &autoscaling.RecordLifecycleActionHeartbeatInput{
		AutoScalingGroupName: &group, LifecycleHookName: &h.Hook, InstanceId: aws.String(id),
	})
	if err != nil {
		return fmt.Errorf("heartbeat of lifecycle hook %s: %w", h.Hook, err)
	}
	return nil
}
