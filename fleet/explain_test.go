package fleet

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/sinks"
)

// channels answers what the causes of a silence are sought by.
type channels struct {
	ec2Reader
	asgAPI
	console    string
	status     types.InstanceStatus
	routes     []types.Route
	activities []asgtypes.Activity
	deny       bool
}

func (c *channels) err() error {
	if c.deny {
		return &smithy.GenericAPIError{Code: "UnauthorizedOperation", Message: "no"}
	}
	return nil
}

func (c *channels) GetConsoleOutput(context.Context, *ec2.GetConsoleOutputInput, ...func(*ec2.Options)) (*ec2.GetConsoleOutputOutput, error) {
	return &ec2.GetConsoleOutputOutput{Output: aws.String(base64.StdEncoding.EncodeToString([]byte(c.console)))}, c.err()
}

func (c *channels) DescribeInstanceStatus(context.Context, *ec2.DescribeInstanceStatusInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceStatusOutput, error) {
	return &ec2.DescribeInstanceStatusOutput{InstanceStatuses: []types.InstanceStatus{c.status}}, c.err()
}

func (c *channels) DescribeRouteTables(context.Context, *ec2.DescribeRouteTablesInput, ...func(*ec2.Options)) (*ec2.DescribeRouteTablesOutput, error) {
	return &ec2.DescribeRouteTablesOutput{RouteTables: []types.RouteTable{{RouteTableId: aws.String("rtb-1"), Routes: c.routes}}}, c.err()
}

func (c *channels) DescribeScalingActivities(context.Context, *autoscaling.DescribeScalingActivitiesInput, ...func(*autoscaling.Options)) (*autoscaling.DescribeScalingActivitiesOutput, error) {
	return &autoscaling.DescribeScalingActivitiesOutput{Activities: c.activities}, c.err()
}

// TestCausesOfSilence: each channel alone tells its cause, and of several the
// most telling one comes first.
func TestCausesOfSilence(t *testing.T) {
	impaired := &types.InstanceStatusSummary{Status: types.SummaryStatusImpaired}
	out := types.Route{DestinationCidrBlock: aws.String("0.0.0.0/0"), State: types.RouteStateActive}
	panicked := "[ 1.0] Kernel panic - not syncing: Attempted to kill init!"
	for name, c := range map[string]struct {
		channels
		change func(*Instance)
		code   report.Code
		word   string
	}{
		"nothing known":         {channels{}, nil, "", ""},
		"kernel panic":          {channels{console: panicked}, nil, CodeKernelPanic, "kill init"},
		"instance status check": {channels{status: types.InstanceStatus{InstanceStatus: impaired}}, nil, CodeStatusImpaired, "instance status check"},
		"system status check":   {channels{status: types.InstanceStatus{SystemStatus: impaired, InstanceStatus: impaired}}, nil, CodeStatusImpaired, "system status check"},
		"panic and its check":   {channels{console: panicked, status: types.InstanceStatus{InstanceStatus: impaired}}, nil, CodeKernelPanic, ""},
		"no route":              {channels{routes: []types.Route{{DestinationCidrBlock: aws.String("10.0.0.0/16")}}}, nil, CodeNoRoute, "no default route"},
		"black hole":            {channels{routes: []types.Route{{DestinationCidrBlock: aws.String("0.0.0.0/0"), State: types.RouteStateBlackhole}}}, nil, CodeNoRoute, "gateway is gone"},
		"gateway endpoint":      {channels{routes: []types.Route{{DestinationPrefixListId: aws.String("pl-1")}}}, nil, "", ""},
		"scaling activity": {channels{activities: []asgtypes.Activity{{StatusCode: asgtypes.ScalingActivityStatusCodeFailed, Description: aws.String("Launching a new EC2 instance: i-1"), StatusMessage: aws.String("Instance failed to complete user's Lifecycle Action")}}},
			nil, CodeScaling, "Lifecycle Action"},
		"scaling's own end": {channels{activities: []asgtypes.Activity{{StatusCode: asgtypes.ScalingActivityStatusCodeSuccessful, Description: aws.String("Terminating EC2 instance: i-1"), Cause: aws.String("taken out of service in response to a user health-check")}}},
			func(i *Instance) { i.State = "terminated" }, CodeTerminated, "user health-check"},
		"another's activity": {channels{activities: []asgtypes.Activity{{StatusCode: asgtypes.ScalingActivityStatusCodeFailed, Description: aws.String("Launching a new EC2 instance: i-2")}}}, nil, "", ""},
		"state reason":       {channels{}, func(i *Instance) { i.State, i.StateReason = "terminated", "Server.SpotInstanceTermination" }, CodeTerminated, "Spot"},
		"stopped":            {channels{}, func(i *Instance) { i.State, i.StateReason = "stopped", "Client.UserInitiatedShutdown" }, CodeStopped, "User"},
		"no profile":         {channels{}, func(i *Instance) { i.ProfileARN = "" }, report.CodeRoleMissing, "instance profile"},
		"IMDS disabled":      {channels{}, func(i *Instance) { i.IMDSDisabled = true }, report.CodeIMDSUnreachable, "disabled"},
	} {
		if c.routes == nil {
			c.routes = []types.Route{out}
		}
		i := Instance{ID: "i-1", Region: "r", Group: "app", State: "running", ProfileARN: "arn:x/app", SubnetID: "subnet-1", VPCID: "vpc-1", LaunchedAt: time.Now()}
		if c.change != nil {
			c.change(&i)
		}
		r := &Region{Name: "r", EC2: &c.channels, AutoScaling: &c.channels}
		clues, err := r.Explain(t.Context(), i)
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case c.code == "" && len(clues) > 0, c.code != "" && (len(clues) == 0 || clues[0].Code != c.code || !strings.Contains(clues[0].Message, c.word)):
			t.Errorf("%s: want %q, %q first: %+v", name, c.code, c.word, clues)
		}
	}
}

// A channel that may not be looked at is said, and the others are looked at.
func TestCausesOfSilenceWithoutPermission(t *testing.T) {
	r := &Region{Name: "r", EC2: &channels{deny: true}, AutoScaling: &channels{deny: true}}
	clues, err := r.Explain(t.Context(), Instance{ID: "i-1", Group: "app", State: "running", SubnetID: "subnet-1", VPCID: "vpc-1"})
	if err != nil || len(clues) != 1 || clues[0].Code != report.CodeRoleMissing {
		t.Errorf("%+v, %v", clues, err)
	}
	if notes := r.notices(); len(notes) != 4 || !strings.Contains(strings.Join(notes, "\n"), "not looked at for a cause") {
		t.Errorf("notes %q", notes)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Explain(ctx, Instance{ID: "i-1"}); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
}

// What the console says of a report is held against what is known of it: that
// it came, that it was refused, or that neither is so.
func TestTheConsolesWordOfAReport(t *testing.T) {
	console := agentLine(sinks.Line{Event: "start"}) + agentLine(sinks.Line{Event: "verdict", Verdict: report.Success})
	w := &Watcher{Regions: []*Region{{Name: "r", EC2: &channels{console: console, routes: []types.Route{{DestinationCidrBlock: aws.String("0.0.0.0/0"), State: types.RouteStateActive}}}, AutoScaling: &channels{}}}}
	i := Instance{ID: "i-1", Region: "r", State: "running", ProfileARN: "arn:x/app"}
	for name, c := range map[string]struct {
		s    Standing
		code report.Code // of the first clue, "" for none
		word string
	}{
		"it came":     {Standing{Instance: i, Verdict: Success, Report: "p/x.json"}, "", ""},
		"refused":     {Standing{Instance: i, Verdict: Silent, Refused: 1}, CodeReportRefused, "were refused"},
		"not at all":  {Standing{Instance: i, Verdict: Silent}, CodeReportUnsent, "did not arrive"},
		"not yet due": {Standing{Instance: i, Verdict: Pending}, CodeReportUnsent, "did not arrive"},
	} {
		clues, err := w.Explain(t.Context(), &c.s)
		if err != nil || (len(clues) > 0) != (c.code != "") || len(clues) > 0 && (clues[0].Code != c.code || !strings.Contains(clues[0].Message, c.word)) {
			t.Errorf("%s: %+v, %v; want %q, %q", name, clues, err, c.code, c.word)
		}
	}
}
