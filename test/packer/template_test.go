package packer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/lab"
)

// amazon installs the amazon plugin too.
func (p *packer) amazon() {
	p.t.Helper()
	path, err := amazonTool()
	if err != nil {
		cannot(p.t, "Packer's amazon plugin", err)
	}
	p.install("amazon", path)
}

// recipes are those whose template is kept in testdata, by its name.
var recipes = map[string]string{
	"lecafe-app": root + "/examples/lecafe-app/recipe.yaml",
	"everything": "testdata/everything/recipe.yaml",
}

// copied copies a recipe's directory, for a template to be written into it.
func copied(t *testing.T, recipe string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "recipe")
	if err := os.CopyFS(dir, os.DirFS(filepath.Dir(recipe))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestTemplate makes templates of recipes, compares them with those that are
// kept (LECAFE_UPDATE=1 writes them anew) and has Packer validate them.
func TestTemplate(t *testing.T) {
	p := newPacker(t, nil)
	p.amazon()
	p.env = append(p.env, "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true")
	for name, recipe := range recipes {
		t.Run(name, func(t *testing.T) {
			dir := copied(t, recipe)
			made := filepath.Join(dir, "image.pkr.hcl")
			cmd := exec.CommandContext(t.Context(), filepath.Join(p.own, "lecafe"), "packer", "template", "--output", made, filepath.Join(dir, "recipe.yaml"))
			var notes bytes.Buffer
			cmd.Stderr = &notes
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s", err, notes.String())
			}
			t.Log(notes.String())
			got, err := os.ReadFile(made)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".pkr.hcl")
			if os.Getenv("LECAFE_UPDATE") != "" {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the template is not %s:\n%s", golden, got)
			}
			if out, code := p.run("validate", made); code != 0 {
				t.Errorf("packer validate: exit code %d\n%s", code, out)
			}
			if out, code := p.run("fmt", "-check", "-diff", made); code != 0 {
				t.Errorf("packer fmt -check: exit code %d\n%s", code, out)
			}
		})
	}
}

// TestAmazonEBS builds Le Café's image in the lab's EC2 with the template that
// lecafe makes of its recipe, and publishes it to a launch template.
func TestAmazonEBS(t *testing.T) {
	t.Parallel()
	l := startLab(t)
	p := newPacker(t, l)
	p.amazon()
	dir := copied(t, recipes["lecafe-app"])
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), filepath.Join(p.own, "lecafe"), args...)
		cmd.Env = p.env
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("lecafe %s: %v\n%s", strings.Join(args, " "), err, errs.String())
		}
		return out.String()
	}
	text := run("packer", "template", "--set", "agent.aws.endpoint_url="+l.URL, filepath.Join(dir, "recipe.yaml"))
	// Where this machine's EC2 is, and the way to its instances' sshd.
	here := fmt.Sprintf("  custom_endpoint_ec2 = %q\n  ssh_host = \"127.0.0.1\"\n  ssh_port = %d\n  skip_metadata_api_check = true\n  ami_name ", l.URL, sshPort(t, l, 1))
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

	var manifest struct {
		Builds []struct {
			ArtifactID string `json:"artifact_id"`
		} `json:"builds"`
	}
	written, err := os.ReadFile(filepath.Join(dir, "packer-manifest.json"))
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
	api := ec2.NewFromConfig(config(l))
	images, err := api.DescribeImages(t.Context(), &ec2.DescribeImagesInput{ImageIds: []string{image}})
	if err != nil {
		t.Fatal(err)
	}
	if i := images.Images[0]; i.ImdsSupport != types.ImdsSupportValuesV20 || aws.ToBool(i.Public) {
		t.Errorf("image: IMDS %q, public %v", i.ImdsSupport, aws.ToBool(i.Public))
	}
	nothingLeft(t, l)
	clean(t, l, image)
	boots(t, l, image)
	if _, err := api.CreateLaunchTemplate(t.Context(), &ec2.CreateLaunchTemplateInput{
		LaunchTemplateName: aws.String("cafe"), LaunchTemplateData: &types.RequestLaunchTemplateData{ImageId: aws.String(l.AMIs["debian-12"])},
	}); err != nil {
		t.Fatal(err)
	}
	run("images", "promote", "--launch-template", "cafe", image)
	versions, err := api.DescribeLaunchTemplateVersions(t.Context(), &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateName: aws.String("cafe"), Versions: []string{"$Default"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := aws.ToString(versions.LaunchTemplateVersions[0].LaunchTemplateData.ImageId); got != image {
		t.Errorf("the launch template's default version has %s, want %s", got, image)
	}
}

// nothingLeft fails where Packer left a builder, its group or its key.
func nothingLeft(t *testing.T, l *lab.Lab) {
	t.Helper()
	api := ec2.NewFromConfig(config(l))
	instances, err := api.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range instances.Reservations {
		for _, i := range r.Instances {
			if i.State.Name != types.InstanceStateNameTerminated && i.State.Name != types.InstanceStateNameShuttingDown {
				t.Errorf("instance %s is %s", *i.InstanceId, i.State.Name)
			}
		}
	}
	keys, err := api.DescribeKeyPairs(t.Context(), &ec2.DescribeKeyPairsInput{})
	if err != nil {
		t.Fatal(err)
	}
	if len(keys.KeyPairs) > 0 {
		t.Errorf("%d key pairs left", len(keys.KeyPairs))
	}
}
