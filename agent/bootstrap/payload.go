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
		p.Exits = append(p.Exits, exits(part)...)
	}
	for _, f := range userdata.Lint(data, userdata.Options{}) {
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

// exits finds the statements `exit N` of a shell script.
func exits(part *userdata.Part) []Exit {
	first, _, _ := bytes.Cut(part.Body, []byte("\n"))
	if !bytes.HasPrefix(first, []byte("#!")) || !bytes.Contains(first, []byte("sh")) || len(part.Body) > 1<<20 {
		return nil
	}
	f, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(bytes.NewReader(part.Body), "")
	if err != nil {
		return nil
	}
	var out []Exit
	syntax.Walk(f, func(n syntax.Node) bool {
		call, ok := n.(*syntax.CallExpr)
		if !ok || len(call.Args) != 2 || call.Args[0].Lit() != "exit" {
			return true
		}
		code, err := strconv.Atoi(call.Args[1].Lit())
		if err == nil && code > 0 {
			out = append(out, Exit{File: part.ScriptName(), Line: int(call.Pos().Line()) + part.Skip, Code: code & 255, Command: "exit " + strconv.Itoa(code)})
		}
		return true
	})
	return out
}
