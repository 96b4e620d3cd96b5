package bootstrap

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// scripts reports the script parts that failed, then the failures within parts
// that went on.
func (j *judge) scripts() {
	var failed []string
	for i, s := range j.ev.CloudInit.Stages {
		for _, e := range s.Errors {
			for _, name := range failedParts(e) {
				if slices.Contains(failed, name) {
					continue
				}
				failed = append(failed, name)
				j.script(stageModes[i].stage, name)
			}
		}
	}
	// What the log has and status.json has not: a stage that is still running,
	// or whose process was killed.
	for _, f := range j.ev.CloudInit.Failures {
		if name := path.Base(f.Path); strings.Contains(f.Path, "/scripts/") && !slices.Contains(failed, name) {
			failed = append(failed, name)
			j.script(report.StageCloudFinal, name)
		}
	}
	j.unhandled(failed)
}

// script reports one part that ended badly.
func (j *judge) script(stage report.StageName, name string) {
	c := report.Cause{Stage: stage, Code: report.CodeScriptExit, File: name, Output: j.ev.LogTail, Fix: "Make the command work, or handle its failure in the script."}
	var reason string
	for _, f := range j.ev.CloudInit.Failures {
		if path.Base(f.Path) == name {
			c.ExitCode, reason = f.Exit, f.Reason
		}
	}
	if t := j.last(name, c.ExitCode); t != nil {
		c.Line, c.Command = t.Line, t.Command
		if c.ExitCode == nil {
			c.ExitCode = &t.Exit
		}
	} else if x := j.exit(name, c.ExitCode); x != nil {
		c.Line, c.Command = x.Line, x.Command
	} else if !j.complaint(&c) {
		j.lastStatement(&c)
	}
	switch {
	case reason != "" && c.ExitCode == nil:
		j.notStarted(&c, reason)
	case c.ExitCode != nil && *c.ExitCode < 0:
		c.Code, c.Signal = report.CodeScriptSignal, signalName(-*c.ExitCode)
		c.ExitCode = nil
		c.Message = fmt.Sprintf("The script %s was killed by %s.", name, c.Signal)
		c.Fix = "SIGKILL mostly means that memory ran out: dmesg on the instance says so."
	case j.syntax(&c):
	case c.Line == 0 && j.expansion(&c):
	case name == "runcmd":
		c.Code = report.CodeRuncmdFailed
		c.Message = "A command of runcmd failed" + where(c) + "."
		c.Fix = "Make the command work, or handle its failure in the item."
	case c.Message == "":
		c.Message = fmt.Sprintf("The script %s failed%s.", name, where(c))
	}
	j.add(c)
}

// dash: /var/lib/cloud/instance/scripts/part-001: 15: setenforce: not found
// bash: /var/lib/cloud/instance/scripts/part-001: line 15: setenforce: command not found
var complaintLine = lazyregexp.New(`/scripts/([^:/\s]+): (?:line )?(\d+): (.*)$`)

// complaint finds the line on which the shell says why it ended, of shells
// that no trap is set in: a command that is not there or may not be run, or,
// with 2, a special builtin's error (dash ends where a file to source is
// missing). The last word counts, and only where it fits the exit code.
func (j *judge) complaint(c *report.Cause) bool {
	if c.ExitCode == nil {
		return false
	}
	for _, l := range slices.Backward(j.ev.Said) {
		m := complaintLine().FindStringSubmatch(l)
		if m == nil || m[1] != c.File {
			continue
		}
		missing, denied := strings.HasSuffix(m[3], "not found"), strings.HasSuffix(strings.ToLower(m[3]), "permission denied")
		switch *c.ExitCode {
		case 127:
			if !missing {
				return false
			}
		case 126:
			if !denied {
				return false
			}
		case 2:
			if missing || denied || syntaxLine().MatchString(l) || fatalLine().MatchString(l) {
				return false
			}
		default:
			return false
		}
		c.Line, _ = strconv.Atoi(m[2])
		c.Message = sentence(fmt.Sprintf("the script %s failed%s: %s", c.File, where(*c), first(report.Redact(m[3]), 150)))
		return true
	}
	return false
}

// lastStatement names the statement that a script ended with, where no other
// can have ended it: in bash the trap has every failure but those in lists
// such as `[ -f x ] && y`; in other shells it is the last one unless errexit
// is set.
func (j *judge) lastStatement(c *report.Cause) {
	if c.ExitCode == nil || *c.ExitCode <= 0 || *c.ExitCode > 125 || *c.ExitCode == 2 {
		return // a shell's own errors, and signals, can end it anywhere
	}
	// The shell's own word, where it has one, is about another line.
	if slices.ContainsFunc(j.ev.Said, func(l string) bool { m := fatalLine().FindStringSubmatch(l); return m != nil && m[1] == c.File }) {
		return
	}
	// One of several `exit N`, and nobody knows which.
	if slices.ContainsFunc(j.ev.Payload.Exits, func(x Exit) bool { return x.File == c.File && x.Code == *c.ExitCode }) {
		return
	}
	for _, l := range j.ev.Payload.Lasts {
		if l.File == c.File && (l.List || !l.Trapped) {
			c.Line, c.Command = l.Line, l.Command
		}
	}
}

// where says exit code, line and command as far as they are known.
func where(c report.Cause) string {
	var b strings.Builder
	if c.ExitCode != nil {
		fmt.Fprintf(&b, " with exit code %d", *c.ExitCode)
	}
	if c.Line > 0 {
		fmt.Fprintf(&b, " on line %d", c.Line)
	}
	if c.Command != "" {
		fmt.Fprintf(&b, " (%s)", first(report.Redact(c.Command), 100))
	}
	return b.String()
}

// last returns the failure that ended a part, as the trap recorded it: with
// set -e the fatal one, else the last if it is the script's exit code.
func (j *judge) last(name string, exit *int) *Trapped {
	var found *Trapped
	for i := range j.ev.Trapped {
		t := &j.ev.Trapped[i]
		if t.File != name || t.Background || exit != nil && *exit != t.Exit {
			continue
		}
		if found == nil || t.Fatal || !found.Fatal {
			found = t
		}
	}
	if found != nil && !found.Fatal && j.exit(name, exit) != nil {
		// It failed and the script went on, to an exit of its own.
		return nil
	}
	return found
}

// exit returns the one statement that ends a part with that code, nil where
// there is none or several.
func (j *judge) exit(name string, code *int) *Exit {
	var found *Exit
	for i := range j.ev.Payload.Exits {
		x := &j.ev.Payload.Exits[i]
		if x.File != name || code == nil || x.Code != *code {
			continue
		}
		if found != nil {
			return nil
		}
		found = x
	}
	return found
}

// notStarted is for a script the kernel would not execute.
func (j *judge) notStarted(c *report.Cause, reason string) {
	c.Code, c.Line = report.CodeScriptInterpreter, 1
	c.Command = ""
	switch {
	case strings.Contains(reason, "[Errno 8]"):
		c.Message = fmt.Sprintf("The script %s could not be started: its first line is no #!.", c.File)
		c.Fix = "Start the script with #!/bin/bash, with nothing before it."
	case strings.Contains(reason, "[Errno 2]"):
		c.Message = fmt.Sprintf("The script %s could not be started: the interpreter in its first line is not installed.", c.File)
		c.Fix = "Bake the interpreter into the image, or use one that is there."
	default:
		c.Message = sentence(fmt.Sprintf("the script %s could not be started: %s", c.File, first(reason, 150)))
		c.Fix = "Look at the script's first line, and at noexec on the file system of /var/lib/cloud."
	}
}

// bash: /var/lib/cloud/instance/scripts/part-001: line 5: syntax error: unexpected end of file
// dash: /var/lib/cloud/instance/scripts/part-001: 5: Syntax error: end of file unexpected
var syntaxLine = lazyregexp.New(`/scripts/([^:/\s]+): (?:line )?(\d+): (?i:syntax error)(.*)`)

// syntax finds the shell's own complaint in the script's output.
func (j *judge) syntax(c *report.Cause) bool {
	for _, l := range slices.Backward(j.ev.Said) {
		m := syntaxLine().FindStringSubmatch(l)
		if m == nil || m[1] != c.File {
			continue
		}
		c.Code, c.Command = report.CodeScriptSyntax, ""
		c.Line, _ = strconv.Atoi(m[2])
		c.Message = fmt.Sprintf("The script %s does not parse: syntax error on line %d%s.", c.File, c.Line, strings.TrimRight(m[3], "."))
		c.Fix = "Correct it there, or where the quote, the if or the loop begins; what stood before did run."
		return true
	}
	// The output may have no more room for it, or not have arrived yet. Shells
	// end with 2 there, and the trap has nothing: no command ran.
	for _, f := range j.ev.Payload.Findings {
		if f.Code == report.CodeScriptSyntax && f.Error && f.File == c.File && c.ExitCode != nil && *c.ExitCode == 2 && j.last(c.File, c.ExitCode) == nil {
			c.Code, c.Line, c.Column, c.Command = report.CodeScriptSyntax, f.Line, f.Column, ""
			c.Message = sentence(fmt.Sprintf("the script %s does not parse: line %d: %s", c.File, f.Line, f.Message))
			c.Fix = sentence(f.Fix)
			return true
		}
	}
	return false
}

// bash: /var/lib/cloud/instance/scripts/part-001: line 4: name: unbound variable
// dash: /var/lib/cloud/instance/scripts/part-001: 4: name: parameter not set
var fatalLine = lazyregexp.New(`/scripts/([^:/\s]+): (?:line )?(\d+): (.*(?:unbound variable|bad substitution|parameter null or not set|parameter not set|[Bb]ad substitution))$`)

// expansion finds the shell's word on a variable that ended the script: no
// command failed then that a trap could tell of.
func (j *judge) expansion(c *report.Cause) bool {
	for _, l := range slices.Backward(j.ev.Said) {
		m := fatalLine().FindStringSubmatch(l)
		if m == nil || m[1] != c.File {
			continue
		}
		c.Line, _ = strconv.Atoi(m[2])
		c.Message = fmt.Sprintf("The script %s ended on line %d: %s.", c.File, c.Line, m[3])
		c.Fix = "Set the variable, or give it a default as in ${NAME:-value}."
		return true
	}
	return false
}

// unhandled reports commands that failed in scripts which went on.
func (j *judge) unhandled(failed []string) {
	seen := map[string]bool{}
	for i := range j.ev.Trapped {
		t := &j.ev.Trapped[i]
		if slices.Contains(failed, t.File) && (t.Fatal || t == j.last(t.File, &t.Exit) && j.told(t)) {
			continue // told by script
		}
		// A loop fails once, as often as it runs.
		key := fmt.Sprint(t.Background, t.File, t.Line)
		if seen[key] || len(seen) >= 20 {
			continue
		}
		seen[key] = true
		exit := t.Exit
		c := report.Cause{
			Stage: report.StageCloudFinal, Code: report.CodeCommandFailed, File: t.File, Line: t.Line, Command: t.Command, ExitCode: &exit,
			Output: j.ev.LogTail, Fix: "Start the script with set -e, or handle the failure.",
		}
		switch {
		case t.Background:
			c.Code = report.CodeBackgroundFailed
			c.Message = fmt.Sprintf("Work that %s left in the background failed%s; the script did not notice.", t.File, where(c))
			c.Fix = "Wait for the background job and look at its exit code."
		case t.File == "runcmd":
			c.Code, c.Severity = report.CodeRuncmdFailed, report.SeverityDegraded
			c.Message = fmt.Sprintf("A command of runcmd failed%s, and runcmd went on.", where(c))
			c.Fix = "Handle the failure in the item: runcmd ends with the exit code of its last command only."
		default:
			c.Message = fmt.Sprintf("A command of %s failed%s, and the script went on.", t.File, where(c))
		}
		j.add(c)
	}
}

// told says whether a cause already names that failure.
func (j *judge) told(t *Trapped) bool {
	return slices.ContainsFunc(j.causes, func(c report.Cause) bool { return c.File == t.File && c.Line == t.Line && c.Command == t.Command })
}

// notRun finds scripts that should have run and did not, although the last
// stage ended without an error.
func (j *judge) notRun() {
	c := &j.ev.CloudInit
	if j.ev.Previous != nil {
		return // interrupted: that cloud-init leaves them out now follows from it
	}
	if !c.Ended() || len(c.Stages[3].Errors) > 0 || strings.Contains(c.Datasource, "DataSourceNone") {
		return
	}
	already := slices.ContainsFunc(c.Skipped, func(m string) bool { return slices.Contains(scriptModules, m) })
	for _, name := range j.ev.Payload.Scripts {
		ran := slices.ContainsFunc(slices.Collect(keys(c.Ran)), func(p string) bool {
			return path.Base(p) == name && strings.Contains(p, "/scripts/")
		})
		trapped := slices.ContainsFunc(j.ev.Trapped, func(t Trapped) bool { return t.File == name })
		// Without DEBUG lines the log does not tell what ran.
		if ran || trapped || !c.Debug && !already {
			continue
		}
		cause := report.Cause{
			Stage: report.StageCloudFinal, Code: report.CodeUserDataNotRun, File: name,
			Message: fmt.Sprintf("The script %s did not run, although cloud-init says it is done.", name),
			Fix:     "cloud-init's log says which parts it took; look for its warnings.",
		}
		if already {
			cause.Message = fmt.Sprintf("The script %s did not run: cloud-init took this boot for one it had already done.", name)
			cause.Fix = "cloud-init runs scripts once per instance: clean /var/lib/cloud when the image is made."
		}
		j.add(cause)
	}
}

func keys(m map[string]bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func signalName(n int) string {
	if s := unix.SignalName(unix.Signal(n)); s != "" {
		return s
	}
	return fmt.Sprintf("SIG%d", n)
}
