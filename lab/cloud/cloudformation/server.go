package cloudformation

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const namespace = "http://cloudformation.amazonaws.com/doc/2010-05-15/"

// Options are what a Server is made of.
type Options struct {
	Clock    wire.Clock
	Services map[string]http.Handler // iam, s3, sqs, ec2 and autoscaling, of authenticated requests
}

// Server is the fake. It is an http.Handler of authenticated requests.
type Server struct {
	opts   Options
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	stacks []*stack // deleted ones too
	sets   map[string]*changeSet
}

// New returns a Server without stacks.
func New(o Options) *Server {
	s := &Server{opts: o, sets: map[string]*changeSet{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends what is in progress; stacks stay as they then are.
func (s *Server) Close() {
	s.cancel()
	s.work.Wait()
}

// call is one request under the lock.
type call struct {
	*Server
	ctx    context.Context
	region string
	host   string
}

type action func(*Server, *http.Request) (any, error)

func act[In any](f func(*call, *In) (any, error)) action {
	return func(s *Server, r *http.Request) (any, error) {
		in := new(In)
		if err := query.Decode(r.Form, in); err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return f(&call{s, r.Context(), wire.RegionFrom(r.Context()), r.Host}, in)
	}
}

var actions = map[string]action{
	"CreateChangeSet": act((*call).createChangeSet), "DescribeChangeSet": act((*call).describeChangeSet),
	"ExecuteChangeSet": act((*call).executeChangeSet), "DeleteChangeSet": act((*call).deleteChangeSet),
	"DescribeStacks": act((*call).describeStacks), "DescribeStackEvents": act((*call).describeEvents),
	"ListStackResources": act((*call).listResources), "GetTemplate": act((*call).getTemplate), "DeleteStack": act((*call).deleteStack),
	"DetectStackDrift": act((*call).detectDrift), "DescribeStackDriftDetectionStatus": act((*call).driftStatus),
	"DescribeStackResourceDrifts": act((*call).resourceDrifts),
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		query.QueryError(w, namespace, invalid("%v", err))
		return
	}
	name := r.Form.Get("Action")
	do, ok := actions[name]
	if !ok {
		query.QueryError(w, namespace, query.Unsupported("the CloudFormation action %s", name))
		return
	}
	out, err := do(s, r)
	if err != nil {
		query.QueryError(w, namespace, query.As(err))
		return
	}
	query.Query(w, name, namespace, out)
}

// find returns a stack by its name, which a deleted one has no more, or its ID.
func (c *call) find(name string) (*stack, error) {
	for _, st := range slices.Backward(c.stacks) {
		if st.region == c.region && (st.id == name || st.name == name && st.status != "DELETE_COMPLETE") {
			return st, nil
		}
	}
	return nil, invalid("Stack with id %s does not exist", name)
}

type parameterIn struct {
	ParameterKey, ParameterValue string
	UsePreviousValue             bool
}

type createIn struct {
	StackName, ChangeSetName, ChangeSetType, TemplateBody, Description, ClientToken string
	OnStackFailure                                                                  string
	ImportExistingResources, UsePreviousTemplate                                    bool
	Capabilities                                                                    []string
	Parameters                                                                      []parameterIn
}

// https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_CreateChangeSet.html
func (c *call) createChangeSet(in *createIn) (any, error) {
	if in.StackName == "" || in.ChangeSetName == "" {
		return nil, invalid("StackName and ChangeSetName must be specified")
	}
	st, err := c.find(in.StackName)
	switch in.ChangeSetType {
	case "CREATE":
		if err == nil && st.status != "REVIEW_IN_PROGRESS" {
			return nil, invalid("Stack [%s] already exists and cannot be created again with the changeSet [%s].", in.StackName, in.ChangeSetName)
		}
	case "", "UPDATE":
		if err != nil {
			return nil, err
		}
		if st.status == "REVIEW_IN_PROGRESS" || strings.HasSuffix(st.status, "_IN_PROGRESS") || strings.HasSuffix(st.status, "FAILED") || st.status == "ROLLBACK_COMPLETE" {
			return nil, invalid("Stack:%s is in %s state and can not be updated.", st.id, st.status)
		}
	default:
		return nil, query.Unsupported("change sets of type %s", in.ChangeSetType)
	}
	body := in.TemplateBody
	if in.UsePreviousTemplate && st != nil {
		body = st.body
	}
	d, err := parse(body)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(in.Capabilities, "CAPABILITY_NAMED_IAM") && slices.ContainsFunc(slices.Collect(maps.Values(d.resources)), func(r declared) bool { return strings.HasPrefix(r.kind, "AWS::IAM::") }) {
		return nil, query.Errorf("InsufficientCapabilitiesException", "Requires capabilities : [CAPABILITY_NAMED_IAM]")
	}
	given := map[string]string{}
	for _, p := range in.Parameters {
		given[p.ParameterKey] = p.ParameterValue
		if p.UsePreviousValue {
			if st == nil || st.template == nil {
				return nil, invalid("Invalid input for parameter key %s. Cannot specify usePreviousValue as true for a parameter key not in the previous template", p.ParameterKey)
			}
			given[p.ParameterKey] = st.values[p.ParameterKey]
		}
	}
	values, err := d.values(given)
	if err != nil {
		return nil, err
	}
	if st == nil {
		st = &stack{name: in.StackName, region: c.region, host: c.host, created: c.opts.Clock.Now(), resources: map[string]*resource{}, drift: map[string]detection{},
			id: "arn:aws:cloudformation:" + c.region + ":" + wire.Account + ":stack/" + in.StackName + "/" + query.RequestID()}
		c.stacks = append(c.stacks, st)
		c.note(st, st.name, "REVIEW_IN_PROGRESS", "User Initiated")
	}
	set := &changeSet{
		id:   "arn:aws:cloudformation:" + c.region + ":" + wire.Account + ":changeSet/" + in.ChangeSetName + "/" + query.RequestID(),
		name: in.ChangeSetName, kind: in.ChangeSetType, stack: st, created: c.opts.Clock.Now(), status: "CREATE_COMPLETE",
		template: d, body: body, values: values, imports: in.ImportExistingResources, onFailure: in.OnStackFailure,
	}
	if err := c.plan(set); err != nil {
		set.status, set.reason = "FAILED", err.Error()
	} else if len(set.changes) == 0 {
		set.status = "FAILED"
		set.reason = "The submitted information didn't contain changes. Submit different information to create a change set."
	}
	c.sets[set.id] = set
	return createOut{set.id, st.id}, nil
}

type createOut struct {
	ID    string `out:"Id"`
	Stack string `out:"StackId"`
}

type setIn struct{ ChangeSetName, StackName, NextToken, ClientRequestToken string }

func (c *call) set(in *setIn) (*changeSet, error) {
	if set := c.sets[in.ChangeSetName]; set != nil {
		return set, nil
	}
	for _, set := range c.sets {
		if set.name == in.ChangeSetName && (set.stack.name == in.StackName || set.stack.id == in.StackName) {
			return set, nil
		}
	}
	return nil, &query.Error{Status: http.StatusNotFound, Code: "ChangeSetNotFound", Message: fmt.Sprintf("ChangeSet [%s] does not exist", in.ChangeSetName)}
}

type parameterView struct {
	Key   string `out:"ParameterKey"`
	Value string `out:"ParameterValue,keep"`
}

func parametersOf(values map[string]string) []parameterView {
	var out []parameterView
	for _, key := range slices.Sorted(maps.Keys(values)) {
		out = append(out, parameterView{key, values[key]})
	}
	return out
}

type targetView struct {
	Attribute string `out:"Attribute"`
	Name      string `out:"Name"`
}

type detailView struct {
	Target targetView `out:"Target"`
}

type changeView struct {
	Action      string       `out:"Action"`
	LogicalID   string       `out:"LogicalResourceId"`
	PhysicalID  string       `out:"PhysicalResourceId"`
	Type        string       `out:"ResourceType"`
	Replacement string       `out:"Replacement"`
	Scope       []string     `out:"Scope>member"`
	Details     []detailView `out:"Details>member"`
}

type changeOut struct {
	Type   string     `out:"Type"`
	Change changeView `out:"ResourceChange"`
}

func (c *call) describeChangeSet(in *setIn) (any, error) {
	set, err := c.set(in)
	if err != nil {
		return nil, err
	}
	var out struct {
		Name       string          `out:"ChangeSetName"`
		ID         string          `out:"ChangeSetId"`
		StackID    string          `out:"StackId"`
		StackName  string          `out:"StackName"`
		Created    time.Time       `out:"CreationTime"`
		Execution  string          `out:"ExecutionStatus"`
		Status     string          `out:"Status"`
		Reason     string          `out:"StatusReason"`
		Parameters []parameterView `out:"Parameters>member"`
		Changes    []changeOut     `out:"Changes>member"`
	}
	out.Name, out.ID, out.StackID, out.StackName, out.Created = set.name, set.id, set.stack.id, set.stack.name, set.created
	out.Execution = map[bool]string{true: "AVAILABLE", false: "UNAVAILABLE"}[set.status == "CREATE_COMPLETE"]
	out.Status, out.Reason, out.Parameters = set.status, set.reason, parametersOf(set.values)
	for _, v := range set.changes {
		out.Changes = append(out.Changes, changeOut{"Resource", v})
	}
	return out, nil
}

func (c *call) deleteChangeSet(in *setIn) (any, error) {
	set, err := c.set(in)
	if hasCode(err, "ChangeSetNotFound") {
		return nil, nil
	}
	delete(c.sets, set.id)
	return nil, nil
}

func (c *call) executeChangeSet(in *setIn) (any, error) {
	set, err := c.set(in)
	if err != nil {
		return nil, err
	}
	st := set.stack
	if set.status != "CREATE_COMPLETE" || strings.HasSuffix(st.status, "_IN_PROGRESS") && st.status != "REVIEW_IN_PROGRESS" {
		return nil, query.Errorf("InvalidChangeSetStatus", "ChangeSet [%s] cannot be executed in its current status of [%s]", set.id, set.status)
	}
	for id, other := range c.sets { // the others are out of date now
		if other.stack == st {
			delete(c.sets, id)
		}
	}
	verb := "UPDATE"
	if set.kind == "CREATE" {
		verb = "CREATE"
		st.template, st.body, st.values = set.template, set.body, set.values
	}
	c.note(st, st.name, verb+"_IN_PROGRESS", "User Initiated")
	w := c.as(c.ctx, st)
	c.work.Go(func() { c.execute(w, set) })
	return nil, nil
}

// https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_DeleteStack.html
func (c *call) deleteStack(in *struct{ StackName, ClientRequestToken string }) (any, error) {
	st, err := c.find(in.StackName)
	if err != nil {
		return nil, nil // what is not there is deleted
	}
	switch {
	case st.status == "DELETE_COMPLETE", st.status == "DELETE_IN_PROGRESS":
		return nil, nil
	case strings.HasSuffix(st.status, "_IN_PROGRESS") && st.status != "REVIEW_IN_PROGRESS":
		return nil, invalid("Stack [%s] cannot be deleted while in status %s", st.name, st.status)
	}
	c.note(st, st.name, "DELETE_IN_PROGRESS", "User Initiated")
	w := c.as(c.ctx, st)
	c.work.Go(func() {
		if err := c.tearDown(w, st); err != nil {
			c.say(st, st.name, "DELETE_FAILED", "The following resource(s) failed to delete: "+err.Error())
			return
		}
		c.say(st, st.name, "DELETE_COMPLETE", "")
	})
	return nil, nil
}

type stackIn struct{ StackName, NextToken string }

type outputView struct {
	Key         string `out:"OutputKey"`
	Value       string `out:"OutputValue,keep"`
	Description string `out:"Description"`
}

type stackView struct {
	ID         string          `out:"StackId"`
	Name       string          `out:"StackName"`
	Created    time.Time       `out:"CreationTime"`
	Status     string          `out:"StackStatus"`
	Reason     string          `out:"StackStatusReason"`
	Parameters []parameterView `out:"Parameters>member"`
	Outputs    []outputView    `out:"Outputs>member"`
}

func (c *call) describeStacks(in *stackIn) (any, error) {
	var out struct {
		Stacks []stackView `out:"Stacks>member,keep"`
	}
	add := func(st *stack) {
		out.Stacks = append(out.Stacks, stackView{st.id, st.name, st.created, st.status, st.reason, parametersOf(st.values), st.outputs})
	}
	if in.StackName != "" {
		st, err := c.find(in.StackName)
		if err != nil {
			return nil, err
		}
		add(st)
		return out, nil
	}
	for _, st := range c.stacks {
		if st.region == c.region && st.status != "DELETE_COMPLETE" {
			add(st)
		}
	}
	return out, nil
}

type eventView struct {
	StackID    string    `out:"StackId"`
	EventID    string    `out:"EventId"`
	StackName  string    `out:"StackName"`
	LogicalID  string    `out:"LogicalResourceId"`
	PhysicalID string    `out:"PhysicalResourceId"`
	Type       string    `out:"ResourceType"`
	At         time.Time `out:"Timestamp"`
	Status     string    `out:"ResourceStatus"`
	Reason     string    `out:"ResourceStatusReason"`
}

func (c *call) describeEvents(in *stackIn) (any, error) {
	st, err := c.find(in.StackName)
	if err != nil {
		return nil, err
	}
	var out struct {
		Events []eventView `out:"StackEvents>member,keep"`
	}
	for _, e := range slices.Backward(st.events) {
		out.Events = append(out.Events, eventView{st.id, e.id, st.name, e.logical, e.physical, e.kind, e.at, e.status, e.reason})
	}
	return out, nil
}

func (c *call) listResources(in *stackIn) (any, error) {
	st, err := c.find(in.StackName)
	if err != nil {
		return nil, err
	}
	type summary struct {
		LogicalID  string    `out:"LogicalResourceId"`
		PhysicalID string    `out:"PhysicalResourceId"`
		Type       string    `out:"ResourceType"`
		At         time.Time `out:"LastUpdatedTimestamp"`
		Status     string    `out:"ResourceStatus"`
	}
	var out struct {
		Resources []summary `out:"StackResourceSummaries>member,keep"`
	}
	for _, name := range slices.Sorted(slices.Values(st.order)) {
		r := st.resources[name]
		out.Resources = append(out.Resources, summary{name, r.id, r.kind, r.changed, r.status})
	}
	return out, nil
}

func (c *call) getTemplate(in *struct{ StackName, TemplateStage, ChangeSetName string }) (any, error) {
	st, err := c.find(in.StackName)
	if err != nil {
		return nil, err
	}
	return struct {
		Body string `out:"TemplateBody,keep"`
	}{st.body}, nil
}

type differenceView struct {
	Path     string `out:"PropertyPath"`
	Expected string `out:"ExpectedValue,keep"`
	Actual   string `out:"ActualValue,keep"`
	Type     string `out:"DifferenceType"`
}

type driftView struct {
	StackID     string           `out:"StackId"`
	LogicalID   string           `out:"LogicalResourceId"`
	PhysicalID  string           `out:"PhysicalResourceId"`
	Type        string           `out:"ResourceType"`
	Expected    string           `out:"ExpectedProperties"`
	Actual      string           `out:"ActualProperties"`
	Differences []differenceView `out:"PropertyDifferences>member"`
	Status      string           `out:"StackResourceDriftStatus"`
	At          time.Time        `out:"Timestamp"`
}

// detectDrift compares at once; asking for the status is for clients' sake.
// https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_DetectStackDrift.html
func (c *call) detectDrift(in *stackIn) (any, error) {
	st, err := c.find(in.StackName)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(st.status, "_IN_PROGRESS") || st.status == "ROLLBACK_COMPLETE" {
		return nil, invalid("Drift detection cannot be performed on stack [%s] while it is in %s state.", st.name, st.status)
	}
	id := query.RequestID()
	st.drift[id] = c.detect(c.as(c.ctx, st), st)
	return struct {
		ID string `out:"StackDriftDetectionId"`
	}{id}, nil
}

func (c *call) driftStatus(in *struct{ StackDriftDetectionId string }) (any, error) {
	for _, st := range c.stacks {
		d, ok := st.drift[in.StackDriftDetectionId]
		if !ok {
			continue
		}
		n := 0
		for _, v := range d.drifts {
			if v.Status == "MODIFIED" || v.Status == "DELETED" {
				n++
			}
		}
		return struct {
			StackID string    `out:"StackId"`
			ID      string    `out:"StackDriftDetectionId"`
			Drift   string    `out:"StackDriftStatus"`
			Status  string    `out:"DetectionStatus"`
			Count   int       `out:"DriftedStackResourceCount"`
			At      time.Time `out:"Timestamp"`
		}{st.id, in.StackDriftDetectionId, map[bool]string{true: "DRIFTED", false: "IN_SYNC"}[n > 0], "DETECTION_COMPLETE", n, d.at}, nil
	}
	return nil, invalid("Invalid drift detection id %s", in.StackDriftDetectionId)
}

func (c *call) resourceDrifts(in *struct {
	StackName, NextToken            string
	MaxResults                      *int
	StackResourceDriftStatusFilters []string
}) (any, error) {
	st, err := c.find(in.StackName)
	if err != nil {
		return nil, err
	}
	var last detection
	for _, d := range st.drift {
		if !d.at.Before(last.at) {
			last = d
		}
	}
	var out struct {
		Drifts []driftView `out:"StackResourceDrifts>member,keep"`
	}
	for _, v := range last.drifts {
		if f := in.StackResourceDriftStatusFilters; len(f) == 0 || slices.Contains(f, v.Status) {
			out.Drifts = append(out.Drifts, v)
		}
	}
	return out, nil
}
