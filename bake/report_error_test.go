package bake_test

import (
	"testing"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake"
)

// What a person reads of a failed report says each thing once.
func TestReportError(t *testing.T) {
	finding := report.Cause{Code: report.CodeBuildFindings, Stage: report.StageSystem, File: "/root/key", Line: 1, Message: "/root/key:1: secrets: looks like a credential", Fix: "remove it"}
	exit := report.Cause{Code: report.CodeScriptExit, Stage: "cloud-final", File: "part-001", Line: 6, Message: "The script part-001 failed.", Output: []string{"a", "b"}}
	for want, r := range map[string]report.Report{
		finding.Message + "\n  build_findings: remove it": {Summary: finding.Message, Causes: []report.Cause{finding}},
		"The image is not clean.\n  build_findings: /root/key:1: secrets: looks like a credential; remove it\n  script_exit in cloud-final, part-001:6: The script part-001 failed\n    | a\n    | b": {
			Summary: "The image is not clean.", Causes: []report.Cause{finding, exit},
		},
		"The script part-001 failed.\n  script_exit in cloud-final, part-001:6\n    | a\n    | b": {Summary: exit.Message, Causes: []report.Cause{exit}},
	} {
		if got := (&bake.ReportError{Report: r}).Error(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}
