package builder_test

import (
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
)

// agentReport is what the agent leaves of a boot that failed.
func agentReport(id string) string {
	r := report.Report{
		Schema: report.Schema, ID: id, Kind: report.KindBootstrap, Verdict: report.Failure, Summary: "It failed.",
		Causes: []report.Cause{{Stage: report.StageCloudFinal, Code: report.CodeScriptExit, Severity: report.SeverityFailure, File: "app.sh", Line: 3, Message: "The script app.sh failed."}},
	}
	data, err := report.Encode(&r)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func TestCanary(t *testing.T) {
	for name, c := range map[string]struct {
		memory  string            // what the agent remembers
		files   map[string]string // what else it has left
		tests   []recipe.Test
		verdict report.Verdict
		summary string
	}{
		"success":           {`{"judged":true,"verdict":"success"}`, nil, []recipe.Test{{Name: "one", Run: "true"}, {Run: "test -d /"}}, report.Success, "tests passed"},
		"the agent says no": {`{"judged":true,"verdict":"failure"}`, nil, []recipe.Test{{Run: "touch ran"}}, report.Failure, "The agent's report says failure."},
		"degraded":          {`{"judged":true,"verdict":"degraded"}`, nil, nil, report.Failure, "The agent's report says degraded."},
		"a test fails":      {`{"judged":true,"verdict":"success"}`, nil, []recipe.Test{{Name: "answers", Run: "echo trying\n(exit 22)\n"}}, report.Failure, "Step 1 (answers) failed with exit code 22."},
		"the agent's own cause": {
			`{"judged":true,"verdict":"failure","report_id":"11111111111111111111111111111111"}`,
			map[string]string{"var/lib/lecafe/report.json": agentReport("11111111111111111111111111111111")}, nil, report.Failure, "The script app.sh failed.",
		},
		"a report of another boot": {
			`{"judged":true,"verdict":"failure","report_id":"22222222222222222222222222222222"}`,
			map[string]string{"var/lib/lecafe/report.json": agentReport("11111111111111111111111111111111")}, nil, report.Failure, "The agent's report says failure.",
		},
		"still at it": {
			`{"judged":false}`, map[string]string{"run/lecafe/status.json": `{"summary":"cloud-final is running","causes":[{"code":"config_denied","stage":"config","message":"No."}]}`},
			nil, report.Failure, "no verdict of lecafe-agent within 1s; it says: cloud-final is running; config_denied in config: No.",
		},
		"no verdict": {`{"judged":false}`, nil, nil, report.Failure, "no verdict of lecafe-agent within 1s"},
		"no agent":   {"", nil, nil, report.Failure, "no verdict of lecafe-agent within 1s"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.plan.Canary = &manifest.Canary{Deadline: time.Second, Tests: c.tests}
			if c.memory != "" {
				s.file("var/lib/lecafe/bootstrap.json", c.memory)
			}
			for name, content := range c.files {
				s.file(name, content)
			}
			if err := s.run(); err != nil {
				t.Fatal(err)
			}
			res := s.result()
			if res.Report.Verdict != c.verdict || !strings.Contains(res.Report.Summary, c.summary) {
				t.Errorf("report %s: %s", res.Report.Verdict, res.Report.Summary)
			}
			if strings.Contains(s.calls(), "install") {
				t.Error("a canary was provisioned")
			}
		})
	}
}
