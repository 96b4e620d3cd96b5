package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/agent/bootstrap"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/sinks"
	"github.com/lecafe/lecafe/internal/strictyaml"
	"github.com/lecafe/lecafe/internal/version"
)

// observe follows the boot to its verdict, once in an instance's life.
func (a *Agent) observe(ctx context.Context) error {
	obs := &bootstrap.Observer{Root: a.o.Root, Facts: a.factsNow, Changed: a.changed, Now: a.o.Now, Watch: a.watch}
	if a.systemd != nil {
		obs.Units = a.units
		changes, err := a.systemd.Changes(ctx, a.interesting)
		if err != nil {
			a.log.Warn("unit changes are not told; they are looked at now and then", "error", err)
		} else {
			go func() {
				for {
					select {
					case <-ctx.Done():
						return
					case <-changes:
						a.wake()
					}
				}
			}()
		}
	}
	watch, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var readiness sync1
	obs.Progress = func(j bootstrap.Judgement, ev bootstrap.Evidence) {
		select {
		case a.looked <- struct{}{}:
		default:
		}
		a.mu.Lock()
		judged := a.memory.Done(a.facts.instance.ID)
		a.mu.Unlock()
		if judged {
			stop(errJudged)
			return
		}
		a.progress(ctx, j, ev)
		if ev.CloudInit.Ended() || j.Status == "disabled" || j.Status == "not-run" && !ev.CloudInit.Installed {
			readiness.once(func() { go a.readiness(watch) })
		}
	}
	a.mu.Lock()
	resumed := a.memory.Judged && a.memory.BootID == a.facts.bootID
	a.mu.Unlock()
	if resumed {
		// The agent was restarted in a boot whose verdict is out.
		a.setJudged()
		return nil
	}
	j, ev, err := obs.Run(watch)
	switch {
	case errors.Is(context.Cause(watch), errJudged):
		a.recordStart()
		return nil
	case err != nil:
		return err
	}
	a.verdict(ctx, j, ev)
	return nil
}

// watch is bootstrap.Watch, and says where it does not work.
func (a *Agent) watch(ctx context.Context, root string) (<-chan struct{}, error) {
	files, err := bootstrap.Watch(ctx, root)
	if err != nil {
		a.log.Warn("files are not watched; they are looked at every second or so", "error", err)
	}
	return files, err
}

// sync1 runs a function once, from one goroutine.
type sync1 bool

func (s *sync1) once(f func()) {
	if !*s {
		*s = true
		f()
	}
}

func (a *Agent) units(ctx context.Context) ([]bootstrap.Unit, error) {
	a.mu.Lock()
	names := slices.Concat(bootstrap.CloudUnits, a.facts.settings.Bootstrap.Ready.Units)
	a.mu.Unlock()
	c, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	us, err := a.systemd.Units(c, names)
	if err != nil {
		a.log.Warn("units cannot be listed", "error", err)
		return nil, err
	}
	out := make([]bootstrap.Unit, len(us))
	for i, u := range us {
		out[i] = bootstrap.Unit(u)
	}
	return out, nil
}

// interesting picks the units whose changes can change the verdict.
func (a *Agent) interesting(unit string) bool {
	if strings.HasPrefix(unit, "cloud-") {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.facts.settings.Bootstrap.Ready.Units, unit)
}

// progress remembers and tells how far the boot is.
func (a *Agent) progress(ctx context.Context, j bootstrap.Judgement, ev bootstrap.Evidence) {
	running, file, command := report.StageName(""), "", ""
	for _, s := range j.Stages {
		if s.Status == "running" {
			running = s.Name
		}
	}
	a.mu.Lock()
	m := a.memory
	if id := a.facts.instance.ID; id != "" && m.Interrupted(id, a.facts.bootID) == nil {
		m.InstanceID, m.BootID = id, a.facts.bootID
		m.Stage, m.File, m.Command = running, file, command
		// A shutdown ends scripts too: an end with errors that was not judged
		// before the machine went down was no end.
		m.Ended = ev.CloudInit.Ended() && j.Status != "error"
		if m.Judged && a.memory.InstanceID != id {
			m.Judged, m.Verdict, m.ReportID = false, "", ""
		}
	}
	dirty := m != a.memory
	a.memory = m
	a.facts.cloudInit = ev.CloudInit.Ended()
	advanced := stagesKey(j.Stages) != stagesKey(a.state.Stages)
	a.state.Stages, a.state.CloudInit = j.Stages, j.Status
	a.state.Summary = report.Redact(j.Summary)
	a.mu.Unlock()
	if dirty {
		a.remember()
	}
	if advanced {
		for _, s := range j.Stages {
			if s.Status == "running" || s.Status == "failure" {
				a.sayOnce("stage "+string(s.Name), s.Status, sinks.Line{Stage: string(s.Name), Message: s.Status})
			}
		}
		a.heartbeat(ctx)
	}
	a.moved(stageNow(j, ev))
	a.publish()
}

func (a *Agent) sayOnce(subject, what string, l sinks.Line) {
	a.mu.Lock()
	said := a.lastSaid[subject] == what
	a.lastSaid[subject] = what
	a.mu.Unlock()
	if !said {
		a.say("stage", l)
	}
}

func stagesKey(ss []report.Stage) string {
	var b strings.Builder
	for _, s := range ss {
		b.WriteString(string(s.Name) + "=" + s.Status + " ")
	}
	return b.String()
}

// remember writes the memory. A disk that is full must not stop the verdict.
func (a *Agent) remember() {
	a.mu.Lock()
	m := a.memory
	a.mu.Unlock()
	// Nothing is remembered as judged whose report a restart would lose.
	kept := !m.Judged || a.outbox.Kept(m.ReportID)
	if !kept {
		m.Judged, m.Verdict, m.ReportID = false, "", ""
	}
	a.mu.Lock()
	a.unkept = !kept
	a.mu.Unlock()
	if err := m.Save(a.stateDir()); err != nil {
		a.log.Error("the bootstrap cannot be remembered; after a restart it is judged again", "error", err)
	}
}

// verdict makes the report and hands it over for sending. The order matters:
// the report is in the outbox before the memory says that it was judged, so a
// crash between the two judges again and loses nothing.
func (a *Agent) verdict(ctx context.Context, j bootstrap.Judgement, ev bootstrap.Evidence) {
	a.mu.Lock()
	r := &report.Report{
		ID: report.NewID(), Kind: report.KindBootstrap, Verdict: j.Verdict, Summary: report.Redact(j.Summary), Causes: j.Causes, Stages: j.Stages,
		UserData: report.UserData{SHA256: ev.Payload.SHA256, Size: ev.Payload.Size, Format: ev.Payload.Format},
		CloudInit: report.CloudInit{
			Version: ev.CloudInit.Version, Status: j.Status, Datasource: ev.CloudInit.Datasource,
			Errors: errorsOf(ev.CloudInit), Warnings: ev.CloudInit.Warnings,
		},
		BootedAt: ev.At.Add(-ev.Uptime), JudgedAt: ev.At, DeadlineSeconds: int(a.facts.settings.Bootstrap.Deadline / time.Second),
		LogTail: ev.LogTail,
	}
	if !ev.Payload.Known {
		r.UserData.Format = "unknown"
	}
	a.mu.Unlock()
	a.complete(r)
	a.enqueue(r)
	a.keepReport(r)
	a.mu.Lock()
	a.memory.Judged, a.memory.Verdict, a.memory.ReportID = true, r.Verdict, r.ID
	a.memory.BootID = a.facts.bootID
	if r.Instance.ID != "" {
		a.memory.InstanceID = r.Instance.ID
	}
	a.mu.Unlock()
	a.remember()
	level := slog.LevelInfo
	switch r.Verdict {
	case report.Degraded:
		level = slog.LevelWarn
	case report.Failure:
		level = slog.LevelError
	}
	a.log.Log(ctx, level, "verdict", "verdict", r.Verdict, "summary", r.Summary, "report", r.ID)
	l := sinks.Line{Verdict: r.Verdict, Report: r.ID, Message: r.Summary}
	if len(r.Causes) > 0 {
		c := r.Causes[0]
		l.Stage, l.Code, l.File, l.Line, l.Exit = string(c.Stage), c.Code, c.File, c.Line, c.ExitCode
	}
	a.say("verdict", l)
	a.setJudged()
	// What the boot took is given back once its report is on its way: from here
	// on the agent mostly waits.
	time.AfterFunc(2*time.Second, debug.FreeOSMemory)
}

func errorsOf(c bootstrap.CloudInit) []string {
	var out []string
	for _, s := range c.Stages {
		out = append(out, s.Errors...)
	}
	return append(out, c.Errors...)
}

// recordStart reports a boot of an instance whose bootstrap was judged before.
func (a *Agent) recordStart() {
	a.mu.Lock()
	again := a.memory.BootID == a.facts.bootID
	verdict, id := a.memory.Verdict, a.memory.ReportID
	a.mu.Unlock()
	if again {
		a.setJudged()
		return
	}
	clock := a.o.Now()
	r := &report.Report{
		ID: report.NewID(), Kind: report.KindStart, Verdict: report.Success,
		Summary:  "The instance started again; its bootstrap was judged " + string(verdict) + " before (report " + id + ").",
		BootedAt: clock.At.Add(-clock.Uptime), JudgedAt: clock.At, UserData: report.UserData{Format: "unknown"},
	}
	a.mu.Lock()
	if p := a.facts.payload; p.Known {
		r.UserData = report.UserData{SHA256: p.SHA256, Size: p.Size, Format: p.Format}
	}
	a.mu.Unlock()
	a.complete(r)
	a.enqueue(r)
	a.mu.Lock()
	a.memory.BootID = a.facts.bootID
	a.mu.Unlock()
	a.remember()
	a.log.Info("start recorded", "report", r.ID)
	a.say("start", sinks.Line{Report: r.ID, Message: r.Summary})
	a.setJudged()
}

// complete fills in what identity knows. It says whether it changed anything.
func (a *Agent) complete(r *report.Report) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := r.Instance.ID + r.Sender
	if r.BootID == "" {
		r.BootID = a.facts.bootID
	}
	if r.Instance.ID == "" {
		r.Instance = a.facts.instance
		r.Instance.BakeID = a.bakeID()
	}
	// Another role may have taken the first one's place: below that one's prefix
	// nothing can be put any more. What is another instance's stays that.
	if r.Sender == "" || a.facts.sender != "" && r.Instance.ID == a.facts.instance.ID {
		r.Sender = a.facts.sender
	}
	r.Agent.Version = version.String()
	return before != r.Instance.ID+r.Sender
}

// bakeID is what the bake left in the image.
func (a *Agent) bakeID() string {
	b, err := os.ReadFile(filepath.Join(a.o.Root, "etc/lecafe/bake-id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func problemsOf(err error) strictyaml.Problems {
	if err == nil {
		return nil
	}
	var ps strictyaml.Problems
	if errors.As(err, &ps) {
		return ps
	}
	return strictyaml.Problems{{File: "user-data", Message: err.Error()}}
}
