package packer

import (
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sys/unix"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/bake/cleanup/secrets"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/lab"
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
	l := startLab(t)
	p := newPacker(t, l)
	dir := write(t, map[string]string{"image.pkr.hcl": nullTemplate, "agent.yaml": agentSettings(l)})
	key := newKey(t, l, dir)
	id := runInstance(t, l, l.AMIs["debian-12"], key, "")
	runInstance(t, l, l.AMIs["debian-12"], key, "")

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

	api := ec2.NewFromConfig(config(l))
	if _, err := api.StopInstances(t.Context(), &ec2.StopInstancesInput{InstanceIds: []string{id}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "stopped builder", func() bool {
		info, _ := l.EC2.Instance(id)
		return info.State == "stopped"
	}, func() string { return console(l, id) })
	made, err := api.CreateImage(t.Context(), &ec2.CreateImageInput{InstanceId: &id, Name: aws.String("by-packer")})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "available image", func() bool {
		d, err := api.DescribeImages(t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{*made.ImageId}})
		return err == nil && len(d.Images) == 1 && d.Images[0].State == types.ImageStateAvailable
	}, func() string { return "" })
	clean(t, l, *made.ImageId)
	boots(t, l, *made.ImageId)
}

// newKey makes a key pair in the lab's EC2, with its private half in dir/key,
// and returns its name.
func newKey(t *testing.T, l *lab.Lab, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "key")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path).CombinedOutput(); err != nil {
		cannot(t, "builds over ssh", fmt.Errorf("ssh-keygen: %w %s", err, out))
	}
	public, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ec2.NewFromConfig(config(l)).ImportKeyPair(t.Context(), &ec2.ImportKeyPairInput{KeyName: aws.String("packer"), PublicKeyMaterial: public}); err != nil {
		t.Fatal(err)
	}
	return "packer"
}

func runInstance(t *testing.T, l *lab.Lab, imageID, key, userData string) string {
	t.Helper()
	in := &ec2.RunInstancesInput{
		ImageId: &imageID, InstanceType: types.InstanceTypeT3Micro, MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
		UserData:           aws.String(base64.StdEncoding.EncodeToString([]byte(userData))),
		IamInstanceProfile: &types.IamInstanceProfileSpecification{Name: aws.String("lecafe-app-profile")},
		MetadataOptions:    &types.InstanceMetadataOptionsRequest{HttpTokens: types.HttpTokensStateRequired, HttpPutResponseHopLimit: aws.Int32(1)},
	}
	if key != "" {
		in.KeyName = &key
	}
	out, err := ec2.NewFromConfig(config(l)).RunInstances(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.Instances[0].InstanceId)
}

// clean fails where an image holds what must not be in one. It looks before
// the image has booted.
func clean(t *testing.T, l *lab.Lab, imageID string) {
	t.Helper()
	layers, err := l.Machines.Layers(imageID)
	if err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	if err := unix.Mount("overlay", tree, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(layers, ":")); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(tree, 0); err != nil {
			t.Error(err)
		}
	}()
	scanner, err := secrets.New()
	if err != nil {
		t.Fatal(err)
	}
	found, err := cleanup.Inspect(t.Context(), cleanup.Options{Root: tree, Scanner: scanner})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("in the image: %s", f)
	}
	for _, path := range []string{manifest.Dir, manifest.LastHook, "/home/debian/.ssh/authorized_keys"} {
		if _, err := os.Lstat(filepath.Join(tree, path)); err == nil {
			t.Errorf("%s is left in the image", path)
		}
	}
	for _, path := range []string{"/usr/bin/lecafe-agent", "/etc/lecafe/agent.yaml", "/usr/lib/lecafe/trap.sh"} {
		if _, err := os.Lstat(filepath.Join(tree, path)); err != nil {
			t.Errorf("the image lacks %s: %v", path, err)
		}
	}
}

// boots launches an image and expects its agent's good report.
func boots(t *testing.T, l *lab.Lab, imageID string) {
	t.Helper()
	id := runInstance(t, l, imageID, "", "#!/bin/bash\nset -euo pipefail\necho served > /run/served\n")
	r := reportOf(t, l, id)
	if r.Verdict != report.Success || r.Instance.ID != id || r.Instance.ImageID != imageID {
		t.Errorf("report of %s: %s: %s (%+v)", id, r.Verdict, r.Summary, r.Causes)
	}
}

func reportOf(t *testing.T, l *lab.Lab, id string) *report.Report {
	t.Helper()
	var r *report.Report
	eventually(t, "report of "+id, func() bool {
		for _, key := range l.S3.Objects("lecafe-reports", "lecafe-reports/") {
			k, err := report.ParseKey(key)
			if err != nil || k.InstanceID() != id || k.Kind != report.KindBootstrap {
				continue
			}
			api := s3api.NewFromConfig(config(l), func(o *s3api.Options) { o.UsePathStyle = true })
			out, err := api.GetObject(t.Context(), &s3api.GetObjectInput{Bucket: aws.String("lecafe-reports"), Key: &key})
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(out.Body)
			if err != nil {
				t.Fatal(err)
			}
			if r, err = report.Decode(body); err != nil {
				t.Fatal(err)
			}
			return true
		}
		return false
	}, func() string { return console(l, id) })
	return r
}

func console(l *lab.Lab, id string) string {
	out, _ := l.Machines.Console(id)
	return string(out[max(0, len(out)-4000):])
}
