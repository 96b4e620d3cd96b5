package packer

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// template is a build of the null builder around one block.
func template(blocks, provisioner string) string {
	return `
packer {
  required_plugins {
    lecafe = {
      source  = "github.com/lecafe/lecafe"
      version = ">= 0.1.0"
    }
  }
}
` + blocks + `
source "null" "machine" { communicator = "none" }
build {
  sources = ["source.null.machine"]
` + provisioner + `
}
`
}

// TestDescribe asks the plugin what it is, as Packer does.
func TestDescribe(t *testing.T) {
	p := newPacker(t, nil)
	out, err := exec.CommandContext(t.Context(), filepath.Join(p.own, "packer-plugin-lecafe"), "describe").Output()
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Version      string   `json:"version"`
		APIVersion   string   `json:"api_version"`
		Provisioners []string `json:"provisioners"`
		Datasources  []string `json:"datasources"`
	}
	if err := json.Unmarshal(out, &d); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Packer's own name for "the plugin's name without more".
	if d.APIVersion != "x5.0" || !strings.HasPrefix(d.Version, "0.") || strings.Join(d.Provisioners, " ") != "-packer-default-plugin-name-" || strings.Join(d.Datasources, " ") != "userdata" {
		t.Errorf("describe: %s", out)
	}
	installed, code := p.run("plugins", "installed")
	if code != 0 || !strings.Contains(installed, "packer-plugin-lecafe_v"+d.Version+"_x5.0_linux_") {
		t.Errorf("packer plugins installed: exit code %d\n%s", code, installed)
	}
}

// TestValidate shows bad settings to `packer validate`: it names every one at
// once, by its attribute.
func TestValidate(t *testing.T) {
	p := newPacker(t, nil)
	for _, c := range []struct {
		name   string
		blocks string
		block  string
		files  map[string]string
		want   []string // empty: the template is valid
	}{
		{
			name: "good provisioner",
			block: `provisioner "lecafe" { 
    settings = "${path.root}/agent.yaml"
    keep     = ["swap"]
  }`,
			files: map[string]string{"agent.yaml": "report:\n  s3: {bucket: reports}\n"},
		},
		{
			name: "bad provisioner",
			block: `provisioner "lecafe" {
    settings = "${path.root}/agent.yaml"
    programs = "${path.root}"
    keep     = ["swap", "sawp"]
  }`,
			files: map[string]string{"agent.yaml": "report:\n  s3: {buckets: reports}\nbootstrap:\n  deadline: soon\n"},
			want:  []string{"settings: ", "agent.yaml:2", "buckets", `"sawp"`, "keep: ", "programs: no lecafe-builder for linux", "no lecafe-agent for linux"},
		},
		{
			name: "contradiction",
			block: `provisioner "lecafe" {
    settings   = "${path.root}/none.yaml"
    skip_agent = true
    programs   = "${path.root}/none"
  }`,
			want: []string{"settings: open ", "none.yaml: no such file", "settings: no use with skip_agent", "programs: ", "is not a directory"},
		},
		{
			name:  "unknown attribute",
			block: `provisioner "lecafe" { setings = "x" }`,
			want:  []string{`An argument named "setings" is not expected here. Did you mean "settings"?`},
		},
		{
			name: "good data",
			blocks: `data "lecafe-userdata" "app" {
  settings      = ["${path.root}/agent.yaml"]
  cloud_configs = ["${path.root}/users.yaml"]
  scripts       = ["${path.root}/app.sh"]
}
locals { payload = data.lecafe-userdata.app.text }`,
			files: map[string]string{
				"agent.yaml": "orders:\n  queue: lecafe-orders\n",
				"users.yaml": "#cloud-config\npackages: [jq]\n",
				"app.sh":     "#!/bin/bash\nset -euo pipefail\ntouch /run/app\n",
			},
		},
		{
			name: "bad data",
			blocks: `data "lecafe-userdata" "app" {
  settings = ["${path.root}/agent.yaml"]
  scripts  = ["${path.root}/app.sh", "${path.root}/none.sh"]
  ignore   = ["LC999"]
}`,
			files: map[string]string{
				"agent.yaml": "orders:\n  queu: lecafe-orders\n",
				"app.sh":     "echo no header\n",
			},
			want: []string{"settings: ", "agent.yaml:2", "queu", "scripts: ", "app.sh:1:1: ", "none.sh: no such file", "ignore: ", `"LC999"`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"image.pkr.hcl": template(c.blocks, c.block)}
			for name, content := range c.files {
				files[name] = content
			}
			out, code := p.run("validate", write(t, files))
			if len(c.want) == 0 {
				if code != 0 || !strings.Contains(out, "The configuration is valid.") {
					t.Errorf("exit code %d\n%s", code, out)
				}
				return
			}
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			// Packer breaks lines to fit 78 columns.
			flat := strings.Join(strings.Fields(out), " ")
			for _, w := range c.want {
				if !strings.Contains(flat, w) {
					t.Errorf("the output does not say %q:\n%s", w, out)
				}
			}
		})
	}
}
