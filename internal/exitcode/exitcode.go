// Package exitcode owns the exit codes of lecafe's programs and how an error
// carries one. It decides nothing about what is printed.
package exitcode

import (
	"context"
	"errors"
)

// The exit codes are a contract with scripts and CI jobs.
const (
	Done       = 0 // all that was asked for was done
	Failed     = 1 // it was tried and failed, or a check found something
	BadRequest = 2 // flags, recipe, settings or input are wrong; nothing was tried
	NotReady   = 3 // no credentials, no permission, a tool is missing
	Interrupt  = 130
)

type coded struct {
	code int
	err  error
}

func (c *coded) Error() string { return c.err.Error() }
func (c *coded) Unwrap() error { return c.err }

// With returns err so that Of finds code in it; nil stays nil.
func With(code int, err error) error {
	if err == nil {
		return nil
	}
	return &coded{code, err}
}

// Of returns the exit code that err stands for: Done for nil, the code given
// to With, Interrupt for a cancelled context, else Failed.
func Of(err error) int {
	var c *coded
	switch {
	case err == nil:
		return Done
	case errors.As(err, &c):
		return c.code
	case errors.Is(err, context.Canceled):
		return Interrupt
	}
	return Failed
}
