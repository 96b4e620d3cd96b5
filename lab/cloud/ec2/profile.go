package ec2

import (
	"strings"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// PutInstanceProfile makes an instance profile with a role, as IAM would; an
// existing one gets the role.
func (s *Server) PutInstanceProfile(name, role string) {
	s.lock()
	defer s.unlock()
	if p, ok := s.profiles[name]; ok {
		p.role = role
		return
	}
	s.profiles[name] = &profile{id: "AIPA" + strings.ToUpper(strings.TrimPrefix(newID("x"), "x-")), name: name, arn: "arn:aws:iam::" + account + ":instance-profile/" + name, role: role}
}

// profileOf finds the instance profile of a launch.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_IamInstanceProfileSpecification.html
func (s *Server) profileOf(spec *profileSpec) (*profile, error) {
	if spec == nil || spec.Name == "" && spec.Arn == "" {
		return nil, nil
	}
	if spec.Name != "" {
		if p, ok := s.profiles[spec.Name]; ok {
			return p, nil
		}
		return nil, query.Errorf("InvalidParameterValue", "Value (%s) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name", spec.Name)
	}
	for _, p := range s.profiles {
		if p.arn == spec.Arn {
			return p, nil
		}
	}
	return nil, query.Errorf("InvalidParameterValue", "Value (%s) for parameter iamInstanceProfile.arn is invalid. Invalid IAM Instance Profile ARN", spec.Arn)
}
