package userdata_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/userdata"
	"github.com/lecafe/lecafe/userdata/trap"
	"github.com/lecafe/lecafe/userdata/trap/traptest"
)

// wrapped is the script that a wrapped payload has cloud-init run, with the
// bench's paths in the place of an instance's.
func wrapped(t *testing.T, b *traptest.Bench, payload []byte) []byte {
	t.Helper()
	out, err := userdata.Wrap(userdata.WrapInput{Payload: payload, Agents: map[string]userdata.Object{"x86_64": {Bucket: "b", Key: "k", SHA256: sum(nil)}}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := userdata.Parse(out)
	if err != nil {
		t.Fatal(err)
	}
	script := p.Parts[len(p.Parts)-1]
	if script.Kind != userdata.KindScript || script.ScriptPath() != trap.ScriptsDir+"/part-001" {
		t.Fatalf("the last part is %s %s", script.Kind, script.ScriptPath())
	}
	body := strings.NewReplacer(trap.LibraryPath, b.Library(), trap.RecordsDir, b.Records).Replace(string(script.Body))
	return []byte(body)
}

// TestWrappedScriptsDoTheSame runs each script of the trap's corpora as it
// stands, and as it comes out of a wrapped payload.
func TestWrappedScriptsDoTheSame(t *testing.T) {
	bashAsSh := filepath.Join(t.TempDir(), "sh")
	if err := os.Symlink("/bin/bash", bashAsSh); err != nil {
		t.Fatal(err)
	}
	for corpus, shells := range map[string][]string{"bash": {"/bin/bash"}, "sh": {"/bin/dash", bashAsSh}} {
		all := traptest.Subjects(t, "trap/testdata/"+corpus+".txtar")
		if len(all) < 60 {
			t.Errorf("%d %s scripts, want 60 or more", len(all), corpus)
		}
		for _, s := range all {
			for _, shell := range shells {
				t.Run(s.Name+"/"+filepath.Base(shell), func(t *testing.T) {
					t.Parallel()
					b := traptest.New(t)
					script := wrapped(t, b, s.Script)
					if _, err := trap.Instrument(s.Script, "x", "y"); corpus == "sh" && errors.Is(err, trap.ErrUninstrumented) != bytes.Equal(script, s.Script) {
						t.Errorf("wrapped although %v:\n%s", err, script)
					}
					plain := b.Run(s.Script, shell)
					got := b.Run(script, shell)
					if diff := cmp.Diff(plain, got); diff != "" {
						t.Errorf("wrapped (-without +with):\n%s", diff)
					}
					// An sh script is named as on the instance, and so is no file here.
					if s.Records != nil && corpus == "bash" {
						if diff := cmp.Diff(s.Records, b.Briefs()); diff != "" {
							t.Errorf("records (-want +got):\n%s", diff)
						}
					}
				})
			}
		}
	}
}
