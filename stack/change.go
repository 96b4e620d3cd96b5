package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
)

// cleanUp bounds what is done after the caller has given up.
const cleanUp = time.Minute

// Change is one resource that a plan would touch.
type Change struct {
	Action      string   `json:"action"` // Add, Modify, Remove, Import, Dynamic
	LogicalID   string   `json:"logical_id"`
	Type        string   `json:"type"`
	PhysicalID  string   `json:"physical_id,omitempty"`
	Replacement string   `json:"replacement,omitempty"` // True, False, Conditional
	Properties  []string `json:"properties,omitempty"`
}

// Plan is a change set that waits to be executed or discarded.
type Plan struct {
	New     bool
	Changes []Change

	stack   *Stack
	request Request
	id      string // of the change set; "" where nothing would change
	stackID string
}

// Empty says that the stack is already what was asked for.
func (p *Plan) Empty() bool { return len(p.Changes) == 0 }

// Plan makes a change set and reads it. The caller executes or discards it.
func (s *Stack) Plan(ctx context.Context, r Request) (*Plan, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	if r.Template == nil {
		r.Template = template
	}
	now, err := s.describe(ctx, s.Name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	kind := types.ChangeSetTypeUpdate
	if now == nil || now.StackStatus == types.StackStatusReviewInProgress {
		// In review: a change set was made and never executed. There is nothing yet.
		kind, now = types.ChangeSetTypeCreate, nil
	} else if err := changeable(now); err != nil {
		return nil, err
	}
	parameters, err := s.parameters(ctx, r, now)
	if err != nil {
		return nil, err
	}
	in := &cloudformation.CreateChangeSetInput{
		StackName: &s.Name, ChangeSetType: kind, TemplateBody: aws.String(string(r.Template)), Parameters: parameters,
		ChangeSetName: aws.String("lecafe-" + time.Now().UTC().Format("20060102-150405")),
		// The role has a name, so that buckets elsewhere can refer to it.
		Capabilities: []types.Capability{types.CapabilityCapabilityNamedIam},
	}
	if kind == types.ChangeSetTypeCreate {
		// A stack that failed to come up is gone again, but for buckets and
		// queues; those, and what an earlier stack left, are taken over.
		in.OnStackFailure = types.OnStackFailureDelete
		in.ImportExistingResources = aws.Bool(true)
	}
	out, err := s.Clients.CloudFormation.CreateChangeSet(ctx, in)
	if hasCode(err, "ValidationError") && unchanged(err.Error()) { // as moto says it
		return &Plan{stack: s}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("create change set for stack %s: %w", s.Name, err)
	}
	p := &Plan{New: kind == types.ChangeSetTypeCreate, stack: s, request: r, id: aws.ToString(out.Id), stackID: aws.ToString(out.StackId)}
	if err := p.read(ctx); err != nil {
		return nil, errors.Join(err, p.Discard(ctx))
	}
	if p.Empty() {
		if err := p.Discard(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// changeable refuses a stack that cannot be updated now, with what to do.
func changeable(st *types.Stack) error {
	name, status := aws.ToString(st.StackName), string(st.StackStatus)
	switch {
	case strings.HasSuffix(status, "_IN_PROGRESS"):
		return fmt.Errorf("%w: stack %s is %s: somebody is at it; wait, and look with lecafe stack status", ErrRequest, name, status)
	case slices.Contains([]string{"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE", "IMPORT_ROLLBACK_COMPLETE"}, status):
		return nil
	case status == "UPDATE_ROLLBACK_FAILED":
		return fmt.Errorf("%w: stack %s is %s (%s): aws cloudformation continue-update-rollback --stack-name %s", ErrRequest, name, status, aws.ToString(st.StackStatusReason), name)
	}
	return fmt.Errorf("%w: stack %s is %s (%s): it can only be removed, with lecafe stack down", ErrRequest, name, status, aws.ToString(st.StackStatusReason))
}

// read waits for the change set and takes its changes.
func (p *Plan) read(ctx context.Context) error {
	for {
		var token *string
		p.Changes = nil
		for {
			out, err := p.stack.Clients.CloudFormation.DescribeChangeSet(ctx, &cloudformation.DescribeChangeSetInput{ChangeSetName: &p.id, StackName: &p.stackID, NextToken: token})
			if err != nil {
				return fmt.Errorf("describe change set of stack %s: %w", p.stack.Name, err)
			}
			switch out.Status {
			case types.ChangeSetStatusFailed:
				reason := aws.ToString(out.StatusReason)
				if unchanged(reason) {
					return nil
				}
				return fmt.Errorf("change set of stack %s: %s", p.stack.Name, reason)
			case types.ChangeSetStatusCreateComplete:
			default:
				token = nil
				if err := p.stack.sleep(ctx); err != nil {
					return err
				}
				continue
			}
			for _, c := range out.Changes {
				if r := c.ResourceChange; r != nil {
					p.Changes = append(p.Changes, resourceChange(r))
				}
			}
			if token = out.NextToken; aws.ToString(token) == "" {
				return nil
			}
		}
	}
}

// unchanged recognizes that there is nothing to do. There is no code for it,
// only these two texts.
func unchanged(reason string) bool {
	return strings.Contains(reason, "didn't contain changes") || strings.Contains(reason, "No updates are to be performed")
}

func resourceChange(r *types.ResourceChange) Change {
	c := Change{Action: string(r.Action), LogicalID: aws.ToString(r.LogicalResourceId), Type: aws.ToString(r.ResourceType),
		PhysicalID: aws.ToString(r.PhysicalResourceId), Replacement: string(r.Replacement)}
	for _, d := range r.Details {
		if d.Target == nil {
			continue
		}
		name := string(d.Target.Attribute)
		if d.Target.Name != nil {
			name = *d.Target.Name
		}
		if !slices.Contains(c.Properties, name) {
			c.Properties = append(c.Properties, name)
		}
	}
	slices.Sort(c.Properties)
	return c
}

// Discard removes the change set, and the empty stack that it was made for. It
// works after ctx has ended too.
func (p *Plan) Discard(ctx context.Context) error {
	if p.id == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
	defer cancel()
	api := p.stack.Clients.CloudFormation
	if _, err := api.DeleteChangeSet(ctx, &cloudformation.DeleteChangeSetInput{ChangeSetName: &p.id, StackName: &p.stackID}); err != nil {
		return fmt.Errorf("delete change set %s: %w", p.id, err)
	}
	if p.New {
		if _, err := api.DeleteStack(ctx, &cloudformation.DeleteStackInput{StackName: &p.stackID}); err != nil {
			return fmt.Errorf("delete the empty stack %s: %w", p.stackID, err)
		}
	}
	p.id = ""
	return nil
}

// Execute makes the changes and waits until they are made or taken back. When
// ctx ends, CloudFormation goes on without the caller. Changes that SQS has
// made fail, because a queue of the name was there a moment ago, are made again
// once it gives the name out.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html
func (p *Plan) Execute(ctx context.Context) error {
	if p.Empty() {
		return nil
	}
	err := p.execute(ctx)
	if !queueHeld(err) {
		return err
	}
	s := p.stack
	wait := cmp.Or(s.QueueWait, 65*time.Second)
	s.tell("a queue of that name was deleted less than a minute ago, and SQS holds the name back: trying again in %s", wait)
	if pause(ctx, wait) != nil {
		return fmt.Errorf("%w; wait a minute and repeat lecafe stack up", err)
	}
	again, planned := s.Plan(ctx, p.request)
	if planned != nil {
		return errors.Join(err, planned)
	}
	if !slices.Equal(again.touched(), p.touched()) {
		return errors.Join(fmt.Errorf("%w; what would change is not what it was: look with lecafe stack plan, and repeat lecafe stack up", err), again.Discard(ctx))
	}
	if err := again.execute(ctx); queueHeld(err) {
		return fmt.Errorf("%w; wait a minute and repeat lecafe stack up", err)
	} else if err != nil {
		return err
	}
	return nil
}

// touched are the resources that a plan changes.
func (p *Plan) touched() []string {
	var out []string
	for _, c := range p.Changes {
		out = append(out, c.LogicalID)
	}
	slices.Sort(out)
	return out
}

// takenBack is a change that failed, and what CloudFormation says of it.
type takenBack struct {
	stack, reason string
	status        types.StackStatus
}

func (e *takenBack) Error() string {
	return fmt.Sprintf("stack %s is %s: %s", e.stack, e.status, e.reason)
}

// queueHeld recognizes that a queue could not be made for its name, and that
// the stack is as it was before. CloudFormation hands the service's words on,
// with or without its code.
func queueHeld(err error) bool {
	e, ok := errors.AsType[*takenBack](err)
	return ok && (e.status == types.StackStatusDeleteComplete || e.status == types.StackStatusUpdateRollbackComplete) &&
		(strings.Contains(e.reason, "QueueDeletedRecently") || strings.Contains(e.reason, "seconds after deleting a queue"))
}

func (p *Plan) execute(ctx context.Context) error {
	s := p.stack
	events, err := s.newEvents(ctx, p.stackID)
	if err != nil {
		return err
	}
	if _, err := s.Clients.CloudFormation.ExecuteChangeSet(ctx, &cloudformation.ExecuteChangeSetInput{ChangeSetName: &p.id, StackName: &p.stackID}); err != nil {
		return fmt.Errorf("execute change set of stack %s: %w", s.Name, err)
	}
	p.id = ""
	status, err := s.wait(ctx, p.stackID, events)
	switch {
	case err != nil:
		return fmt.Errorf("wait for stack %s: %w; CloudFormation goes on: look with lecafe stack status", s.Name, err)
	case status != types.StackStatusCreateComplete && status != types.StackStatusUpdateComplete:
		return &takenBack{s.Name, events.reason(), status}
	}
	return nil
}

// wait follows a stack until nothing is in progress.
func (s *Stack) wait(ctx context.Context, id string, events *events) (types.StackStatus, error) {
	for {
		st, err := s.describe(ctx, id)
		if err != nil {
			return "", err
		}
		if err := events.show(ctx); err != nil {
			return "", err
		}
		// UPDATE_COMPLETE_CLEANUP_IN_PROGRESS is waited for too: what is
		// replaced is not gone before.
		if !strings.HasSuffix(string(st.StackStatus), "_IN_PROGRESS") {
			return st.StackStatus, nil
		}
		if err := s.sleep(ctx); err != nil {
			return "", err
		}
	}
}

// events tells what happens in a stack, each event once.
type events struct {
	stack   *Stack
	id      string
	seen    map[string]bool
	failure string // the first: what follows is its consequence
}

// newEvents begins after those that are there already.
func (s *Stack) newEvents(ctx context.Context, stackID string) (*events, error) {
	e := &events{stack: s, id: stackID, seen: map[string]bool{}}
	fresh, err := e.fresh(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range fresh {
		e.seen[aws.ToString(v.EventId)] = true
	}
	return e, nil
}

// fresh returns the events not seen yet, the oldest first.
func (e *events) fresh(ctx context.Context) ([]types.StackEvent, error) {
	var out []types.StackEvent
	pages := cloudformation.NewDescribeStackEventsPaginator(e.stack.Clients.CloudFormation, &cloudformation.DescribeStackEventsInput{StackName: &e.id})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("describe events of stack %s: %w", e.stack.Name, err)
		}
		for _, v := range page.StackEvents { // the newest first
			if e.seen[aws.ToString(v.EventId)] {
				slices.Reverse(out)
				return out, nil
			}
			out = append(out, v)
		}
	}
	slices.Reverse(out)
	return out, nil
}

func (e *events) show(ctx context.Context) error {
	fresh, err := e.fresh(ctx)
	if err != nil {
		return err
	}
	for _, v := range fresh {
		e.seen[aws.ToString(v.EventId)] = true
		reason := aws.ToString(v.ResourceStatusReason)
		if e.failure == "" && strings.HasSuffix(string(v.ResourceStatus), "_FAILED") {
			e.failure = aws.ToString(v.LogicalResourceId) + ": " + reason
		}
		if reason != "" {
			reason = ": " + reason
		}
		e.stack.tell("%s %s%s", v.ResourceStatus, aws.ToString(v.LogicalResourceId), reason)
	}
	return nil
}

func (e *events) reason() string {
	if e.failure == "" {
		return "CloudFormation gives no reason; see aws cloudformation describe-stack-events --stack-name " + e.id
	}
	return e.failure
}
