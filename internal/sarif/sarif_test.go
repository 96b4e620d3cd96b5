package sarif_test

import (
	"bytes"
	"encoding/json"
	"net/url"
	"testing"

	"github.com/lecafe/lecafe/internal/sarif"
)

// A file's name becomes a URI reference, whatever stands in it.
func TestFileNamesAreURIs(t *testing.T) {
	for _, file := range []string{"setup.sh", "a b/%é?#.yaml", "/abs/c.sh", "with:colon.sh", "user-data#part-001"} {
		var out bytes.Buffer
		if err := sarif.Write(&out, "v1", []sarif.Rule{{ID: "r", Summary: "s"}}, []sarif.Result{{RuleID: "r", Level: "error", Message: "m", File: file, Line: 3}}); err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Version string
			Runs    []struct {
				Results []struct {
					RuleID    string
					Locations []struct {
						PhysicalLocation struct {
							ArtifactLocation struct{ URI string }
							Region           map[string]int
						}
					}
				}
			}
		}
		if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
			t.Fatal(err)
		}
		if doc.Version != "2.1.0" || len(doc.Runs) != 1 || len(doc.Runs[0].Results) != 1 {
			t.Fatalf("%s", out.Bytes())
		}
		at := doc.Runs[0].Results[0].Locations[0].PhysicalLocation
		u, err := url.Parse(at.ArtifactLocation.URI)
		if err != nil || u.Scheme != "" || u.Fragment != "" || u.RawQuery != "" || u.Path != file && u.Path != "./"+file {
			t.Errorf("%q became %q: %v", file, at.ArtifactLocation.URI, err)
		}
		// A column that is not known is left out: the schema's begin at 1.
		if _, ok := at.Region["startColumn"]; ok || at.Region["startLine"] != 3 {
			t.Errorf("region %v", at.Region)
		}
	}
}
