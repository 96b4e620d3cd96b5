package manifest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mvdan.cc/sh/v3/syntax"

	"github.com/lecafe/lecafe/bake/manifest"
)

var deadline = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func TestUserDataIsPlainShell(t *testing.T) {
	ud, err := manifest.UserData(manifest.Boot{
		URL: "https://s3.example/b/k?X-Amz-Signature=" + strings.Repeat("a", 1400), Deadline: deadline,
		Proxy: "http://proxy:3128", NoProxy: "internal", CABundle: []byte(strings.Repeat("c", 6000) + "\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(ud, []byte("#!/bin/sh\n")) {
		t.Errorf("user data begins with %q", ud[:20])
	}
	if _, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(bytes.NewReader(ud), ""); err != nil {
		t.Error(err)
	}
	if n := bytes.Count(ud, []byte("X-Amz-Signature")); n != 1 {
		t.Errorf("%d presigned URLs, want 1", n)
	}
	for _, want := range []string{"OnCalendar=2030-01-02 03:04:05 UTC\n", "https_proxy=http://proxy:3128\n", "no_proxy=169.254.169.254,localhost,127.0.0.1,internal\n"} {
		if !bytes.Contains(ud, []byte(want)) {
			t.Errorf("no %q in the user data", want)
		}
	}
}

func TestUserDataRefuses(t *testing.T) {
	for name, b := range map[string]manifest.Boot{
		"too large":   {URL: "https://x/", Deadline: deadline, CABundle: bytes.Repeat([]byte("c"), 16<<10)},
		"end marker":  {URL: "https://x/", Deadline: deadline, CABundle: []byte("a\nLECAFE_END\nreboot\n")},
		"line in URL": {URL: "https://x/\nreboot", Deadline: deadline},
	} {
		if _, err := manifest.UserData(b); !errors.Is(err, manifest.ErrUserData) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The start script fetches the program that the manifest names with each of
// the tools it knows, refuses a wrong checksum, and becomes the program.
func TestStartScript(t *testing.T) {
	for _, tool := range []string{"curl", "wget", "python3"} {
		t.Run(tool, func(t *testing.T) {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("%s is not installed", tool)
			}
			for _, sh := range []string{"dash", "bash"} {
				start(t, sh, tool)
			}
		})
	}
}

func start(t *testing.T, shell, tool string) {
	dir := t.TempDir()
	program := []byte("#!/bin/sh\necho \"ran $1\" >>ran\n")
	sum := sha256.Sum256(program)
	m := &manifest.Manifest{Schema: manifest.Schema, BakeID: "b", Deadline: deadline, Agent: manifest.File{URL: "https://agent/", SHA256: "00"}}
	manifests := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/manifest":
			manifests++
			m.Self = "http://" + r.Host + "/manifest?a=1&b=2"
			m.Builder = manifest.File{URL: "http://" + r.Host + "/program?x=1&y=2", SHA256: strings.Repeat("0", 64)}
			if manifests > 1 { // the first has a wrong checksum
				m.Builder.SHA256 = hex.EncodeToString(sum[:])
			}
			data, err := m.Encode()
			if err != nil {
				t.Error(err)
			}
			_, _ = w.Write(data)
		case "/program":
			if r.URL.RawQuery != "x=1&y=2" {
				t.Errorf("query %q", r.URL.RawQuery)
			}
			_, _ = w.Write(program)
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	// Only the tools of a small image, with sleeps that do not sleep.
	bin := filepath.Join(dir, "bin")
	for _, name := range []string{"sed", "sha256sum", "cat", "mv", "chmod", "date", "dirname", "sh", tool} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if tool == "python3" && name == tool { // a shim of a version manager needs its own tools
			path, _ = filepath.EvalSymlinks("/usr/bin/python3")
			if path == "" {
				t.Skip("no /usr/bin/python3")
			}
		}
		_ = os.MkdirAll(bin, 0o755)
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(bin, "sleep"), "#!/bin/sh\n", 0o755)
	script, err := os.ReadFile("boot/start.sh")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "start.sh"), strings.Replace(string(script), manifest.Dir, dir, 1), 0o700)
	write(t, filepath.Join(dir, "url"), srv.URL+"/manifest\n", 0o600)
	write(t, filepath.Join(dir, "deadline"), "4102444800\n", 0o600)
	shellPath, err := exec.LookPath(shell)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), shellPath, filepath.Join(dir, "start.sh"))
	cmd.Env = []string{"PATH=" + bin}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s, %s: %v\n%s", shell, tool, err, out)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "ran")); string(got) != "ran run\n" {
		t.Errorf("%s, %s: program left %q\n%s", shell, tool, got, out)
	}
	if !strings.Contains(string(out), "SHA-256 is not the manifest's") || manifests != 2 {
		t.Errorf("%s, %s: %d manifests read, output\n%s", shell, tool, manifests, out)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "url")); string(got) != srv.URL+"/manifest?a=1&b=2\n" {
		t.Errorf("%s, %s: next URL %q", shell, tool, got)
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}
