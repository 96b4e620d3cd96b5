package config_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/agent/config"
	"github.com/lecafe/lecafe/agent/settings"
)

func TestEnv(t *testing.T) {
	e := settings.EnvFile{Path: "/opt/app/config.env", Mode: "0604", Set: map[string]string{
		"APP_NAME": "lecafe-app", "AWS_REGION": "${region}", "WHERE": "${availability_zone}/${tag:Name}", "ODD": "a \"b\" $HOME `id` \\ 'c' #",
	}}
	facts := map[string]string{"region": "eu-west-1", "availability_zone": "eu-west-1a", "tag:Name": "web $1"}
	content, err := config.Env(e, func(name string) (string, error) { return facts[name], nil })
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := config.PutEnv(root, e, content); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, e.Path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o604 {
		t.Errorf("%v, %v", info, err)
	}
	// A shell reads back what was meant.
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `. "$1"; printf '%s|' "$APP_NAME" "$AWS_REGION" "$WHERE" "$ODD"`, "sh", path).Output()
	if want := "lecafe-app|eu-west-1|eu-west-1a/web $1|a \"b\" $HOME `id` \\ 'c' #|"; err != nil || string(out) != want {
		t.Errorf("%v, got %s, want %s", err, out, want)
	}
}

func TestEnvThatCannotBeRendered(t *testing.T) {
	e := settings.EnvFile{Path: "/e", Set: map[string]string{"A": "${tag:Name}", "B": "x"}}
	for name, fact := range map[string]func(string) (string, error){
		"unknown":    func(string) (string, error) { return "", errors.New("tags are off") },
		"line break": func(string) (string, error) { return "a\nPATH=/evil", nil },
	} {
		if out, err := config.Env(e, fact); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), "A: ") || out != nil {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
}
