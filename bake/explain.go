package bake

import (
	"errors"
	"fmt"

	"github.com/lecafe/lecafe/internal/exitcode"
)

// denied are the codes by which services refuse for lack of permission.
func denied(err error) bool {
	return isCode(err, "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "Client.UnauthorizedOperation", "AuthFailure")
}

// expired says that the credentials are over.
func expired(err error) bool {
	return isCode(err, "ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
}

// explain gives errors of AWS their exit code and says what to do.
func explain(err error) error {
	var r *resumable
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r):
		return exitcode.With(exitcode.NotReady, err)
	case expired(err):
		return exitcode.With(exitcode.NotReady, fmt.Errorf("%w; the credentials have expired: sign in again", err))
	case denied(err):
		return exitcode.With(exitcode.NotReady, fmt.Errorf("%w; a permission is missing: lecafe policy bake prints the policy that this recipe needs", err))
	}
	return err
}
