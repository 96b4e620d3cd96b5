package userdata

import (
	"fmt"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// flow is what the shell does about failures, in the order of the text.
type flow struct {
	errexit  bool
	pipefail bool
	offAt    *syntax.CallExpr // the set +e that nothing undid so far

	unnoticed int // commands that can fail without notice
	first     syntax.Pos
	firstText string

	jobs  []*syntax.Stmt // started in the background
	waits []wait
}

type wait struct {
	pos  syntax.Pos
	bare bool // without a process: its own exit code says nothing of the job's
}

// context is where a statement stands.
type context struct {
	checked bool // somebody looks at its exit code
	ends    bool // its exit code is that of a subshell or function, where set -e sees it
	last    bool // its exit code is the script's
	inFunc  bool
}

// follow walks through the statements and reports failures that nobody sees.
func (s *shellLint) follow(file *syntax.File) {
	s.flow.errexit = s.errexit
	// Functions run later than they are written: for them counts what the
	// script sets anywhere outside of functions.
	later := s.later(file)
	s.list(file.Stmts, context{last: true}, later)

	f := &s.flow
	if f.unnoticed > 0 {
		message := fmt.Sprintf("the script goes on when %s fails", f.firstText)
		if f.unnoticed > 1 {
			message += fmt.Sprintf(", or any of %d other commands", f.unnoticed-1)
		}
		fix, severity := "put set -euo pipefail below the #! line", Severity("")
		switch {
		case s.runcmd:
			fix, severity = "make set -e the first item of runcmd", Info
		case !s.bash:
			fix = "put set -eu below the #! line"
		}
		s.report("no-errexit", severity, f.first, message+", and cloud-init sees only the last exit code", fix)
	}
	if f.offAt != nil {
		s.report("masked-failure", "", f.offAt.Pos(), "set +e is never undone: whatever fails from here on goes unnoticed", "put set -e behind the command that may fail, or write || true on it")
	}
	for _, job := range f.jobs {
		waited, bare := false, false
		for _, w := range f.waits {
			if w.pos.After(job.Pos()) {
				waited = waited || !w.bare
				bare = bare || w.bare
			}
		}
		switch {
		case waited:
		case bare:
			s.report("background-work", "", job.Pos(), "wait without a process ID succeeds whatever became of this job", "keep its ID in a variable ($!) and wait for that")
		default:
			s.report("background-work", "", job.Pos(), "work goes on in the background: nobody sees it fail, and the boot counts as ended before it is", "run it in the foreground, wait for its process ID, or make it a systemd unit")
		}
	}
}

// later finds what holds once the top of the script has run.
func (s *shellLint) later(file *syntax.File) (out flow) {
	out.errexit = s.errexit
	for _, st := range file.Stmts {
		syntax.Walk(st, func(n syntax.Node) bool {
			switch n := n.(type) {
			case *syntax.FuncDecl, *syntax.Subshell, *syntax.CmdSubst:
				return false
			case *syntax.CallExpr:
				s.options(n, &out)
			}
			return true
		})
	}
	return out
}

// options follows set and trap.
func (s *shellLint) options(c *syntax.CallExpr, f *flow) {
	if len(c.Args) == 0 {
		return
	}
	switch w := s.words(c); w[0] {
	case "set":
		for name, on := range setOptions(w[1:]) {
			switch name {
			case "errexit":
				if f.errexit && !on {
					f.offAt = c
				}
				if on {
					f.offAt = nil
				}
				f.errexit = on
			case "pipefail":
				f.pipefail = on
			}
		}
	case "trap":
		if len(w) > 2 && slices.Contains(w[2:], "ERR") && w[1] != "-" {
			f.errexit = true
		}
	}
}

func (s *shellLint) list(stmts []*syntax.Stmt, ctx context, later flow) {
	for i, st := range stmts {
		sub := ctx
		sub.last = ctx.last && i == len(stmts)-1
		sub.ends = ctx.ends && i == len(stmts)-1
		if i+1 < len(stmts) && looksAtStatus(stmts[i+1]) {
			sub.checked = true
		}
		s.stmt(st, sub, later)
	}
}

// looksAtStatus says that a statement begins by asking for $?.
func looksAtStatus(st *syntax.Stmt) bool {
	found, seen := false, 0
	syntax.Walk(st, func(n syntax.Node) bool {
		if p, ok := n.(*syntax.ParamExp); ok {
			found = found || p.Param != nil && p.Param.Value == "?"
		}
		if _, ok := n.(*syntax.Stmt); ok {
			seen++
		}
		return !found && seen < 4
	})
	return found
}

func (s *shellLint) stmt(st *syntax.Stmt, ctx context, later flow) {
	if st.Background {
		if s.bashRedirect(st) {
			return
		}
		s.flow.jobs = append(s.flow.jobs, st)
		ctx.checked = true
	}
	if st.Negated {
		ctx.checked = true
	}
	switch c := st.Cmd.(type) {
	case *syntax.CallExpr:
		s.simple(st, c, ctx, later)
	case *syntax.BinaryCmd:
		s.binary(c, ctx, later)
	case *syntax.IfClause:
		for cl := c; cl != nil; cl = cl.Else {
			s.list(cl.Cond, context{checked: true, inFunc: ctx.inFunc}, later)
			s.list(cl.Then, ctx, later)
		}
	case *syntax.WhileClause:
		s.list(c.Cond, context{checked: true, inFunc: ctx.inFunc}, later)
		ctx.last, ctx.ends = false, false
		s.list(c.Do, ctx, later)
	case *syntax.ForClause:
		ctx.last, ctx.ends = false, false
		s.list(c.Do, ctx, later)
	case *syntax.CaseClause:
		for _, item := range c.Items {
			s.list(item.Stmts, ctx, later)
		}
	case *syntax.Block:
		s.list(c.Stmts, ctx, later)
	case *syntax.Subshell:
		saved := s.flow
		ctx.ends = !ctx.checked
		s.list(c.Stmts, ctx, later)
		s.flow.errexit, s.flow.pipefail, s.flow.offAt = saved.errexit, saved.pipefail, saved.offAt
	case *syntax.FuncDecl:
		saved := s.flow
		s.flow.errexit, s.flow.pipefail, s.flow.offAt = saved.errexit || later.errexit, saved.pipefail || later.pipefail, nil
		s.stmt(c.Body, context{inFunc: true, ends: true}, later)
		s.flow.errexit, s.flow.pipefail, s.flow.offAt = saved.errexit, saved.pipefail, saved.offAt
	case *syntax.DeclClause:
		for _, a := range c.Args {
			if a.Value != nil && substitutes(a.Value) != nil && s.flow.errexit && !ctx.checked {
				s.report("masked-failure", "", a.Pos(), c.Variant.Value+" succeeds although the command that gives the value fails", "assign on one line and "+c.Variant.Value+" on another")
			}
		}
	case *syntax.TimeClause:
		if c.Stmt != nil {
			s.stmt(c.Stmt, ctx, later)
		}
	}
}

// bashRedirect recognises cmd &> file, which sh takes for a job and an empty
// redirection.
func (s *shellLint) bashRedirect(st *syntax.Stmt) bool {
	line := int(st.Semicolon.Line())
	l, col := s.where(line, int(st.Semicolon.Col()))
	if s.bash || l < 1 || l > len(s.at.lines) {
		return false
	}
	text := s.at.lines[l-1]
	if col < 1 || col >= len(text) || text[col-1] != '&' || text[col] != '>' {
		return false
	}
	s.report("bashism", "", st.Semicolon, "&> is bash's: where sh is dash (Debian, Ubuntu) the command runs in the background and its output goes elsewhere", "write > FILE 2>&1")
	return true
}

// harmless commands do not fail, or their exit code is an answer.
var harmless = []string{
	":", "true", "false", "echo", "printf", "exit", "return", "export", "readonly", "declare", "local", "typeset", "set", "shopt", "unset",
	"alias", "trap", "shift", "umask", "wait", "sleep", "break", "continue", "times", "hash", "type", "let", "[", "test", "[[", "read", "exec",
	"date", "id", "whoami", "uname", "hostname", "pwd", "nproc", "sync", "logger", "ulimit", "dirs", "history", "jobs", "yes", "kill", "pkill", "killall", "disown",
}

// answers are commands that are run for their exit code.
func answers(w []string) bool {
	switch w[0] {
	case "[", "test", "[[", "grep", "egrep", "fgrep", "which", "id", "getent", "pgrep", "cmp", "diff", "type", "hash", "mountpoint", "dpkg", "dpkg-query", "rpm", "command", "true", "false", "lsblk", "blkid", "nc", "ping", "test-path", "findmnt", "modprobe", "ls", "stat":
		return true
	case "systemctl":
		return len(w) > 1 && strings.HasPrefix(w[1], "is-")
	}
	return false
}

func (s *shellLint) simple(st *syntax.Stmt, c *syntax.CallExpr, ctx context, later flow) {
	if len(c.Args) == 0 {
		for _, a := range c.Assigns {
			if a.Value != nil {
				if sub := substitutes(a.Value); sub != nil {
					s.fallible(c.Pos(), s.commandText(sub), ctx)
				}
			}
		}
		return
	}
	w := s.words(c)
	s.options(c, &s.flow)
	s.printed(c)
	switch w[0] {
	case "wait":
		s.flow.waits = append(s.flow.waits, wait{c.Pos(), len(w) == 1})
	case "trap":
		if len(w) > 2 && slices.Contains(w[2:], "EXIT") && strings.Contains(w[1], "exit 0") {
			s.report("masked-failure", "", c.Pos(), "the trap ends the script with 0 whatever happened", "keep the code: code=$?; ...; exit $code")
		}
	}
	if raw := s.rawName(c); slices.Contains(harmless, raw) || slices.Contains(harmless, w[0]) {
		return
	}
	s.fallible(c.Pos(), w[0], ctx)
}

func (s *shellLint) rawName(c *syntax.CallExpr) string { return s.text(c.Args[0]) }

// fallible notes a command that may fail here.
func (s *shellLint) fallible(pos syntax.Pos, name string, ctx context) {
	if ctx.checked || ctx.last || s.flow.errexit || s.flow.offAt != nil {
		return
	}
	if s.flow.unnoticed == 0 || s.flow.first.After(pos) {
		s.flow.first, s.flow.firstText = pos, clip(name, 40)
	}
	s.flow.unnoticed++
}

func (s *shellLint) binary(c *syntax.BinaryCmd, ctx context, later flow) {
	switch c.Op {
	case syntax.Pipe, syntax.PipeAll:
		s.pipe(c, ctx, later)
	case syntax.OrStmt:
		s.masked(c)
		left := ctx
		left.checked = true
		s.stmt(c.X, left, later)
		s.stmt(c.Y, ctx, later)
	default: // &&
		left := ctx
		call, _ := c.X.Cmd.(*syntax.CallExpr)
		switch {
		case call != nil && len(call.Args) > 0:
			w := s.words(call)
			asks := answers(w) || leaves(c.Y) || slices.Contains(harmless, w[0]) || c.X.Negated
			if s.flow.errexit && !ctx.checked && !ctx.last && !ctx.ends && !asks {
				s.report("masked-failure", "", c.X.Pos(), fmt.Sprintf("set -e does not end the script when %s fails on the left of &&: the rest of the line is left out, and the script goes on", w[0]), "write the commands on lines of their own")
			}
			left.checked = left.checked || asks
		case call == nil:
			if _, ok := c.X.Cmd.(*syntax.BinaryCmd); !ok {
				left.checked = true
			}
		}
		s.stmt(c.X, left, later)
		s.stmt(c.Y, ctx, later)
	}
}

// readers only pass on or select text; their failure tells little.
var readers = []string{
	"cat", "grep", "egrep", "fgrep", "zgrep", "ps", "df", "du", "awk", "gawk", "sed", "sort", "uniq", "cut", "tr", "head", "tail", "ls", "find", "lsblk", "env", "id", "uname",
	"hostname", "date", "free", "ip", "ss", "netstat", "getent", "dpkg", "rpm", "lsof", "mount", "seq", "yes", "tee", "xargs", "openssl", "base64", "stat", "wc", "rev", "basename", "dirname", "nproc", "dmesg", "journalctl", "systemctl", "ec2-metadata", "jq", "strings", "column", "lscpu", "fold", "md5sum", "sha256sum", "nl", "tac", "printenv", "pgrep",
}

func (s *shellLint) pipe(c *syntax.BinaryCmd, ctx context, later flow) {
	stages := []*syntax.Stmt{c.Y}
	for left := c.X; ; {
		b, ok := left.Cmd.(*syntax.BinaryCmd)
		if !ok || b.Op != syntax.Pipe && b.Op != syntax.PipeAll {
			stages = append(stages, left)
			break
		}
		stages = append(stages, b.Y)
		left = b.X
	}
	slices.Reverse(stages)
	for i, st := range stages[:len(stages)-1] {
		inner := ctx
		inner.checked = true
		s.stmt(st, inner, later)
		call, ok := st.Cmd.(*syntax.CallExpr)
		if s.flow.pipefail || i > 0 && !ok {
			continue
		}
		if ok && len(call.Args) == 0 {
			continue
		}
		name, reader := "a command", false
		if ok {
			w := s.words(call)
			name = w[0]
			if slices.Contains(harmless, name) {
				continue
			}
			reader = slices.Contains(readers, name)
		} else if _, sub := st.Cmd.(*syntax.BinaryCmd); !sub {
			reader = true
		}
		severity := Severity("")
		if reader || ctx.checked {
			severity = Info
		}
		fix := "put set -o pipefail above"
		if !s.bash {
			fix = "write to a file first, or use bash with set -o pipefail"
		}
		s.report("no-pipefail", severity, st.Pos(), fmt.Sprintf("when %s fails, the pipe still succeeds by its last command", name), fix)
		break
	}
	s.stmt(stages[len(stages)-1], ctx, later)
}
