package bootstrap

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// Units of cloud-init under its two naming schemes: 24.3 renamed
// cloud-init.service and put all stages into one process.
const (
	finalUnit = "cloud-final.service"
	mainUnit  = "cloud-init-main.service"
)

var unitStages = map[string]report.StageName{
	"cloud-init-local.service":   report.StageCloudInitLocal,
	"cloud-init.service":         report.StageCloudInitNetwork,
	"cloud-init-network.service": report.StageCloudInitNetwork,
	"cloud-config.service":       report.StageCloudConfig,
	finalUnit:                    report.StageCloudFinal,
	mainUnit:                     report.StageCloudFinal,
}

// cloudUnit says whether a unit is one of cloud-init's.
func cloudUnit(name string) bool { _, ok := unitStages[name]; return ok }

func (j *judge) settings() {
	for _, p := range j.ev.Settings {
		j.add(report.Cause{
			Stage: report.StageUserData, Code: report.CodeSettings, File: p.File, Line: p.Line, Column: p.Column,
			Message: sentence(fmt.Sprintf("the agent's settings are not valid: %s", strings.TrimPrefix(p.Field+": "+p.Message, ": "))),
			Fix:     sentence(p.Hint),
		})
	}
}

// payload takes over what lint is sure of. What lint says of shell scripts
// only adds lines to what cloud-init recorded: running them is the proof.
func (j *judge) payload() {
	failed := slices.ContainsFunc(j.ev.CloudInit.Stages[:], func(s StageRecord) bool { return len(s.Errors) > 0 })
	seen := map[string]bool{}
	for _, f := range j.ev.Payload.Findings {
		if !strings.HasPrefix(string(f.Code), "user_data_") {
			continue
		}
		key := fmt.Sprint(f.Code, f.File, f.Line, f.Column)
		if seen[key] {
			continue
		}
		seen[key] = true
		c := report.Cause{
			Stage: report.StageUserData, Code: f.Code, File: f.File, Line: f.Line, Column: f.Column,
			Message: sentence(of(f) + ": " + f.Message), Fix: sentence(f.Fix),
		}
		switch {
		case f.Code == report.CodeUserDataWrongType && !failed || !f.Error:
			c.Severity = report.SeverityDegraded
		case f.Code == report.CodeUserDataPlaceholder && j.scriptFailed(f.File):
			// It is why the script failed, or part of it.
			c.Severity = report.SeverityFailure
		}
		j.add(c)
	}
}

// scriptFailed says that a script part ended badly; a payload that is one
// script has no name for it.
func (j *judge) scriptFailed(name string) bool {
	for _, f := range j.ev.CloudInit.Failures {
		if strings.Contains(f.Path, "/scripts/") && (name == "" || path.Base(f.Path) == name) {
			return true
		}
	}
	for _, s := range j.ev.CloudInit.Stages {
		for _, e := range s.Errors {
			if parts := failedParts(e); name == "" && len(parts) > 0 || slices.Contains(parts, name) {
				return true
			}
		}
	}
	return false
}

// of says where in the user data a finding is.
func of(f Finding) string {
	s := "the user data"
	if f.File != "" {
		s += "'s part " + f.File
	}
	if f.Line > 0 {
		s += fmt.Sprintf(", line %d", f.Line)
	}
	return s
}

func (j *judge) interrupted() {
	if j.ev.Previous == nil {
		return
	}
	stage := j.ev.Previous.Stage
	if stage == "" {
		stage = report.StageCloudInitLocal
	}
	j.add(report.Cause{
		Stage: stage, Code: report.CodeInterrupted, File: j.ev.Previous.File, Command: j.ev.Previous.Command,
		Message: fmt.Sprintf("The instance was restarted during its bootstrap, in stage %s; cloud-init does not run that stage's work again.", stage),
		Fix:     "Replace the instance. A script that has to reboot does it as its last act, or through cloud-init's power_state.",
	})
}

func (j *judge) datasource() {
	if !strings.Contains(j.ev.CloudInit.Datasource, "DataSourceNone") {
		return
	}
	c := report.Cause{
		Stage: report.StageCloudInitNetwork, Code: report.CodeDatasourceNone,
		Message: "cloud-init did not find the instance metadata service: no user data was seen and nothing of it ran.",
		Fix:     "Look at the network of the instance while cloud-init's first stages ran, and at datasource_list in /etc/cloud.",
	}
	if j.ev.Payload.Known && j.ev.Payload.Size == 0 {
		c.Severity = report.SeverityDegraded
		c.Message = "cloud-init did not find the instance metadata service; there is no user data, but keys and host name were not set."
	}
	j.add(c)
}

func (j *judge) disabled() {
	if !j.absent() || !j.ev.Payload.Known || j.ev.Payload.Size == 0 {
		return
	}
	c := report.Cause{Stage: report.StageCloudInitLocal, Code: report.CodeCloudInitDisabled}
	if j.ev.CloudInit.Disabled {
		c.Message = "cloud-init is disabled in this image: the user data did not run."
		c.Fix = "Remove /etc/cloud/cloud-init.disabled from the image, or cloud-init=disabled from the kernel command line."
	} else {
		c.Message = "cloud-init is not installed in this image: the user data did not run."
		c.Fix = "Install cloud-init when the image is made."
	}
	j.add(c)
}

// ('scripts_user', RuntimeError('Runparts: 1 failures (part-001) in 1 attempted commands'))
var (
	moduleError = lazyregexp.New(`^\('([\w-]+)', (.*)\)$`)
	// ProcessExecutionError("Unexpected error while running command.\nCommand: ['/bin/sh', 'x']\nExit code: 1\nReason: -
	processError = lazyregexp.New(`^ProcessExecutionError\(.*?(?:\\n|\n)Command: (.*?)(?:\\n|\n)Exit code: (-?\d+)`)
	runparts     = lazyregexp.New(`Runparts: \d+ failures \(([^)]*)\)`)
)

// scriptModules run the parts of the payload that are scripts.
var scriptModules = []string{"scripts_user", "scripts_per_boot", "scripts_per_instance", "scripts_per_once", "scripts_vendor"}

// modules reads the errors of each stage that are not about scripts.
func (j *judge) modules() {
	for i, s := range j.ev.CloudInit.Stages {
		for _, e := range s.Errors {
			if len(failedParts(e)) > 0 {
				continue // scripts tells more of them
			}
			c := report.Cause{Stage: stageModes[i].stage, Code: report.CodeCloudInitError, Message: sentence("cloud-init failed: " + first(e, 200)), Output: j.ev.LogTail}
			if m := moduleError().FindStringSubmatch(e); m != nil {
				name := strings.ReplaceAll(m[1], "-", "_")
				c.Code, c.Command = report.CodeModuleFailed, ""
				c.Message = sentence(fmt.Sprintf("cloud-init's module %s failed: %s", name, first(m[2], 200)))
				if p := processError().FindStringSubmatch(m[2]); p != nil {
					if n, err := strconv.Atoi(p[2]); err == nil {
						c.Command, c.ExitCode = p[1], &n
						c.Message = fmt.Sprintf("cloud-init's module %s failed%s.", name, where(c))
					}
				}
				c.Fix = fmt.Sprintf("Look at what the user data asks of %s, and in /var/log/cloud-init.log at its traceback.", name)
				if name == "package_update_upgrade_install" {
					c.Code = report.CodePackageFailed
					c.Message = "cloud-init could not install the packages that the user data asks for."
					c.Fix = "Check the packages' names and that the instance reaches their repository."
				}
			}
			j.add(c)
		}
	}
}

// failedParts returns the names of the scripts that an error of runparts names.
func failedParts(e string) []string {
	m := runparts().FindStringSubmatch(e)
	if m == nil {
		return nil
	}
	return strings.Split(m[1], ",")
}

func first(s string, n int) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "..."
	}
	return s
}

// Boothooks script /var/lib/cloud/instance/boothooks/part-001 execution error
var hookError = lazyregexp.New(`Boothooks script (\S+) execution error`)

// hooks finds boothooks that failed, which cloud-init only logs.
func (j *judge) hooks() {
	seen := map[string]bool{}
	for _, w := range j.ev.CloudInit.Warnings {
		m := hookError().FindStringSubmatch(w)
		if m == nil || seen[m[1]] {
			continue
		}
		seen[m[1]] = true
		c := report.Cause{
			Stage: report.StageCloudInitNetwork, Code: report.CodeScriptExit, Severity: report.SeverityDegraded, File: path.Base(m[1]), Output: j.ev.LogTail,
			Fix: "Make the boothook's commands work, or handle their failure: cloud-init only logs it.",
		}
		for _, f := range j.ev.CloudInit.Failures {
			if f.Path == m[1] {
				c.ExitCode = f.Exit
			}
		}
		c.Message = fmt.Sprintf("The boothook %s failed%s, and the boot went on.", c.File, where(c))
		j.add(c)
	}
}

// warnings looks at what cloud-init logged and nothing else explains.
func (j *judge) warnings() {
	if len(j.causes) > 0 {
		return
	}
	stage := report.StageCloudInitNetwork
	if n := len(j.ev.CloudInit.Warnings); n > 0 {
		j.add(report.Cause{
			Stage: stage, Code: report.CodeCloudInitWarning,
			Message: sentence(fmt.Sprintf("cloud-init warned %s: %s", plural(n, "time"), first(j.ev.CloudInit.Warnings[0], 200))),
			Output:  j.ev.CloudInit.Warnings,
		})
	}
}

// cloudUnits finds units of cloud-init's that failed without a word in
// status.json: the process was killed, or could not start.
func (j *judge) cloudUnits() {
	for _, u := range j.ev.Units {
		if !cloudUnit(u.Name) || u.Active != "failed" {
			continue
		}
		explained := slices.ContainsFunc(j.causes, func(c report.Cause) bool { return c.Severity == report.SeverityFailure })
		if explained || j.follows(u) {
			continue
		}
		j.add(report.Cause{
			Stage: unitStages[u.Name], Code: report.CodeCloudInitError, Unit: u.Name,
			Message: sentence(fmt.Sprintf("cloud-init's unit %s failed (%s %d)", u.Name, u.Result, u.Code)),
			Fix:     "journalctl -u " + u.Name + " says more.", Output: j.ev.LogTail,
		})
	}
}

// follows says that a unit failed because of something that is judged by
// itself: cloud-init ends with an error code after a script or module that
// failed. The unit then weighs as much as the settings let that weigh. A
// process that was killed says nothing of the kind.
func (j *judge) follows(u Unit) bool {
	if u.Result != "exit-code" {
		return false
	}
	for i, s := range j.ev.CloudInit.Stages {
		if len(s.Errors) > 0 && (u.Name == mainUnit || stageModes[i].stage == unitStages[u.Name]) {
			return true
		}
	}
	return false
}

func (j *judge) troubles(late bool) {
	for _, t := range j.ev.Troubles {
		if t.Settled || late || j.confirmed(t.Cause.Code) {
			j.add(t.Cause)
		}
	}
}

// confirmed says that cloud-init has met the same trouble and given up: that
// the metadata service may still come changes nothing any more.
func (j *judge) confirmed(code report.Code) bool {
	c := &j.ev.CloudInit
	return (code == report.CodeIMDSUnreachable || code == report.CodeNetworkUnreachable) &&
		!j.ev.Payload.Known && c.Ended() && strings.Contains(c.Datasource, "DataSourceNone")
}

// application looks at readiness. Before the deadline only what has failed for
// good counts.
func (j *judge) application(late, ended bool) {
	for _, c := range j.ev.Checks {
		if c.OK || !late && !c.Final {
			continue
		}
		cause := report.Cause{
			Stage: report.StageApplication, Code: report.CodeAppNotReady, Unit: c.Unit,
			Message: sentence(fmt.Sprintf("the application is not ready: %s: %s", c.Name, c.Why)),
			Fix:     "Look at the application's own log; bootstrap.ready in the agent's settings says what is awaited.",
		}
		if !ended {
			// The hang before it is the cause; this only follows from it.
			cause.Severity = report.SeverityDegraded
		}
		j.add(cause)
	}
}

// units reports failed units that nothing waits for.
func (j *judge) units() {
	for _, u := range j.ev.Units {
		awaited := slices.ContainsFunc(j.ev.Checks, func(c Check) bool { return c.Unit == u.Name })
		if u.Active != "failed" || cloudUnit(u.Name) || awaited {
			continue
		}
		why := u.Result
		if u.Result == "exit-code" {
			why = fmt.Sprintf("exit code %d", u.Code)
		}
		j.add(report.Cause{
			Stage: report.StageSystem, Code: report.CodeUnitFailed, Unit: u.Name,
			Message: sentence(fmt.Sprintf("the unit %s failed (%s)", u.Name, why)),
			Fix:     "journalctl -u " + u.Name + " says more.",
		})
	}
}

func (j *judge) disk() {
	for _, d := range j.ev.Disks {
		if !d.Full() {
			continue
		}
		what := fmt.Sprintf("%d of %d bytes free", d.Free, d.Size)
		if d.Inodes > 0 && d.FreeInodes == 0 {
			what = "no inodes free"
		}
		j.add(report.Cause{
			Stage: report.StageSystem, Code: report.CodeDiskFull, File: d.Path,
			Message: sentence(fmt.Sprintf("the file system of %s is full: %s", d.Path, what)),
			Fix:     "Give the instance a larger volume, or the user data less to write.",
		})
	}
}

// deadline names what was running when the time was over.
func (j *judge) deadline() {
	i := j.stageOf()
	c := report.Cause{Stage: stageModes[i].stage, Code: report.CodeDeadline, Output: j.ev.LogTail}
	what := "cloud-init had not started its stage " + string(c.Stage)
	if !j.ev.CloudInit.Stages[i].Start.IsZero() {
		what = fmt.Sprintf("cloud-init's stage %s was still running", c.Stage)
	}
	if p, script := culprit(j.ev.Running); p != nil {
		c.Command, c.File, c.Unit = strings.Join(p.Command, " "), script, p.Unit
		if script != "" {
			what = fmt.Sprintf("%s was still running %q", script, first(report.Redact(c.Command), 100))
		} else {
			what = fmt.Sprintf("cloud-init was still running %q", first(report.Redact(c.Command), 100))
		}
	}
	c.Message = sentence(fmt.Sprintf("the bootstrap did not end within %s: %s", j.o.Deadline, what))
	c.Fix = "Give the command a time limit of its own, or raise bootstrap.deadline in the agent's settings."
	j.add(c)
}

// culprit picks the process that the others wait for: the youngest that has no
// child, below a script of the payload where one runs.
func culprit(ps []Process) (*Process, string) {
	byPID := map[int]*Process{}
	parent := map[int]bool{}
	for i := range ps {
		byPID[ps[i].PID] = &ps[i]
		parent[ps[i].Parent] = true
	}
	script := func(p *Process) string {
		for range ps {
			for _, a := range p.Command {
				if i := strings.LastIndex(a, "/scripts/"); i >= 0 && strings.HasPrefix(a, "/var/lib/cloud/") {
					return a[i+len("/scripts/"):]
				}
				if i := strings.LastIndex(a, "/boothooks/"); i >= 0 && strings.HasPrefix(a, "/var/lib/cloud/") {
					return a[i+len("/boothooks/"):]
				}
			}
			if p = byPID[p.Parent]; p == nil {
				break
			}
		}
		return ""
	}
	var best *Process
	var bestScript string
	for i := range ps {
		p := &ps[i]
		if parent[p.PID] || plumbing(p) {
			continue
		}
		s := script(p)
		if best == nil || s != "" && bestScript == "" || (s != "") == (bestScript != "") && p.Started > best.Started {
			best, bestScript = p, s
		}
	}
	return best, bestScript
}

// plumbing is cloud-init itself and what carries its output.
func plumbing(p *Process) bool {
	line := strings.Join(p.Command, " ")
	return strings.Contains(line, "cloud-init-output.log") || strings.Contains(line, "/usr/bin/cloud-init") ||
		strings.Contains(line, "/run/cloud-init/share/")
}
