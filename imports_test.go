package lecafe_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// The rules that keep the agent small and the packages honest; ARCHITECTURE.md
// gives their reasons. Keys and values are import path prefixes below module.
const module = "github.com/lecafe/lecafe/"

var forbidden = []struct{ from, to []string }{
	{
		[]string{module + "cmd/lecafe-agent", module + "agent"},
		[]string{"github.com/aws/aws-sdk-go-v2/service/ec2", "github.com/hashicorp/packer-plugin-sdk", module + "bake", module + "fleet", module + "lab", "github.com/zricethezav/gitleaks"},
	},
	{
		[]string{module + "userdata", module + "agent/report", module + "agent/spool", module + "agent/settings", module + "bake/recipe", module + "bake/cleanup", module + "bake/manifest"},
		[]string{"github.com/aws/aws-sdk-go-v2"},
	},
	{
		[]string{module + "cmd/lecafe-builder", module + "bake/builder"},
		[]string{"github.com/aws/aws-sdk-go-v2"},
	},
	{
		[]string{module + "agent", module + "bake", module + "fleet", module + "userdata", module + "systemd", module + "launchtemplate", module + "cmd/lecafe-agent", module + "cmd/lecafe-builder"},
		[]string{module + "lab"},
	},
	{[]string{module}, []string{"github.com/hashicorp/packer-plugin-sdk"}},
}

type listed struct {
	ImportPath string
	Deps       []string
}

func within(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if path == p || strings.HasPrefix(path, strings.TrimSuffix(p, "/")+"/") {
			return true
		}
	}
	return false
}

func TestImportRules(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Deps", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		for _, rule := range forbidden {
			if !within(p.ImportPath, rule.from) {
				continue
			}
			for _, dep := range p.Deps {
				if within(dep, rule.to) {
					t.Errorf("%s depends on %s: see the import rules in ARCHITECTURE.md", p.ImportPath, dep)
				}
			}
		}
	}
	if seen < 10 {
		t.Fatalf("go list named only %d packages", seen)
	}
}
