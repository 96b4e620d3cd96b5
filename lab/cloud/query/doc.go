// Package query speaks the two XML protocols of lab/cloud's fakes: EC2's and
// the older query protocol that Auto Scaling and STS have. It owns strict
// decoding of a form into a request struct, quick encoding of an answer, and
// the shape of errors. It knows no action.
//
// A parameter that the request struct does not have is refused, never
// ignored: a fake that silently drops a parameter is kinder than AWS.
package query

import (
	"errors"
	"fmt"
	"net/http"
)

// Error is what a client sees.
type Error struct {
	Status  int // HTTP
	Code    string
	Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Errorf returns a client error (HTTP 400).
func Errorf(code, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Unsupported names what is not modelled.
func Unsupported(format string, args ...any) *Error {
	return Errorf("UnsupportedOperation", "the lab does not model "+format, args...)
}

// As returns err as an Error; anything else is the fake's own failure and
// becomes an InternalError.
func As(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Status: http.StatusInternalServerError, Code: "InternalError", Message: err.Error()}
}
