package packer

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
)

// publisher gives the post-processor a profile that has the printed policy and
// nothing else; Packer's builder keeps the operator's key. It returns what the
// policy grants.
func (p *packer) publisher(l *lab.Lab, args ...string) (granted []string) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), filepath.Join(p.own, "lecafe"), append([]string{"--region", lab.Region, "policy", "packer", "--account", "000000000000", "--staging", "s3://lecafe-staging"}, args...)...)
	doc, err := cmd.Output()
	if err != nil {
		p.t.Fatal(err)
	}
	var d struct {
		Statement []struct {
			Sid    string
			Action []string
		}
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		p.t.Fatal(err)
	}
	sids := map[string]bool{}
	for _, s := range d.Statement {
		if sids[s.Sid] {
			p.t.Errorf("two statements are called %s", s.Sid)
		}
		sids[s.Sid] = true
		granted = append(granted, s.Action...)
	}
	creds, err := (&cloudtest.Cloud{Cloud: l.Cloud, URL: l.URL}).Role(p.t, "publisher", doc).Credentials.Retrieve(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	config := filepath.Join(p.t.TempDir(), "config")
	text := fmt.Sprintf("[profile publisher]\naws_access_key_id = %s\naws_secret_access_key = %s\naws_session_token = %s\n", creds.AccessKeyID, creds.SecretAccessKey, creds.SessionToken)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.env = append(p.env, "AWS_CONFIG_FILE="+config, "AWS_SHARED_CREDENTIALS_FILE=/dev/null")
	return granted
}

// failCanaries has the next n canaries say that they failed; those after them
// say that they are up.
func failCanaries(t *testing.T, l *lab.Lab, n int) {
	seen := make(chan string, 16)
	l.EC2.Watch(func(_, id string) {
		if i, ok := l.EC2.Instance(id); ok && i.State == "running" && i.Tags[manifest.TagRole] == "canary" {
			seen <- id
		}
	})
	go func() {
		done := map[string]bool{}
		for {
			select {
			case id := <-seen:
				i, ok := l.EC2.Instance(id)
				if !ok || done[id] {
					continue
				}
				done[id] = true
				verdict := report.Success
				if len(done) <= n {
					verdict = report.Failure
				}
				if err := result(l, i, verdict); err != nil {
					t.Errorf("instance %s: %v", id, err)
				}
			case <-t.Context().Done():
				return
			}
		}
	}()
}

// TestPublishsPolicyIsWhatIsNeeded: whoever has what lecafe policy packer
// prints and nothing else can have images published, or refused, by the real
// Packer, and has no action too many.
func TestPublishsPolicyIsWhatIsNeeded(t *testing.T) {
	compare := func(t *testing.T, l *lab.Lab, granted []string, besides ...string) {
		t.Helper()
		// Of a canary that died, and of one that was terminated without its
		// volumes.
		used := slices.Concat(cloudtest.Permissions(l.Calls(), "publisher"), besides, []string{"ec2:GetConsoleOutput", "ec2:DeleteVolume"})
		slices.Sort(used)
		slices.Sort(granted)
		if d := cmp.Diff(slices.Compact(granted), slices.Compact(used)); d != "" {
			t.Errorf("granted and not needed -, needed and not granted +\n%s", d)
		}
	}
	for name, c := range map[string]struct {
		block string
		args  []string
	}{
		"a canary of its own":    {"keep_failed = true\ncanary {\ninstance_profile = \"lecafe-app-profile\"\nsubnet = \"SUBNET\"\n}", []string{"--keep-failed", "--subnet", "--instance-profile", "lecafe-app-profile"}},
		"in its security groups": {"canary {\nsecurity_groups = [\"GROUP\"]\n}", []string{"--security-groups"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := recordsLab(t)
			p := newPacker(t, l)
			p.amazon()
			api := newProduction(t, l).ec2
			subnets, err := api.DescribeSubnets(t.Context(), &ec2.DescribeSubnetsInput{})
			if err != nil {
				t.Fatal(err)
			}
			groups, err := api.DescribeSecurityGroups(t.Context(), &ec2.DescribeSecurityGroupsInput{})
			if err != nil {
				t.Fatal(err)
			}
			block := strings.NewReplacer("SUBNET", *subnets.Subnets[0].SubnetId, "GROUP", *groups.SecurityGroups[0].GroupId).Replace(c.block)
			dir := write(t, map[string]string{"image.pkr.hcl": fmt.Sprintf(publishTemplate, l.URL, l.AMIs["debian-12"], "profile = \"publisher\"\n"+block)})
			granted := p.publisher(l, c.args...)
			// All that success needs, and the undoing besides.
			failCanaries(t, l, 1)
			if out, code := p.run("build", "-var", "name=first", dir); code != 1 || !strings.Contains(out, "nothing was promoted") || strings.Contains(out, "not everything could be undone") {
				t.Fatalf("packer build: exit code %d\n%s", code, out)
			}
			compare(t, l, granted)
		})
	}
	t.Run("promoted", func(t *testing.T) {
		t.Parallel()
		l := recordsLab(t)
		p := newPacker(t, l)
		p.amazon()
		shop := newProduction(t, l)
		if _, err := shop.groups.UpdateAutoScalingGroup(t.Context(), &autoscaling.UpdateAutoScalingGroupInput{
			AutoScalingGroupName: aws.String("cafe"), LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String("cafe"), Version: aws.String("$Latest")},
		}); err != nil {
			t.Fatal(err)
		}
		block := "profile = \"publisher\"\ncanary {\nlaunch_template = \"cafe\"\n}" + strings.Replace(promoteBlock, "promote {", "promote {\npin = true", 1)
		dir := write(t, map[string]string{"image.pkr.hcl": fmt.Sprintf(publishTemplate, l.URL, l.AMIs["debian-12"], block)})
		granted := p.publisher(l, "--canary-launch-template", "cafe", "--launch-template", "cafe", "--asg", "cafe", "--ssm-parameter", imageParameter, "--pin")
		failCanaries(t, l, 1)
		if out, code := p.run("build", "-var", "name=first", dir); code != 1 || !strings.Contains(out, "nothing was promoted") || strings.Contains(out, "not everything could be undone") {
			t.Fatalf("packer build with a canary that fails: exit code %d\n%s", code, out)
		}
		if out, code := p.run("build", "-var", "name=second", dir); code != 0 {
			t.Fatalf("packer build: exit code %d\n%s", code, out)
		}
		second := shop.named("second")
		shop.uses(second)
		// Ctrl-C while a refresh gets nowhere rolls it back.
		var r *running
		started := make(chan struct{})
		l.OnCall(func(c cloud.Call) {
			switch c.Action {
			case "StartInstanceRefresh":
				<-started
				l.EC2.Capacity("", "", false)
				// To all of them, as a terminal does it.
				if err := syscall.Kill(-r.cmd.Process.Pid, syscall.SIGINT); err != nil {
					t.Error(err)
				}
			case "RollbackInstanceRefresh":
				l.EC2.Capacity("", "", true)
			}
		})
		r = p.start("build", "-var", "name=third", dir)
		close(started)
		if code := r.end(); code != 1 || !strings.Contains(r.out.String(), "rolling the instance refresh back") {
			t.Errorf("packer build that is interrupted: exit code %d", code)
		}
		shop.uses(second)
		compare(t, l, granted, "iam:PassRole") // of the launch template's profile, which the cloud does not ask for
	})
}
