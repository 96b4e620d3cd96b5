package trap_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/userdata/trap"
	"github.com/lecafe/lecafe/userdata/trap/traptest"
)

func TestReadPassesOverWhatIsNoRecord(t *testing.T) {
	dir := t.TempDir()
	lines := []string{
		"1\t1700000002\t7\t2\t4\t0\t1\t0\t/scripts/part-001\tls\\ /non\\'e",
		"1\t1700000001\t7\t127\t3\t1\t0\t0\t/scripts/part-001\t$'a\\tb\\n\\303\\250\\'c'",
		"1b\t1700000003\t8\t1\t9\t0\t0\t0\tL3NjcmlwdHMvcnVuY21k\tZmFsc2U=",
		"", "garbage", "1\t2\t3", "2\t1700000001\t7\t1\t3\t0\t0\t0\ta\tb", "1\t1700000001\t7\t1\t-3\t0\t0\t0\ta\tb",
		"1\tx\t7\t1\t3\t0\t0\t0\ta\tb", "1\t1700000001\t7\t0\t3\t0\t0\t0\ta\tb", "1b\t1700000001\t7\t1\t3\t0\t0\t0\t!\t!",
		"1\t1700000001\t7\t1\t3\t0\t0\t0\ta\t$'cut\\'", "1\t1700000001\t7\t1\t3\t0\t0\t0\ta\tcut\\", "\xff\xfe\x00",
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := trap.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []trap.Record{
		{Time: time.Unix(1700000001, 0).UTC(), Process: 7, ExitCode: 127, Line: 3, Depth: 1, File: "/scripts/part-001", Command: "a\tb\nè'c"},
		{Time: time.Unix(1700000002, 0).UTC(), Process: 7, ExitCode: 2, Line: 4, Errexit: true, File: "/scripts/part-001", Command: "ls /non'e"},
		{Time: time.Unix(1700000003, 0).UTC(), Process: 8, ExitCode: 1, Line: 9, File: "/scripts/runcmd", Command: "false"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if got, err := trap.Read(filepath.Join(dir, "nowhere")); len(got) != 0 || err != nil {
		t.Errorf("no directory: %v, %v", got, err)
	}
}

func TestRecordsEnd(t *testing.T) {
	b := traptest.New(t)
	library := b.Library()
	b.Run([]byte("#!/bin/bash\nfor i in {1..200}; do\n  (false; true)\n  ls /nonexistent\ndone\n"), "/bin/bash", "BASH_ENV="+library)
	records, err := trap.Read(b.Records)
	if err != nil {
		t.Fatal(err)
	}
	if len(records) != 100 {
		t.Errorf("%d records, want 100", len(records))
	}
}

// A bash that cloud-init starts for anything but a script is none of our
// business: nothing is recorded, and its children do not see BASH_ENV.
func TestOtherBashIsLeftAlone(t *testing.T) {
	b := traptest.New(t)
	library := b.Library()
	other := filepath.Join(b.Dir, "other.sh")
	if err := os.WriteFile(other, []byte("false; echo \"$- ${BASH_ENV-unset}\"; trap -p ERR; declare -F\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "/bin/bash", other)
	c.Env = []string{"BASH_ENV=" + library, "PATH=/usr/bin:/bin"}
	out, err := c.CombinedOutput()
	if err != nil || string(out) != "hB unset\n" {
		t.Errorf("output %q, %v", out, err)
	}
	if records, err := trap.Read(b.Records); len(records) != 0 || err != nil {
		t.Errorf("records %v, %v", records, err)
	}
}

func TestBackgroundIsTold(t *testing.T) {
	b := traptest.New(t)
	library := b.Library()
	b.Run([]byte("#!/bin/bash\n(ls /a; true)\n(ls /b; true) &\nwait\nls /c\nls /d &\nwhile kill -0 \"$!\"; do :; done\n"), "/bin/bash", "BASH_ENV="+library)
	records, err := trap.Read(b.Records)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[int]bool)
	for _, r := range records {
		got[r.Line] = r.Background
	}
	if diff := cmp.Diff(map[int]bool{2: false, 3: true, 5: false, 6: true}, got); diff != "" {
		t.Errorf("line: in the background (-want +got):\n%s", diff)
	}
}

func TestInstrumentFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "scripts")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "runcmd")
	if changed, err := trap.InstrumentFile(path, "/records"); changed || err != nil {
		t.Errorf("no file: %v, %v", changed, err)
	}
	src := []byte("#!/bin/sh\n'ls' '/nonexistent'\necho two\n")
	if err := os.WriteFile(path, src, 0o700); err != nil {
		t.Fatal(err)
	}
	if changed, err := trap.InstrumentFile(path, "/records"); !changed || err != nil {
		t.Fatalf("%v, %v", changed, err)
	}
	out, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	lines := strings.Split(string(out), "\n")
	if !strings.HasSuffix(lines[1], "'ls' '/nonexistent'") || !strings.HasSuffix(lines[2], "echo two") {
		t.Errorf("lines moved:\n%s", out)
	}
	if changed, err := trap.InstrumentFile(path, "/records"); changed || err != nil {
		t.Errorf("a second time: %v, %v", changed, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left beside the script: %v", entries)
	}
	broken := []byte("#!/bin/sh\nif true; then\n")
	if err := os.WriteFile(path, broken, 0o700); err != nil {
		t.Fatal(err)
	}
	if changed, err := trap.InstrumentFile(path, "/records"); changed || err != nil {
		t.Errorf("broken: %v, %v", changed, err)
	}
	if out, err := os.ReadFile(path); err != nil || !bytes.Equal(out, broken) {
		t.Errorf("broken script changed to %q, %v", out, err)
	}
}

func TestHandled(t *testing.T) {
	script := []byte("#!/bin/bash\nfoo\nif [ $? -ne 0 ]; then exit 1; fi\nbar\nbaz\nf() {\n  qux\n  rc=$?\n}\n")
	for line, want := range map[int]bool{2: true, 4: false, 5: false, 7: true} {
		if got := trap.Handled(script, line); got != want {
			t.Errorf("line %d: %v", line, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("1\t1\t1\t1\t1\t1\t1\t0\t$'\\303'\ta\\ b\n1b\t1\t1\t1\t1\t1\t1\t0\tYQ==\tYQ==\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "x"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		records, err := trap.Read(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if r.ExitCode < 1 || r.Line < 0 {
				t.Errorf("record %+v", r)
			}
		}
	})
}

func FuzzInstrument(f *testing.F) {
	f.Add([]byte("#!/bin/sh\nfalse\ncat <<E; false\nx\nE\n[ a ] && b\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		out, err := trap.Instrument(src, "/scripts/runcmd", "/records")
		if err != nil {
			return
		}
		if _, err := trap.Instrument(out, "/scripts/runcmd", "/records"); err != nil {
			t.Errorf("%q became %q: %v", src, out, err)
		}
		if n := bytes.Count(out, []byte("\n")) - bytes.Count(src, []byte("\n")); n < 0 || n > 2 {
			t.Errorf("%q became %q: %d lines more", src, out, n)
		}
	})
}
