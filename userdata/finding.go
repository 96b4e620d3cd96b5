package userdata

import (
	"cmp"
	"slices"

	"github.com/lecafe/lecafe/agent/report"
)

// Severity says how bad a finding is.
type Severity string

const (
	Error   Severity = "error"   // it will not do what it says
	Warning Severity = "warning" // it may fail, and nobody would know
	Info    Severity = "info"    // good to know
)

func (s Severity) rank() int {
	switch s {
	case Error:
		return 2
	case Warning:
		return 1
	}
	return 0
}

// AtLeast says whether s is as bad as t or worse.
func (s Severity) AtLeast(t Severity) bool { return s.rank() >= t.rank() }

// Finding is one thing that is wrong with a payload.
type Finding struct {
	File     string   `json:"file"`
	Line     int      `json:"line"`   // from 1, in the payload's text; in the part where the part is encoded; 0 for none
	Column   int      `json:"column"` // from 1, in characters; 0 for none
	Rule     string   `json:"rule"`
	Severity Severity `json:"severity"`
	Message  string   `json:"message"` // why
	Fix      string   `json:"fix"`

	Part     string      `json:"part,omitempty"`      // name of the part, in a multi-part payload
	PartLine int         `json:"part_line,omitempty"` // line in the part, as on the instance
	Code     report.Code `json:"code,omitempty"`      // the cause a boot is reported with; "" for what may be meant
}

func sortFindings(fs []Finding) {
	slices.SortStableFunc(fs, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Part, b.Part), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Rule, b.Rule))
	})
}
