package bake_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/policy"
)

// The printed policy holds what a bake, its undoing and gc need, and nothing
// else: who has it can bake, and it is compared with the permissions of the
// calls the cloud has seen.
func TestPolicyIsWhatIsNeeded(t *testing.T) {
	const key = `"arn:aws:kms:us-east-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab"`
	for name, set := range map[string][]string{
		"plain": nil,
		"whole": {
			"image.encryption={kms_key: " + key + "}", `image.copies=[{region: us-west-2, encryption: {kms_key: "arn:aws:kms:us-west-2:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab"}}]`,
			`image.share={accounts: ["123456789012"]}`, "image.deprecate_after=90d", "image.deregistration_protection=true",
		},
		"canary":            {"canary={}"},
		"canary's template": {"canary={launch_template: shop}"},
		"parameter":         {"source={ssm_parameter: /images/debian}"},
		"profile":           {"builder.instance_profile=builder"},
		"groups":            {"builder.security_groups=[GROUP]"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorldAt(t, 1000)
			w.production()
			w.SSM.Put("us-east-1", "/images/debian", w.source)
			w.EC2.PutInstanceProfile("builder", "builder")
			groups, err := w.api.DescribeSecurityGroups(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range set {
				set[i] = strings.Replace(set[i], "GROUP", *groups.SecurityGroups[0].GroupId, 1)
			}
			w.play(&player{})
			r := w.recipe(set...)
			opts := w.options(r)
			opts.Report = nil
			doc := policy.Bake(policy.Where{Region: "us-east-1", Account: "000000000000"}, r)
			opts.Config = w.Role(t, "baker", doc.JSON())
			if _, err := bake.Run(t.Context(), opts); err != nil {
				t.Fatal(err)
			}
			w.failAndCollect(r, opts)
			used := map[string]bool{}
			for _, a := range cloudtest.Permissions(w.Calls(), "baker") {
				used[a] = true
			}
			granted := map[string]bool{}
			for _, s := range doc.Statement {
				for _, a := range s.Action {
					granted[a] = true
				}
			}
			// What only an emulator cannot ask for, and what needs a volume
			// or a console that this cloud leaves to chance.
			for _, a := range []string{"ec2:DeleteVolume", "ec2:GetConsoleOutput"} {
				used[a] = true
			}
			for a := range granted {
				if strings.HasPrefix(a, "kms:") || a == "iam:PassRole" {
					used[a] = true // the fake has no KMS, and roles are passed within RunInstances
				}
			}
			if name != "profile" {
				delete(granted, "iam:PassRole")
				delete(used, "iam:PassRole")
			}
			for _, a := range slices.Sorted(maps.Keys(used)) {
				if !granted[a] {
					t.Errorf("%s is needed and not granted", a)
				}
			}
			for _, a := range slices.Sorted(maps.Keys(granted)) {
				if !used[a] {
					t.Errorf("%s is granted and not needed", a)
				}
			}
		})
	}
}

// failAndCollect makes a bake whose image is undone, and one that gc removes.
func (w *world) failAndCollect(r *recipe.Recipe, opts bake.Options) {
	w.t.Helper()
	w.EC2.FailNextImage("undo is wanted")
	other := *r
	other.Image.Name = "failing-{{.Time}}" // EC2 wants another name, and a second may not have passed
	opts.Recipe, opts.Force = &other, true
	if _, err := bake.Run(w.t.Context(), opts); err == nil {
		w.t.Error("the image that fails was made")
	}
	opts.KeepBuilder = true
	lift := w.Deny("ec2:CreateImage", "*", "*")
	if _, err := bake.Run(w.t.Context(), opts); err == nil {
		w.t.Error("an image was made without permission")
	}
	lift()
	later := func() time.Time { return time.Now().Add(2 * time.Minute) }
	if _, err := bake.GC(w.t.Context(), bake.GCOptions{Config: opts.Config, Remove: true, Poll: 10 * time.Millisecond, Now: later, Staging: []string{"s3://" + bucket + "/lecafe-bakes"}}); err != nil {
		w.t.Error(err)
	}
}

// A scheduled gc needs no more than its own policy, for what is undone as for
// what is finished, in every region.
func TestGCsPolicyIsWhatIsNeeded(t *testing.T) {
	doc := policy.GC(policy.Where{Account: "000000000000"}, policy.Collecting{Staging: []string{"s3://" + bucket + "/lecafe-bakes"}, Protects: true})
	var granted []string
	for _, s := range doc.Statement {
		granted = append(granted, s.Action...)
	}
	used := []string{"ec2:DeleteVolume"} // of a builder that was terminated without its volumes
	for _, at := range []string{
		"CopyImage#1",  // instance, group, template, images and snapshots in two regions
		"CreateTags#1", // the image is declared done, its tags do not say so yet
	} {
		w := newCrashWorld(t, "image.deregistration_protection=true")
		w.play(&player{})
		if !w.bake(at, false) {
			t.Fatalf("not killed at %s", at)
		}
		cfg := w.Role(t, "collector", doc.JSON())
		found, err := bake.GC(t.Context(), bake.GCOptions{Config: cfg, Regions: []string{"us-west-2", "us-east-1"}, Remove: true, Poll: 10 * time.Millisecond, Settle: time.Millisecond})
		if err != nil || len(found) != 1 || !found[0].Removed {
			t.Fatalf("gc after %s: %+v, %v", at, found, err)
		}
		w.nothingLeaked()
		used = append(used, cloudtest.Permissions(w.Calls(), "collector")...)
	}
	for _, l := range []*[]string{&granted, &used} {
		slices.Sort(*l)
		*l = slices.Compact(*l)
	}
	if d := cmp.Diff(granted, used); d != "" {
		t.Errorf("granted and not needed -, needed and not granted +\n%s", d)
	}
}
