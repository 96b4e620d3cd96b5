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
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Drift is how far a stack's resources are from what the stack made.
type Drift struct {
	Status    string    `json:"status"`              // IN_SYNC, DRIFTED, or NOT_CHECKED
	Reason    string    `json:"reason,omitempty"`    // why it was not checked
	Resources []Drifted `json:"resources,omitempty"` // only those that have drifted
}

// Drifted is one resource that somebody changed or deleted behind the stack.
type Drifted struct {
	LogicalID   string       `json:"logical_id"`
	PhysicalID  string       `json:"physical_id"`
	Type        string       `json:"type"`
	Status      string       `json:"status"` // MODIFIED or DELETED
	Differences []Difference `json:"differences,omitempty"`
	// Deployed says that the one difference is the launch template version that
	// lecafe deploy promoted: the next up takes it over.
	Deployed bool `json:"deployed,omitempty"`
}

// Difference is one property, by its path in the resource's schema.
type Difference struct {
	Path     string `json:"path"`
	Expected string `json:"expected"`
	Actual   string `json:"actual"`
}

const notChecked = "NOT_CHECKED"

// driftPatience bounds one detection: CloudFormation reads a resource at a time.
const driftPatience = 10 * time.Minute

// Drift asks CloudFormation to compare the stack with the account. Where the
// endpoint cannot, or the caller may not, it says so and is no error.
func (s *Stack) Drift(ctx context.Context, stackID string) (*Drift, error) {
	ctx, cancel := context.WithTimeout(ctx, driftPatience)
	defer cancel()
	api := s.Clients.CloudFormation
	started, err := api.DetectStackDrift(ctx, &cloudformation.DetectStackDriftInput{StackName: &stackID}, func(o *cloudformation.Options) {
		o.RetryMaxAttempts = 1 // what an emulator does not know it does not learn
	})
	if err != nil {
		return notDetected(err)
	}
	for {
		out, err := api.DescribeStackDriftDetectionStatus(ctx, &cloudformation.DescribeStackDriftDetectionStatusInput{StackDriftDetectionId: started.StackDriftDetectionId})
		if err != nil {
			return notDetected(err)
		}
		if out.DetectionStatus == types.StackDriftDetectionStatusDetectionInProgress {
			if err := s.sleep(ctx); err != nil {
				return nil, fmt.Errorf("wait for drift detection of stack %s: %w", s.Name, err)
			}
			continue
		}
		d := &Drift{Status: string(out.StackDriftStatus), Reason: aws.ToString(out.DetectionStatusReason)}
		if out.DetectionStatus == types.StackDriftDetectionStatusDetectionFailed {
			d.Status = cmp.Or(d.Status, notChecked)
		}
		d.Resources, err = s.drifted(ctx, stackID)
		return d, err
	}
}

// notDetected tells what cannot be asked from what went wrong.
func notDetected(err error) (*Drift, error) {
	var api smithy.APIError
	var answered *smithyhttp.ResponseError
	if !errors.As(err, &api) && errors.As(err, &answered) { // moto answers with a page of HTML
		return &Drift{Status: notChecked, Reason: "this endpoint cannot detect drift (its answer is none of CloudFormation's): an emulator's gap"}, nil
	}
	if !errors.As(err, &api) {
		return nil, fmt.Errorf("detect drift: %w", err)
	}
	code := api.ErrorCode()
	switch {
	case strings.HasPrefix(code, "AccessDenied"):
		return &Drift{Status: notChecked, Reason: "no permission: " + api.ErrorMessage()}, nil
	case slices.Contains([]string{"ValidationError", "Throttling", "ThrottlingException"}, code):
		return nil, fmt.Errorf("detect drift: %w", err)
	}
	return &Drift{Status: notChecked, Reason: "this endpoint cannot detect drift (" + code + "): an emulator's gap"}, nil
}

func (s *Stack) drifted(ctx context.Context, stackID string) ([]Drifted, error) {
	var out []Drifted
	pages := cloudformation.NewDescribeStackResourceDriftsPaginator(s.Clients.CloudFormation, &cloudformation.DescribeStackResourceDriftsInput{
		StackName: &stackID, StackResourceDriftStatusFilters: []types.StackResourceDriftStatus{types.StackResourceDriftStatusModified, types.StackResourceDriftStatusDeleted},
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("describe drift of stack %s: %w", s.Name, err)
		}
		for _, r := range page.StackResourceDrifts {
			d := Drifted{LogicalID: aws.ToString(r.LogicalResourceId), PhysicalID: aws.ToString(r.PhysicalResourceId), Type: aws.ToString(r.ResourceType), Status: string(r.StackResourceDriftStatus)}
			for _, p := range r.PropertyDifferences {
				d.Differences = append(d.Differences, Difference{aws.ToString(p.PropertyPath), aws.ToString(p.ExpectedValue), aws.ToString(p.ActualValue)})
			}
			d.Deployed = d.LogicalID == "Group" && len(d.Differences) == 1 && d.Differences[0].Path == "/LaunchTemplate/Version"
			out = append(out, d)
		}
	}
	return out, nil
}

// Unexpected are the resources that drifted otherwise than by a deploy.
func (d *Drift) Unexpected() []Drifted {
	if d == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(d.Resources), func(r Drifted) bool { return r.Deployed })
}
