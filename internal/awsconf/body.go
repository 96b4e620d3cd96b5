package awsconf

import (
	"context"
	"fmt"
	"io"

	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// WholeBodies is an API option that keeps an answer from being cut off where
// the endpoint answers faster than net/http ends its writing of the request:
// LocalStack, moto and the lab, on loopback.
//
// smithy-go closes a request's body as soon as the answer's header is there.
// net/http may still be about to look for a byte past Content-Length; it does
// so by WriteTo, which smithy-go's closed body answers with io.EOF. net/http
// takes that for a failed write and closes the connection under the answer:
// "use of closed network connection", past the first 4 KB. A body without
// WriteTo is asked by Read, where io.EOF is the right answer.
func WholeBodies(stack *middleware.Stack) error {
	return stack.Build.Add(middleware.BuildMiddlewareFunc("lecafe:WholeBodies", func(ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler) (middleware.BuildOutput, middleware.Metadata, error) {
		req, ok := in.Request.(*smithyhttp.Request)
		if !ok {
			return next.HandleBuild(ctx, in)
		}
		body, seekable := req.GetStream().(io.ReadSeeker)
		if _, writes := req.GetStream().(io.WriterTo); !writes || !seekable {
			return next.HandleBuild(ctx, in)
		}
		req, err := req.SetStream(struct{ io.ReadSeeker }{body})
		if err != nil {
			return middleware.BuildOutput{}, middleware.Metadata{}, fmt.Errorf("set request body: %w", err)
		}
		in.Request = req
		return next.HandleBuild(ctx, in)
	}), middleware.After)
}
