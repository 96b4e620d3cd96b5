package bootstrap

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/userdata"
)

// ReadPayload describes user data and lints it.
func ReadPayload(data []byte) Payload {
	p := Payload{Known: true, Size: len(data), Format: "none"}
	if len(data) == 0 {
		return p
	}
	sum := sha256.Sum256(data)
	p.SHA256 = hex.EncodeToString(sum[:])
	parsed, err := userdata.Parse(data)
	if err != nil {
		p.Format = "unknown"
		p.Findings = []Finding{{Code: report.CodeUserDataEncoding, Error: true, Message: err.Error(), Fix: "render the user data again"}}
		return p
	}
	p.Format = parsed.Format
	for _, part := range parsed.Scripts() {
		p.Scripts = append(p.Scripts, part.ScriptName())
		exits, last := ends(part)
		p.Exits = append(p.Exits, exits...)
		if last != nil {
			p.Lasts = append(p.Lasts, *last)
		}
	}
	p.Keys = topKeys(parsed)
	for _, f := range userdata.Lint(data, userdata.Options{Ignore: meant()}) {
		// Before launch a key that stands there twice may be meant. Here it is
		// part of what was asked for and did not happen.
		if f.Rule == "duplicate-key" {
			f.Code = report.CodeUserDataInvalidYAML
		}
		if f.Code == "" {
			continue
		}
		out := Finding{Code: f.Code, Error: f.Severity.AtLeast(userdata.Error), File: f.Part, Line: f.Line, Column: f.Column, Message: f.Message, Fix: f.Fix}
		// Where the part has a name, people look for the line in the part.
		if f.Part != "" && f.PartLine > 0 {
			out.Line = f.PartLine
		}
		if out.File == "" && len(p.Scripts) == 1 && strings.HasPrefix(string(f.Code), "script_") {
			out.File = p.Scripts[0] // as the instance calls it
		}
		p.Findings = append(p.Findings, out)
	}
	return p
}

// meant are the rules that are no cause of anything in a boot that has happened:
// what they find may be meant. They are not looked for.
func meant() []string {
	var ids []string
	for _, r := range userdata.Rules() {
		if r.Code == "" && r.ID != "duplicate-key" {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// ends finds the statements `exit N` of a shell script, and its last one.
func ends(part *userdata.Part) ([]Exit, *Last) {
	first, _, _ := bytes.Cut(part.Body, []byte("\n"))
	if !bytes.HasPrefix(first, []byte("#!")) || !bytes.Contains(first, []byte("sh")) || len(part.Body) > 1<<20 {
		return nil, nil
	}
	f, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(bytes.NewReader(part.Body), "")
	if err != nil {
		return nil, nil
	}
	var out []Exit
	open := false // it may end elsewhere, with any code
	errexit := bytes.Contains(first, []byte(" -")) && bytes.Contains(first, []byte("e"))
	syntax.Walk(f, func(n syntax.Node) bool {
		call, ok := n.(*syntax.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		if call.Args[0].Lit() == "set" {
			for _, a := range call.Args[1:] {
				errexit = errexit || a.Lit() == "errexit" || strings.HasPrefix(a.Lit(), "-") && strings.Contains(a.Lit(), "e")
			}
		}
		if name := call.Args[0].Lit(); name != "exit" {
			open = open || name == "exec" && len(call.Args) > 1
			return true
		}
		code, err := -1, error(nil)
		if len(call.Args) == 2 {
			code, err = strconv.Atoi(call.Args[1].Lit())
		}
		open = open || err != nil || code < 0
		if err == nil && code > 0 {
			out = append(out, Exit{File: part.ScriptName(), Line: int(call.Pos().Line()) + part.Skip, Code: code & 255, Command: "exit " + strconv.Itoa(code)})
		}
		return true
	})
	if open {
		return out, nil
	}
	return out, last(f, part, bytes.Contains(first, []byte("bash")), errexit)
}

// last describes the last statement of a script, nil where its exit code need
// not be what a failed script ended with: with errexit another than a list
// ends a script earlier, and a compound statement has many ends.
func last(f *syntax.File, part *userdata.Part, bash, errexit bool) *Last {
	if len(f.Stmts) == 0 {
		return nil
	}
	stmt := f.Stmts[len(f.Stmts)-1]
	if stmt.Background || stmt.Negated {
		return nil
	}
	l := &Last{File: part.ScriptName(), Line: int(stmt.Pos().Line()) + part.Skip, Trapped: bash}
	switch c := stmt.Cmd.(type) {
	case *syntax.BinaryCmd:
		l.List = c.Op == syntax.AndStmt || c.Op == syntax.OrStmt
		if !l.List && errexit {
			return nil
		}
	case *syntax.CallExpr:
		if errexit {
			return nil
		}
	default:
		return nil
	}
	var b bytes.Buffer
	if err := syntax.NewPrinter(syntax.SingleLine(true)).Print(&b, stmt.Cmd); err == nil {
		l.Command, _, _ = strings.Cut(b.String(), "\n")
	}
	return l
}
