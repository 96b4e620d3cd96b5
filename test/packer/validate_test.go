package packer

import (
	"encoding/json"
	"os"
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
		PostProcs    []string `json:"post_processors"`
		Datasources  []string `json:"datasources"`
	}
	if err := json.Unmarshal(out, &d); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Packer's own name for "the plugin's name without more".
	if d.APIVersion != "x5.0" || !strings.HasPrefix(d.Version, "0.") || strings.Join(d.Provisioners, " ") != "-packer-default-plugin-name-" || strings.Join(d.PostProcs, " ") != "publish" || strings.Join(d.Datasources, " ") != "userdata" {
		t.Errorf("describe: %s", out)
	}
	installed, code := p.run("plugins", "installed")
	if code != 0 || !strings.Contains(installed, "packer-plugin-lecafe_v"+d.Version+"_x5.0_linux_") {
		t.Errorf("packer plugins installed: exit code %d\n%s", code, installed)
	}
}

// TestValidate shows settings to `packer validate`: it says of bad ones every
// one at once, by block and attribute, as testdata/validate has it
// (LECAFE_UPDATE=1 writes that anew).
func TestValidate(t *testing.T) {
	p := newPacker(t, nil)
	for _, c := range []struct {
		name   string
		blocks string
		block  string
		files  map[string]string
		good   bool
	}{
		{
			name: "provisioner", good: true,
			block: `provisioner "lecafe" { 
    settings = "${path.root}/agent.yaml"
    keep     = ["swap"]
  }`,
			files: map[string]string{"agent.yaml": "report:\n  s3: {bucket: reports}\n"},
		},
		{
			name: "bad-provisioner",
			block: `provisioner "lecafe" {
    settings = "${path.root}/agent.yaml"
    programs = "${path.root}"
    keep     = ["swap", "sawp"]
  }`,
			files: map[string]string{"agent.yaml": "report:\n  s3: {buckets: reports}\nbootstrap:\n  deadline: soon\n"},
		},
		{
			name: "contradicting-provisioner",
			block: `provisioner "lecafe" {
    settings         = "${path.root}/none.yaml"
    settings_content = "orders: {queue: q}"
    skip_agent       = true
    programs         = "${path.root}/none"
  }`,
		},
		{
			name:  "unknown-attribute",
			block: `provisioner "lecafe" { setings = "x" }`,
		},
		{
			name: "data", good: true,
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
			name: "bad-data",
			blocks: `data "lecafe-userdata" "app" {
  settings = ["${path.root}/agent.yaml"]
  scripts  = ["${path.root}/app.sh", "${path.root}/none.sh"]
  ignore   = ["LC999"]
}`,
			files: map[string]string{
				"agent.yaml": "orders:\n  queu: lecafe-orders\n",
				"app.sh":     "echo no header\n",
			},
		},
		{
			name: "post-processor", good: true,
			block: `post-processor "lecafe-publish" {
    recipe_name = "shop"
    staging { bucket = "staging" }
    canary {
      launch_template = "shop"
      user_data       = "${path.root}/app.sh"
      deadline        = "90s"
      test {
        name = "answers"
        run  = "curl -sf http://localhost"
      }
      test { script = "${path.root}/app.sh" }
    }
    promote {
      launch_template    = "shop"
      auto_scaling_group = "shop"
      timeout            = "1h"
    }
  }`,
			files: map[string]string{"app.sh": "#!/bin/bash\ntouch /run/app\n"},
		},
		{
			name:  "least-post-processor",
			good:  true,
			block: "post-processor \"lecafe-publish\" {\n    recipe_name = \"shop\"\n    staging { bucket = \"staging\" }\n  }",
		},
		{
			name: "bad-post-processor",
			block: `post-processor "lecafe-publish" {
    recipe_name = "The Shop"
    region      = "europe"
    programs    = "${path.root}"
    tags        = { "aws:x" = "y" }
    staging { bucket = "s3://staging" }
    canary {
      launch_template     = "shop"
      instance_type       = "large"
      subnet              = "subnet-1"
      security_groups     = ["sg-0123456789abcdef0", "web"]
      associate_public_ip = true
      user_data           = "${path.root}/none.sh"
      deadline            = "soon"
      test {}
      test {
        run     = "if true"
        timeout = "1ms"
      }
      test { script = "${path.root}/none.sh" }
    }
    promote {
      auto_scaling_group = "shop"
      ssm_parameter      = "not a name"
      min_healthy        = 101
      timeout            = "1s"
    }
  }`,
		},
		{
			name:  "empty-post-processor",
			block: "post-processor \"lecafe-publish\" {\n    staging {}\n    promote {}\n  }",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"image.pkr.hcl": template(c.blocks, c.block)}
			for name, content := range c.files {
				files[name] = content
			}
			dir := write(t, files)
			out, code := p.run("validate", dir)
			if c.good {
				if code != 0 || !strings.Contains(out, "The configuration is valid.") {
					t.Errorf("exit code %d\n%s", code, out)
				}
				return
			}
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			got := flat(strings.ReplaceAll(out, dir, "DIR"))
			golden := filepath.Join("testdata/validate", c.name+".txt")
			if os.Getenv("LECAFE_UPDATE") != "" {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the output is not %s:\n%s", golden, got)
			}
		})
	}
}

// flat takes back what Packer does to fit lines into 78 columns: where it
// breaks them depends on the length of the directory's name.
func flat(out string) string {
	text := strings.Join(strings.Fields(out), " ")
	for _, begin := range []string{"Error: ", "on DIR", "* "} {
		text = strings.ReplaceAll(text, " "+begin, "\n"+begin)
	}
	return text + "\n"
}
