package instance

import (
	"errors"
	"net/url"
	"strings"

	"github.com/aws/smithy-go"
)

// Plain is an error of a call to AWS as a person wants to read it: what was
// wrapped around it, then AWS's code and message, or the network's words; no
// request IDs, and no full stop at the end. Other errors are as they are.
func Plain(err error) string {
	before := ""
	var op *smithy.OperationError
	if errors.As(err, &op) {
		before = strings.TrimSuffix(err.Error(), op.Error())
	}
	text := err.Error()
	var api smithy.APIError
	var web *url.Error
	switch {
	case errors.As(err, &api) && api.ErrorMessage() != "":
		text = before + api.ErrorCode() + ": " + api.ErrorMessage()
	case op != nil && errors.As(err, &web):
		text = before + web.Error()
	}
	return strings.TrimSuffix(strings.TrimSpace(text), ".")
}
