package fleet

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/sinks"
)

// agentLines reads the agent's own lines on a console: those of the last boot,
// which begins with the event "start". The kernel and others may write into
// the middle of a line; such a line is passed over.
func agentLines(text string) []Clue {
	var verdict, trouble, last *sinks.Line
	n := 0
	for line := range strings.Lines(text) {
		_, doc, ok := strings.Cut(line, sinks.Prefix)
		if !ok {
			continue
		}
		var l sinks.Line
		if json.NewDecoder(strings.NewReader(doc)).Decode(&l) != nil || l.Event == "" {
			continue
		}
		if l.Event == "start" {
			verdict, trouble = nil, nil
		}
		n++
		last = &l
		switch {
		case l.Event == "verdict":
			verdict = &l
		case l.Event == "trouble" || l.Code != "":
			trouble = &l
		}
	}
	if n == 0 {
		return nil
	}
	var clues []Clue
	if trouble != nil {
		clues = append(clues, Clue{Cause: lineCause(trouble, trouble.Message), Weight: 82})
	}
	switch {
	case verdict != nil && verdict.Verdict == report.Success:
		c := lineCause(verdict, "the agent judged success, but its report did not arrive")
		c.Code, c.Fix = CodeReportUnsent, "check the role's policy, the bucket, and the way to S3; see lecafe policy agent"
		clues = append(clues, Clue{Cause: c, Weight: 81, judged: verdict.Verdict})
	case verdict != nil:
		c := lineCause(verdict, fmt.Sprintf("the agent judged %s, but its report did not arrive: %s", verdict.Verdict, verdict.Message))
		clues = append(clues, Clue{Cause: c, Weight: 88, judged: verdict.Verdict})
	case trouble == nil:
		c := lineCause(last, "the agent runs and has not judged; its last word was "+last.Event+": "+last.Message)
		c.Code = CodeBootStuck
		clues = append(clues, Clue{Cause: c, Weight: 35})
	}
	return clues
}

func lineCause(l *sinks.Line, message string) Cause {
	return Cause{Code: cmp.Or(clipCode(l.Code), CodeReportUnsent), Stage: report.StageName(clip(l.Stage)), Source: "console", Message: clip200(strings.TrimRight(strings.TrimSpace(message), ":")),
		File: clip(l.File), Line: max(0, l.Line), ExitCode: l.Exit}
}

// clipCode takes a code from a console only if it has a code's form.
func clipCode(c report.Code) report.Code {
	for _, r := range c {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' || len(c) > 64 {
			return ""
		}
	}
	return c
}
