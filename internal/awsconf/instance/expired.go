package instance

import (
	"context"
	"errors"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
)

// refused are AWS's words for credentials that it does not take.
var refused = []string{
	"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired",
	"InvalidToken", "InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException",
}

// forget is an API option that takes credentials out of the cache once AWS has
// refused them, so that the next call asks IMDS. The cache itself goes by this
// machine's clock, and by what IMDS said when the role may have been another.
func forget(cache *aws.CredentialsCache) func(*middleware.Stack) error {
	return func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("lecafe:ForgetRefused", func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
			out, meta, err := next.HandleInitialize(ctx, in)
			var api smithy.APIError
			if errors.As(err, &api) && slices.Contains(refused, api.ErrorCode()) {
				cache.Invalidate()
			}
			return out, meta, err
		}), middleware.Before)
	}
}
