package promote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"
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
	case last != nil && !ended(last.Status) && leadsTo(last, g, version) && last.Status != astypes.InstanceRefreshStatusRollbackInProgress:
		p.res.RefreshID = aws.ToString(last.InstanceRefreshId)
		p.say("following instance refresh %s, which is under way", p.res.RefreshID)
	case last != nil && !ended(last.Status):
		return fmt.Errorf("%w: instance refresh %s of %s is %s; wait for its end, or cancel it", ErrRefused, aws.ToString(last.InstanceRefreshId), p.Group, last.Status)
	case current(g, version):
		if p.Prove == nil {
			return nil
		}
		// It runs there already. It must be well, but there is no way back.
		p.res.From = version
		return p.proveCurrent(ctx, g)
	default:
		in := &autoscaling.StartInstanceRefreshInput{
			AutoScalingGroupName: &p.Group, Strategy: astypes.RefreshStrategyRolling, DesiredConfiguration: &astypes.DesiredConfiguration{},
			Preferences: &astypes.RefreshPreferences{MinHealthyPercentage: aws.Int32(int32(p.MinHealthy)), AutoRollback: aws.Bool(true), SkipMatching: aws.Bool(true)},
		}
		in.DesiredConfiguration.LaunchTemplate, in.DesiredConfiguration.MixedInstancesPolicy = desired(g, version)
		if p.Warmup > 0 {
			in.Preferences.InstanceWarmup = aws.Int32(int32(p.Warmup / time.Second))
		}
		if p.MaxHealthy > 0 {
			in.Preferences.MaxHealthyPercentage = aws.Int32(int32(p.MaxHealthy))
		}
		if p.BakeTime > 0 {
			in.Preferences.BakeTime = aws.Int32(int32(p.BakeTime / time.Second))
		}
		out, err := p.start(ctx, in)
		if codeOf(err) == "InstanceRefreshInProgress" { // our own call's lost answer, or somebody was faster
			if last, err = p.newest(ctx); err == nil && (last == nil || !leadsTo(last, g, version)) {
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
	p.before = g
	return p.follow(ctx)
}

// start begins a refresh, or not, but leaves no doubt: a call that was cut off
// may have begun one that nobody rolls back. What ends ctx meanwhile is seen
// when the refresh is followed.
func (p *promotion) start(ctx context.Context, in *autoscaling.StartInstanceRefreshInput) (*autoscaling.StartInstanceRefreshOutput, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	whole, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), time.Minute, errors.New("not done after 1m"))
	defer cancel()
	return p.groups.StartInstanceRefresh(whole, in)
}

// leadsTo says that a refresh takes the group to the version of its own
// template: another template may have a version of the same number.
func leadsTo(r *astypes.InstanceRefresh, g *astypes.AutoScalingGroup, version string) bool {
	d := r.DesiredConfiguration
	if d == nil {
		return false
	}
	to, own := templateOf(&astypes.AutoScalingGroup{LaunchTemplate: d.LaunchTemplate, MixedInstancesPolicy: d.MixedInstancesPolicy}), templateOf(g)
	if to == nil || aws.ToString(to.Version) != version {
		return false
	}
	return to.LaunchTemplateId != nil && aws.ToString(to.LaunchTemplateId) == aws.ToString(own.LaunchTemplateId) ||
		to.LaunchTemplateName != nil && aws.ToString(to.LaunchTemplateName) == aws.ToString(own.LaunchTemplateName)
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
			if r.Status != astypes.InstanceRefreshStatusSuccessful && ended(r.Status) {
				return outcome(r)
			}
			done, proveErr := p.proved(limit, r)
			switch {
			case errors.Is(proveErr, ErrUnproved):
				return p.rollBack(ctx, proveErr)
			case done && ended(r.Status):
				return nil
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

// proved asks Prove; without one the refresh's own end is all.
func (p *promotion) proved(ctx context.Context, r *astypes.InstanceRefresh) (bool, error) {
	if p.Prove == nil || r.Status == astypes.InstanceRefreshStatusRollbackInProgress {
		return true, nil
	}
	now := Rollout{Group: p.Group, TemplateID: p.res.LaunchTemplate, Version: strconv.FormatInt(p.res.Version, 10), Status: string(r.Status), Percent: int(aws.ToInt32(r.PercentageComplete)), Since: aws.ToTime(r.StartTime)}
	if p.before != nil {
		now.Desired = int(aws.ToInt32(p.before.DesiredCapacity))
	}
	done, err := p.Prove(ctx, now)
	if err != nil && !errors.Is(err, ErrUnproved) && ctx.Err() == nil {
		p.say("%v", err)
	}
	return done && err == nil, err
}

// proveCurrent waits until a group that runs the version already is proved.
func (p *promotion) proveCurrent(ctx context.Context, g *astypes.AutoScalingGroup) error {
	limit, cancel := context.WithTimeoutCause(ctx, p.Timeout, fmt.Errorf("the group is not proved after %s", p.Timeout))
	defer cancel()
	p.before = g
	r := &astypes.InstanceRefresh{Status: astypes.InstanceRefreshStatusSuccessful, PercentageComplete: aws.Int32(100), StartTime: aws.Time(time.Now())}
	for {
		done, err := p.proved(limit, r)
		switch {
		case done:
			return nil
		case errors.Is(err, ErrUnproved):
			return fmt.Errorf("%w; the group ran version %s before, there is nothing to go back to", err, p.res.From)
		}
		select {
		case <-limit.Done():
			return context.Cause(limit)
		case <-time.After(p.Poll):
		}
	}
}

// passing says that a call which failed is worth another try. ResourceContention
// is Auto Scaling's word for a change of the group that has not settled yet.
// https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_RollbackInstanceRefresh.html
func passing(err error) bool {
	var re *smithyhttp.ResponseError
	if errors.As(err, &re) && (re.HTTPStatusCode() >= 500 || re.HTTPStatusCode() == http.StatusTooManyRequests) {
		return true
	}
	switch codeOf(err) {
	case "", "Throttling", "ThrottlingException", "RequestLimitExceeded", "ResourceContention", "ScalingActivityInProgress":
		return true
	}
	return false
}

// goBack starts a refresh to the version before: once a refresh has ended, AWS
// does not roll it back.
func (p *promotion) goBack(ctx context.Context) error {
	in := &autoscaling.StartInstanceRefreshInput{
		AutoScalingGroupName: &p.Group, Strategy: astypes.RefreshStrategyRolling, DesiredConfiguration: &astypes.DesiredConfiguration{},
		Preferences: &astypes.RefreshPreferences{MinHealthyPercentage: aws.Int32(int32(p.MinHealthy)), SkipMatching: aws.Bool(true)},
	}
	in.DesiredConfiguration.LaunchTemplate, in.DesiredConfiguration.MixedInstancesPolicy = desired(p.before, p.res.From)
	out, err := p.groups.StartInstanceRefresh(ctx, in)
	if codeOf(err) == "InstanceRefreshInProgress" { // our own call's lost answer, or somebody was faster
		last, newestErr := p.newest(ctx)
		switch {
		case newestErr != nil:
			return newestErr
		case last != nil && !ended(last.Status) && leadsTo(last, p.before, p.res.From):
			p.res.BackID = aws.ToString(last.InstanceRefreshId)
			return nil
		case last != nil:
			return fmt.Errorf("take group %s back to version %s: instance refresh %s, which somebody else has begun, is %s; wait for its end: %w", p.Group, p.res.From, aws.ToString(last.InstanceRefreshId), last.Status, err)
		}
	}
	if err != nil {
		return fmt.Errorf("take group %s back to version %s: %w", p.Group, p.res.From, err)
	}
	p.res.BackID = aws.ToString(out.InstanceRefreshId)
	return nil
}

func (p *promotion) describe(ctx context.Context) (*astypes.InstanceRefresh, error) {
	id := cmp.Or(p.res.BackID, p.res.RefreshID)
	out, err := p.groups.DescribeInstanceRefreshes(ctx, &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: &p.Group, InstanceRefreshIds: []string{id}})
	if err != nil {
		return nil, fmt.Errorf("describe instance refresh %s: %w", id, err)
	}
	if len(out.InstanceRefreshes) == 0 {
		return nil, fmt.Errorf("describe instance refresh %s: it does not exist", id)
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
	for {
		err := p.takeBack(ctx)
		if err == nil {
			break
		}
		if !passing(err) || ctx.Err() != nil {
			return errors.Join(cause, err)
		}
		p.say("%v; trying again", err)
		select {
		case <-ctx.Done():
			return errors.Join(cause, err)
		case <-time.After(p.Poll):
		}
	}
	p.say("rolling the instance refresh back: %v", cause)
	for {
		r, err := p.describe(ctx)
		switch {
		case err != nil && !passing(err):
			return errors.Join(cause, err)
		case err != nil || !ended(r.Status):
		case p.res.BackID != "" && r.Status == astypes.InstanceRefreshStatusSuccessful:
			return fmt.Errorf("%w: %w: by another refresh to version %s", cause, ErrRollback, p.res.From)
		default:
			return fmt.Errorf("%w: %w", cause, outcome(r))
		}
		select {
		case <-ctx.Done():
			return errors.Join(cause, context.Cause(ctx))
		case <-time.After(p.Poll):
		}
	}
}

// takeBack rolls the promotion's own refresh back, or takes a group that it has
// changed back by another. Auto Scaling rolls back whichever refresh is under
// way: once ours has ended, that is somebody else's.
func (p *promotion) takeBack(ctx context.Context) error {
	r, err := p.describe(ctx)
	switch {
	case err != nil:
		return err
	case r.Status == astypes.InstanceRefreshStatusRollbackInProgress:
		return nil
	case !ended(r.Status):
		err = rollback(ctx, p.groups, p.Group)
		if !strings.HasPrefix(codeOf(err), "ActiveInstanceRefreshNotFound") {
			return err
		}
		if r, err = p.describe(ctx); err != nil { // it has just ended
			return err
		}
	}
	switch {
	case r.Status != astypes.InstanceRefreshStatusSuccessful:
		return nil // follows as it is
	case p.Prove != nil:
		return p.goBack(ctx)
	}
	return fmt.Errorf("the instance refresh %s had ended well by then, the group runs version %d: promote again to go on, or go back with lecafe images rollback", p.res.RefreshID, p.res.Version)
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
