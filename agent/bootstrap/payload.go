package bootstrap

import (
	"crypto/sha256"
	"encoding/hex"

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
		p.Findings = append(p.Findings, out)
	}
	return p
}
