package trap

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// ErrUninstrumented says that a script is better left as it is: it does not
// parse, or it shows its own text, commands or variables, and the checks would
// be seen.
var ErrUninstrumented = errors.New("script left as it is")

// marker begins what Instrument puts into a script.
const marker = "__lecafe_check()"

// Instrument returns an sh script that does what src does and records in the
// directory records each top-level statement that fails without being handled.
// Lines stay where they are. file is what records call the script. The error
// wraps ErrUninstrumented where that cannot be done.
func Instrument(src []byte, file, records string) ([]byte, error) {
	if bytes.Contains(src, []byte(marker)) {
		return src, nil
	}
	parsed, err := parseSh(src)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUninstrumented, err)
	}
	if why := shows(src, parsed); why != "" {
		return nil, fmt.Errorf("%w: it %s", ErrUninstrumented, why)
	}
	stmts := parsed.Stmts
	if len(stmts) == 0 {
		return src, nil
	}
	var out bytes.Buffer
	done := 0
	copyTo := func(offset int) {
		out.Write(src[done:offset])
		done = offset
	}
	copyTo(int(stmts[0].Pos().Offset()))
	out.WriteString(prelude(file, records, !callsTrap(parsed)))
	check := func(i int) {
		last, next := "0 ''", "0 ''"
		if i > 0 && !asks(stmts[i-1]) && (i == len(stmts) || !looksAtStatus(stmts[i])) {
			last = describe(src, stmts[i-1])
		}
		if i < len(stmts) {
			next = describe(src, stmts[i])
		}
		// On the left of && its exit code, which is the statement's before it,
		// reaches what follows and does not trip set -e.
		fmt.Fprintf(&out, "__lecafe_check $? %s %s && :", last, next)
	}
	for i, st := range stmts {
		copyTo(int(st.Pos().Offset()))
		check(i)
		out.WriteString("; ")
	}
	copyTo(len(src))
	if !bytes.HasSuffix(src, []byte("\n")) {
		out.WriteByte('\n')
	}
	check(len(stmts))
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// parseSh takes a script for sh the way dash and bash called sh do.
func parseSh(src []byte) (*syntax.File, error) {
	parse := func(lang syntax.LangVariant) (*syntax.File, error) {
		return syntax.NewParser(syntax.Variant(lang)).Parse(bytes.NewReader(src), "")
	}
	// Bounded for the parser's sake, which descends as deep as the text nests.
	if len(src) > 1<<20 || bytes.Count(src, []byte("("))+bytes.Count(src, []byte("{")) > 20000 {
		return nil, errors.New("it is too large")
	}
	if f, err := parse(syntax.LangPOSIX); err == nil {
		return f, nil
	}
	return parse(syntax.LangBash)
}

// prelude defines what the checks call, on one line. Traps of the script's own
// forbid one for EXIT, which otherwise learns of exit and of set -e.
func prelude(file, records string, exitTrap bool) string {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	name := base64.StdEncoding.EncodeToString([]byte(file))
	dir := quote(records)
	p := `__lecafe_n=0; __lecafe_at=0; __lecafe_text=; ` +
		`__lecafe_record() { ` +
		`case $1,$2 in 0,*|*,0) return 0 ;; esac; ` +
		`__lecafe_n=$((__lecafe_n + 1)); [ "$__lecafe_n" -le 100 ] || return 0; ` +
		`case $- in *e*) set -- "$1" "$2" "$3" 1 ;; *) set -- "$1" "$2" "$3" 0 ;; esac; ` +
		`{ [ -d ` + dir + ` ] || (umask 077 && mkdir -p ` + dir + `); } && ` +
		`printf '1b\t%s\t%s\t%s\t%s\t0\t%s\t0\t` + name + `\t%s\n' "$(date +%s)" "$$" "$1" "$2" "$4" "$3" >> ` + quote(records+"/"+filepath.Base(file)) + `."$$"; } 2> /dev/null; ` +
		marker + ` { __lecafe_record "$1" "$2" "$3" || :; __lecafe_at=$4; __lecafe_text=$5; return "$1"; }; `
	if exitTrap {
		p += `trap '__lecafe_record "$?" "$__lecafe_at" "$__lecafe_text" || :' EXIT; `
	}
	return p
}

// describe is a statement's line and text as arguments of the check.
func describe(src []byte, st *syntax.Stmt) string {
	text := src[st.Pos().Offset():min(int(st.End().Offset()), len(src))]
	if line, _, more := bytes.Cut(text, []byte("\n")); more {
		text = append(bytes.TrimRight(bytes.Clone(line), " \t\\"), " ..."...)
	}
	if len(text) > 300 {
		text = text[:300]
	}
	return fmt.Sprintf("%d %s", st.Pos().Line(), base64.StdEncoding.EncodeToString(text))
}

// shows says how a script would show the checks.
func shows(src []byte, f *syntax.File) string {
	first, _, _ := bytes.Cut(src, []byte("\n"))
	if _, arg, ok := bytes.Cut(bytes.TrimPrefix(first, []byte("#!")), []byte(" -")); ok && bytes.ContainsAny(arg, "xvna") {
		return "traces itself or exports what it sets by its first line"
	}
	why := ""
	syntax.Walk(f, func(n syntax.Node) bool {
		c, ok := n.(*syntax.CallExpr)
		if !ok || len(c.Args) == 0 {
			return true
		}
		name := c.Args[0].Lit()
		if name == "eval" || name == "." || name == "source" {
			return true
		}
		if name != "set" {
			return true
		}
		for _, w := range c.Args[1:] {
			lit := literal(w)
			switch {
			case lit == "xtrace" || lit == "verbose" || lit == "noexec":
				why = "traces itself"
			case len(lit) > 1 && lit[0] == '-' && strings.ContainsAny(lit[1:], "xvn"):
				why = "traces itself"
			case lit == "allexport" || len(lit) > 1 && lit[0] == '-' && strings.Contains(lit[1:], "a"):
				why = "exports whatever is set"
			}
		}
		return true
	})
	return why
}

// literal is a word without expansions, quotes removed.
func literal(w *syntax.Word) string {
	var b strings.Builder
	for _, p := range w.Parts {
		switch p := p.(type) {
		case *syntax.Lit:
			b.WriteString(p.Value)
		case *syntax.SglQuoted:
			b.WriteString(p.Value)
		case *syntax.DblQuoted:
			for _, q := range p.Parts {
				if l, ok := q.(*syntax.Lit); ok {
					b.WriteString(l.Value)
				}
			}
		}
	}
	return b.String()
}

func callsTrap(f *syntax.File) bool {
	found := false
	syntax.Walk(f, func(n syntax.Node) bool {
		if c, ok := n.(*syntax.CallExpr); ok && len(c.Args) > 0 {
			switch literal(c.Args[0]) {
			case "trap", "eval", ".", "source":
				found = true
			}
		}
		return !found
	})
	return found
}

// asks says that a statement's exit code is an answer, or only that of a
// condition: set -e would not take it for a failure either.
func asks(st *syntax.Stmt) bool {
	if st.Negated {
		return true
	}
	switch c := st.Cmd.(type) {
	case *syntax.TestClause, *syntax.ArithmCmd:
		return true
	case *syntax.CallExpr:
		return len(c.Args) > 0 && slices.Contains([]string{"[", "test", "[["}, literal(c.Args[0]))
	case *syntax.BinaryCmd:
		if c.Op != syntax.AndStmt {
			return false
		}
		left := c.X
		for {
			b, ok := left.Cmd.(*syntax.BinaryCmd)
			if !ok || b.Op == syntax.Pipe {
				break
			}
			left = b.X
		}
		return asks(left) || question(left)
	}
	return false
}

// question recognises commands that are put before && to be answered.
func question(st *syntax.Stmt) bool {
	c, ok := st.Cmd.(*syntax.CallExpr)
	if !ok || len(c.Args) == 0 {
		return false
	}
	switch literal(c.Args[0]) {
	case "grep", "egrep", "fgrep", "command", "which", "type", "hash", "id", "getent", "pgrep", "mountpoint", "findmnt", "cmp", "diff":
		return true
	case "systemctl":
		return len(c.Args) > 1 && strings.HasPrefix(literal(c.Args[1]), "is-")
	}
	return false
}

// looksAtStatus says that a statement begins by asking for $?.
func looksAtStatus(st *syntax.Stmt) bool {
	found, seen := false, 0
	syntax.Walk(st, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.Stmt:
			seen++
		case *syntax.ParamExp:
			found = found || n.Param != nil && n.Param.Value == "?"
		}
		return !found && seen < 4
	})
	return found
}

// Handled says that the statement on a line of a bash script, which failed, is
// followed by one that looks at $?: the script handles its failure itself.
func Handled(script []byte, line int) bool {
	if len(script) > 1<<20 || bytes.Count(script, []byte("("))+bytes.Count(script, []byte("{")) > 20000 {
		return false
	}
	f, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(bytes.NewReader(script), "")
	if err != nil {
		return false
	}
	handled := false
	list := func(stmts []*syntax.Stmt) {
		for i, st := range stmts {
			if i+1 < len(stmts) && int(st.Pos().Line()) <= line && line <= int(st.End().Line()) && looksAtStatus(stmts[i+1]) {
				handled = true
			}
		}
	}
	list(f.Stmts)
	syntax.Walk(f, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.Block:
			list(n.Stmts)
		case *syntax.Subshell:
			list(n.Stmts)
		case *syntax.IfClause:
			list(n.Cond)
			list(n.Then)
		case *syntax.WhileClause:
			list(n.Cond)
			list(n.Do)
		case *syntax.ForClause:
			list(n.Do)
		case *syntax.CaseItem:
			list(n.Stmts)
		}
		return !handled
	})
	return handled
}

// InstrumentFile instruments an sh script in place, keeping its mode. A script
// that does not exist, or is better left as it is, is no error; changed says
// whether it was written. It runs before cloud-final executes the script.
func InstrumentFile(path, records string) (changed bool, err error) {
	src, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("instrument %s: %w", path, err)
	}
	out, err := Instrument(src, path, records)
	if errors.Is(err, ErrUninstrumented) || err == nil && bytes.Equal(out, src) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("instrument %s: %w", path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("instrument %s: %w", path, err)
	}
	// A rename, so that a crash leaves the one or the other; from the directory
	// above, because whatever lies beside the script is executed too.
	tmp, err := os.CreateTemp(filepath.Dir(filepath.Dir(path)), ".lecafe-")
	if err != nil {
		return false, fmt.Errorf("instrument %s: %w", path, err)
	}
	_, err = tmp.Write(out)
	if err := errors.Join(err, tmp.Chmod(info.Mode().Perm()), tmp.Close()); err != nil {
		return false, fmt.Errorf("instrument %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return false, fmt.Errorf("instrument %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	return true, nil
}

// Preload returns a bash script that reads the library by itself, for images
// where nothing sets BASH_ENV. Lines stay where they are. A script of one line
// is returned as it is.
func Preload(script []byte, library string) []byte {
	first, rest, ok := bytes.Cut(script, []byte("\n"))
	if !ok || !bytes.HasPrefix(first, []byte("#!")) || len(rest) == 0 {
		return script
	}
	load := fmt.Sprintf(`. %s "$_" 2> /dev/null || : "$_"; `, library)
	return slices.Concat(first, []byte("\n"+load), rest)
}
