package iam

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/lab/cloud/wire"
)

type rolePolicy struct{ RoleName, PolicyName, PolicyDocument string }

// https://docs.aws.amazon.com/IAM/latest/APIReference/API_PutRolePolicy.html
func (s *Server) putRolePolicy(in *rolePolicy) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	if err := checkEntity("policyName", in.PolicyName, ""); err != nil {
		return nil, err
	}
	d, err := policy.Parse(in.PolicyDocument)
	if err != nil {
		return nil, malformed(err)
	}
	r.inline[in.PolicyName] = document{in.PolicyDocument, d}
	return nil, nil
}

func (s *Server) getRolePolicy(in *rolePolicy) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	d, ok := r.inline[in.PolicyName]
	if !ok {
		return nil, noEntity("role policy", in.PolicyName)
	}
	return struct {
		RoleName       string `out:"RoleName"`
		PolicyName     string `out:"PolicyName"`
		PolicyDocument string `out:"PolicyDocument"`
	}{r.name, in.PolicyName, quote(d.text)}, nil
}

func (s *Server) deleteRolePolicy(in *rolePolicy) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	if _, ok := r.inline[in.PolicyName]; !ok {
		return nil, noEntity("role policy", in.PolicyName)
	}
	delete(r.inline, in.PolicyName)
	return nil, nil
}

func (s *Server) listRolePolicies(in *byRole) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	return struct {
		IsTruncated bool     `out:"IsTruncated"`
		PolicyNames []string `out:"PolicyNames>member,keep"`
	}{PolicyNames: slices.Sorted(maps.Keys(r.inline))}, nil
}

type policyView struct {
	PolicyName       string `out:"PolicyName"`
	PolicyId         string `out:"PolicyId"`
	Arn              string `out:"Arn"`
	Path             string `out:"Path"`
	DefaultVersionId string `out:"DefaultVersionId"`
	AttachmentCount  int    `out:"AttachmentCount"`
	IsAttachable     bool   `out:"IsAttachable"`
	CreateDate       string `out:"CreateDate"`
}

type policyOut struct {
	Policy policyView `out:"Policy"`
}

func policyARN(name string) string { return "arn:aws:iam::" + wire.Account + ":policy/" + name }

func (s *Server) viewPolicy(arn string) policyView {
	m := s.managed[arn]
	n := 0
	for _, r := range s.roles {
		if r.attached[arn] {
			n++
		}
	}
	return policyView{
		PolicyName: m.name, PolicyId: "ANPA" + strings.ToUpper(m.name), Arn: arn, Path: "/", DefaultVersionId: "v1",
		AttachmentCount: n, IsAttachable: true, CreateDate: m.created.UTC().Format(time.RFC3339),
	}
}

// https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreatePolicy.html
func (s *Server) createPolicy(in *struct{ PolicyName, PolicyDocument, Path, Description string }) (any, error) {
	if err := checkEntity("policyName", in.PolicyName, in.Path); err != nil {
		return nil, err
	}
	arn := policyARN(in.PolicyName)
	if s.managed[arn] != nil {
		return nil, conflict("EntityAlreadyExists", "A policy called %s already exists. Duplicate names are not allowed.", in.PolicyName)
	}
	d, err := policy.Parse(in.PolicyDocument)
	if err != nil {
		return nil, malformed(err)
	}
	s.managed[arn] = &managed{in.PolicyName, document{in.PolicyDocument, d}, s.opts.Clock.Now()}
	return policyOut{s.viewPolicy(arn)}, nil
}

type byPolicy struct{ PolicyArn, VersionId, RoleName string }

func (s *Server) getPolicy(in *byPolicy) (any, error) {
	if s.managed[in.PolicyArn] == nil {
		return nil, noEntity("policy", in.PolicyArn)
	}
	return policyOut{s.viewPolicy(in.PolicyArn)}, nil
}

func (s *Server) getPolicyVersion(in *byPolicy) (any, error) {
	m := s.managed[in.PolicyArn]
	if m == nil || in.VersionId != "v1" {
		return nil, noEntity("policy version", in.PolicyArn+" "+in.VersionId)
	}
	type version struct {
		Document         string `out:"Document"`
		VersionId        string `out:"VersionId"`
		IsDefaultVersion bool   `out:"IsDefaultVersion"`
		CreateDate       string `out:"CreateDate"`
	}
	return struct {
		PolicyVersion version `out:"PolicyVersion"`
	}{version{quote(m.doc.text), "v1", true, m.created.UTC().Format(time.RFC3339)}}, nil
}

func (s *Server) deletePolicy(in *byPolicy) (any, error) {
	if s.managed[in.PolicyArn] == nil {
		return nil, noEntity("policy", in.PolicyArn)
	}
	if s.viewPolicy(in.PolicyArn).AttachmentCount > 0 {
		return nil, conflict("DeleteConflict", "Cannot delete a policy attached to entities.")
	}
	delete(s.managed, in.PolicyArn)
	return nil, nil
}

func (s *Server) attach(in *byPolicy) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	if s.managed[in.PolicyArn] == nil {
		return nil, noEntity("policy", in.PolicyArn)
	}
	r.attached[in.PolicyArn] = true
	return nil, nil
}

func (s *Server) detach(in *byPolicy) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	if !r.attached[in.PolicyArn] {
		return nil, noEntity("policy", in.PolicyArn)
	}
	delete(r.attached, in.PolicyArn)
	return nil, nil
}

func (s *Server) listAttached(in *byRole) (any, error) {
	r, err := s.find(in.RoleName)
	if err != nil {
		return nil, err
	}
	type attached struct {
		PolicyName string `out:"PolicyName"`
		PolicyArn  string `out:"PolicyArn"`
	}
	var out struct {
		IsTruncated      bool       `out:"IsTruncated"`
		AttachedPolicies []attached `out:"AttachedPolicies>member,keep"`
	}
	for _, arn := range slices.Sorted(maps.Keys(r.attached)) {
		out.AttachedPolicies = append(out.AttachedPolicies, attached{s.managed[arn].name, arn})
	}
	return out, nil
}

type profileView struct {
	Path                string     `out:"Path"`
	InstanceProfileName string     `out:"InstanceProfileName"`
	InstanceProfileId   string     `out:"InstanceProfileId"`
	Arn                 string     `out:"Arn"`
	CreateDate          string     `out:"CreateDate"`
	Roles               []roleView `out:"Roles>member,keep"`
}

type profileOut struct {
	InstanceProfile profileView `out:"InstanceProfile"`
}

func (s *Server) viewProfile(p ec2.InstanceProfile) profileView {
	v := profileView{Path: "/", InstanceProfileName: p.Name, InstanceProfileId: p.ID, Arn: p.ARN, CreateDate: s.opts.Clock.Now().UTC().Format(time.RFC3339)}
	if p.Role != "" {
		v.Roles = []roleView{s.view(s.role(p.Role))}
		v.CreateDate = v.Roles[0].CreateDate
	}
	return v
}

type byProfile struct{ InstanceProfileName, RoleName, Path string }

func (s *Server) profile(name string) (ec2.InstanceProfile, error) {
	all := s.opts.Profiles.InstanceProfiles()
	i := slices.IndexFunc(all, func(p ec2.InstanceProfile) bool { return p.Name == name })
	if i < 0 {
		return ec2.InstanceProfile{}, noEntity("instance profile", name)
	}
	return all[i], nil
}

// https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateInstanceProfile.html
func (s *Server) createProfile(in *byProfile) (any, error) {
	if err := checkEntity("instanceProfileName", in.InstanceProfileName, in.Path); err != nil {
		return nil, err
	}
	if _, err := s.profile(in.InstanceProfileName); err == nil {
		return nil, conflict("EntityAlreadyExists", "Instance Profile %s already exists.", in.InstanceProfileName)
	}
	s.opts.Profiles.PutInstanceProfile(in.InstanceProfileName, "")
	return s.getProfile(in)
}

func (s *Server) getProfile(in *byProfile) (any, error) {
	p, err := s.profile(in.InstanceProfileName)
	if err != nil {
		return nil, err
	}
	return profileOut{s.viewProfile(p)}, nil
}

func (s *Server) deleteProfile(in *byProfile) (any, error) {
	p, err := s.profile(in.InstanceProfileName)
	if err != nil {
		return nil, err
	}
	if p.Role != "" {
		return nil, conflict("DeleteConflict", "Cannot delete entity, must remove roles from instance profile first.")
	}
	s.opts.Profiles.DeleteInstanceProfile(p.Name)
	return nil, nil
}

type profileList struct {
	IsTruncated      bool          `out:"IsTruncated"`
	InstanceProfiles []profileView `out:"InstanceProfiles>member,keep"`
}

func (s *Server) listProfiles(*struct{}) (any, error) {
	var out profileList
	for _, p := range s.opts.Profiles.InstanceProfiles() {
		out.InstanceProfiles = append(out.InstanceProfiles, s.viewProfile(p))
	}
	return out, nil
}

func (s *Server) profilesOfRole(in *byRole) (any, error) {
	if _, err := s.find(in.RoleName); err != nil {
		return nil, err
	}
	var out profileList
	for _, p := range s.opts.Profiles.InstanceProfiles() {
		if p.Role == in.RoleName {
			out.InstanceProfiles = append(out.InstanceProfiles, s.viewProfile(p))
		}
	}
	return out, nil
}

// An instance profile holds one role:
// https://docs.aws.amazon.com/IAM/latest/APIReference/API_AddRoleToInstanceProfile.html
func (s *Server) addRole(in *byProfile) (any, error) {
	p, err := s.profile(in.InstanceProfileName)
	if err != nil {
		return nil, err
	}
	if _, err := s.find(in.RoleName); err != nil {
		return nil, err
	}
	if p.Role != "" {
		return nil, conflict("LimitExceeded", "Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1")
	}
	s.opts.Profiles.PutInstanceProfile(p.Name, in.RoleName)
	return nil, nil
}

func (s *Server) removeRole(in *byProfile) (any, error) {
	p, err := s.profile(in.InstanceProfileName)
	if err != nil {
		return nil, err
	}
	if p.Role != in.RoleName || p.Role == "" {
		return nil, noEntity("role", in.RoleName)
	}
	s.opts.Profiles.PutInstanceProfile(p.Name, "")
	return nil, nil
}
