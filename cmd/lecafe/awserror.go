package main

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/internal/exitcode"
)

// awsError gives an error of AWS its exit code: 3 where permissions,
// credentials or the way to AWS are missing, else the code it has.
func awsError(err error) error {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return exitcode.With(exitcode.NotReady, fmt.Errorf("%w; check the network, the region's name, HTTPS_PROXY and --endpoint-url", err))
	}
	var ae smithy.APIError
	if !errors.As(err, &ae) {
		return err
	}
	switch code := ae.ErrorCode(); {
	case code == "UnauthorizedOperation", strings.HasPrefix(code, "AccessDenied"), code == "AuthFailure", code == "InvalidClientTokenId",
		strings.HasPrefix(code, "ExpiredToken"), code == "RequestExpired", code == "SignatureDoesNotMatch", code == "UnrecognizedClientException":
		return exitcode.With(exitcode.NotReady, fmt.Errorf("%w; check the credentials, or print the policy with lecafe policy", err))
	}
	return err
}
