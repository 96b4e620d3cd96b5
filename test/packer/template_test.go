package packer

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/test/boots"
)

// amazon installs the amazon plugin too.
func (p *packer) amazon() {
	p.t.Helper()
	path, err := amazonTool()
	if err != nil {
		boots.Cannot(p.t, "Packer's amazon plugin", err)
	}
	p.install("amazon", path)
}

// recipes are those whose template is kept in testdata, by its name.
var recipes = map[string]string{
	"lecafe-app": boots.Root + "/examples/lecafe-app/recipe.yaml",
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

// nothingLeft fails where a build left an instance, a group or its key. The
// instances in others are not its.
func nothingLeft(t *testing.T, l *lab.Lab, others []string) {
	t.Helper()
	api := ec2.NewFromConfig(boots.Config(l))
	instances, err := api.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range instances.Reservations {
		for _, i := range r.Instances {
			if i.State.Name != types.InstanceStateNameTerminated && i.State.Name != types.InstanceStateNameShuttingDown && !slices.Contains(others, *i.InstanceId) {
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
	groups, err := api.DescribeSecurityGroups(t.Context(), &ec2.DescribeSecurityGroupsInput{})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups.SecurityGroups {
		if *g.GroupName != "default" {
			t.Errorf("security group %s left", *g.GroupName)
		}
	}
	if left := l.S3.Objects("lecafe-staging", ""); len(left) > 0 {
		t.Errorf("staging objects left: %v", left)
	}
}
