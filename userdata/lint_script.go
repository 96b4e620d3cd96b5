package userdata

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"mvdan.cc/sh/v3/syntax"
)

// shebang is the #! line as the kernel reads it: one path and at most one
// argument, spaces included.
type shebang struct {
	path, arg string
}

func readShebang(script []byte) (shebang, bool) {
	line, _, _ := bytes.Cut(script, []byte("\n"))
	rest, ok := bytes.CutPrefix(bytes.TrimRight(line, " \t\r"), []byte("#!"))
	if !ok {
		return shebang{}, false
	}
	p, arg, _ := strings.Cut(strings.ReplaceAll(strings.TrimLeft(string(rest), " \t"), "\t", " "), " ")
	return shebang{p, strings.TrimSpace(arg)}, true
}

// program is the interpreter's name, behind env too.
func (s shebang) program() string {
	base := path.Base(s.path)
	if base != "env" {
		return base
	}
	for _, word := range strings.Fields(s.arg) {
		if !strings.HasPrefix(word, "-") && !strings.Contains(word, "=") {
			return path.Base(word)
		}
	}
	return ""
}

// options are the shell's own flags on the line.
func (s shebang) options() []string {
	words := strings.Fields(s.arg)
	if path.Base(s.path) == "env" {
		for len(words) > 0 && path.Base(words[0]) != s.program() {
			words = words[1:]
		}
		if len(words) > 0 {
			words = words[1:]
		}
	}
	return words
}

func isShell(script []byte) bool {
	s, ok := readShebang(script)
	return ok && slices.Contains([]string{"sh", "bash", "dash"}, s.program())
}

var interpreters = []string{
	"bash", "sh", "dash", "ash", "zsh", "ksh", "fish", "python", "python2", "python3", "perl", "ruby", "node", "nodejs", "awk", "gawk",
	"sed", "php", "lua", "make", "tclsh", "expect", "env", "pwsh", "busybox", "deno", "bun", "cloud-init",
}

// script looks at a script part; lines stand before src in the part.
func (l *linter) script(p *Part, at place, src []byte, lines int) {
	if !bytes.HasPrefix(src, []byte("#!")) {
		l.add(at, problem{rule: "no-header", line: lines + 1, col: 1, message: "the part is declared a script and does not begin with #!: the kernel refuses to run it (Exec format error)", fix: "make its first line #!/bin/bash"})
		return
	}
	head := strings.SplitN(string(src), "\n", 6)
	for i, line := range head[1:] {
		if low := strings.ToLower(strings.TrimSpace(line)); strings.HasPrefix(low, "#cloud-config") && i < 4 {
			l.add(at, problem{rule: "wrong-header", line: lines + i + 2, col: 1, message: "the first line says script and what follows is cloud-config: it would be run as commands", fix: "remove the #! line, or send two parts"})
			return
		}
	}
	// The first line of text decides: further down YAML may be a heredoc's.
	if i := slices.IndexFunc(head[1:], func(s string) bool { s = strings.TrimSpace(s); return s != "" && s[0] != '#' }); i >= 0 && looksYAML().MatchString(head[i+1]) {
		l.add(at, problem{rule: "wrong-header", line: lines + i + 2, col: 1, message: "the first line says script and what follows is cloud-config: it would be run as commands", fix: "write #cloud-config in the place of the #! line"})
		return
	}
	l.interpreterAndShell(at, src, lines, false)
}

func (l *linter) interpreterAndShell(at place, src []byte, lines int, boothook bool) {
	s, _ := readShebang(src)
	bad := func(message, fix string, severity Severity) {
		l.add(at, problem{rule: "interpreter", severity: severity, line: lines + 1, col: 1, message: message, fix: fix})
	}
	program := s.program()
	switch {
	case !strings.HasPrefix(s.path, "/"):
		bad(fmt.Sprintf("the kernel needs the interpreter's full path, and %q is none", s.path), "write #!/bin/bash", "")
		return
	case path.Base(s.path) == "env" && strings.Contains(s.arg, " ") && !strings.HasPrefix(s.arg, "-S") && !strings.HasPrefix(s.arg, "--split-string"):
		bad(fmt.Sprintf("the kernel gives env %q as one word, and no program is called that", s.arg), "write #!/usr/bin/env -S "+s.arg+", or name the interpreter's path", "")
	case isShell(src) && path.Base(s.path) != "env" && strings.Contains(s.arg, " "):
		bad(fmt.Sprintf("the kernel gives %s %q as one argument, which it does not know", program, s.arg), "put the options together, as in -ex, or use set", "")
	case program == "python":
		bad("most images have no "+s.path+", only python3", "write #!/usr/bin/python3", Warning)
	case !slices.Contains(interpreters, program):
		trimmed := strings.TrimRight(program, "0123456789.")
		if near := nearest(program, interpreters); near != "" && !slices.Contains(interpreters, trimmed) {
			bad(fmt.Sprintf("no interpreter is called %s", program), "did you mean "+near+"?", "")
		}
	}
	if !isShell(src) {
		return
	}
	sl := &shellLint{linter: l, at: at, bash: program == "bash", boothook: boothook,
		where: func(line, col int) (int, int) { return line + lines, col }}
	sl.errexit = hasFlag(s.options(), 'e')
	sl.run(src)
	if hasFlag(s.options(), 'x') {
		sl.xtrace(1, 1, src)
	}
}

func hasFlag(options []string, flag byte) bool {
	for _, o := range options {
		if len(o) > 1 && o[0] == '-' && o[1] != '-' && strings.IndexByte(o[1:], flag) >= 0 {
			return true
		}
	}
	return false
}

// shellLint looks at one shell script.
type shellLint struct {
	*linter
	at       place
	bash     bool
	boothook bool // runs early, and cloud-init only logs its failure
	runcmd   bool // made of cloud-config's items
	where    func(line, col int) (int, int)

	errexit bool // on from the #! line
	flow    flow // see shell_flow.go
	vars    map[string]string
	units   map[string]bool // units that wait for cloud-init, by name
}

func (s *shellLint) report(rule string, severity Severity, pos syntax.Pos, message, fix string) {
	line, col := s.where(int(pos.Line()), int(pos.Col()))
	s.addAt(problem{rule: rule, severity: severity, line: line, col: col, message: message, fix: fix})
}

// addAt turns the parser's columns, which count bytes, into characters.
func (s *shellLint) addAt(q problem) {
	if q.line > 0 && q.line <= len(s.at.lines) && q.col > 1 {
		text := s.at.lines[q.line-1]
		q.col = 1 + utf8.RuneCountInString(text[:min(q.col-1, len(text))])
	}
	s.add(s.at, q)
}

// Bounds of what is parsed: the parser descends as deep as the text nests, and
// a payload must not bring down the agent that reads it.
const (
	maxScript  = 1 << 20
	maxNesting = 20000
)

// run parses src, whose first line may be #!, and looks at it.
func (s *shellLint) run(src []byte) {
	if len(src) > maxScript || bytes.Count(src, []byte("("))+bytes.Count(src, []byte("{")) > maxNesting {
		return
	}
	file, ok := s.parse(readable(src))
	if !ok {
		return
	}
	s.vars = make(map[string]string)
	s.units = waitingUnits(s.payload)
	s.collect(file)
	s.calls(file, src)
	s.loops(file, src)
	s.follow(file)
}

// readable makes the shell's words of placeholders, which have been reported,
// so that the rest of the script is looked at as well. Lengths stay, and src
// as it is.
func readable(src []byte) []byte {
	if !bytes.Contains(src, []byte("${")) {
		return src
	}
	src = bytes.Clone(src)
	for _, f := range placeholderForms {
		if f.severity != Error {
			continue
		}
		for _, m := range f.form().FindAllIndex(src, -1) {
			if !bytes.HasPrefix(src[m[0]:], []byte("${")) {
				continue
			}
			for i, c := range src[m[0]+2 : m[1]-1] {
				if c < '0' || c > '9' && c < 'A' || c > 'Z' && c < 'a' || c > 'z' {
					src[m[0]+2+i] = '_'
				}
			}
		}
	}
	return src
}

func parseShell(src []byte, lang syntax.LangVariant) (*syntax.File, error) {
	return syntax.NewParser(syntax.Variant(lang), syntax.KeepComments(false)).Parse(bytes.NewReader(src), "")
}

// parse reports what does not parse. A script for sh that parses as bash's is
// a script for bash.
func (s *shellLint) parse(src []byte) (*syntax.File, bool) {
	// cloud-init removes them, see lineEnds.
	src = bytes.ReplaceAll(src, []byte("\r\n"), []byte("\n"))
	if s.bash {
		file, err := parseShell(src, syntax.LangBash)
		if err != nil {
			s.syntaxError(err)
		}
		return file, err == nil
	}
	file, err := parseShell(src, syntax.LangPOSIX)
	if err == nil {
		return file, true
	}
	posix := err
	if file, err = parseShell(src, syntax.LangBash); err != nil {
		s.syntaxError(err)
		return nil, false
	}
	pos, text := parseError(posix)
	s.report("bashism", "", pos, "bash's syntax in a script for sh, which fails where sh is dash (Debian, Ubuntu): "+text, s.useBash())
	return file, true
}

func (s *shellLint) useBash() string {
	if s.runcmd {
		return "run it by [bash, -c, ...], or write it the POSIX way"
	}
	return "write #!/bin/bash"
}

func parseError(err error) (syntax.Pos, string) {
	var p syntax.ParseError
	var g syntax.LangError
	switch {
	case errors.As(err, &p):
		return p.Pos, p.Text
	case errors.As(err, &g):
		return g.Pos, g.Feature
	}
	return syntax.NewPos(0, 1, 1), err.Error()
}

func (s *shellLint) syntaxError(err error) {
	pos, text := parseError(err)
	line, col := s.where(int(pos.Line()), int(pos.Col()))
	severity := Severity("")
	if strings.Contains(text, "not a valid arithmetic operator") {
		severity = Warning // bash looks at it when it gets there, and may take it for something else
	}
	s.addAt(problem{rule: "shell-syntax", severity: severity, line: line, col: col, message: "syntax error: " + text, fix: "what stands before this line does run, and nothing after it; check with bash -n"})
}

// collect notes what variables are set to, as far as the text tells.
func (s *shellLint) collect(file *syntax.File) {
	syntax.Walk(file, func(n syntax.Node) bool {
		if a, ok := n.(*syntax.Assign); ok && a.Name != nil {
			switch {
			case a.Value != nil:
				s.vars[a.Name.Value] += " " + s.text(a.Value)
			case a.Array != nil:
				for _, e := range a.Array.Elems {
					if e.Value != nil {
						s.vars[a.Name.Value] += " " + s.text(e.Value)
					}
				}
			}
		}
		return true
	})
}

// text is a word with known variables filled in; what is not known is "$".
func (s *shellLint) text(w *syntax.Word) string {
	var b strings.Builder
	var parts func([]syntax.WordPart)
	parts = func(ps []syntax.WordPart) {
		for _, p := range ps {
			switch p := p.(type) {
			case *syntax.Lit:
				b.WriteString(strings.ReplaceAll(p.Value, "\\\n", ""))
			case *syntax.SglQuoted:
				b.WriteString(p.Value)
			case *syntax.DblQuoted:
				parts(p.Parts)
			case *syntax.ParamExp:
				if v, ok := s.vars[p.Param.Value]; ok && b.Len() < 4096 {
					b.WriteString(strings.TrimPrefix(v, " "))
				} else {
					b.WriteString("$")
				}
			default:
				b.WriteString("$")
			}
		}
	}
	parts(w.Parts)
	return b.String()
}

// words are the command and its arguments, past sudo, env and the like.
func (s *shellLint) words(c *syntax.CallExpr) []string {
	var out []string
	for _, w := range c.Args {
		out = append(out, s.text(w))
	}
	for len(out) > 1 {
		switch path.Base(out[0]) {
		case "sudo", "command", "exec", "nice", "ionice", "nohup", "time", "builtin", "setsid":
			out = out[1:]
			for len(out) > 1 && strings.HasPrefix(out[0], "-") {
				if slices.Contains([]string{"-u", "-g", "-n", "-c"}, out[0]) && len(out) > 2 {
					out = out[1:]
				}
				out = out[1:]
			}
			continue
		case "timeout":
			out = out[1:]
			for len(out) > 1 && strings.HasPrefix(out[0], "-") {
				out = out[1:]
			}
			if len(out) > 1 {
				out = out[1:]
			}
			continue
		case "env":
			out = out[1:]
			for len(out) > 1 && (strings.HasPrefix(out[0], "-") || strings.Contains(out[0], "=")) {
				out = out[1:]
			}
			continue
		}
		break
	}
	if len(out) > 0 {
		out[0] = path.Base(out[0])
	}
	return out
}
