package fleet

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/sinks"
)

func agentLine(l sinks.Line) string {
	b, _ := json.Marshal(l)
	return sinks.Prefix + string(b) + "\r\n"
}

func TestConsoleCauses(t *testing.T) {
	start := agentLine(sinks.Line{Event: "start"})
	for name, c := range map[string]struct {
		text string
		code report.Code // of the most telling clue, "" for none
	}{
		"empty":                               {"", ""},
		"panic":                               {"[ 1.0] Kernel panic - not syncing: Attempted to kill init!", CodeKernelPanic},
		"emergency":                           {"\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39memergency.target\x1b[0m - Emergency Mode.\r\nYou are in emergency mode.", CodeEmergency},
		"agent's verdict":                     {start + agentLine(sinks.Line{Event: "verdict", Verdict: report.Failure, Code: report.CodeScriptExit, Line: 7}) + "login: ", report.CodeScriptExit},
		"agent's trouble":                     {start + agentLine(sinks.Line{Event: "trouble", Code: report.CodeCredentialsMissing, Message: "404"}), report.CodeCredentialsMissing},
		"verdict success, not delivered":      {start + agentLine(sinks.Line{Event: "verdict", Verdict: report.Success}), CodeReportUnsent},
		"an earlier boot's verdict":           {start + agentLine(sinks.Line{Event: "verdict", Verdict: report.Failure, Code: report.CodeScriptExit}) + start, CodeBootStuck},
		"torn line":                           {start + sinks.Prefix + `{"event":"verd[   12.3] eth0: link up` + "\n", CodeBootStuck},
		"login without the agent":             {"Debian GNU/Linux 13 ip-10-0-0-1 ttyS0\n\nip-10-0-0-1 login: ", CodeAgentAbsent},
		"cloud-init's own":                    {"[   20.1] cloud-init[512]: 2026-03-01 12:00:00 - util.py[WARNING]: Failed to run module scripts_user\nhost login:", report.CodeCloudInitError},
		"it stops somewhere":                  {"[    0.0] Linux version 6.1\n[    1.0] Waiting for root device", CodeBootStuck},
		"a code that is none":                 {start + agentLine(sinks.Line{Event: "verdict", Verdict: report.Failure, Code: "\x1b[31mNo Such"}), CodeReportUnsent},
		"killed for want of memory":           {"[ 40.0] Out of memory: Killed process 812 (java) total-vm:8123456kB\nhost login:", CodeOutOfMemory},
		"full disk":                           {"cp: error writing '/opt/x': No space left on device\nhost login:", CodeFilesystem},
		"no metadata service":                 {"[   30.1] cloud-init[410]: No instance datasource found! Likely bad things to come!", report.CodeDatasourceNone},
		"no network":                          {"[   30.1] app[410]: connect: Network is unreachable\nhost login:", report.CodeNetworkUnreachable},
		"the agent's unit fails":              {"[FAILED] Failed to start lecafe-agent.service - Le Café's agent.\nhost login:", CodeAgentAbsent},
		"panic outweighs what was said first": {start + "Kernel panic - not syncing: x", CodeKernelPanic},
	} {
		clues := consoleClues(c.text)
		var best Clue
		for _, cl := range clues {
			if cl.Weight > best.Weight {
				best = cl
			}
		}
		if best.Code != c.code {
			t.Errorf("%s: %q, want %q (%+v)", name, best.Code, c.code, clues)
		}
	}
}

func FuzzConsole(f *testing.F) {
	f.Add("lecafe-agent: {\"event\":\"verdict\",\"verdict\":\"failure\"}\r\n")
	f.Add("\x1b[31mKernel panic - not syncing: \xff")
	f.Fuzz(func(t *testing.T, text string) {
		for _, c := range consoleClues(text) {
			if c.Code == "" || c.Source != "console" || len(c.Message) > 600 || strings.ContainsRune(string(c.Code), '\x1b') {
				t.Errorf("%+v", c)
			}
		}
	})
}

// Whatever lies at a report's key: no panic, and either a report that is what
// its key says, or a refusal.
func FuzzReport(f *testing.F) {
	k := report.Key{Sender: "AROAEXAMPLE:i-00000001", Kind: report.KindBootstrap, Verdict: report.Failure, Code: "none", ID: "0123456789abcdef"}
	k.Time = k.Time.AddDate(2025, 0, 0)
	good, _ := report.Encode(&report.Report{ID: k.ID, Kind: k.Kind, Verdict: k.Verdict, Sender: k.Sender, Instance: report.Instance{ID: "i-00000001"}, JudgedAt: k.Time})
	f.Add(good)
	f.Add([]byte(`{"schema":"lecafe.report/v9"}`))
	f.Add([]byte(`{"schema":"lecafe.report/v1","causes":[{}],"sender":"AROAEXAMPLE:i-00000001"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		rep, err := check(b, k)
		if no, ok := asRefused(err); err != nil && (!ok || no.reason == "") {
			t.Fatalf("neither report nor refusal: %v", err)
		}
		if err == nil {
			if rep.Sender != k.Sender || rep.ID != k.ID || rep.Verdict != k.Verdict {
				t.Fatalf("believed %+v at %s", rep, k)
			}
			causeOf(rep)
		}
		if _, err := decodeMessage(string(b), k.Sender); err != nil {
			if _, ok := asRefused(err); !ok {
				t.Fatal(err)
			}
		}
	})
}
