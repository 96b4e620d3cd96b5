package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestStaysSmall keeps out what costs megabytes: with text/template linked, the
// linker keeps every method of every AWS client.
func TestStaysSmall(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 100 {
		t.Fatalf("only %d packages", len(deps))
	}
	for _, d := range deps {
		for _, refused := range []string{"text/template", "html/template", "github.com/aws/aws-sdk-go-v2/service/ec2", "github.com/aws/aws-sdk-go-v2/config", "github.com/urfave/cli/v2"} {
			if d == refused {
				t.Errorf("%s is linked", d)
			}
		}
	}
}
