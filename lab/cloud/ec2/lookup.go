package ec2

import (
	"cmp"
	"slices"
)

// InstanceProfile is an instance profile as IAM shows it.
type InstanceProfile struct {
	Name, ID, ARN string
	Role          string // empty for a profile without one
}

// InstanceProfiles returns the instance profiles, in order of name.
func (s *Server) InstanceProfiles() []InstanceProfile {
	s.lock()
	defer s.unlock()
	out := make([]InstanceProfile, 0, len(s.profiles))
	for _, p := range s.profiles {
		out = append(out, InstanceProfile{Name: p.name, ID: p.id, ARN: p.arn, Role: p.role})
	}
	slices.SortFunc(out, func(a, b InstanceProfile) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// DeleteInstanceProfile forgets a profile; instances launched with it keep it.
func (s *Server) DeleteInstanceProfile(name string) {
	s.lock()
	defer s.unlock()
	delete(s.profiles, name)
}

// ImageExists says whether a region has an image, whoever owns it.
func (s *Server) ImageExists(regionName, imageID string) bool {
	s.lock()
	defer s.unlock()
	r, err := s.region(regionName)
	if err != nil {
		return false
	}
	_, err = r.imageOf(imageID)
	return err == nil
}
