package userdata

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/userdata"
)

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestExecute renders what the CLI would, and gives it in each form.
func TestExecute(t *testing.T) {
	d := new(Datasource)
	script := write(t, "app.sh", "#!/bin/bash\nset -euo pipefail\necho open > /run/cafe\n")
	if err := d.Configure(map[string]any{
		"settings": []string{write(t, "agent.yaml", "orders: {queue: lecafe-orders}\n")}, "scripts": []string{script},
	}); err != nil {
		t.Fatal(err)
	}
	v, err := d.Execute()
	if err != nil {
		t.Fatal(err)
	}
	text := v.GetAttr("text").AsString()
	decoded, err := base64.StdEncoding.DecodeString(v.GetAttr("base64").AsString())
	if err != nil {
		t.Fatal(err)
	}
	size, _ := v.GetAttr("size").AsBigFloat().Int64()
	if string(decoded) != text || int(size) != len(text) {
		t.Errorf("text, base64 and size differ: %d bytes, %d, %d", len(text), len(decoded), size)
	}
	if !strings.Contains(text, "lecafe-orders") || !strings.Contains(text, "app.sh") {
		t.Errorf("the payload lacks what it is made of:\n%s", text)
	}
	if found := userdata.Lint(decoded, userdata.Options{File: "payload"}); len(found) > 0 && found[0].Severity == userdata.Error {
		t.Errorf("the payload does not pass lint: %v", found)
	}
}

// TestConfigure refuses everything that is wrong at once, and a rule that is
// ignored is not an error.
func TestConfigure(t *testing.T) {
	bad := write(t, "bad.sh", "echo no header\n")
	err := new(Datasource).Configure(map[string]any{"scripts": []string{bad, "none.sh"}, "settings": []string{"none.yaml"}, "ignore": []string{"LC999"}})
	if err == nil {
		t.Fatal("bad settings went through")
	}
	for _, want := range []string{"bad.sh:1", "scripts: open none.sh", "settings: open none.yaml", `ignore: no lint rule "LC999"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}
