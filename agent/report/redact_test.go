package report_test

import (
	"os"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/agent/report"
)

func corpus(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for l := range strings.Lines(string(data)) {
		if l = strings.TrimSuffix(l, "\n"); l != "" && !strings.HasPrefix(l, "#") {
			lines = append(lines, l)
		}
	}
	if len(lines) < 10 {
		t.Fatalf("%s has only %d lines", file, len(lines))
	}
	return lines
}

func TestRedactSecrets(t *testing.T) {
	for _, line := range corpus(t, "testdata/secrets.txt") {
		secret, text, ok := strings.Cut(line, "\t")
		text = strings.ReplaceAll(text, `\n`, "\n")
		if !ok || !strings.Contains(text, secret) {
			t.Fatalf("bad case %q", line)
		}
		got := report.Redact(text)
		if strings.Contains(got, secret) {
			t.Errorf("%q still holds %q", got, secret)
		}
		if again := report.Redact(got); again != got {
			t.Errorf("redacting twice changes %q to %q", got, again)
		}
	}
}

func TestRedactKeeps(t *testing.T) {
	for _, line := range corpus(t, "testdata/kept.txt") {
		if got := report.Redact(line); got != line {
			t.Errorf("%q became %q", line, got)
		}
	}
}

func TestRedactKeepsWhatStandsAround(t *testing.T) {
	for in, want := range map[string]string{
		"git clone https://deploy:hunter2@git.example.com/app.git": "git clone https://[redacted]@git.example.com/app.git",
		"DB_PASSWORD=hunter2 ./migrate --all":                      "DB_PASSWORD=[redacted] ./migrate --all",
		"tool --token abc --verbose":                               "tool --token [redacted] --verbose",
	} {
		if got := report.Redact(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestRedactLinesFindsKeysOverLines(t *testing.T) {
	got := report.RedactLines([]string{"before", "-----BEGIN EC PRIVATE KEY-----", "MHcCAQEE", "-----END EC PRIVATE KEY-----", "after"})
	if strings.Join(got, "|") != "before|[redacted]|after" {
		t.Errorf("got %q", got)
	}
}

// Redact leaves out the rules that a text has no word for. That must change
// nothing: every rule is tried here.
func FuzzRedact(f *testing.F) {
	for _, file := range []string{"testdata/secrets.txt", "testdata/kept.txt"} {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			f.Add(line)
			f.Add(strings.ToUpper(line))
		}
		f.Add(string(text))
	}
	f.Add("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
	f.Add("-----BEGIN PRIVATE KEY-----")
	f.Add("paſſword=hunter2 TO\u212aEN=latte \xff\xfesecret=x")
	f.Fuzz(func(t *testing.T, s string) {
		once := report.Redact(s)
		if all := report.RedactByEveryRule(s); once != all {
			t.Errorf("%q became %q, by every rule %q", s, once, all)
		}
		if len(once) > 12*len(s)+12 {
			t.Errorf("%d bytes became %d", len(s), len(once))
		}
	})
}
