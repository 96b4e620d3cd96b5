package userdata

import (
	"fmt"
	"slices"

	"mvdan.cc/sh/v3/syntax"
)

// printed finds downloads whose output is an argument of another command,
// which succeeds without it.
func (s *shellLint) printed(c *syntax.CallExpr) {
	if len(c.Args) == 0 {
		return
	}
	switch s.words(c)[0] {
	case "[", "test", "[[", "export", "local", "readonly", "declare", "exit", "return":
		return
	case "curl", "wget", "aws":
		return // it fails too, of what it was not given
	}
	for _, a := range c.Args[1:] {
		if sub := substitutes(a); sub != nil {
			if name := s.commandText(sub); name == "curl" || name == "wget" || name == "aws" {
				s.report("masked-failure", "", a.Pos(), fmt.Sprintf("when %s fails, the command that its output is an argument of succeeds without it", name), "assign its output to a variable first, on a line of its own")
				return
			}
		}
	}
}

// substitutes returns the last command substitution of a word.
func substitutes(w *syntax.Word) *syntax.CmdSubst {
	var out *syntax.CmdSubst
	syntax.Walk(w, func(n syntax.Node) bool {
		if c, ok := n.(*syntax.CmdSubst); ok {
			if len(c.Stmts) > 0 {
				out = c
			}
			return false
		}
		return true
	})
	if out == nil {
		return nil
	}
	// A substitution that prints or handles its own failure cannot fail.
	switch cmd := out.Stmts[len(out.Stmts)-1].Cmd.(type) {
	case *syntax.BinaryCmd:
		if cmd.Op == syntax.OrStmt {
			return nil
		}
	case *syntax.CallExpr:
		if len(cmd.Args) > 0 && slices.Contains(harmless, (&shellLint{}).text(cmd.Args[0])) {
			return nil
		}
		if len(cmd.Args) == 0 {
			return nil
		}
	}
	if names := pipeline(out); len(names) > 0 && !slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(harmless, name) && !slices.Contains(readers, name) }) && (names[0] == "echo" || names[0] == "printf") {
		return nil
	}
	return out
}

// pipeline names the commands of a substitution that is one pipe, in order.
func pipeline(c *syntax.CmdSubst) []string {
	if len(c.Stmts) != 1 {
		return nil
	}
	var out []string
	st := c.Stmts[0]
	for {
		b, ok := st.Cmd.(*syntax.BinaryCmd)
		last := st
		if ok && (b.Op == syntax.Pipe || b.Op == syntax.PipeAll) {
			last = b.Y
		}
		call, isCall := last.Cmd.(*syntax.CallExpr)
		if !isCall || len(call.Args) == 0 {
			return nil
		}
		out = append(out, (&shellLint{}).text(call.Args[0]))
		if last == st {
			break
		}
		st = b.X
	}
	slices.Reverse(out)
	return out
}

func (s *shellLint) commandText(c *syntax.CmdSubst) string {
	name := "a command"
	syntax.Walk(c.Stmts[len(c.Stmts)-1], func(n syntax.Node) bool {
		if call, ok := n.(*syntax.CallExpr); ok && len(call.Args) > 0 && name == "a command" {
			name = s.words(call)[0]
		}
		return true
	})
	return name
}

// weighty commands are those whose failure makes the rest pointless.
func weighty(w []string) bool {
	switch w[0] {
	case "apt", "apt-get", "yum", "dnf", "zypper", "apk", "pip", "pip3", "npm", "gem", "snap", "rpm":
		return len(w) > 1 && slices.ContainsFunc(w[1:], func(a string) bool {
			return a == "install" || a == "update" || a == "upgrade" || a == "add" || a == "ci" || a == "-i" || a == "-U" || a == "localinstall"
		})
	case "curl", "wget", "aws", "tar", "unzip", "make", "mount", "mkfs", "docker-compose", "ansible-playbook", "terraform", "gpg":
		return true
	case "git":
		return len(w) > 1 && (w[1] == "clone" || w[1] == "pull" || w[1] == "checkout")
	case "docker", "podman":
		return len(w) > 1 && (w[1] == "pull" || w[1] == "run" || w[1] == "compose")
	case "systemctl":
		return len(w) > 1 && (w[1] == "start" || w[1] == "restart" || w[1] == "enable")
	}
	return false
}

func (s *shellLint) masked(c *syntax.BinaryCmd) {
	call, _ := c.Y.Cmd.(*syntax.CallExpr)
	if call == nil || len(call.Args) == 0 {
		return
	}
	w := s.words(call)
	hides := w[0] == "true" || w[0] == ":" || w[0] == "exit" && len(w) > 1 && w[1] == "0"
	says := w[0] == "echo" || w[0] == "printf" || w[0] == "logger"
	if !hides && !says {
		return
	}
	severity, what := Info, "a command"
	if left, ok := lastCall(c.X); ok {
		lw := s.words(left)
		what = lw[0]
		if weighty(lw) {
			severity = ""
		}
		// A message is an answer where the command was a question.
		if says && severity != "" {
			return
		}
	} else if says {
		return
	}
	s.report("masked-failure", severity, c.X.Pos(), fmt.Sprintf("when %s fails, nobody learns of it", what), "let it fail, or handle the failure you expect")
}

func lastCall(st *syntax.Stmt) (*syntax.CallExpr, bool) {
	switch c := st.Cmd.(type) {
	case *syntax.CallExpr:
		return c, len(c.Args) > 0
	case *syntax.BinaryCmd:
		return lastCall(c.Y)
	}
	return nil, false
}

// leaves says that a statement goes somewhere else: what stands on its left
// is a condition.
func leaves(st *syntax.Stmt) bool {
	c, ok := st.Cmd.(*syntax.CallExpr)
	if !ok || len(c.Args) == 0 {
		return false
	}
	switch c.Args[0].Lit() {
	case "return", "exit", "break", "continue":
		return true
	}
	return false
}
