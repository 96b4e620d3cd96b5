package drill_test

import (
	"testing"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/drill"
	"github.com/lecafe/lecafe/userdata"
)

func TestTable(t *testing.T) {
	cases, err := drill.Cases()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	var healthy, payload, instance int
	for _, c := range cases {
		data, err := c.Payload()
		if err != nil || len(data) == 0 || len(data) > userdata.MaxBytes {
			t.Errorf("%s: %d bytes, %v", c.Name, len(data), err)
		}
		if seen[c.Name] || c.Name == "" || c.About == "" {
			t.Errorf("case %q is there twice or says nothing", c.Name)
		}
		seen[c.Name] = true
		switch c.Expect.Verdict {
		case report.Success:
			if c.Fault == "" {
				healthy++
			}
		case report.Failure, report.Degraded:
			if c.Expect.Code == "" {
				t.Errorf("%s expects no cause", c.Name)
			}
		default:
			t.Errorf("%s expects %q", c.Name, c.Expect.Verdict)
		}
		switch {
		case c.Fault != "" || c.Name == "reboot":
			instance++
		case c.Expect.Verdict != report.Success:
			payload++
		}
	}
	if healthy < 5 || payload < 20 || instance < 12 {
		t.Errorf("%d healthy boots, %d of user data, %d of the instance; want 5, 20, 12", healthy, payload, instance)
	}
}
