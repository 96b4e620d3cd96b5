package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/test/boots"
)

// block is a step of the tutorial: commands, and what they print where the
// document says so.
type block struct {
	line    int
	script  string
	output  string
	compare bool
}

var fence = regexp.MustCompile("^```(.*)$")

// tutorialSteps reads the fenced code of a Markdown document: sh is run, a text that
// follows is what it prints, anything else is for the reader.
func tutorialSteps(doc string) ([]block, error) {
	var out []block
	lines := strings.Split(doc, "\n")
	for i := 0; i < len(lines); i++ {
		m := fence.FindStringSubmatch(lines[i])
		if m == nil {
			continue
		}
		start := i + 1
		for i++; i < len(lines) && lines[i] != "```"; i++ {
		}
		if i == len(lines) {
			return nil, fmt.Errorf("line %d: the block does not end", start)
		}
		body := strings.Join(lines[start:i], "\n") + "\n"
		switch m[1] {
		case "sh":
			out = append(out, block{line: start, script: body})
		case "text":
			if len(out) == 0 || out[len(out)-1].compare {
				return nil, fmt.Errorf("line %d: an output without commands", start)
			}
			out[len(out)-1].output, out[len(out)-1].compare = body, true
		}
	}
	return out, nil
}

// shown matches what a command printed with what the document shows.
func shown(document string) *regexp.Regexp {
	quoted := regexp.QuoteMeta(strings.TrimSpace(document))
	return regexp.MustCompile("^" + strings.ReplaceAll(quoted, `\.\.\.`, `[^\n]*`) + "$")
}

// TestTutorial runs every command of docs/tutorial.md, in one shell of one lab,
// as its reader does.
func TestTutorial(t *testing.T) {
	doc, err := os.ReadFile("../../docs/tutorial.md")
	if err != nil {
		t.Fatal(err)
	}
	steps, err := tutorialSteps(string(doc))
	if err != nil {
		t.Fatal(err)
	}
	if len(steps) < 8 {
		t.Fatalf("docs/tutorial.md has %d steps", len(steps))
	}
	if _, err := exec.LookPath("aws"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("the AWS CLI is not installed, and the tutorial must be run in CI: apt-get install awscli")
		}
		t.Skip("SKIPPED the tutorial's commands: the AWS CLI is not installed: apt-get install awscli")
	}
	boots.BaseImage(t, "debian-12")
	t.Parallel()
	bin := boots.Programs(t)

	const mark = "==== end of the block at line %d"
	script := &strings.Builder{}
	script.WriteString("set -euo pipefail\n")
	for _, s := range steps {
		fmt.Fprintf(script, "%s\necho '"+mark+"'\necho \"after line %d: $SECONDS s\" >&2\n", s.script, s.line, s.line)
	}
	file := filepath.Join(t.TempDir(), "tutorial.sh")
	if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	// Longer than any of it takes; only a hang ends so.
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	args := []string{"lab", "run", "--seed", "none", "--state-dir", t.TempDir()}
	if m := os.Getenv("LECAFE_LAB_MIRROR"); m != "" {
		args = append(args, "--mirror", m)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "lecafe"), append(args, "--", "bash", file)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, io.MultiWriter(&errs, boots.Writer(t))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	failed := cmd.Run()
	rest := out.String()
	for _, s := range steps {
		got, after, ended := strings.Cut(rest, fmt.Sprintf(mark+"\n", s.line))
		if !ended {
			t.Fatalf("docs/tutorial.md:%d: a command failed: %v\n%s\nit printed:\n%s", s.line, failed, s.script, got)
		}
		rest = after
		if got = strings.TrimSpace(got); s.compare && !shown(s.output).MatchString(got) {
			t.Errorf("docs/tutorial.md:%d: printed\n%s\nwhere the document shows\n%s", s.line, got, s.output)
		}
		if !s.compare && got != "" {
			t.Errorf("docs/tutorial.md:%d: printed what the document does not show:\n%s", s.line, got)
		}
	}
	if failed != nil {
		t.Error(failed)
	}
	if !strings.Contains(errs.String(), "amazon-ssm-agent is not installed or not running") {
		t.Error("lecafe connect did not say what is missing")
	}
}

// TestTutorialIsCompared shows that a wrong output in the document is found.
func TestTutorialIsCompared(t *testing.T) {
	steps, err := tutorialSteps("a\n```sh\necho 1\n```\nb\n```text\n1 ... ami-...\n```\n```console\n$ no\n```\n")
	if err != nil || len(steps) != 1 || steps[0].script != "echo 1\n" || steps[0].line != 2 {
		t.Fatalf("%+v, %v", steps, err)
	}
	re := shown(steps[0].output)
	if !re.MatchString("1 x ami-2") || re.MatchString("1 x ami-2\nmore") || re.MatchString("2 x ami-2") {
		t.Errorf("%s", re)
	}
	for _, bad := range []string{"```text\nx\n```\n", "```sh\necho\n"} {
		if _, err := tutorialSteps(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
