package bake_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/lab/cloud"
)

// changes are the calls that change something.
func changes(calls []cloud.Call) (names []string) {
	for _, c := range calls {
		if !c.Presigned && !slices.ContainsFunc([]string{"Describe", "Get", "List", "Head"}, func(verb string) bool { return strings.HasPrefix(c.Action, verb) }) {
			names = append(names, c.Action)
		}
	}
	return names
}

// --plan changes nothing, whatever it finds.
func TestPlanChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.play(&player{})
	opts := w.options(w.recipe("canary={}", "image.copies=[{region: us-west-2}]"))
	before := len(w.Calls())
	plan, err := bake.MakePlan(t.Context(), opts)
	if err != nil || !plan.Bake || len(plan.Steps) != 1 {
		t.Errorf("plan %+v, %v", plan, err)
	}
	if _, err := bake.Run(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	middle := len(w.Calls())
	if plan, err = bake.MakePlan(t.Context(), opts); err != nil || plan.Bake {
		t.Errorf("plan %+v, %v", plan, err)
	}
	if c := changes(slices.Concat(w.Calls()[before:before+plannedCalls(w.Calls()[before:])], w.Calls()[middle:])); len(c) > 0 {
		t.Errorf("a plan called %v", c)
	}
	if c := changes(w.Calls()[:middle]); len(c) == 0 {
		t.Error("this test sees no changes")
	}
}

// plannedCalls counts the calls before the bake's first.
func plannedCalls(calls []cloud.Call) int {
	return slices.IndexFunc(calls, func(c cloud.Call) bool { return c.Action == "PutObject" })
}

// Encryption costs no second pass: the builder's volumes are encrypted, and
// their image with them.
func TestEncryptionTakesNoCopy(t *testing.T) {
	w := newWorld(t)
	w.play(&player{})
	out, err := bake.Run(t.Context(), w.options(w.recipe("image.encryption={}")))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range w.image(out.ImageID).BlockDeviceMappings {
		if d.Ebs.Encrypted == nil || !*d.Ebs.Encrypted {
			t.Errorf("%s is not encrypted", *d.DeviceName)
		}
	}
	if c := changes(w.Calls()); slices.Contains(c, "CopyImage") {
		t.Errorf("calls %v", c)
	}
	if n := len(w.images()); n != 1 {
		t.Errorf("%d images", n)
	}
}

// Nobody but the recipe's words make an image public, and sharing is not that.
func TestPublicOnlyWhenSaid(t *testing.T) {
	for set, want := range map[string]bool{"image.public=true": true, "image.public=false": false, `image.share={accounts: ["123456789012"]}`: false, "image.name=x-{{.Time}}": false} {
		t.Run(set, func(t *testing.T) {
			w := newWorldAt(t, 1000)
			w.play(&player{})
			out, err := bake.Run(t.Context(), w.options(w.recipe(set, "canary={}")))
			if err != nil {
				t.Fatal(err)
			}
			got, err := w.api.DescribeImageAttribute(t.Context(), &ec2.DescribeImageAttributeInput{ImageId: &out.ImageID, Attribute: types.ImageAttributeNameLaunchPermission})
			if err != nil {
				t.Fatal(err)
			}
			public := slices.ContainsFunc(got.LaunchPermissions, func(p types.LaunchPermission) bool { return p.Group == types.PermissionGroupAll })
			if public != want {
				t.Errorf("launch permissions %+v", got.LaunchPermissions)
			}
		})
	}
}
