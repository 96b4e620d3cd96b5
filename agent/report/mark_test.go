package report_test

import (
	"errors"
	"testing"

	"github.com/lecafe/lecafe/agent/report"
)

func TestMark(t *testing.T) {
	const sender = "AROAEXAMPLE:i-0abc1234def567890"
	for _, prefix := range []string{"", "p", "fleet/a"} {
		for _, stage := range report.StageNames() {
			m := report.MarkOf(prefix+"/", sender, stage)
			got, err := report.ParseMark(m.String())
			if err != nil || got != m || got.InstanceID() != "i-0abc1234def567890" {
				t.Errorf("%s: %+v, %v", m, got, err)
			}
			if _, err := report.ParseKey(m.String()); !errors.Is(err, report.ErrKey) {
				t.Errorf("%s is a report's key too", m)
			}
		}
	}
	for _, bad := range []string{"", "progress/cloud-final", "p/" + sender + "/progress/", "p/" + sender + "/progress/coffee", "p/" + sender + "/cloud-final",
		"p/someone/progress/cloud-final", "p/" + sender + "/progress/cloud-final/x", "p/" + sender + "/Progress/cloud-final"} {
		if m, err := report.ParseMark(bad); !errors.Is(err, report.ErrKey) {
			t.Errorf("%q: %+v, %v", bad, m, err)
		}
	}
}
