package ec2

import (
	"slices"
	"time"
)

// faults are what tests want to go wrong in EC2's own states. Throttling and
// broken connections are the router's.
type faults struct {
	invisible     time.Duration
	noCapacity    map[capacityKey]bool
	imageFailures []string
	snapFailures  []string
	launches      []string
}

type capacityKey struct{ instanceType, place string }

func (f *faults) init() { f.noCapacity = map[capacityKey]bool{} }

// Invisible makes what is created from now on visible only d after its
// creation; till then, calls that name it answer that it does not exist. 0
// ends it.
// https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html
func (s *Server) Invisible(d time.Duration) {
	s.lock()
	defer s.unlock()
	s.faults.invisible = d
}

// Capacity says whether a type can be launched in a subnet or zone. An empty
// type or place stands for all of them.
func (s *Server) Capacity(instanceType, subnetOrZone string, available bool) {
	s.lock()
	defer s.unlock()
	key := capacityKey{instanceType, subnetOrZone}
	if available {
		delete(s.faults.noCapacity, key)
	} else {
		s.faults.noCapacity[key] = true
	}
}

func (f *faults) hasCapacity(instanceType string, sn *subnet) bool {
	for _, t := range []string{instanceType, ""} {
		if slices.ContainsFunc([]string{sn.id, sn.az, ""}, func(place string) bool { return f.noCapacity[capacityKey{t, place}] }) {
			return false
		}
	}
	return true
}

// FailNextImage lets the next image that is created or copied go from pending
// to failed, with that reason.
func (s *Server) FailNextImage(reason string) {
	s.lock()
	defer s.unlock()
	s.faults.imageFailures = append(s.faults.imageFailures, reason)
}

// FailNextSnapshot lets the next snapshot of CreateSnapshot go to error.
func (s *Server) FailNextSnapshot(reason string) {
	s.lock()
	defer s.unlock()
	s.faults.snapFailures = append(s.faults.snapFailures, reason)
}

// FailNextLaunch lets the next instance go from pending to terminated, for a
// reason with its code in front, such as "Server.InternalError: Internal error
// on launch".
func (s *Server) FailNextLaunch(reason string) {
	s.lock()
	defer s.unlock()
	s.faults.launches = append(s.faults.launches, reason)
}

func (f *faults) takeLaunchFailure() string   { return take(&f.launches) }
func (f *faults) takeImageFailure() string    { return take(&f.imageFailures) }
func (f *faults) takeSnapshotFailure() string { return take(&f.snapFailures) }

func take(queue *[]string) string {
	if len(*queue) == 0 {
		return ""
	}
	first := (*queue)[0]
	*queue = (*queue)[1:]
	return first
}

// SetConsole sets what GetConsoleOutput answers for an instance without a
// machine.
func (s *Server) SetConsole(instanceID string, output []byte) {
	s.lock()
	defer s.unlock()
	if i := s.anyInstance(instanceID); i != nil {
		i.console, i.consoleAt = slices.Clone(output), s.opts.Clock.Now()
	}
}

// Impair lets the instance status check of an instance fail, or pass again.
func (s *Server) Impair(instanceID string, impaired bool) {
	s.lock()
	defer s.unlock()
	if i := s.anyInstance(instanceID); i != nil {
		i.impaired = impaired
		s.events = append(s.events, stateChange{i.region.name, i.id})
	}
}
