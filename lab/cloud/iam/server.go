// Package iam is a fake of AWS IAM as far as lecafe reads it and a lab needs
// it: roles, their inline and managed policies, and instance profiles. It owns
// what a role may do; the instance profiles are kept where they are used, by
// EC2. It refuses users, groups, permissions boundaries, paths and version
// histories by name. Changes take effect at once, where IAM takes some seconds.
//
// https://docs.aws.amazon.com/IAM/latest/APIReference/welcome.html
package iam

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/lab/cloud/query"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

const namespace = "https://iam.amazonaws.com/doc/2010-05-08/"

// profiles is where instance profiles are kept; *ec2.Server is one.
type profiles interface {
	InstanceProfiles() []ec2.InstanceProfile
	PutInstanceProfile(name, role string)
	DeleteInstanceProfile(name string)
}

// Options are what a Server is made of.
type Options struct {
	Clock    wire.Clock
	Vault    *wire.Vault
	Profiles profiles
}

// Server is the fake. It is an http.Handler of authenticated requests.
type Server struct {
	opts    Options
	mu      sync.Mutex
	roles   map[string]*role
	managed map[string]*managed // by ARN
}

type role struct {
	name, trust string
	created     time.Time
	inline      map[string]document
	attached    map[string]bool // ARNs
}

type managed struct {
	name    string
	doc     document
	created time.Time
}

type document struct {
	text   string
	parsed *policy.Document
}

// New returns a Server without roles.
func New(o Options) *Server {
	return &Server{opts: o, roles: map[string]*role{}, managed: awsManaged()}
}

// trustAccount lets anyone of the account assume a role: what a role made
// behind the API trusts, beside EC2.
const trustAccount = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + wire.Account + `:root","Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}`

// PutRolePolicy attaches an inline policy to a role behind the API; a role
// that is not there is made.
func (s *Server) PutRolePolicy(name, policyName, text string) error {
	d, err := policy.Parse(text)
	if err != nil {
		return fmt.Errorf("put policy %s of role %s: %w", policyName, name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ensure(name).inline[policyName] = document{text, d}
	return nil
}

// DeleteRolePolicy detaches an inline policy.
func (s *Server) DeleteRolePolicy(name, policyName string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.roles[name]; r != nil {
		delete(r.inline, policyName)
	}
}

func (s *Server) ensure(name string) *role {
	r := s.roles[name]
	if r == nil {
		r = &role{name: name, trust: trustAccount, created: s.opts.Clock.Now(), inline: map[string]document{}, attached: map[string]bool{}}
		s.roles[name] = r
	}
	return r
}

// Evaluate decides by the role's policies alone.
func (s *Server) Evaluate(name string, r policy.Request) policy.Decision {
	s.mu.Lock()
	defer s.mu.Unlock()
	result := policy.Silent
	at := s.roles[name]
	if at == nil {
		return result
	}
	var all []*policy.Document
	for _, d := range at.inline {
		all = append(all, d.parsed)
	}
	for arn := range at.attached {
		if m := s.managed[arn]; m != nil {
			all = append(all, m.doc.parsed)
		}
	}
	for _, d := range all {
		switch d.Evaluate(r) {
		case policy.Denied:
			return policy.Denied
		case policy.Allowed:
			result = policy.Allowed
		}
	}
	return result
}

// Trusts says whether the role exists and its trust policy lets the caller
// assume it. Conditions are not modelled: a statement that has one allows
// nothing.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_principal.html
func (s *Server) Trusts(name string, caller wire.Caller) bool {
	s.mu.Lock()
	r := s.role(name)
	s.mu.Unlock()
	if r == nil {
		return false
	}
	var doc struct {
		Statement []struct {
			Effect    string
			Principal json.RawMessage
			Condition json.RawMessage
		}
	}
	if json.Unmarshal([]byte(r.trust), &doc) != nil {
		return false
	}
	trusted := []string{"*", wire.Account, "arn:aws:iam::" + wire.Account + ":root", caller.ARN}
	if caller.Role != "" {
		trusted = append(trusted, roleARN(caller.Role))
	}
	for _, st := range doc.Statement {
		if st.Effect != "Allow" || st.Condition != nil {
			continue
		}
		var any string
		var by struct{ AWS json.RawMessage }
		if json.Unmarshal(st.Principal, &any) == nil && any == "*" {
			return true
		}
		if json.Unmarshal(st.Principal, &by) != nil {
			continue
		}
		var one string
		var many []string
		if json.Unmarshal(by.AWS, &one) == nil {
			many = []string{one}
		} else if json.Unmarshal(by.AWS, &many) != nil {
			continue
		}
		if slices.ContainsFunc(many, func(p string) bool { return slices.Contains(trusted, p) }) {
			return true
		}
	}
	return false
}

// role finds a role; one that only an instance profile names is made.
func (s *Server) role(name string) *role {
	if r := s.roles[name]; r != nil {
		return r
	}
	for _, p := range s.opts.Profiles.InstanceProfiles() {
		if name != "" && p.Role == name {
			return s.ensure(name)
		}
	}
	return nil
}

func roleARN(name string) string { return "arn:aws:iam::" + wire.Account + ":role/" + name }

func noEntity(kind, name string) error {
	return &query.Error{Status: http.StatusNotFound, Code: "NoSuchEntity", Message: "The " + kind + " with name " + name + " cannot be found."}
}

func conflict(code, format string, args ...any) error {
	return &query.Error{Status: http.StatusConflict, Code: code, Message: fmt.Sprintf(format, args...)}
}

var errNotJSON = errors.New("the policy is not JSON")

func malformed(err error) error {
	return query.Errorf("MalformedPolicyDocument", "%v", err)
}

type action func(*Server, context.Context, url.Values) (any, error)

func act[In any](f func(*Server, *In) (any, error)) action {
	return func(s *Server, _ context.Context, form url.Values) (any, error) {
		in := new(In)
		if err := query.Decode(form, in); err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return f(s, in)
	}
}

var actions = map[string]action{
	"CreateRole": act((*Server).createRole), "GetRole": act((*Server).getRole), "DeleteRole": act((*Server).deleteRole), "ListRoles": act((*Server).listRoles),
	"UpdateAssumeRolePolicy": act((*Server).updateTrust),
	"PutRolePolicy":          act((*Server).putRolePolicy), "GetRolePolicy": act((*Server).getRolePolicy),
	"DeleteRolePolicy": act((*Server).deleteRolePolicy), "ListRolePolicies": act((*Server).listRolePolicies),
	"CreatePolicy": act((*Server).createPolicy), "GetPolicy": act((*Server).getPolicy), "GetPolicyVersion": act((*Server).getPolicyVersion),
	"DeletePolicy": act((*Server).deletePolicy), "AttachRolePolicy": act((*Server).attach), "DetachRolePolicy": act((*Server).detach),
	"ListAttachedRolePolicies": act((*Server).listAttached),
	"CreateInstanceProfile":    act((*Server).createProfile), "GetInstanceProfile": act((*Server).getProfile),
	"DeleteInstanceProfile": act((*Server).deleteProfile), "ListInstanceProfiles": act((*Server).listProfiles),
	"ListInstanceProfilesForRole": act((*Server).profilesOfRole),
	"AddRoleToInstanceProfile":    act((*Server).addRole), "RemoveRoleFromInstanceProfile": act((*Server).removeRole),
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		query.QueryError(w, namespace, query.Errorf("InvalidInput", "%v", err))
		return
	}
	name := r.Form.Get("Action")
	do, ok := actions[name]
	if !ok {
		query.QueryError(w, namespace, query.Unsupported("the IAM action %s", name))
		return
	}
	out, err := do(s, r.Context(), r.Form)
	if err != nil {
		query.QueryError(w, namespace, query.As(err))
		return
	}
	query.Query(w, name, namespace, out)
}

type roleView struct {
	Path                     string `out:"Path"`
	RoleName                 string `out:"RoleName"`
	RoleId                   string `out:"RoleId"`
	Arn                      string `out:"Arn"`
	CreateDate               string `out:"CreateDate"`
	AssumeRolePolicyDocument string `out:"AssumeRolePolicyDocument"`
	MaxSessionDuration       int    `out:"MaxSessionDuration"`
}

type roleOut struct {
	Role roleView `out:"Role"`
}

// quote encodes a policy document as IAM's answers have it, after RFC 3986.
func quote(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }

func (s *Server) view(r *role) roleView {
	return roleView{
		Path: "/", RoleName: r.name, RoleId: s.opts.Vault.RoleID(r.name), Arn: roleARN(r.name), CreateDate: r.created.UTC().Format(time.RFC3339),
		AssumeRolePolicyDocument: quote(r.trust), MaxSessionDuration: 3600,
	}
}

var entityName = regexp.MustCompile(`^[\w+=,.@-]{1,128}$`)

func checkEntity(kind, name, path string) error {
	if !entityName.MatchString(name) {
		return query.Errorf("ValidationError", "The specified value for %s is invalid. It must contain only alphanumeric characters and/or the following: +=,.@_-", kind)
	}
	if path != "" && path != "/" {
		return query.Unsupported("IAM paths other than /")
	}
	return nil
}

// https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateRole.html
func (s *Server) createRole(in *struct {
	RoleName, AssumeRolePolicyDocument, Path, Description string
}) (any, error) {
	if err := checkEntity("roleName", in.RoleName, in.Path); err != nil {
		return nil, err
	}
	if len(in.RoleName) > 64 {
		return nil, query.Errorf("ValidationError", "1 validation error detected: Value at 'roleName' failed to satisfy constraint: Member must have length less than or equal to 64")
	}
	if s.role(in.RoleName) != nil {
		return nil, conflict("EntityAlreadyExists", "Role with name %s already exists.", in.RoleName)
	}
	if !json.Valid([]byte(in.AssumeRolePolicyDocument)) {
		return nil, malformed(errNotJSON)
	}
	r := s.ensure(in.RoleName)
	r.trust = in.AssumeRolePolicyDocument
	return roleOut{s.view(r)}, nil
}

type byRole struct{ RoleName string }

func (s *Server) find(name string) (*role, error) {
	if r := s.role(name); r != nil {
		return r, nil
	}
	return nil, noEntity("role", name)
}

func (s *Server) getRole(in *byRole) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	return roleOut{s.view(r)}, nil
}

func (s *Server) updateTrust(in *struct{ RoleName, PolicyDocument string }) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	if !json.Valid([]byte(in.PolicyDocument)) {
		return nil, malformed(errNotJSON)
	}
	r.trust = in.PolicyDocument
	return nil, nil
}

// https://docs.aws.amazon.com/IAM/latest/APIReference/API_DeleteRole.html
func (s *Server) deleteRole(in *byRole) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	if len(r.inline) > 0 || len(r.attached) > 0 {
		return nil, conflict("DeleteConflict", "Cannot delete entity, must delete policies first.")
	}
	for _, p := range s.opts.Profiles.InstanceProfiles() {
		if p.Role == r.name {
			return nil, conflict("DeleteConflict", "Cannot delete entity, must remove roles from instance profile first.")
		}
	}
	delete(s.roles, r.name)
	return nil, nil
}

func (s *Server) listRoles(*struct{}) (any, error) {
	for _, p := range s.opts.Profiles.InstanceProfiles() {
		if p.Role != "" {
			s.ensure(p.Role)
		}
	}
	var out struct {
		IsTruncated bool       `out:"IsTruncated"`
		Roles       []roleView `out:"Roles>member,keep"`
	}
	for _, name := range slices.Sorted(maps.Keys(s.roles)) {
		out.Roles = append(out.Roles, s.view(s.roles[name]))
	}
	return out, nil
}
