package bootstrap

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/agent/report"
)

// Options are the settings the judge goes by.
type Options struct {
	Deadline time.Duration
	Severity map[string]string // cause code → failure, degraded, ignore
}

// Judgement is what the evidence amounts to. While Done is false the boot is
// still going on and the rest is what is known so far.
type Judgement struct {
	Done    bool
	Verdict report.Verdict
	Summary string
	Causes  []report.Cause
	Stages  []report.Stage
	Status  string // cloud-init's own, in one word
}

// Severities where a code alone decides. A code that is not here is a failure.
// "" is noted in the report and is no cause, unless the settings make it one.
var severities = map[report.Code]report.Severity{
	// The instance does what it was told but for one thing.
	report.CodeUserDataUnknownKey:  report.SeverityDegraded,
	report.CodeUserDataPlaceholder: report.SeverityDegraded,
	report.CodeCommandFailed:       report.SeverityDegraded,
	report.CodeBackgroundFailed:    report.SeverityDegraded,
	report.CodeUnitFailed:          report.SeverityDegraded,
	report.CodeDiskFull:            report.SeverityDegraded,
	report.CodeClockSkew:           report.SeverityDegraded,
	report.CodeQueueUnreachable:    report.SeverityDegraded,
	report.CodeConfigRolledBack:    report.SeverityDegraded,
	report.CodeOrdersParked:        report.SeverityDegraded,
	// The baked settings serve, or the defaults.
	report.CodeSettings: report.SeverityDegraded,
	// Every healthy boot of some distributions warns of something.
	report.CodeCloudInitWarning: "",
}

// stageOrder sorts causes: what comes first in a boot is more likely the root.
var stageOrder = []report.StageName{
	report.StageIdentity, report.StageUserData, report.StageCloudInitLocal, report.StageCloudInitNetwork,
	report.StageCloudConfig, report.StageCloudFinal, report.StageConfig, report.StageOrders,
	report.StageApplication, report.StageSystem,
}

// Judge says what the evidence amounts to. It is a function of its arguments
// alone.
func Judge(ev Evidence, o Options) Judgement {
	j := judge{ev: ev, o: o}
	late := o.Deadline > 0 && ev.Uptime >= o.Deadline
	ended := j.ended()

	j.settings()
	j.payload()
	j.unread()
	j.interrupted()
	j.datasource()
	j.disabled()
	j.modules()
	j.scripts()
	j.notRun()
	j.hooks()
	j.warnings()
	j.cloudUnits()
	if late && !ended {
		j.deadline()
	}
	j.troubles(late)
	failedSoFar := slices.ContainsFunc(j.causes, func(c report.Cause) bool { return c.Severity == report.SeverityFailure })
	if ended && !failedSoFar || late {
		j.application(late, ended)
	}
	j.units()
	j.disk()

	done := late || ended && (failedSoFar || j.settled())
	return j.finish(done)
}

type judge struct {
	ev      Evidence
	o       Options
	causes  []report.Cause
	ignored []report.Cause // by the settings
}

// add takes a cause in, with the severity that the settings, the cause itself
// or its code give it.
func (j *judge) add(c report.Cause) {
	if c.Severity == "" {
		s, ok := severities[c.Code]
		if !ok {
			s = report.SeverityFailure
		}
		c.Severity = s
	}
	switch j.o.Severity[string(c.Code)] {
	case "failure":
		c.Severity = report.SeverityFailure
	case "degraded":
		c.Severity = report.SeverityDegraded
	case "ignore":
		c.Severity = ""
	}
	if c.Severity == "" {
		j.ignored = append(j.ignored, c)
		return
	}
	j.causes = append(j.causes, c)
}

// ended says whether cloud-init has done all it will do.
func (j *judge) ended() bool {
	if j.absent() {
		return true
	}
	if !j.ev.CloudInit.Ended() {
		return false
	}
	// The unit outlives result.json by a moment; whether it failed is known
	// when that has passed.
	for _, u := range j.ev.Units {
		if u.Name == finalUnit && (u.Active == "activating" || u.Active == "deactivating") {
			return false
		}
	}
	return true
}

// absent says that cloud-init will not run at all in this boot.
func (j *judge) absent() bool {
	c := &j.ev.CloudInit
	if slices.ContainsFunc(c.Stages[:], func(s StageRecord) bool { return !s.Start.IsZero() }) || c.Result {
		return false
	}
	return c.Disabled || !c.Installed
}

// settled says that everything the settings ask for has an answer.
func (j *judge) settled() bool {
	if !j.ev.Payload.Known {
		return false
	}
	for _, t := range j.ev.Troubles {
		if !t.Settled {
			return false
		}
	}
	for _, c := range j.ev.Checks {
		if !c.OK && !c.Final {
			return false
		}
	}
	return true
}

func (j *judge) finish(done bool) Judgement {
	slices.SortStableFunc(j.causes, func(a, b report.Cause) int {
		return cmp.Or(
			cmp.Compare(rank(a.Severity), rank(b.Severity)),
			cmp.Compare(slices.Index(stageOrder, a.Stage), slices.Index(stageOrder, b.Stage)),
		)
	})
	out := Judgement{Done: done, Verdict: report.Success, Causes: j.causes, Stages: j.stages(), Status: j.status()}
	if len(j.causes) > 0 {
		out.Verdict = report.Degraded
		if j.causes[0].Severity == report.SeverityFailure {
			out.Verdict = report.Failure
		}
	}
	switch first := len(j.causes) > 0; {
	case !done:
		out.Summary = "The bootstrap is still going on."
	case !first && j.ev.Payload.Size == 0:
		out.Summary = "The instance came up; it has no user data."
	case !first:
		out.Summary = "The instance came up: its user data ran to the end and everything asked for holds."
	case len(j.causes) == 1:
		out.Summary = j.causes[0].Message
	default:
		out.Summary = fmt.Sprintf("%s (%d more)", j.causes[0].Message, len(j.causes)-1)
	}
	return out
}

func rank(s report.Severity) int {
	if s == report.SeverityFailure {
		return 0
	}
	return 1
}

// status is cloud-init's own word for how it went.
func (j *judge) status() string {
	c := &j.ev.CloudInit
	switch {
	case j.absent() && c.Disabled:
		return "disabled"
	case j.absent():
		return "not-run"
	case !c.Ended() && c.Stages[0].Start.IsZero():
		return "not-run"
	case !c.Ended():
		return "running"
	}
	degraded := false
	for _, s := range c.Stages {
		if len(s.Errors) > 0 {
			return "error"
		}
		degraded = degraded || len(s.Recoverable) > 0
	}
	if degraded {
		return "degraded"
	}
	return "done"
}

// stages is the timeline.
func (j *judge) stages() []report.Stage {
	var out []report.Stage
	for i, m := range stageModes {
		r := j.ev.CloudInit.Stages[i]
		s := report.Stage{Name: m.stage, Status: "pending"}
		if !r.Start.IsZero() {
			s.StartedAt, s.Status = &r.Start, "running"
		}
		if !r.Finish.IsZero() {
			s.FinishedAt, s.Status = &r.Finish, "success"
			if len(r.Errors) > 0 {
				s.Status = "failure"
			}
		}
		out = append(out, s)
	}
	return out
}

// stageOf returns the index of the stage that is running, or the one that
// comes next.
func (j *judge) stageOf() int {
	for i, s := range j.ev.CloudInit.Stages {
		if s.Finish.IsZero() {
			return i
		}
	}
	return len(stageModes) - 1
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return s
	}
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	if strings.HasPrefix(s, "cloud-init") {
		return s // its own name
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
