package builder_test

import (
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
)

func TestCanary(t *testing.T) {
	for name, c := range map[string]struct {
		memory  string // what the agent remembers
		tests   []recipe.Test
		verdict report.Verdict
		summary string
	}{
		"success":           {`{"judged":true,"verdict":"success"}`, []recipe.Test{{Name: "one", Run: "true"}, {Run: "test -d /"}}, report.Success, "tests passed"},
		"the agent says no": {`{"judged":true,"verdict":"failure"}`, []recipe.Test{{Run: "touch ran"}}, report.Failure, "The agent's report says failure."},
		"degraded":          {`{"judged":true,"verdict":"degraded"}`, nil, report.Failure, "The agent's report says degraded."},
		"a test fails":      {`{"judged":true,"verdict":"success"}`, []recipe.Test{{Name: "answers", Run: "echo trying\n(exit 22)\n"}}, report.Failure, "Step 1 (answers) failed with exit code 22."},
		"no verdict":        {`{"judged":false}`, nil, report.Failure, "no verdict of lecafe-agent within 1s"},
		"no agent":          {"", nil, report.Failure, "no verdict of lecafe-agent within 1s"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.plan.Canary = &manifest.Canary{Deadline: time.Second, Tests: c.tests}
			if c.memory != "" {
				s.file("var/lib/lecafe/bootstrap.json", c.memory)
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
