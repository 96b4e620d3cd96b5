package fleet

import (
	"cmp"
	"slices"
	"time"

	"github.com/lecafe/lecafe/agent/report"
)

// progress is how far an instance without a report says it is.
type progress struct {
	stage report.StageName
	at    time.Time // by S3's clock
}

// mark keeps the latest mark of each sender. A sender that has reported is
// past its marks.
func (s *shelf) mark(m report.Mark, at time.Time) {
	if len(s.bySender[m.Sender]) > 0 {
		return
	}
	p := progress{m.Stage, at}
	if old, ok := s.marks[m.Sender]; ok && !old.before(p) {
		return
	}
	if s.marks == nil {
		s.marks = map[string]progress{}
	}
	s.marks[m.Sender] = p
}

// before orders marks. S3 tells seconds: of two in one, the later stage is it.
func (p progress) before(q progress) bool {
	order := report.StageNames()
	return cmp.Or(p.at.Compare(q.at), cmp.Compare(slices.Index(order, p.stage), slices.Index(order, q.stage))) < 0
}

// tellProgress gives those that have not reported the stage that they said
// they are in. It is believed like a report: by the sender's role where that
// is known.
func (s *shelf) tellProgress(standings []Standing) {
	if len(s.marks) == 0 {
		return
	}
	anyone := map[string]progress{} // by instance, whatever the role
	for sender, p := range s.marks {
		id := report.Mark{Sender: sender}.InstanceID()
		if old, ok := anyone[id]; !ok || old.before(p) {
			anyone[id] = p
		}
	}
	for n := range standings {
		i := &standings[n]
		p, ok := anyone[i.ID]
		if i.RoleID != "" {
			p, ok = s.marks[i.RoleID+":"+i.ID]
		}
		// One of before the last start says nothing of this boot.
		if !ok || i.Report != "" || p.at.Before(i.LaunchedAt) {
			continue
		}
		i.Stage, i.StageAt = string(p.stage), &p.at
		if i.Cause != nil && i.Cause.Stage == "" {
			i.Cause.Stage = p.stage
		}
	}
}
