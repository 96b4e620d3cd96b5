package packer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/test/boots"
)

// nullTemplate builds on a machine that is there already.
const nullTemplate = `
packer {
  required_plugins {
    lecafe = {
      source  = "github.com/lecafe/lecafe"
      version = ">= 0.1.0"
    }
  }
}
variable "port" { type = number }
variable "steps" {
  type    = list(string)
  default = ["true"]
}
source "null" "machine" {
  ssh_host             = "127.0.0.1"
  ssh_port             = var.port
  ssh_username         = "debian"
  ssh_private_key_file = "${path.root}/key"
  ssh_timeout          = "4m"
}
build {
  sources = ["source.null.machine"]
  provisioner "shell" {
    inline          = var.steps
    execute_command = "chmod +x {{ .Path }}; sudo -n {{ .Vars }} {{ .Path }}"
  }
  provisioner "lecafe" {
    settings = "${path.root}/agent.yaml"
  }
}
`

// agentSettings are what the image's agent needs in the lab.
func agentSettings(l *lab.Lab) string {
	return fmt.Sprintf("report:\n  s3: {bucket: lecafe-reports, prefix: lecafe-reports}\naws: {endpoint_url: %q}\n", l.URL)
}

// TestProvisioner builds an image with Packer on a real boot, and beside it
// one that a planted private key has to stop.
func TestProvisioner(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-12"}, nil)
	p := newPacker(t, l)
	dir := write(t, map[string]string{"image.pkr.hcl": nullTemplate, "agent.yaml": agentSettings(l)})
	key := newKey(t, l, dir)
	withKey := func(in *ec2.RunInstancesInput) { in.KeyName = &key }
	id := boots.RunInstance(t, l, l.AMIs["debian-12"], "", withKey)
	boots.RunInstance(t, l, l.AMIs["debian-12"], "", withKey)

	out, code := p.run("build", "-var", fmt.Sprintf("port=%d", sshPort(t, l, 1)), dir)
	if code != 0 {
		t.Fatalf("packer build: exit code %d\n%s", code, out)
	}
	t.Log(out)

	plant := `steps=["mkdir -p /opt/app", "ssh-keygen -q -t ed25519 -N '' -f /opt/app/key.pem"]`
	out, code = p.run("build", "-var", fmt.Sprintf("port=%d", sshPort(t, l, 2)), "-var", plant, dir)
	if code == 0 {
		t.Errorf("a planted private key went through:\n%s", out)
	}
	for _, want := range []string{"/opt/app/key.pem", "private-key", "1 finding:"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output does not say %q:\n%s", want, out)
		}
	}
	t.Log(out)

	image := boots.Capture(t, l, id, "by-packer")
	inspect(t, l, image)
	serves(t, l, image)
}

// newKey makes a key pair in the lab's EC2, with its private half in dir/key,
// and returns its name.
func newKey(t *testing.T, l *lab.Lab, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "key")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path).CombinedOutput(); err != nil {
		boots.Cannot(t, "builds over ssh", fmt.Errorf("ssh-keygen: %w %s", err, out))
	}
	public, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ec2.NewFromConfig(boots.Config(l)).ImportKeyPair(t.Context(), &ec2.ImportKeyPairInput{KeyName: aws.String("packer"), PublicKeyMaterial: public}); err != nil {
		t.Fatal(err)
	}
	return "packer"
}

// inspect looks into an image that Packer has built, before it has booted.
func inspect(t *testing.T, l *lab.Lab, imageID string) {
	t.Helper()
	boots.Inspect(t, l, imageID, []string{"/usr/lib/lecafe/trap.sh"}, []string{"/home/debian/.ssh/authorized_keys"})
}

// serves launches an image and expects its agent's good report.
func serves(t *testing.T, l *lab.Lab, imageID string) {
	t.Helper()
	id := boots.RunInstance(t, l, imageID, "#!/bin/bash\nset -euo pipefail\necho served > /run/served\n", nil)
	r := boots.ReportOf(t, l, id)
	if r.Verdict != report.Success || r.Instance.ID != id || r.Instance.ImageID != imageID {
		t.Errorf("report of %s: %s: %s (%+v)", id, r.Verdict, r.Summary, r.Causes)
	}
}
