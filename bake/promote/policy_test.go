package promote_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/bake/promote"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/policy"
)

// Whoever has the printed policy and nothing else can promote and roll back,
// and has no action too many.
func TestPolicyIsWhatIsNeeded(t *testing.T) {
	for name, to := range map[string]policy.Promoting{
		"all":       {LaunchTemplate: "shop", Group: "shop", SSMParameter: "/shop/image"},
		"pinned":    {LaunchTemplate: "shop", Group: "shop", Pin: true},
		"template":  {LaunchTemplate: "shop"},
		"parameter": {SSMParameter: "/shop/image"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			version := "1"
			if to.Pin {
				version = "$Latest"
			}
			s := newShop(t, version)
			doc := policy.Promote(policy.Where{Region: "us-east-1", Account: "000000000000"}, to)
			o := s.options()
			o.Config = s.Role(t, "promoter", doc.JSON())
			o.LaunchTemplate, o.Group, o.SSMParameter, o.Pin = to.LaunchTemplate, to.Group, to.SSMParameter, to.Pin
			if _, err := promote.Run(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			if o.Group != "" { // back, by a refresh that gets nowhere and is rolled back
				s.EC2.Capacity("", "", false)
				o.ImageID, o.Timeout = s.old, time.Second
				s.capacityAtRollback()
				if _, err := promote.Run(t.Context(), o); err == nil {
					t.Error("a refresh without capacity ended well")
				}
			}
			used := cloudtest.Permissions(s.Calls(), "promoter")
			if o.Group != "" {
				// Auto Scaling asks for these on the caller's behalf, which the
				// cloud does not.
				used = append(used, "ec2:RunInstances", "ec2:CreateTags", "iam:PassRole")
			}
			slices.Sort(used)
			var granted []string
			for _, st := range doc.Statement {
				granted = append(granted, st.Action...)
			}
			slices.Sort(granted)
			if d := cmp.Diff(slices.Compact(granted), slices.Compact(used)); d != "" {
				t.Errorf("granted and not needed -, needed and not granted +\n%s", d)
			}
		})
	}
}
