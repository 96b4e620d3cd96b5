// Package sts is a fake of AWS STS: GetCallerIdentity and AssumeRole, from the
// fake cloud's vault. It refuses every other action by name.
package sts

import (
	"cmp"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const namespace = "https://sts.amazonaws.com/doc/2011-06-15/"

// Options configure a Server.
type Options struct {
	Vault *wire.Vault
	// Trusts says whether a role exists and lets the caller assume it.
	Trusts func(role string, caller wire.Caller) bool
}

// Server is the fake. It is an http.Handler of authenticated requests.
type Server struct{ opts Options }

// New returns a Server on the vault.
func New(o Options) *Server { return &Server{o} }

type identity struct {
	Arn     string `out:"Arn"`
	UserId  string `out:"UserId"`
	Account string `out:"Account"`
}

type assumed struct {
	Credentials      credentials     `out:"Credentials"`
	AssumedRoleUser  assumedRoleUser `out:"AssumedRoleUser"`
	PackedPolicySize int             `out:"PackedPolicySize"`
}

type credentials struct {
	AccessKeyId     string `out:"AccessKeyId"`
	SecretAccessKey string `out:"SecretAccessKey"`
	SessionToken    string `out:"SessionToken"`
	Expiration      string `out:"Expiration"`
}

type assumedRoleUser struct {
	AssumedRoleId string `out:"AssumedRoleId"`
	Arn           string `out:"Arn"`
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		query.QueryError(w, namespace, query.Errorf("MalformedInput", "%v", err))
		return
	}
	action := r.Form.Get("Action")
	var out any
	var err error
	caller := wire.CallerFrom(r.Context())
	switch action {
	case "GetCallerIdentity":
		// https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
		out = identity{Arn: caller.ARN, UserId: caller.UserID, Account: cmp.Or(caller.Account, wire.Account)}
	case "AssumeRole":
		var in assumeRole
		if err = query.Decode(r.Form, &in); err == nil {
			out, err = s.assumeRole(caller, in)
		}
	default:
		err = query.Unsupported("the STS action %s", action)
	}
	if err != nil {
		query.QueryError(w, namespace, query.As(err))
		return
	}
	query.Query(w, action, namespace, out)
}

type assumeRole struct {
	RoleArn         string
	RoleSessionName string
	DurationSeconds int
	ExternalId      string
}

var (
	roleARN     = regexp.MustCompile(`^arn:aws[a-z-]*:iam::(\d{12}):role/(.+)$`)
	sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
)

// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
// Role chaining is limited to an hour:
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles.html#iam-term-role-chaining
func (s *Server) assumeRole(caller wire.Caller, in assumeRole) (any, error) {
	m := roleARN.FindStringSubmatch(in.RoleArn)
	if m == nil || m[1] != wire.Account {
		return nil, query.Errorf("ValidationError", "%s is invalid", in.RoleArn)
	}
	if !sessionName.MatchString(in.RoleSessionName) {
		return nil, query.Errorf("ValidationError", "1 validation error detected: Value '%s' at 'roleSessionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\w+=,.@-]*", in.RoleSessionName)
	}
	seconds := in.DurationSeconds
	if seconds == 0 {
		seconds = 3600
	}
	if seconds < 900 || seconds > 43200 {
		return nil, query.Errorf("ValidationError", "1 validation error detected: Value '%d' at 'durationSeconds' failed to satisfy constraint: Member must have value between 900 and 43200", seconds)
	}
	if caller.Role != "" && seconds > 3600 {
		return nil, query.Errorf("ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
	}
	role := m[2][strings.LastIndexByte(m[2], '/')+1:]
	if !s.opts.Trusts(role, caller) {
		return nil, &query.Error{Status: http.StatusForbidden, Code: "AccessDenied", Message: "User: " + caller.ARN + " is not authorized to perform: sts:AssumeRole on resource: " + in.RoleArn}
	}
	c := s.opts.Vault.Assume(role, in.RoleSessionName, time.Duration(seconds)*time.Second)
	return assumed{
		Credentials: credentials{
			AccessKeyId: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken,
			Expiration: c.Expiration.UTC().Format(time.RFC3339),
		},
		AssumedRoleUser:  assumedRoleUser{AssumedRoleId: c.Caller.UserID, Arn: c.Caller.ARN},
		PackedPolicySize: 0,
	}, nil
}
