package bake

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/policy"
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
func (b *bake) explain(err error) error {
	var r *resumable
	switch {
	case err == nil:
		return nil
	case expired(err) && !errors.As(err, &r):
		err = fmt.Errorf("%w; the credentials have expired: sign in again", err)
		fallthrough
	case errors.As(err, &r):
		return exitcode.With(exitcode.NotReady, err)
	case denied(err):
		var doc policy.Document
		if b.recipe != nil && b.recipe.Staging.Bucket != "" {
			doc = policy.Bake(policy.Where{}, b.recipe)
		}
		return exitcode.With(exitcode.NotReady, fmt.Errorf("%w%s", err, lacking(err, doc, "lecafe policy bake --recipe RECIPE")))
	}
	return err
}

// inMessage is how services name what is missing, where they do.
var inMessage = regexp.MustCompile(`perform: ([a-z0-9-]+:[A-Za-z]+)`)

// iamAction returns the IAM action that a refused call needed.
func iamAction(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		if m := inMessage.FindStringSubmatch(ae.ErrorMessage()); m != nil {
			return m[1]
		}
	}
	var op *smithy.OperationError
	if !errors.As(err, &op) {
		return ""
	}
	name := op.Operation()
	switch name { // API names are not all IAM's
	case "ListObjectsV2":
		name = "ListBucket"
	case "DeleteObjects":
		name = "DeleteObject"
	}
	return strings.ToLower(op.Service()) + ":" + name
}

// lacking is the statement of a policy that would have allowed the call, and
// the command that prints all of it.
func lacking(err error, doc policy.Document, whole string) string {
	action := iamAction(err)
	text := "; a permission is missing"
	if action != "" {
		text += ": " + action
	}
	for _, s := range doc.Statement {
		if !slices.Contains(s.Action, action) {
			continue
		}
		s.Action = []string{action}
		if data, err := json.MarshalIndent(s, "  ", "  "); err == nil {
			text += "\nadd this statement to the caller's policy:\n  " + string(data)
			break
		}
	}
	return text + "\nthe whole policy: " + whole
}

// explain is a bake's explain, with gc's own policy.
func (o GCOptions) explain(err error) error {
	if !denied(err) {
		return newBake(Options{Config: o.Config}).explain(err)
	}
	staging := o.Staging
	if len(staging) == 0 {
		staging = []string{"s3://BUCKET/PREFIX"}
	}
	doc := policy.GC(policy.Where{}, policy.Collecting{Staging: staging, Protects: true})
	return exitcode.With(exitcode.NotReady, fmt.Errorf("%w%s", err, lacking(err, doc, "lecafe policy gc --staging "+strings.Join(staging, " --staging "))))
}
