package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/test/boots"
)

// An image whose canary does not come up, or fails a test of the recipe, is
// not left: exit code 1, the cause shown, nothing promoted. One that passes
// stays.
func TestCanary(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-12"}, nil)
	o := newOperator(t, l)
	script := filepath.Join(t.TempDir(), "user-data.sh")
	if err := os.WriteFile(script, []byte("#!/bin/bash\necho starting\nls /nonexistent-shop\nexit 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := func(canary string) []string {
		return []string{
			"bake", "--set", "agent.aws.endpoint_url=" + l.URL, "--set", "source.ssm_parameter=" + parameter("debian-12"),
			"--set", "provision=[{run: \"echo built >/etc/built\"}]", "--set", "canary=" + canary, filepath.Join(example, "recipe.yaml"),
		}
	}
	for name, c := range map[string]struct{ canary, want string }{
		"agent says failure": {"{instance_profile: lecafe-app-profile, deadline: 2m, user_data: " + script + "}", "user-data.sh:4, exit code 3: Make the command work"},
		"test script fails":  {"{instance_profile: lecafe-app-profile, deadline: 2m, test: [{name: built, run: grep -q shop /etc/built}]}", "step 1 (built) failed with exit code 1 at run:1: grep -q shop /etc/built"},
	} {
		t.Run(name, func(t *testing.T) {
			_, stderr, code := o.lecafe(args(c.canary)...)
			if code != 1 || !strings.Contains(stderr, c.want) || !strings.Contains(stderr, "nothing was promoted") {
				t.Errorf("exit code %d, want 1 and %q\n%s", code, c.want, stderr)
			}
			o.nothingLeft()
		})
	}
	t.Run("passes", func(t *testing.T) {
		out := o.bake("debian-12", "--set", "provision=[{run: \"echo built >/etc/built\"}]", "--set", "canary={instance_profile: lecafe-app-profile, deadline: 2m, test: [{name: built, run: grep -q built /etc/built}]}")
		for _, p := range out.Phases {
			t.Logf("%-10s %5.1f s", p.Name, p.Seconds)
		}
		o.nothingLeft(out.ImageID)
	})
}
