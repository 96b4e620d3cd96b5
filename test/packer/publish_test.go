package packer

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"

	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/test/boots"
)

// production is what runs before an image is published: a launch template, an
// Auto Scaling group of one that is pinned to its version 1, and a parameter.
type production struct {
	t      *testing.T
	l      *lab.Lab
	ec2    *ec2.Client
	groups *autoscaling.Client
	ssm    *ssm.Client
}

const imageParameter = "/images/cafe"

func newProduction(t *testing.T, l *lab.Lab) *production {
	t.Helper()
	p := &production{t, l, ec2.NewFromConfig(boots.Config(l)), autoscaling.NewFromConfig(boots.Config(l)), ssm.NewFromConfig(boots.Config(l))}
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(p.ec2.CreateLaunchTemplate(t.Context(), &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("cafe"), LaunchTemplateData: &types.RequestLaunchTemplateData{
		ImageId: aws.String(l.AMIs["debian-12"]), InstanceType: types.InstanceTypeT3Micro,
		IamInstanceProfile: &types.LaunchTemplateIamInstanceProfileSpecificationRequest{Name: aws.String("lecafe-app-profile")},
		MetadataOptions:    &types.LaunchTemplateInstanceMetadataOptionsRequest{HttpTokens: types.LaunchTemplateHttpTokensStateRequired, HttpPutResponseHopLimit: aws.Int32(1)},
		UserData:           aws.String(base64.StdEncoding.EncodeToString([]byte("#!/bin/bash\necho served > /run/served\n"))),
	}}))
	must(p.groups.CreateAutoScalingGroup(t.Context(), &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: aws.String("cafe"), MinSize: aws.Int32(0), MaxSize: aws.Int32(2), DesiredCapacity: aws.Int32(1), AvailabilityZones: []string{lab.Region + "a"},
		LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String("cafe"), Version: aws.String("1")},
	}))
	must(p.ssm.PutParameter(t.Context(), &ssm.PutParameterInput{Name: aws.String(imageParameter), Value: aws.String(l.AMIs["debian-12"]), Type: ssmtypes.ParameterTypeString}))
	boots.Eventually(t, "instance of the group", func() bool { return len(p.instances()) == 1 }, boots.Nothing)
	return p
}

// instances are the group's that are in service.
func (p *production) instances() (ids []string) {
	p.t.Helper()
	out, err := p.groups.DescribeAutoScalingGroups(p.t.Context(), &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{"cafe"}})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, i := range out.AutoScalingGroups[0].Instances {
		if i.LifecycleState == astypes.LifecycleStateInService {
			ids = append(ids, *i.InstanceId)
		}
	}
	return ids
}

// uses fails unless everything in production is on image.
func (p *production) uses(image string) {
	p.t.Helper()
	versions, err := p.ec2.DescribeLaunchTemplateVersions(p.t.Context(), &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateName: aws.String("cafe"), Versions: []string{"$Default"}})
	if err != nil {
		p.t.Fatal(err)
	}
	if got := aws.ToString(versions.LaunchTemplateVersions[0].LaunchTemplateData.ImageId); got != image {
		p.t.Errorf("the launch template's default version has %s, want %s", got, image)
	}
	value, err := p.ssm.GetParameter(p.t.Context(), &ssm.GetParameterInput{Name: aws.String(imageParameter)})
	if err != nil {
		p.t.Fatal(err)
	}
	if got := aws.ToString(value.Parameter.Value); got != image {
		p.t.Errorf("the parameter is %s, want %s", got, image)
	}
	out, err := p.ec2.DescribeInstances(p.t.Context(), &ec2.DescribeInstancesInput{InstanceIds: p.instances()})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			if aws.ToString(i.ImageId) != image {
				p.t.Errorf("the group's instance %s is of %s, want %s", *i.InstanceId, *i.ImageId, image)
			}
		}
	}
}

// images are those the lab's account owns.
func (p *production) images() []types.Image {
	p.t.Helper()
	out, err := p.ec2.DescribeImages(p.t.Context(), &ec2.DescribeImagesInput{Owners: []string{"self"}})
	if err != nil {
		p.t.Fatal(err)
	}
	return out.Images
}

// TestAmazonEBS builds Le Café's image in the lab's EC2 with the template that
// lecafe makes of its recipe: amazon-ebs, the provisioner, a canary from the
// real launch template, and promotion. Then a build whose canary fails.
func TestAmazonEBS(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-12"}, nil)
	p := newPacker(t, l)
	p.amazon()
	shop := newProduction(t, l)
	dir := copied(t, recipes["lecafe-app"])
	cmd := exec.CommandContext(t.Context(), filepath.Join(p.own, "lecafe"), "packer", "template", "--set", "agent.aws.endpoint_url="+l.URL,
		"--set", "canary={launch_template: cafe, deadline: 2m, test: [{name: application, run: test -x /opt/lecafe/lecafe-ordering}]}",
		"--set", "promote={launch_template: cafe, auto_scaling_group: cafe, ssm_parameter: "+imageParameter+"}", filepath.Join(dir, "recipe.yaml"))
	var notes bytes.Buffer
	cmd.Env, cmd.Stderr = p.env, &notes
	made, err := cmd.Output()
	if err != nil {
		t.Fatalf("lecafe packer template: %v\n%s", err, notes.String())
	}
	text := string(made)
	// Where this machine's EC2 is, and the way to its instances' sshd.
	here := fmt.Sprintf("  custom_endpoint_ec2 = %q\n  ssh_host = \"127.0.0.1\"\n  ssh_port = %d\n  skip_metadata_api_check = true\n  ami_name ", l.URL, sshPort(t, l, 2))
	text = strings.Replace(text, "  ami_name ", here, 1)
	text = strings.Replace(text, "temporary_security_group_source_public_ip = true", `temporary_security_group_source_cidrs = ["192.0.2.1/32"]`, 1)
	// The plugin's data source has no setting for another endpoint.
	before, data, _ := strings.Cut(text, "# Asked anew at each build.\n")
	_, after, ok := strings.Cut(data, "}\n")
	if !ok {
		t.Fatalf("no data source in the template:\n%s", text)
	}
	text = before + strings.Replace(after, "data.amazon-parameterstore.source.value", fmt.Sprintf("%q", l.AMIs["debian-12"]), 1)
	if err := os.WriteFile(filepath.Join(dir, "image.pkr.hcl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, code := p.run("build", "-var", "ssh_username=debian", dir)
	if code != 0 {
		t.Fatalf("packer build: exit code %d\n%s", code, out)
	}
	t.Log(out)
	image := artifact(t, filepath.Join(dir, "packer-manifest.json"))
	images := shop.images()
	if len(images) != 1 || images[0].ImdsSupport != types.ImdsSupportValuesV20 || aws.ToBool(images[0].Public) || tag(images[0].Tags, manifest.TagState) != manifest.StateDone {
		t.Errorf("images: %+v", images)
	}
	shop.uses(image)
	nothingLeft(t, l, shop.instances())
	inspect(t, l, image)
	for _, id := range shop.instances() {
		if r := boots.ReportOf(t, l, id); r.Verdict != "success" || r.Instance.ImageID != image {
			t.Errorf("report of %s: %s: %s (%+v)", id, r.Verdict, r.Summary, r.Causes)
		}
	}

	// From the image that stands, without a way in: only the canary differs.
	dir = write(t, map[string]string{"image.pkr.hcl": fmt.Sprintf(failingTemplate, l.URL, image), "broken.sh": "#!/bin/bash\ncp /nowhere/menu /run/menu\nexit 3\n"})
	out, code = p.run("build", dir)
	if code != 1 {
		t.Errorf("packer build with a canary that fails: exit code %d", code)
	}
	t.Log(out)
	for _, want := range []string{
		"script_exit in cloud-final", "exit code 3", "cp /nowhere/menu", "nothing was promoted", "Builds finished but no artifacts were created.",
		"Packer cannot remove it: deregistration protection is on",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the output does not say %q", want)
		}
	}
	shop.uses(image)
	// Packer has removed the one, and could not remove the other.
	left := map[string]string{}
	for _, i := range shop.images() {
		left[*i.Name] = tag(i.Tags, manifest.TagState)
	}
	if len(left) != 2 || left["kept"] != manifest.StateFailed {
		t.Errorf("images that are left: %v", left)
	}
	nothingLeft(t, l, shop.instances())
}

const failingTemplate = `
packer {
  required_plugins {
    amazon = { source = "github.com/hashicorp/amazon", version = ">= 1.3.4" }
    lecafe = { source = "github.com/lecafe/lecafe", version = ">= 0.1.0" }
  }
}
source "amazon-ebs" "image" {
  region                  = "us-east-1"
  custom_endpoint_ec2     = %q
  skip_metadata_api_check = true
  source_ami              = %q
  instance_type           = "t3.micro"
  communicator            = "none"
  temporary_security_group_source_cidrs = ["192.0.2.1/32"]
  aws_polling {
    delay_seconds = 1
    max_attempts  = 300
  }
}
build {
  source "amazon-ebs.image" {
    name     = "removed"
    ami_name = "removed"
  }
  source "amazon-ebs.image" {
    name     = "kept"
    ami_name = "kept"
  }
  post-processor "lecafe-publish" {
    recipe_name = "fails"
    keep_failed = source.name == "kept"
    staging { bucket = "lecafe-staging" }
    canary {
      instance_profile = "lecafe-app-profile"
      user_data        = "${path.root}/broken.sh"
      deadline         = "2m"
    }
    promote {
      launch_template    = "cafe"
      auto_scaling_group = "cafe"
      ssm_parameter      = "/images/cafe"
    }
  }
}
`

func tag(tags []types.Tag, key string) string {
	for _, t := range tags {
		if aws.ToString(t.Key) == key {
			return aws.ToString(t.Value)
		}
	}
	return ""
}

// artifact reads the image's ID from what Packer's manifest says.
func artifact(t *testing.T, path string) string {
	t.Helper()
	var manifest struct {
		Builds []struct {
			ArtifactID string `json:"artifact_id"`
		} `json:"builds"`
	}
	written, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(written, &manifest)
	}
	if err != nil || len(manifest.Builds) != 1 {
		t.Fatalf("manifest: %v\n%s", err, written)
	}
	_, image, ok := strings.Cut(manifest.Builds[0].ArtifactID, ":")
	if !ok {
		t.Fatalf("manifest: %s", written)
	}
	return image
}
