// Package sarif writes findings in SARIF 2.1.0, the form that code hosts show
// beside the code. It owns as much of the format as findings need.
// https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
package sarif

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
)

// Rule is one kind of finding.
type Rule struct {
	ID      string
	Summary string
	Help    string // what to do
}

// Result is one finding. File and Line may be empty; Object names what is
// meant where there is no file.
type Result struct {
	RuleID  string
	Level   string // error, warning, note
	Message string
	File    string
	Line    int
	Column  int
	Object  string
}

type text struct {
	Text string `json:"text"`
}

// Write writes one run of tool lecafe with its rules and results.
func Write(w io.Writer, version string, rules []Rule, results []Result) error {
	type reportingDescriptor struct {
		ID               string `json:"id"`
		ShortDescription text   `json:"shortDescription"`
		Help             *text  `json:"help,omitempty"`
	}
	type region struct {
		StartLine   int `json:"startLine"`
		StartColumn int `json:"startColumn,omitempty"`
	}
	type physical struct {
		ArtifactLocation struct {
			URI string `json:"uri"`
		} `json:"artifactLocation"`
		Region *region `json:"region,omitempty"`
	}
	type logical struct {
		FullyQualifiedName string `json:"fullyQualifiedName"`
	}
	type location struct {
		Physical *physical `json:"physicalLocation,omitempty"`
		Logical  []logical `json:"logicalLocations,omitempty"`
	}
	type result struct {
		RuleID    string     `json:"ruleId"`
		Level     string     `json:"level"`
		Message   text       `json:"message"`
		Locations []location `json:"locations"`
	}
	descriptors := make([]reportingDescriptor, 0, len(rules))
	for _, r := range rules {
		d := reportingDescriptor{ID: r.ID, ShortDescription: text{r.Summary}}
		if r.Help != "" {
			d.Help = &text{r.Help}
		}
		descriptors = append(descriptors, d)
	}
	out := make([]result, 0, len(results))
	for _, r := range results {
		var l location
		if r.File != "" {
			l.Physical = &physical{}
			l.Physical.ArtifactLocation.URI = (&url.URL{Path: filepath.ToSlash(r.File)}).String()
			if r.Line > 0 {
				l.Physical.Region = &region{r.Line, r.Column}
			}
		}
		if r.Object != "" {
			l.Logical = []logical{{r.Object}}
		}
		out = append(out, result{r.RuleID, r.Level, text{r.Message}, []location{l}})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	err := enc.Encode(map[string]any{
		"$schema": "https://json.schemastore.org/sarif-2.1.0.json",
		"version": "2.1.0",
		"runs": []any{map[string]any{
			"tool":    map[string]any{"driver": map[string]any{"name": "lecafe", "version": version, "rules": descriptors}},
			"results": out,
		}},
	})
	if err != nil {
		return fmt.Errorf("write SARIF: %w", err)
	}
	return nil
}
