package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/internal/sarif"
	"github.com/lecafe/lecafe/internal/version"
	"github.com/lecafe/lecafe/userdata"
)

func userdataLintCommand() *cli.Command {
	return &cli.Command{
		Name:      "lint",
		Usage:     "find what would fail silently in user data",
		ArgsUsage: "FILE|- ...",
		Description: "Reads what cloud-init would read: scripts, cloud-config, MIME messages, gzip. Exit code 0:\n" +
			"nothing of severity warning or above; 1: something; 2: a file cannot be read.\n" +
			"A comment \"# lecafe:ignore RULE\" on a line, or alone above it, silences a rule there.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Value: "text", Usage: "text, json or sarif (`FORMAT`)"},
			&cli.StringSliceFlag{Name: "ignore", Usage: "leave out a `RULE`"},
			&cli.BoolFlag{Name: "rules", Usage: "list the rules"},
		},
		Action: userdataLint,
	}
}

func userdataLint(c *cli.Context) error {
	if c.Bool("rules") {
		for _, r := range userdata.Rules() {
			fmt.Fprintf(c.App.Writer, "%-20s %-8s %s\n", r.ID, r.Severity, r.Summary)
		}
		return nil
	}
	format := c.String("format")
	if !slices.Contains([]string{"text", "json", "sarif"}, format) {
		return badRequest("--format %q: write text, json or sarif", format)
	}
	ignore := c.StringSlice("ignore")
	if err := userdata.CheckRules(ignore); err != nil {
		return badRequest("--ignore: %w", err)
	}
	if !c.Args().Present() {
		return badRequest("which user data? give a file, or - for standard input")
	}
	all := []userdata.Finding{}
	for _, name := range c.Args().Slice() {
		data, err := readPayload(c, name)
		if err != nil {
			return exitcode.With(exitcode.BadRequest, err)
		}
		file := name
		if name == "-" {
			file = "stdin"
		}
		all = append(all, userdata.Lint(data, userdata.Options{File: file, Ignore: ignore})...)
	}
	if err := writeFindings(c.App.Writer, format, all); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	if slices.ContainsFunc(all, func(f userdata.Finding) bool { return f.Severity.AtLeast(userdata.Warning) }) {
		return exitcode.With(exitcode.Failed, errSilent)
	}
	return nil
}

// errSilent ends the program with a code and without a further message.
var errSilent = silentError{}

type silentError struct{}

func (silentError) Error() string { return "" }

func writeFindings(w io.Writer, format string, all []userdata.Finding) error {
	switch format {
	case "json":
		return writeJSON(w, struct {
			Findings []userdata.Finding `json:"findings"`
		}{all})
	case "sarif":
		return writeSARIF(w, all)
	}
	for _, f := range all {
		if _, err := fmt.Fprintln(w, findingText(f)); err != nil {
			return err
		}
	}
	return nil
}

// findingText is FILE:LINE:COLUMN: severity: message [rule] and the fix.
func findingText(f userdata.Finding) string {
	place := f.File
	if f.Line > 0 {
		place += fmt.Sprintf(":%d:%d", f.Line, max(f.Column, 1))
	}
	part := ""
	if f.Part != "" && f.PartLine > 0 && f.PartLine != f.Line {
		part = fmt.Sprintf(" (%s, line %d)", f.Part, f.PartLine)
	}
	return fmt.Sprintf("%s: %s: %s%s [%s]\n    fix: %s", place, f.Severity, f.Message, part, f.Rule, f.Fix)
}

// writeSARIF is for code hosts, which show findings beside the lines.
func writeSARIF(w io.Writer, all []userdata.Finding) error {
	level := map[userdata.Severity]string{userdata.Error: "error", userdata.Warning: "warning", userdata.Info: "note"}
	var rules []sarif.Rule
	for _, r := range userdata.Rules() {
		rules = append(rules, sarif.Rule{ID: r.ID, Summary: r.Summary})
	}
	var results []sarif.Result
	for _, f := range all {
		results = append(results, sarif.Result{
			RuleID: f.Rule, Level: level[f.Severity], Message: f.Message + ". Fix: " + f.Fix, File: f.File, Line: f.Line, Column: f.Column,
		})
	}
	return sarif.Write(w, version.String(), rules, results)
}

// refuseErrors prints what lint found in a payload that lecafe is about to
// hand out, and refuses it where that cannot work.
func refuseErrors(w io.Writer, file string, payload []byte, ignore []string) error {
	errors := 0
	for _, f := range userdata.Lint(payload, userdata.Options{File: file, Ignore: ignore}) {
		if f.Severity == userdata.Info {
			continue
		}
		if f.Severity == userdata.Error {
			errors++
		}
		fmt.Fprintln(w, findingText(f))
	}
	if errors > 0 {
		return badRequest("errors in the user data: %d; correct them, or name rules to leave out with --ignore", errors)
	}
	return nil
}
