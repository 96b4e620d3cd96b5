package userdata_test

import (
	"strings"
	"testing"

	"github.com/lecafe/lecafe/userdata"
)

// check holds whatever the bytes are: nothing panics, and every finding points
// at a place that there is.
func check(t *testing.T, data []byte) {
	t.Helper()
	if p, err := userdata.Parse(data); err == nil {
		for _, part := range p.Parts {
			if part.Kind.Script() && strings.ContainsAny(part.ScriptName(), "/\x00\n") {
				t.Errorf("script name %q", part.ScriptName())
			}
			if part.Offset > 1+strings.Count(string(p.Text), "\n") {
				t.Errorf("part %q begins behind the payload's end", part.Name)
			}
		}
	}
	rules := make(map[string]bool)
	for _, r := range userdata.Rules() {
		rules[r.ID] = true
	}
	for _, f := range userdata.Lint(data, userdata.Options{}) {
		if !rules[f.Rule] || f.Severity == "" || f.Line < 0 || f.Column < 0 {
			t.Errorf("finding %+v", f)
		}
	}
}

func seed(f *testing.F, prefix string) {
	for _, c := range corpus(f) {
		if strings.HasPrefix(c.name, prefix) && len(c.payload) <= userdata.MaxBytes {
			f.Add(c.payload)
		}
	}
}

func FuzzMIME(f *testing.F) {
	seed(f, "mime/")
	f.Fuzz(func(t *testing.T, data []byte) { check(t, append([]byte("MIME-Version: 1.0\n"), data...)) })
}

func FuzzGzip(f *testing.F) {
	f.Add(zip(f, "#!/bin/sh\necho hi\n"))
	f.Add(zip(f, "#cloud-config\na: 1\n")[:20])
	f.Fuzz(func(t *testing.T, data []byte) { check(t, append([]byte{0x1f, 0x8b}, data...)) })
}

func FuzzCloudConfig(f *testing.F) {
	seed(f, "config/")
	f.Fuzz(func(t *testing.T, data []byte) {
		check(t, append([]byte("#cloud-config\n"), data...))
		check(t, append([]byte("#cloud-config-archive\n"), data...))
	})
}

func FuzzShell(f *testing.F) {
	seed(f, "shell/")
	seed(f, "text/")
	f.Fuzz(func(t *testing.T, data []byte) {
		check(t, append([]byte("#!/bin/bash\n"), data...))
		check(t, append([]byte("#!/bin/sh\n"), data...))
	})
}

func FuzzPayload(f *testing.F) {
	seed(f, "")
	f.Fuzz(check)
}
