package shelf_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/bake/shelf"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	"github.com/lecafe/lecafe/policy"
)

// actions are those that a document allows, sorted.
func actions(d policy.Document) []string {
	var out []string
	for _, s := range d.Statement {
		out = append(out, s.Action...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Whoever has the printed policy and nothing else can list and prune, and has
// no action too many.
func TestPoliciesAreWhatIsNeeded(t *testing.T) {
	w := newWorld(t)
	w.use()
	where := policy.Where{Region: "us-east-1", Account: "000000000000"}
	o := w.options()

	doc := policy.Images(where, o.Parameters)
	o.Config = w.Role(t, "looker", doc.JSON())
	if images, err := shelf.List(t.Context(), o); err != nil || len(images) == 0 {
		t.Errorf("list: %v, %v", images, err)
	}
	if d := cmp.Diff(actions(doc), cloudtest.Permissions(w.Calls(), "looker")); d != "" {
		t.Errorf("images: granted and not needed -, needed and not granted +\n%s", d)
	}

	doc = policy.Prune(where, o.Parameters)
	o.Config = w.Role(t, "pruner", doc.JSON())
	for _, ahead := range []time.Duration{0, 25 * time.Hour} { // disables, then deletes
		w.ahead = ahead
		if _, err := shelf.Prune(t.Context(), shelf.PruneOptions{Options: o, Keep: 1, Grace: 24 * time.Hour, Remove: true}); err != nil {
			t.Error(err)
		}
	}
	if d := cmp.Diff(actions(doc), cloudtest.Permissions(w.Calls(), "pruner")); d != "" {
		t.Errorf("prune: granted and not needed -, needed and not granted +\n%s", d)
	}
}
