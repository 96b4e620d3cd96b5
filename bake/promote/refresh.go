package promote

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
)

// ended are the statuses after which a refresh does nothing any more.
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/check-status-instance-refresh.html
func ended(s astypes.InstanceRefreshStatus) bool {
	switch s {
	case astypes.InstanceRefreshStatusSuccessful, astypes.InstanceRefreshStatusFailed, astypes.InstanceRefreshStatusCancelled,
		astypes.InstanceRefreshStatusRollbackFailed, astypes.InstanceRefreshStatusRollbackSuccessful:
		return true
	}
	return false
}

// refresh replaces the group's instances by ones of the new version.
func (p *promotion) refresh(ctx context.Context, g *astypes.AutoScalingGroup) error {
	version := strconv.FormatInt(p.res.Version, 10)
	last, err := p.newest(ctx)
	if err != nil {
		return err
	}
	switch {
	case last != nil && !ended(last.Status) && versionOf(last) == version && last.Status != astypes.InstanceRefreshStatusRollbackInProgress:
		p.res.RefreshID = aws.ToString(last.InstanceRefreshId)
		p.say("following instance refresh %s, which is under way", p.res.RefreshID)
	case last != nil && !ended(last.Status):
		return fmt.Errorf("%w: instance refresh %s of %s is %s; wait for its end, or cancel it", ErrRefused, aws.ToString(last.InstanceRefreshId), p.Group, last.Status)
	case current(g, version):
		return nil
	default:
		in := &autoscaling.StartInstanceRefreshInput{
			AutoScalingGroupName: &p.Group, Strategy: astypes.RefreshStrategyRolling, DesiredConfiguration: &astypes.DesiredConfiguration{},
			Preferences: &astypes.RefreshPreferences{MinHealthyPercentage: aws.Int32(int32(p.MinHealthy)), AutoRollback: aws.Bool(true), SkipMatching: aws.Bool(true)},
		}
		in.DesiredConfiguration.LaunchTemplate, in.DesiredConfiguration.MixedInstancesPolicy = desired(g, version)
		if p.Warmup > 0 {
			in.Preferences.InstanceWarmup = aws.Int32(int32(p.Warmup / time.Second))
		}
		out, err := p.groups.StartInstanceRefresh(ctx, in)
		if codeOf(err) == "InstanceRefreshInProgress" { // our own call's lost answer, or somebody was faster
			if last, err = p.newest(ctx); err == nil && (last == nil || versionOf(last) != version) {
				err = fmt.Errorf("%w: another instance refresh of %s has begun; wait for its end", ErrRefused, p.Group)
			}
			if err != nil {
				return err
			}
			p.res.RefreshID = aws.ToString(last.InstanceRefreshId)
			break
		}
		if err != nil {
			return fmt.Errorf("start instance refresh of %s: %w", p.Group, err)
		}
		p.res.RefreshID = aws.ToString(out.InstanceRefreshId)
		p.say("instance refresh %s of %s to version %s", p.res.RefreshID, p.Group, version)
	}
	return p.follow(ctx)
}

func versionOf(r *astypes.InstanceRefresh) string {
	d := r.DesiredConfiguration
	switch {
	case d == nil:
		return ""
	case d.LaunchTemplate != nil:
		return aws.ToString(d.LaunchTemplate.Version)
	case d.MixedInstancesPolicy != nil && d.MixedInstancesPolicy.LaunchTemplate != nil && d.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification != nil:
		return aws.ToString(d.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version)
	}
	return ""
}

func (p *promotion) newest(ctx context.Context) (*astypes.InstanceRefresh, error) {
	out, err := p.groups.DescribeInstanceRefreshes(ctx, &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: &p.Group})
	if err != nil {
		return nil, fmt.Errorf("describe instance refreshes of %s: %w", p.Group, err)
	}
	if len(out.InstanceRefreshes) == 0 {
		return nil, nil
	}
	return &out.InstanceRefreshes[0], nil // the newest first
}

// follow waits for the refresh's end. A cancelled ctx or the timeout rolls it
// back: half a promotion is none.
func (p *promotion) follow(ctx context.Context) error {
	limit, cancel := context.WithTimeoutCause(ctx, p.Timeout, fmt.Errorf("the instance refresh has not ended after %s", p.Timeout))
	defer cancel()
	said := ""
	for {
		r, err := p.describe(limit)
		if err == nil {
			if line := fmt.Sprintf("%s, %d %% done", r.Status, aws.ToInt32(r.PercentageComplete)); line != said {
				said = line
				p.say("instance refresh: %s", line)
			}
			if ended(r.Status) {
				return outcome(r)
			}
		}
		if err != nil && limit.Err() == nil && !passing(err) {
			return err
		}
		select {
		case <-limit.Done():
			return p.rollBack(ctx, context.Cause(limit))
		case <-time.After(p.Poll):
		}
	}
}

func passing(err error) bool {
	switch codeOf(err) {
	case "", "Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalFailure", "ServiceUnavailable":
		return true
	}
	return false
}

func (p *promotion) describe(ctx context.Context) (*astypes.InstanceRefresh, error) {
	out, err := p.groups.DescribeInstanceRefreshes(ctx, &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: &p.Group, InstanceRefreshIds: []string{p.res.RefreshID}})
	if err != nil {
		return nil, fmt.Errorf("describe instance refresh %s: %w", p.res.RefreshID, err)
	}
	if len(out.InstanceRefreshes) == 0 {
		return nil, fmt.Errorf("describe instance refresh %s: it does not exist", p.res.RefreshID)
	}
	return &out.InstanceRefreshes[0], nil
}

func outcome(r *astypes.InstanceRefresh) error {
	reason := aws.ToString(r.StatusReason)
	switch r.Status {
	case astypes.InstanceRefreshStatusSuccessful:
		return nil
	case astypes.InstanceRefreshStatusRollbackSuccessful:
		return fmt.Errorf("%w: %s", ErrRollback, reason)
	}
	return fmt.Errorf("the instance refresh is %s: %s; look at the group's instances before promoting again", r.Status, reason)
}

// rollbackTimeout bounds what an interrupted promotion still waits for.
const rollbackTimeout = 30 * time.Minute

func (p *promotion) rollBack(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), rollbackTimeout, fmt.Errorf("the rollback has not ended after %s", rollbackTimeout))
	defer cancel()
	if err := rollback(ctx, p.groups, p.Group); err != nil {
		return errors.Join(cause, err)
	}
	p.say("rolling the instance refresh back")
	for {
		r, err := p.describe(ctx)
		if err == nil && ended(r.Status) {
			return fmt.Errorf("%w: %w", cause, outcome(r))
		}
		select {
		case <-ctx.Done():
			return errors.Join(cause, context.Cause(ctx))
		case <-time.After(p.Poll):
		}
	}
}

func rollback(ctx context.Context, api groupAPI, group string) error {
	if _, err := api.RollbackInstanceRefresh(ctx, &autoscaling.RollbackInstanceRefreshInput{AutoScalingGroupName: &group}); err != nil {
		return fmt.Errorf("roll instance refresh of %s back: %w", group, err)
	}
	return nil
}

// RollBackRefresh rolls a refresh that is under way back and follows it. It is
// false when there is none.
func RollBackRefresh(ctx context.Context, o Options) (bool, error) {
	p := connect(o)
	last, err := p.newest(ctx)
	if err != nil || last == nil || ended(last.Status) {
		return false, err
	}
	p.res.RefreshID = aws.ToString(last.InstanceRefreshId)
	if last.Status != astypes.InstanceRefreshStatusRollbackInProgress {
		if err := rollback(ctx, p.groups, p.Group); err != nil {
			return false, err
		}
	}
	err = p.follow(ctx)
	if errors.Is(err, ErrRollback) {
		err = nil
	}
	return err == nil, err
}
