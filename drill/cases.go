// Package drill boots an image once for each way to fail that it knows, and
// compares what lecafe says of each boot with what there is to say. It owns
// the table of cases and expectations (cases.yaml) and the matrix; it judges
// no boot.
package drill

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/agent/report"
)

//go:embed cases.yaml
var table []byte

// Case is one boot.
type Case struct {
	Name     string
	About    string
	UserData string
	Files    []string // instead of UserData: see Table
	Encode   string
	Fault    string
	Waits    bool // for a deadline, and does little else
	Alone    bool // its fault is one that all instances share
	Expect   Expectation

	data []byte // what Files name
}

// Expectation is what a report must say. Zero fields are not looked at; on
// success there must be no cause.
type Expectation struct {
	Verdict report.Verdict
	Stage   report.StageName
	Code    report.Code
	File    string
	Line    int
	Among   bool   // the cause need not be the first
	Channel string // "console" where no report can leave the instance
}

// Cases returns the table, in its order.
func Cases() ([]Case, error) {
	t, err := parseTable(table)
	if err != nil {
		return nil, err
	}
	return t.Cases, nil
}

// Payload is the user data as it goes to the API.
func (c Case) Payload() ([]byte, error) {
	data := []byte(c.UserData)
	if c.data != nil {
		data = slices.Clone(c.data)
	}
	for step := range strings.FieldsSeq(c.Encode) {
		switch step {
		case "bom":
			data = append([]byte("\xef\xbb\xbf"), data...)
		case "crlf":
			data = bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))
		case "base64":
			data = []byte(base64.StdEncoding.EncodeToString(data))
		case "cut":
			data = data[:len(data)*2/3]
		case "gzip":
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			if _, err := z.Write(data); err != nil {
				return nil, fmt.Errorf("encode %s: %w", c.Name, err)
			}
			if err := z.Close(); err != nil {
				return nil, fmt.Errorf("encode %s: %w", c.Name, err)
			}
			data = b.Bytes()
		default:
			return nil, fmt.Errorf("encode %s: no encoding %q", c.Name, step)
		}
	}
	return data, nil
}

// Met says how r differs from what is expected, "" where it does not.
func (e Expectation) Met(r *report.Report) string {
	if r.Verdict != e.Verdict {
		return fmt.Sprintf("verdict %s, want %s", r.Verdict, e.Verdict)
	}
	if e.Verdict == report.Success {
		if len(r.Causes) > 0 {
			return fmt.Sprintf("cause %s, want none", r.Causes[0].Code)
		}
		return ""
	}
	if len(r.Causes) == 0 {
		return "no cause"
	}
	c := r.Causes[0]
	if i := slices.IndexFunc(r.Causes, func(c report.Cause) bool { return c.Code == e.Code }); e.Among && i > 0 {
		c = r.Causes[i]
	}
	var wrong []string
	differs := func(what string, got, want any) {
		wrong = append(wrong, fmt.Sprintf("%s %v, want %v", what, got, want))
	}
	if e.Code != "" && c.Code != e.Code {
		differs("code", c.Code, e.Code)
	}
	if e.Stage != "" && c.Stage != e.Stage {
		differs("stage", c.Stage, e.Stage)
	}
	if e.File != "" && c.File != e.File {
		differs("file", c.File, e.File)
	}
	if e.Line != 0 && c.Line != e.Line {
		differs("line", c.Line, e.Line)
	}
	return strings.Join(wrong, "; ")
}
