package autoscaling

// Watch calls f after members of groups have come, gone or changed their
// state, outside of any lock. Changes may come together: f looks at the state.
func (s *Server) Watch(f func()) {
	s.lock()
	defer s.unlock()
	s.watchers = append(s.watchers[:len(s.watchers):len(s.watchers)], f)
}

// moved returns whom to tell of what has changed since it was last asked.
func (s *Server) moved() []func() {
	if !s.dirty {
		return nil
	}
	s.dirty = false
	return s.watchers
}
