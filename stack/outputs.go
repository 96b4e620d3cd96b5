package stack

import (
	"cmp"
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// The outputs that lecafe's other commands work with. A template of one's own
// that has them serves these commands as the built-in one does.
const (
	OutputStagingBucket = "StagingBucket"
	OutputReportsBucket = "ReportsBucket"
	OutputReportsQueue  = "ReportsQueueUrl"
	OutputOrdersQueue   = "OrdersQueueUrl"
	OutputGroup         = "Group" // absent until the stack has an image
)

// sources are the resources whose physical IDs are outputs.
var sources = map[string]string{
	OutputStagingBucket: "Staging", OutputReportsBucket: "Reports", OutputReportsQueue: "ReportsWakeUp", OutputOrdersQueue: "Orders", OutputGroup: "Group",
}

// Outputs returns the stack's outputs. Those above are taken from its resources
// where there are none: moto makes no outputs.
func (s *Stack) Outputs(ctx context.Context) (map[string]string, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	st, err := s.describe(ctx, s.Name)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, o := range st.Outputs {
		out[aws.ToString(o.OutputKey)] = aws.ToString(o.OutputValue)
	}
	if len(out) > 0 {
		return out, nil
	}
	all, err := s.resources(ctx, aws.ToString(st.StackId))
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		for key, logical := range sources {
			if r.LogicalID == logical && r.PhysicalID != "" {
				out[key] = r.PhysicalID
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: stack %s is %s and has no outputs; see lecafe stack status --name %s", ErrRequest, s.Name, cmp.Or(string(st.StackStatus), "empty"), s.Name)
	}
	return out, nil
}
