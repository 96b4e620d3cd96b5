package userdata_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/userdata"
)

func zip(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type brief struct {
	Name string
	Kind userdata.Kind
	Body string
}

func briefs(p *userdata.Payload) []brief {
	var out []brief
	for _, part := range p.Parts {
		out = append(out, brief{part.Name, part.Kind, string(part.Body)})
	}
	return out
}

func TestParseAsCloudInitDoes(t *testing.T) {
	const script = "#!/bin/sh\necho hi\n"
	tests := []struct {
		name    string
		payload []byte
		format  string
		want    []brief
	}{
		{"script", []byte(script), "shell-script", []brief{{"part-001", userdata.KindScript, script}}},
		{"cloud-config in capitals", []byte("#Cloud-Config\na: 1\n"), "cloud-config", []brief{{"part-001", userdata.KindCloudConfig, "#Cloud-Config\na: 1\n"}}},
		{"space before the header", []byte("\n" + script), "shell-script", []brief{{"part-001", userdata.KindScript, "\n" + script}}},
		{"byte order mark", []byte("\ufeff" + script), "unknown", []brief{{"part-001", userdata.KindUnhandled, "\ufeff" + script}}},
		{"no header", []byte("echo hi\n"), "unknown", []brief{{"part-001", userdata.KindUnhandled, "echo hi\n"}}},
		{"compressed", zip(t, script), "gzip shell-script", []brief{{"part-001", userdata.KindScript, script}}},
		{"template", []byte("## template: jinja\n#cloud-config\na: {{ b }}\n"), "cloud-config", []brief{{"part-001", userdata.KindCloudConfig, "#cloud-config\na: {{ b }}\n"}}},
		{"empty", nil, "none", []brief{{"part-001", userdata.KindUnhandled, ""}}},
		{
			"multi-part",
			[]byte("Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\npreamble\n--b\nContent-Type: text/x-shellscript\n\n" + script + "\n--b\nContent-Type: text/cloud-config; charset=\"us-ascii\"\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=\"c.cfg\"\n\nYTogMQo=\n--b--\n"),
			"multipart",
			[]brief{{"part-001", userdata.KindScript, script}, {"c.cfg", userdata.KindCloudConfig, "a: 1\n"}},
		},
		{
			"nested, without its end",
			[]byte("MIME-Version: 1.0\nContent-Type: multipart/mixed;\n boundary=o\n\n--o\nContent-Type: multipart/mixed; boundary=i\n\n--i\n\n" + script + "\n--i--\n\n--o\nContent-Type: text/x-shellscript\n\n" + script),
			"multipart",
			[]brief{{"part-001", userdata.KindScript, script}, {"part-002", userdata.KindScript, strings.TrimSuffix(script, "\n")}},
		},
		{
			"blank lines before MIME headers",
			[]byte("\nMIME-Version: 1.0\nContent-Type: text/x-shellscript\n\n" + script),
			"multipart",
			[]brief{{"part-001", userdata.KindUnhandled, "MIME-Version: 1.0\nContent-Type: text/x-shellscript\n\n" + script}},
		},
		{
			"archive",
			[]byte("#cloud-config-archive\n- type: text/x-shellscript\n  filename: a.sh\n  content: |\n    #!/bin/sh\n    echo hi\n- |\n  #cloud-config\n  a: 1\n- just: ignored\n"),
			"shell-script",
			[]brief{{"a.sh", userdata.KindScript, script}, {"part-002", userdata.KindCloudConfig, "#cloud-config\na: 1\n"}, {"part-003", userdata.KindCloudConfig, ""}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := userdata.Parse(tt.payload)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, briefs(p)); diff != "" {
				t.Errorf("parts (-want +got):\n%s", diff)
			}
			if p.Format != tt.format {
				t.Errorf("format %q, want %q", p.Format, tt.format)
			}
		})
	}
}

func TestParseRefusesWhatCannotBeRead(t *testing.T) {
	for name, payload := range map[string][]byte{
		"cut gzip":             zip(t, "#!/bin/sh\n"+strings.Repeat("echo hi\n", 100))[:40],
		"gzip of too much":     zip(t, strings.Repeat("a", 9<<20)),
		"MIME that is no text": []byte("MIME-Version: 1.0\n\n\xff\xfe"),
	} {
		if _, err := userdata.Parse(payload); !errors.Is(err, userdata.ErrPayload) {
			t.Errorf("%s: error %v, want ErrPayload", name, err)
		}
	}
}

func TestPartKnowsItsPlaces(t *testing.T) {
	p, err := userdata.Parse([]byte("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/x-shellscript\nContent-Disposition: attachment; filename=\"a/b c.sh\"\n\n#!/bin/sh\n--b--\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Parts[0].Offset; got != 7 {
		t.Errorf("offset %d, want 7", got)
	}
	if got, want := p.Parts[0].ScriptPath(), "/var/lib/cloud/instance/scripts/a_bc.sh"; got != want {
		t.Errorf("path %q, want %q", got, want)
	}
}

func TestRender(t *testing.T) {
	s := &settings.Settings{Bootstrap: settings.Bootstrap{Deadline: 5 * time.Minute}}
	s.Report.S3.Bucket = "lecafe-reports"
	script := "#!/bin/bash\nset -e\necho caf\u00e9\n"
	in := userdata.RenderInput{Settings: s, Sources: []userdata.Source{{Name: "x/base.yaml", Body: []byte("#cloud-config\npackages: [jq]\n")}, {Name: "setup.sh", Body: []byte(script)}}}
	out, err := userdata.Render(in)
	if err != nil {
		t.Fatal(err)
	}
	again, err := userdata.Render(in)
	if err != nil || !bytes.Equal(out, again) {
		t.Errorf("the same input gave other bytes (%v)", err)
	}
	p, err := userdata.Parse(out)
	if err != nil {
		t.Fatal(err)
	}
	want := []brief{
		{settings.UserDataPart, userdata.KindBoothook, settings.Render(*s)},
		{"001-base.yaml", userdata.KindCloudConfig, "#cloud-config\npackages: [jq]\n"},
		{"002-setup.sh", userdata.KindScript, script},
	}
	if diff := cmp.Diff(want, briefs(p)); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
	yaml, ok, err := settings.FromUserData(out)
	if err != nil || !ok || !strings.Contains(string(yaml), "lecafe-reports") {
		t.Errorf("settings read back: %q, %v, %v", yaml, ok, err)
	}

	// Rendering what was rendered keeps its parts.
	twice, err := userdata.Render(userdata.RenderInput{Sources: []userdata.Source{{Name: "u", Body: out}}})
	if err != nil {
		t.Fatal(err)
	}
	if p, err = userdata.Parse(twice); err != nil || len(p.Parts) != 3 {
		t.Errorf("rendered twice: %v, %v", p, err)
	}
}

func TestRenderKeepsTheLimit(t *testing.T) {
	big := "#!/bin/sh\n" + strings.Repeat("echo the same line again\n", 2000)
	out, err := userdata.Render(userdata.RenderInput{Sources: []userdata.Source{{Name: "a", Body: []byte(big)}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) > userdata.MaxBytes {
		t.Errorf("%d bytes", len(out))
	}
	p, err := userdata.Parse(out)
	if err != nil || !p.Gzip || string(p.Parts[0].Body) != big {
		t.Errorf("compressed payload does not read back: %v", err)
	}
	var noise strings.Builder
	noise.WriteString("#!/bin/sh\n")
	for i := range uint64(6000) { // text that gzip cannot halve
		noise.WriteString(": " + strings.ToUpper(strings.Repeat(string(rune('a'+i*i%26)), int(i%7)+1)) + string(rune('0'+i*i*i%75)) + "\n")
	}
	random := []byte(noise.String())
	state := uint32(1)
	for i := 10; i < len(random); i++ {
		state = state*1664525 + 1013904223
		random[i] = byte('!' + state>>24%90)
	}
	if _, err := userdata.Render(userdata.RenderInput{Sources: []userdata.Source{{Name: "a", Body: random}}}); !errors.Is(err, userdata.ErrTooLarge) {
		t.Errorf("error %v, want ErrTooLarge", err)
	}
}

func TestRenderRefusesWhatCloudInitWouldDrop(t *testing.T) {
	for name, in := range map[string]userdata.RenderInput{
		"nothing":   {},
		"no header": {Sources: []userdata.Source{{Name: "a", Body: []byte("echo hi\n")}}},
	} {
		if out, err := userdata.Render(in); err == nil {
			t.Errorf("%s: rendered %q", name, out)
		}
	}
}
