package publish

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/lecafe/lecafe/bake/recipe"
)

func configured(t *testing.T, block map[string]any) *PostProcessor {
	t.Helper()
	all := map[string]any{"recipe_name": "shop", "staging": map[string]any{"bucket": "staging"}}
	maps.Copy(all, block)
	p := new(PostProcessor)
	if err := p.Configure(all); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRecipe: what the block says is what a recipe of lecafe bake would say.
func TestRecipe(t *testing.T) {
	p := configured(t, map[string]any{
		"tags": map[string]string{"app": "shop"},
		"canary": map[string]any{
			"instance_type": "m7g.large", "subnet": "subnet-0123456789abcdef0", "security_groups": []string{"sg-0123456789abcdef0"}, "associate_public_ip": false,
			"deadline": "90s", "test": []map[string]any{{"name": "answers", "run": "true"}},
		},
		"promote": map[string]any{"launch_template": "shop", "auto_scaling_group": "shop", "ssm_parameter": "/shop", "pin": true},
	})
	r, err := p.config.recipe("ami-0123456789abcdef0", recipe.ARM64)
	if err != nil {
		t.Fatal(err)
	}
	k := r.Canary
	if r.Architecture != recipe.ARM64 || r.Staging.Bucket != "staging" || r.Staging.Prefix != "lecafe-bakes" || r.Tags["app"] != "shop" ||
		k.InstanceType != "m7g.large" || k.Subnet != "subnet-0123456789abcdef0" || k.Deadline.String() != "1m30s" || len(k.Test) != 1 || k.Test[0].Timeout == 0 ||
		!slices.Equal(r.Builder.SecurityGroups, []string{"sg-0123456789abcdef0"}) || r.Builder.AssociatePublicIP == nil || *r.Builder.AssociatePublicIP ||
		r.Builder.InstanceTypes[0] != "t4g.small" || *r.Promote != (recipe.Promote{LaunchTemplate: "shop", AutoScalingGroup: "shop", SSMParameter: "/shop", Pin: true}) {
		t.Errorf("recipe %+v, canary %+v, promote %+v", r, k, r.Promote)
	}
}

// TestArtifacts takes the amazon builders' alone, and says which of several
// images is meant.
func TestArtifacts(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	const two = "eu-central-1:ami-0123456789abcdef0,us-east-1:ami-00000000"
	for name, c := range map[string]struct {
		id, set, env, want string
	}{
		"one":               {"eu-central-1:ami-0123456789abcdef0", "", "us-east-1", "eu-central-1"},
		"named":             {two, "us-east-1", "", "us-east-1"},
		"the configuration": {two, "", "eu-central-1", "eu-central-1"},
		"which":             {two, "", "", "region: is missing: the build has images in eu-central-1, us-east-1"},
		"elsewhere":         {two, "eu-west-1", "", `region: "eu-west-1": the build has no image there`},
		"no image":          {"", "", "", "names no AMI"},
		"a file":            {"VM", "", "", `the artifact of bid, "VM", names no AMI`},
		"an instance":       {"us-east-1:i-0123456789abcdef0", "", "", "names no AMI"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AWS_REGION", c.env)
			block := map[string]any{}
			if c.set != "" {
				block["region"] = c.set
			}
			p := configured(t, block)
			images, err := imagesOf(&packersdk.MockArtifact{IdValue: c.id, BuilderIdValue: "bid"})
			got := ""
			if err == nil {
				got, err = p.region(t.Context(), images)
			}
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestRefuses: an artifact that is no image fails before anything is asked of
// AWS.
func TestRefuses(t *testing.T) {
	var out bytes.Buffer
	p := configured(t, nil)
	_, keep, forced, err := p.PostProcess(t.Context(), &packersdk.BasicUi{Reader: new(bytes.Buffer), Writer: &out, ErrorWriter: &out}, &packersdk.MockArtifact{IdValue: "Null"})
	if err == nil || keep || forced {
		t.Errorf("PostProcess: %v, %v, %v", keep, forced, err)
	}
}

// TestKept: an error says what becomes of the image.
func TestKept(t *testing.T) {
	cause, refused := errors.New("the refresh failed"), errors.New("UnauthorizedOperation")
	if err := kept(nil, cause); !errors.Is(err, cause) || !strings.Contains(err.Error(), "Packer cannot remove it") {
		t.Errorf("kept: %v", err)
	}
	if err := kept(refused, cause); !errors.Is(err, cause) || !errors.Is(err, refused) || !strings.Contains(err.Error(), "Packer removes it now") {
		t.Errorf("kept: %v", err)
	}
}
