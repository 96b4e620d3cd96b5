package packer

import (
	"bytes"
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
	"github.com/lecafe/lecafe/test/boots"
)

// TestEverything builds, with the template that lecafe makes of it, a recipe
// that has a bit of everything: each kind of step, a reboot, copies with keys of
// their own, sharing, deprecation and protection.
func TestEverything(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-12"}, nil)
	p := newPacker(t, l)
	p.amazon()
	dir := copied(t, recipes["everything"])
	deb(t, filepath.Join(dir, "files/extra.deb"))
	args := []string{"packer", "template"}
	for _, set := range []string{
		"source={image_id: " + l.AMIs["debian-12"] + "}",
		"builder.subnets=[]", "builder.security_groups=[]", "builder.instance_profile=lecafe-app-profile", // the lab's own
		"clean.zero_free_space=false", // it fills the disk of the machine that the test runs on
		"agent.aws={endpoint_url: \"" + l.URL + "\"}", "canary.instance_profile=lecafe-app-profile",
	} {
		args = append(args, "--set", set)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(p.own, "lecafe"), append(args, filepath.Join(dir, "recipe.yaml"))...)
	var notes bytes.Buffer
	cmd.Env, cmd.Stderr = p.env, &notes
	made, err := cmd.Output()
	if err != nil {
		t.Fatalf("lecafe packer template: %v\n%s", err, notes.String())
	}
	here := fmt.Sprintf("  custom_endpoint_ec2 = %q\n  ssh_host = \"127.0.0.1\"\n  ssh_port = %d\n  skip_metadata_api_check = true\n  ami_name ", l.URL, sshPort(t, l, 1))
	text := strings.Replace(string(made), "  ami_name ", here, 1)
	text = strings.Replace(text, "temporary_security_group_source_public_ip = true", `temporary_security_group_source_cidrs = ["192.0.2.1/32"]`, 1)
	if err := os.WriteFile(filepath.Join(dir, "image.pkr.hcl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	api := ec2.NewFromConfig(boots.Config(l))
	if _, err := api.CreateLaunchTemplate(t.Context(), &ec2.CreateLaunchTemplateInput{
		LaunchTemplateName: aws.String("everything"), LaunchTemplateData: &types.RequestLaunchTemplateData{ImageId: aws.String(l.AMIs["debian-12"])},
	}); err != nil {
		t.Fatal(err)
	}
	out, code := p.run("build", "-var", "ssh_username=debian", "-var", "content_hash=0123456789ab", "-var", "git_commit=fedcba987654", dir)
	t.Log(out)
	if code != 0 {
		t.Fatalf("packer build: exit code %d", code)
	}
	if !strings.Contains(out, `and a tab:`+"\t"+`. {{ .Names }}`) {
		t.Error("a step's line came through as another")
	}
	for _, region := range []string{lab.Region, "eu-west-1", "eu-central-1"} {
		images, err := ec2.NewFromConfig(boots.Config(l), func(o *ec2.Options) { o.Region = region }).DescribeImages(t.Context(), &ec2.DescribeImagesInput{Owners: []string{"self"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(images.Images) != 1 {
			t.Errorf("%d images in %s, want 1", len(images.Images), region)
			continue
		}
		i := images.Images[0]
		shared, err := ec2.NewFromConfig(boots.Config(l), func(o *ec2.Options) { o.Region = region }).DescribeImageAttribute(t.Context(), &ec2.DescribeImageAttributeInput{
			ImageId: i.ImageId, Attribute: types.ImageAttributeNameLaunchPermission,
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(shared.LaunchPermissions) != 2 { // an account and an organization
			t.Errorf("image in %s is shared with %v", region, shared.LaunchPermissions)
		}
		if !strings.HasSuffix(*i.Name, "-0123456789ab") || !strings.HasPrefix(aws.ToString(i.DeregistrationProtection), "enabled") || aws.ToString(i.DeprecationTime) == "" ||
			tag(i.Tags, "commit") != "fedcba987654" || tag(i.Tags, "team") != "coffee" || tag(i.Tags, "lecafe:state") != "done" {
			t.Errorf("image in %s: %s, protection %q, deprecated at %q, tags %v", region, *i.Name, aws.ToString(i.DeregistrationProtection), aws.ToString(i.DeprecationTime), i.Tags)
		}
		for _, d := range i.BlockDeviceMappings {
			if d.Ebs != nil && !aws.ToBool(d.Ebs.Encrypted) {
				t.Errorf("%s of the image in %s is not encrypted", *d.DeviceName, region)
			}
		}
	}
	nothingLeft(t, l, nil)
}

// deb makes a Debian package without files.
func deb(t *testing.T, path string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	control := "Package: extra\nVersion: 1\nArchitecture: all\nMaintainer: Le Cafe <cafe@example.com>\nDescription: nothing\n"
	if err := os.WriteFile(filepath.Join(dir, "DEBIAN/control"), []byte(control), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--root-owner-group", "--build", dir, path).CombinedOutput(); err != nil {
		boots.Cannot(t, "builds with a package file", fmt.Errorf("dpkg-deb: %w %s", err, out))
	}
}
