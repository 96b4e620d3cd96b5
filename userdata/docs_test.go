package userdata_test

import (
	"os"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/userdata"
)

func TestEveryRuleIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/lint.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range userdata.Rules() {
		if !strings.Contains(string(doc), "\n### "+r.ID+"\n") {
			t.Errorf("docs/lint.md does not explain %s", r.ID)
		}
	}
}
