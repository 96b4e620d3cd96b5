package instance_test

import (
	"errors"
	"fmt"
	"net/url"
	"testing"

	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

func TestPlain(t *testing.T) {
	denied := &smithy.GenericAPIError{Code: "AccessDenied", Message: "Not for you."}
	call := func(err error) error {
		return &smithy.OperationError{ServiceID: "SQS", OperationName: "GetQueueUrl", Err: fmt.Errorf("https response error StatusCode: 400, RequestID: 4711, %w", err)}
	}
	for want, err := range map[string]error{
		"get URL of queue q: AccessDenied: Not for you": fmt.Errorf("get URL of queue q: %w", call(denied)),
		"AccessDenied: Not for you":                     call(denied),
		`send: Post "https://sqs.example": no route`:    fmt.Errorf("send: %w", call(&url.Error{Op: "Post", URL: "https://sqs.example", Err: errors.New("no route")})),
		"the disk is full":                              errors.New("the disk is full"),
	} {
		if got := instance.Plain(err); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
