package stack

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
)

const (
	typeBucket = "AWS::S3::Bucket"
	typeQueue  = "AWS::SQS::Queue"
)

// Resource is one that a stack has.
type Resource struct {
	LogicalID  string `json:"logical_id"`
	PhysicalID string `json:"physical_id"` // a bucket's name, a queue's URL, ...
	Type       string `json:"type"`
	Status     string `json:"status"`
}

func (s *Stack) resources(ctx context.Context, id string) ([]Resource, error) {
	var out []Resource
	pages := cloudformation.NewListStackResourcesPaginator(s.Clients.CloudFormation, &cloudformation.ListStackResourcesInput{StackName: &id})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list resources of stack %s: %w", s.Name, err)
		}
		for _, r := range page.StackResourceSummaries {
			out = append(out, Resource{aws.ToString(r.LogicalResourceId), aws.ToString(r.PhysicalResourceId), aws.ToString(r.ResourceType), string(r.ResourceStatus)})
		}
	}
	return out, nil
}

// Removal is what a stack's end takes with it.
type Removal struct {
	Resources []Resource // all that goes with the stack
	Data      []Resource // buckets and queues, which outlive it
	stackID   string
}

// PlanRemoval reads what Remove would remove.
func (s *Stack) PlanRemoval(ctx context.Context) (*Removal, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	st, err := s.describe(ctx, s.Name)
	if err != nil {
		return nil, err
	}
	all, err := s.resources(ctx, aws.ToString(st.StackId))
	if err != nil {
		return nil, err
	}
	r := &Removal{stackID: aws.ToString(st.StackId)}
	for _, v := range all {
		switch {
		case v.PhysicalID == "": // never made
		case v.Type == typeBucket || v.Type == typeQueue:
			r.Data = append(r.Data, v)
		default:
			r.Resources = append(r.Resources, v)
		}
	}
	return r, nil
}

// Remove deletes the stack, waits until its instances are terminated and all
// of it is gone, and only then looks at buckets and queues: nobody writes to
// them any more. Empty ones go; the others are returned as kept, or, with
// deleteData, emptied and deleted.
func (s *Stack) Remove(ctx context.Context, r *Removal, deleteData bool) (kept []Resource, err error) {
	events, err := s.newEvents(ctx, r.stackID)
	if err != nil {
		return nil, err
	}
	if _, err := s.Clients.CloudFormation.DeleteStack(ctx, &cloudformation.DeleteStackInput{StackName: &r.stackID}); err != nil {
		return nil, fmt.Errorf("delete stack %s: %w", s.Name, err)
	}
	status, err := s.wait(ctx, r.stackID, events)
	switch {
	case errors.Is(err, ErrNotFound): // gone without a trace is gone too
	case err != nil:
		return nil, fmt.Errorf("wait for the end of stack %s: %w; CloudFormation goes on: look with lecafe stack status, and repeat lecafe stack down", s.Name, err)
	case status != types.StackStatusDeleteComplete:
		return nil, fmt.Errorf("stack %s is %s: %s; remove what is in the way and repeat lecafe stack down", s.Name, status, events.reason())
	}
	var failed []error
	if err := s.removeKeys(ctx); err != nil {
		failed = append(failed, err)
	}
	queues := false
	for _, d := range r.Data {
		remove := s.removeBucket
		if d.Type == typeQueue {
			remove = s.removeQueue
		}
		switch gone, err := remove(ctx, d.PhysicalID, deleteData); {
		case err != nil:
			// The others are seen to all the same; the stack cannot be asked for
			// this one again.
			failed = append(failed, fmt.Errorf("%w; it is left, delete it with the AWS CLI", err))
		case gone:
			s.tell("removed %s", d.PhysicalID)
			queues = queues || d.Type == typeQueue
		default:
			kept = append(kept, d)
		}
	}
	if queues {
		s.tell("SQS holds the names of the removed queues back for 60 s; lecafe stack up waits for them")
	}
	return kept, errors.Join(failed...)
}

func hasCode(err error, codes ...string) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	for _, c := range codes {
		if api.ErrorCode() == c {
			return true
		}
	}
	return false
}

// removeBucket says whether the bucket is gone. AWS itself refuses to delete
// one that holds anything, so an object written meanwhile is safe.
func (s *Stack) removeBucket(ctx context.Context, name string, deleteData bool) (bool, error) {
	api := s.Clients.S3
	for deleteData {
		out, err := api.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: &name})
		if hasCode(err, "NoSuchBucket") {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("list bucket %s: %w", name, err)
		}
		var ids []s3types.ObjectIdentifier // a page has 1,000, as many as one call deletes
		for _, v := range out.Versions {
			ids = append(ids, s3types.ObjectIdentifier{Key: v.Key, VersionId: v.VersionId})
		}
		for _, v := range out.DeleteMarkers {
			ids = append(ids, s3types.ObjectIdentifier{Key: v.Key, VersionId: v.VersionId})
		}
		if len(ids) == 0 {
			break
		}
		done, err := api.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &name, Delete: &s3types.Delete{Objects: ids, Quiet: aws.Bool(true)}})
		if err != nil {
			return false, fmt.Errorf("empty bucket %s: %w", name, err)
		}
		if len(done.Errors) > 0 {
			e := done.Errors[0]
			return false, fmt.Errorf("empty bucket %s: %s: %s", name, aws.ToString(e.Key), aws.ToString(e.Message))
		}
	}
	_, err := api.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &name})
	switch {
	case err == nil, hasCode(err, "NoSuchBucket"):
		return true, nil
	case hasCode(err, "BucketNotEmpty") && !deleteData:
		return false, nil
	}
	return false, fmt.Errorf("delete bucket %s: %w", name, err)
}

// removeQueue says whether the queue is gone. SQS counts approximately, but
// exactly enough once nobody has sent for a minute, which is less than the end
// of the instances has taken.
func (s *Stack) removeQueue(ctx context.Context, url string, deleteData bool) (bool, error) {
	api := s.Clients.SQS
	if !deleteData {
		out, err := api.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []sqstypes.QueueAttributeName{
			sqstypes.QueueAttributeNameApproximateNumberOfMessages,
			sqstypes.QueueAttributeNameApproximateNumberOfMessagesDelayed,
			sqstypes.QueueAttributeNameApproximateNumberOfMessagesNotVisible,
		}})
		if gone(err) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("count the messages of queue %s: %w", url, err)
		}
		if len(out.Attributes) == 0 {
			return false, nil // no answer is no zero
		}
		for _, v := range out.Attributes {
			if n, err := strconv.Atoi(v); err != nil || n > 0 {
				return false, nil
			}
		}
	}
	if _, err := api.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: &url}); err != nil && !gone(err) {
		return false, fmt.Errorf("delete queue %s: %w", url, err)
	}
	return true, nil
}

func gone(err error) bool {
	var e *sqstypes.QueueDoesNotExist
	return errors.As(err, &e)
}
