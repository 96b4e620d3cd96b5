package packer

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"

	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/test/boots"
)

// recordsLab is a lab whose instances are records, twenty times as fast as AWS.
func recordsLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.Start(t.Context(), lab.Options{Driver: lab.DriverNone, Seed: lab.LeCafe(), TimeScale: 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// publishTemplate builds an image of nothing and publishes it. What it is given
// is the endpoint, the source image, more of amazon-ebs and of lecafe-publish.
const publishTemplate = `
packer {
  required_plugins {
    amazon = { source = "github.com/hashicorp/amazon", version = ">= 1.3.4" }
    lecafe = { source = "github.com/lecafe/lecafe", version = ">= 0.1.0" }
  }
}
variable "name" { type = string }
source "amazon-ebs" "image" {
  region                  = "us-east-1"
  custom_endpoint_ec2     = %q
  skip_metadata_api_check = true
  source_ami              = %q
  instance_type           = "t3.micro"
  communicator            = "none"
  ami_name                = var.name
  aws_polling {
    delay_seconds = 1
    max_attempts  = 300
  }
}
build {
  sources = ["source.amazon-ebs.image"]
  post-processor "lecafe-publish" {
    recipe_name = "cafe"
    staging { bucket = "lecafe-staging" }
    %s
  }
}
`

const promoteBlock = `
    promote {
      launch_template    = "cafe"
      auto_scaling_group = "cafe"
      ssm_parameter      = "/images/cafe"
    }
`

// running is a Packer that builds, to be killed.
type running struct {
	*testing.T
	cmd *exec.Cmd
	out bytes.Buffer
}

func (p *packer) start(args ...string) *running {
	p.t.Helper()
	r := &running{T: p.t, cmd: exec.Command(p.bin, args...)}
	r.cmd.Env, r.cmd.Stdout, r.cmd.Stderr = p.env, &r.out, &r.out
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return r
}

// killAll kills Packer and all its plugins at once.
func (r *running) killAll() {
	if err := syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		r.Error(err)
	}
}

// killPublish kills the plugin process that is the post-processor, and nothing
// else.
func (r *running) killPublish() {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		r.Error(err)
	}
	for _, name := range lines {
		line, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(line, []byte("packer-plugin-lecafe")) || !bytes.Contains(line, []byte("\x00post-processor\x00")) {
			continue // one that has ended, or another
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			r.Error(err)
		}
		if group, err := syscall.Getpgid(pid); err != nil || group != r.cmd.Process.Pid {
			continue // another test's
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			r.Error(err)
		}
		return
	}
	r.Error("there is no post-processor to kill")
}

// end waits for Packer's own end; -1 is a signal's.
func (r *running) end() int {
	err := r.cmd.Wait()
	if r.cmd.ProcessState == nil {
		r.Fatal(err)
	}
	r.Log(r.out.String())
	return r.cmd.ProcessState.ExitCode()
}

// TestKilledInPublish kills Packer, or the post-processor alone, in the midst
// of publishing an image. Production has what it had, or what was being
// promoted; lecafe gc removes what is left; and the next build is published.
func TestKilledInPublish(t *testing.T) {
	for name, c := range map[string]struct {
		at     string // canary: it runs; else a call that has just been answered
		plugin bool   // the post-processor alone is killed
		image  bool   // it stands afterwards
		gc     bool   // there is something to remove
		next   string // build: another image; promote: lecafe images promote goes on with this one
	}{
		"the canary runs":               {at: "canary", image: true, gc: true, next: "build"},
		"the canary runs, plugin":       {at: "canary", plugin: true, gc: true},
		"a version, not default":        {at: "CreateLaunchTemplateVersion", image: true, next: "build"},
		"the refresh has begun, plugin": {at: "StartInstanceRefresh", plugin: true, image: true, next: "promote"},
		"default, parameter not":        {at: "ModifyLaunchTemplate", image: true, next: "promote"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := recordsLab(t)
			p := newPacker(t, l)
			p.amazon()
			shop := newProduction(t, l)
			old := l.AMIs["debian-12"]
			dir := write(t, map[string]string{"image.pkr.hcl": fmt.Sprintf(publishTemplate, l.URL, old, promoteBlock)})

			var once sync.Once
			r := (*running)(nil)
			started := make(chan struct{})
			kill := func() {
				once.Do(func() {
					<-started
					if c.plugin {
						r.killPublish()
					} else {
						r.killAll()
					}
				})
			}
			if c.at == "canary" {
				l.EC2.Watch(func(_, id string) {
					if i, ok := l.EC2.Instance(id); ok && i.State == "running" && i.Tags[manifest.TagRole] == "canary" {
						kill()
					}
				})
			} else {
				answer(t, l)
				l.OnCall(func(call cloud.Call) {
					if call.Action == c.at && !call.Presigned {
						kill()
					}
				})
			}
			r = p.start("build", "-var", "name=first", dir)
			close(started)
			if code := r.end(); c.plugin && code != 1 || !c.plugin && code != -1 {
				t.Fatalf("packer build: exit code %d", code)
			}
			if c.at == "canary" {
				answer(t, l)
			}
			shop.settled()

			images := shop.images()
			if (len(images) == 1) != c.image {
				t.Errorf("images after the kill: %+v", images)
			}
			// Whatever was done of the promotion, the parameter comes last.
			if v := shop.parameter(); v != old {
				t.Errorf("the parameter is %s", v)
			}
			gc := exec.CommandContext(t.Context(), filepath.Join(p.own, "lecafe"), "gc", "--yes")
			gc.Env = p.env
			out, err := gc.CombinedOutput()
			t.Logf("%s", out)
			if err != nil || c.gc != strings.Contains(string(out), "bake-") {
				t.Errorf("lecafe gc: %v\n%s", err, out)
			}
			if len(shop.images()) != len(images) {
				t.Errorf("gc removed Packer's image:\n%s", out)
			}
			nothingLeft(t, l, shop.instances())

			switch c.next {
			case "promote":
				promote := exec.CommandContext(t.Context(), filepath.Join(p.own, "lecafe"), "images", "promote",
					"--launch-template", "cafe", "--asg", "cafe", "--ssm-parameter", imageParameter, *images[0].ImageId)
				promote.Env = p.env
				if out, err := promote.CombinedOutput(); err != nil {
					t.Fatalf("lecafe images promote: %v\n%s", err, out)
				}
				shop.uses(*images[0].ImageId)
			case "build":
				if out, code := p.run("build", "-var", "name=second", dir); code != 0 {
					t.Fatalf("the next packer build: exit code %d\n%s", code, out)
				}
				shop.uses(shop.named("second"))
				for _, i := range shop.images() {
					if *i.Name == "second" && aws.ToString(i.DeregistrationProtection) != "disabled" {
						t.Errorf("the image that was promoted is left protected: %s", *i.DeregistrationProtection)
					}
				}
			}
			nothingLeft(t, l, shop.instances())
		})
	}
}

// settled waits for the end of a refresh that is under way: Auto Scaling goes
// on with it whoever began it.
func (p *production) settled() {
	p.t.Helper()
	boots.Eventually(p.t, "end of the refresh", func() bool {
		out, err := p.groups.DescribeInstanceRefreshes(p.t.Context(), &autoscaling.DescribeInstanceRefreshesInput{AutoScalingGroupName: aws.String("cafe")})
		if err != nil {
			p.t.Fatal(err)
		}
		for _, r := range out.InstanceRefreshes {
			if r.Status != astypes.InstanceRefreshStatusSuccessful {
				return false
			}
		}
		return len(p.instances()) == 1
	}, boots.Nothing)
}

func (p *production) parameter() string {
	p.t.Helper()
	out, err := p.ssm.GetParameter(p.t.Context(), &ssm.GetParameterInput{Name: aws.String(imageParameter)})
	if err != nil {
		p.t.Fatal(err)
	}
	return aws.ToString(out.Parameter.Value)
}

func (p *production) named(name string) string {
	p.t.Helper()
	for _, i := range p.images() {
		if aws.ToString(i.Name) == name && i.State == types.ImageStateAvailable {
			return *i.ImageId
		}
	}
	p.t.Fatalf("there is no image %q", name)
	return ""
}
