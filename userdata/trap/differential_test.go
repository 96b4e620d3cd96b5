package trap_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/userdata/trap"
	"github.com/lecafe/lecafe/userdata/trap/traptest"
)

func TestBashScriptsDoTheSame(t *testing.T) {
	all := traptest.Subjects(t, "testdata/bash.txtar")
	if len(all) < 60 {
		t.Errorf("%d scripts, want 60 or more", len(all))
	}
	for _, s := range all {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			b := traptest.New(t)
			library := b.Library()
			plain := b.Run(s.Script, "/bin/bash")

			trapped := b.Run(s.Script, "/bin/bash", "BASH_ENV="+library)
			if diff := cmp.Diff(plain, trapped); diff != "" {
				t.Errorf("with the library (-without +with):\n%s", diff)
			}
			if s.Records != nil {
				if diff := cmp.Diff(s.Records, b.Briefs()); diff != "" {
					t.Errorf("records (-want +got):\n%s", diff)
				}
			}

			wrapped := b.Run(trap.Preload(s.Script, library), "/bin/bash")
			if diff := cmp.Diff(plain, wrapped); diff != "" {
				t.Errorf("with the library loaded by the script (-without +with):\n%s", diff)
			}
			if s.Records != nil {
				if diff := cmp.Diff(s.Records, b.Briefs()); diff != "" {
					t.Errorf("records, loaded by the script (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestShScriptsDoTheSame(t *testing.T) {
	// sh is dash on Debian and Ubuntu, bash on Amazon Linux and Red Hat's.
	bashAsSh := filepath.Join(t.TempDir(), "sh")
	if err := os.Symlink("/bin/bash", bashAsSh); err != nil {
		t.Fatal(err)
	}
	for _, s := range traptest.Subjects(t, "testdata/sh.txtar") {
		for _, sh := range []string{"/bin/dash", bashAsSh} {
			t.Run(s.Name+"/"+filepath.Base(sh), func(t *testing.T) {
				t.Parallel()
				b := traptest.New(t)
				plain := b.Run(s.Script, sh)
				changed, err := trap.Instrument(s.Script, b.Script(), b.Records)
				if errors.Is(err, trap.ErrUninstrumented) {
					if s.Records != nil {
						t.Fatal(err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				instrumented := b.Run(changed, sh)
				if diff := cmp.Diff(plain, instrumented); diff != "" {
					t.Errorf("instrumented (-without +with):\n%s", diff)
				}
				if s.Records != nil {
					if diff := cmp.Diff(s.Records, b.Briefs()); diff != "" {
						t.Errorf("records (-want +got):\n%s", diff)
					}
				}
				again, err := trap.Instrument(changed, "x", "y")
				if err != nil || !bytes.Equal(again, changed) {
					t.Errorf("instrumented twice: %v", err)
				}
			})
		}
	}
}
