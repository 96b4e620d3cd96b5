// Package jsonrpc speaks AWS's JSON protocols 1.0 and 1.1 for the fakes: it
// decodes a request's body for its action and writes answers and errors.
//
// https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html
package jsonrpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// Error is what an action fails with.
type Error struct {
	Status  int    // default 400
	Code    string // the shape's name
	Query   string // the query protocol's code where it differs (SQS)
	Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Errorf returns an Error with status 400.
func Errorf(code, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Action serves one action: the body in, what to marshal out.
type Action func(ctx context.Context, r *http.Request, body []byte) (any, error)

// Act makes an Action of a typed function.
func Act[In any](f func(ctx context.Context, r *http.Request, in *In) (any, error)) Action {
	return func(ctx context.Context, r *http.Request, body []byte) (any, error) {
		in := new(In)
		if len(body) > 0 {
			if err := json.Unmarshal(body, in); err != nil {
				return nil, Errorf("SerializationException", "%v", err)
			}
		}
		return f(ctx, r, in)
	}
}

// Service is a JSON service as a table of actions.
type Service struct {
	Version string // 1.0 or 1.1
	Prefix  string // of the errors' shapes: com.amazonaws.sqs
	Query   bool   // errors carry the query protocol's code too
	Actions map[string]Action
}

// ServeHTTP implements http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-amz-json-"+s.Version)
	w.Header().Set("x-amzn-requestid", query.RequestID())
	out, err := s.serve(r)
	if err != nil {
		if r.Context().Err() != nil {
			return // the client is gone
		}
		s.fail(w, err)
		return
	}
	if out == nil {
		if s.Version == "1.0" {
			return // SQS answers an action without output with an empty body
		}
		out = struct{}{}
	}
	b, err := json.Marshal(out)
	if err != nil {
		s.fail(w, err)
		return
	}
	_, _ = w.Write(b) // a client that is gone has no use for an error
}

func (s *Service) serve(r *http.Request) (any, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	_, name, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	if name == "" {
		return nil, Errorf("UnsupportedOperation", "this fake speaks the JSON protocol only: no X-Amz-Target header")
	}
	act, ok := s.Actions[name]
	if !ok {
		return nil, Errorf("UnsupportedOperation", "the action %s is not modelled by this fake", name)
	}
	return act(r.Context(), r, body)
}

func (s *Service) fail(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Status: http.StatusInternalServerError, Code: "InternalFailure", Message: err.Error()}
	}
	if e.Status == 0 {
		e.Status = http.StatusBadRequest
	}
	if s.Query {
		code, kind := e.Code, "Sender"
		if e.Query != "" {
			code = e.Query
		}
		if e.Status >= 500 {
			kind = "Receiver"
		}
		w.Header().Set("x-amzn-query-error", code+";"+kind)
	}
	w.WriteHeader(e.Status)
	b, _ := json.Marshal(map[string]string{"__type": s.Prefix + "#" + e.Code, "message": e.Message}) // strings always marshal
	_, _ = w.Write(b)
}
