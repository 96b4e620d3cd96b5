package cloudformation_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

type account struct {
	*testing.T
	*cloudtest.Cloud
	api *cloudformation.Client
}

func newAccount(t *testing.T) *account {
	c := cloudtest.New(t, cloud.Options{Clock: wire.Scaled(1e4)})
	return &account{t, c, cloudformation.NewFromConfig(c.Config())}
}

// plan returns the change set's ID, the stack's, and the refusal's code.
func (a *account) plan(kind types.ChangeSetType, body string, change func(*cloudformation.CreateChangeSetInput)) (set, stackID string, err error) {
	in := &cloudformation.CreateChangeSetInput{StackName: aws.String("s"), ChangeSetName: aws.String("c"), ChangeSetType: kind, TemplateBody: &body}
	if change != nil {
		change(in)
	}
	out, err := a.api.CreateChangeSet(a.Context(), in)
	if err != nil {
		return "", "", err
	}
	return aws.ToString(out.Id), aws.ToString(out.StackId), nil
}

// run executes a change set and returns the stack as it ends.
func (a *account) run(set, stackID string) types.Stack {
	a.Helper()
	if _, err := a.api.ExecuteChangeSet(a.Context(), &cloudformation.ExecuteChangeSetInput{ChangeSetName: &set}); err != nil {
		a.Fatal(err)
	}
	return a.settled(stackID)
}

func (a *account) settled(stackID string) types.Stack {
	a.Helper()
	deadline := time.After(time.Minute)
	for {
		out, err := a.api.DescribeStacks(a.Context(), &cloudformation.DescribeStacksInput{StackName: &stackID})
		if err != nil {
			a.Fatal(err)
		}
		if st := out.Stacks[0]; !strings.HasSuffix(string(st.StackStatus), "_IN_PROGRESS") {
			return st
		}
		select {
		case <-deadline:
			a.Fatal("the stack is in progress for a minute")
		case <-time.After(time.Millisecond):
		}
	}
}

func (a *account) refused(err error, code, text string) {
	a.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() != code || !strings.Contains(api.ErrorMessage(), text) {
		a.Errorf("%v, want %s with %q", err, code, text)
	}
}

func TestTemplatesAreRefusedByName(t *testing.T) {
	a := newAccount(t)
	for _, c := range []struct{ body, code, text string }{
		{"Resources: {T: {Type: AWS::DynamoDB::Table}}", "UnsupportedOperation", "AWS::DynamoDB::Table, as T"},
		{"Resources: {Q: {Type: AWS::SQS::Queue, CreationPolicy: {}}}", "UnsupportedOperation", "CreationPolicy, of Q"},
		{"Resources: {}", "ValidationError", "At least one Resources member"},
		{"Resources: [", "ValidationError", "not well-formed"},
		{"A: &x 1\nResources: {Q: {Type: AWS::SQS::Queue, Properties: {DelaySeconds: *x}}}", "ValidationError", "aliases"},
		{"Resources:\n  A: {Type: AWS::SQS::Queue, Properties: {QueueName: !GetAtt B.QueueName}}\n  B: {Type: AWS::SQS::Queue, Properties: {QueueName: !GetAtt A.QueueName}}", "ValidationError", "Circular"},
		{"Parameters: {P: {Type: String}}\nResources: {Q: {Type: AWS::SQS::Queue}}", "ValidationError", "[P] must have values"},
		{"Parameters: {P: {Type: String, AllowedPattern: '[a-z]+', Default: A}}\nResources: {Q: {Type: AWS::SQS::Queue}}", "ValidationError", "must match pattern [a-z]+"},
		{"Parameters: {P: {Type: Number, MinValue: 3, Default: 2}}\nResources: {Q: {Type: AWS::SQS::Queue}}", "ValidationError", "not less than 3"},
		{"Conditions: {A: !Condition B, B: !Not [!Condition A]}\nResources: {Q: {Type: AWS::SQS::Queue, Condition: A}}", "", "circular condition"},
		{"Resources: {R: {Type: AWS::IAM::Role}}", "InsufficientCapabilitiesException", "CAPABILITY_NAMED_IAM"},
	} {
		set, id, err := a.plan(types.ChangeSetTypeCreate, c.body, nil)
		if c.code != "" {
			a.refused(err, c.code, c.text)
			continue
		}
		// What is wrong in evaluation is the change set's failure.
		out, err := a.api.DescribeChangeSet(t.Context(), &cloudformation.DescribeChangeSetInput{ChangeSetName: &set})
		if err != nil || out.Status != types.ChangeSetStatusFailed || !strings.Contains(aws.ToString(out.StatusReason), c.text) {
			t.Errorf("%v %+v, want %q", err, out, c.text)
		}
		if _, err := a.api.DeleteStack(t.Context(), &cloudformation.DeleteStackInput{StackName: &id}); err != nil {
			t.Fatal(err)
		}
		a.settled(id)
	}
	_, _, err := a.plan(types.ChangeSetTypeUpdate, "Resources: {Q: {Type: AWS::SQS::Queue}}", nil)
	a.refused(err, "ValidationError", "Stack with id s does not exist")
}

// What a stack that fails has made is gone, but for what is to be retained; it
// is found by its ID alone, with the reason in its events.
func TestFailedCreationLeavesOnlyWhatIsRetained(t *testing.T) {
	a := newAccount(t)
	set, id, err := a.plan(types.ChangeSetTypeCreate, `
Resources:
  Kept: {Type: AWS::S3::Bucket, DeletionPolicy: Retain, Properties: {BucketName: kept}}
  Gone: {Type: AWS::SQS::Queue, Properties: {QueueName: gone}}
  Wrong: {Type: AWS::SQS::Queue, Properties: {QueueName: !Sub "${Gone.QueueName}-${Kept}", DelaySeconds: 901}}
`, func(in *cloudformation.CreateChangeSetInput) { in.OnStackFailure = types.OnStackFailureDelete })
	if err != nil {
		t.Fatal(err)
	}
	if st := a.run(set, id); st.StackStatus != types.StackStatusDeleteComplete || !strings.Contains(aws.ToString(st.StackStatusReason), "DelaySeconds") {
		t.Errorf("%s: %s", st.StackStatus, aws.ToString(st.StackStatusReason))
	}
	events, err := a.api.DescribeStackEvents(t.Context(), &cloudformation.DescribeStackEventsInput{StackName: &id})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Kept DELETE_SKIPPED", "Gone DELETE_COMPLETE", "Wrong CREATE_FAILED"} {
		if !slices.ContainsFunc(events.StackEvents, func(e types.StackEvent) bool {
			return aws.ToString(e.LogicalResourceId)+" "+string(e.ResourceStatus) == want
		}) {
			t.Errorf("no event %s", want)
		}
	}
	_, err = a.api.DescribeStacks(t.Context(), &cloudformation.DescribeStacksInput{StackName: aws.String("s")})
	a.refused(err, "ValidationError", "does not exist")

	// The next one collides with what was kept, unless it takes it over.
	const next = "Resources: {Kept: {Type: AWS::S3::Bucket, DeletionPolicy: Retain, Properties: {BucketName: kept}}}"
	if set, id, err = a.plan(types.ChangeSetTypeCreate, next, nil); err != nil {
		t.Fatal(err)
	}
	if st := a.run(set, id); st.StackStatus != types.StackStatusRollbackComplete {
		t.Errorf("a bucket that is there: %s", st.StackStatus)
	}
	if _, err := a.api.DeleteStack(t.Context(), &cloudformation.DeleteStackInput{StackName: &id}); err != nil {
		t.Fatal(err)
	}
	a.settled(id)
	if set, id, err = a.plan(types.ChangeSetTypeCreate, next, func(in *cloudformation.CreateChangeSetInput) { in.ImportExistingResources = aws.Bool(true) }); err != nil {
		t.Fatal(err)
	}
	if st := a.run(set, id); st.StackStatus != types.StackStatusCreateComplete {
		t.Errorf("taken over: %s", st.StackStatus)
	}
}

func TestFunctions(t *testing.T) {
	a := newAccount(t)
	set, id, err := a.plan(types.ChangeSetTypeCreate, `
Parameters:
  Name: {Type: String, Default: cafe}
  Zones: {Type: CommaDelimitedList, Default: "a, b"}
Conditions:
  IsCafe: !Equals [!Ref Name, cafe]
  IsNot: !Not [!Condition IsCafe]
  Both: !And [!Condition IsCafe, !Condition IsNot]
  Either: !Or [!Condition IsCafe, !Condition IsNot]
Resources:
  Q: {Type: AWS::SQS::Queue, Properties: {QueueName: !Ref Name, DelaySeconds: !If [IsNot, 5, !Ref "AWS::NoValue"]}}
  Not: {Type: AWS::SQS::Queue, Condition: Both}
Outputs:
  Join: {Value: !Join ["-", !Ref Zones]}
  Sub: {Value: !Sub "${AWS::Region} ${Q.QueueName} ${!literal}"}
  Base64: {Value: {"Fn::Base64": !Ref Name}}
  If: {Value: !If [Either, yes, no]}
  Absent: {Condition: IsNot, Value: x}
  Arn: {Value: !GetAtt [Q, Arn]}
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	st := a.run(set, id)
	got := map[string]string{}
	for _, o := range st.Outputs {
		got[aws.ToString(o.OutputKey)] = aws.ToString(o.OutputValue)
	}
	for key, want := range map[string]string{"Join": "a-b", "Sub": "us-east-1 cafe ${literal}", "Base64": "Y2FmZQ==", "If": "yes", "Absent": "", "Arn": "arn:aws:sqs:us-east-1:000000000000:cafe"} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	list, err := a.api.ListStackResources(t.Context(), &cloudformation.ListStackResourcesInput{StackName: &id})
	if err != nil || len(list.StackResourceSummaries) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
}
