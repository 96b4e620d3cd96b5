package userdata

import "github.com/lecafe/lecafe/agent/report"

// Rule is one thing Lint looks for. docs/lint.md explains each.
type Rule struct {
	ID       string
	Severity Severity // the usual one; a finding's own may be lower
	Code     report.Code
	Summary  string
}

// Rules lists every rule, by subject.
func Rules() []Rule {
	return []Rule{
		// The payload.
		{"empty", Info, "", "the payload is empty"},
		{"no-header", Error, report.CodeUserDataNoHeader, "nothing at the beginning says what it is, so cloud-init runs none of it"},
		{"leading-blank", Error, report.CodeUserDataLeadingBlank, "blank lines or spaces before #!: the kernel cannot run the script"},
		{"byte-order-mark", Error, report.CodeUserDataLeadingBlank, "a byte order mark hides the header"},
		{"crlf", Warning, "", "line ends of another system"},
		{"double-base64", Error, report.CodeUserDataEncoding, "base64 twice: the instance sees text that nobody decodes"},
		{"gzip", Error, report.CodeUserDataEncoding, "compressed data that does not decompress"},
		{"not-text", Error, report.CodeUserDataEncoding, "binary data where text is expected"},
		{"too-large", Error, "", "over EC2's limit of 16 KB"},
		{"wrong-header", Error, report.CodeUserDataNoHeader, "the content is not what its header says"},
		{"interpreter", Error, report.CodeScriptInterpreter, "the #! line names no program the kernel can find"},

		// MIME.
		{"mime-structure", Error, report.CodeUserDataInvalidMIME, "the multi-part message is not put together right"},
		{"mime-encoding", Error, report.CodeUserDataInvalidMIME, "a part does not decode"},
		{"mime-8bit", Warning, "", "unencoded characters outside ASCII: cloud-init changes them"},
		{"dropped-part", Error, report.CodeUserDataNotRun, "no handler takes the part"},
		{"duplicate-part", Error, report.CodeUserDataNotRun, "two parts of one name: the later overwrites the earlier"},
		{"overridden-part", Warning, "", "a later cloud-config replaces what an earlier one set"},

		// Text of any kind.
		{"placeholder", Error, report.CodeUserDataPlaceholder, "a template's placeholder was left unrendered"},
		{"secret", Warning, "", "a secret in clear: whoever can describe the instance can read user data"},
		{"imds-v1", Warning, "", "instance metadata read without a token fails where IMDSv2 is required"},

		// Scripts.
		{"shell-syntax", Error, report.CodeScriptSyntax, "the script does not parse"},
		{"bashism", Warning, "", "bash's syntax under #!/bin/sh"},
		{"no-errexit", Warning, "", "commands can fail without notice"},
		{"no-pipefail", Warning, "", "a pipe hides the failure of all but its last command"},
		{"background-work", Warning, "", "work left in the background fails without notice"},
		{"masked-failure", Warning, "", "a failure is hidden"},
		{"http-error-ignored", Warning, "", "curl takes an error page for success"},
		{"xtrace", Warning, "", "set -x writes every command, with its secrets, to the console log"},
		{"deadlock", Error, "", "waits for something that waits for this script"},
		{"interactive", Warning, "", "asks a question that nobody answers"},
		{"reboot", Warning, "", "the machine goes down while its bootstrap runs"},

		// cloud-config.
		{"yaml", Error, report.CodeUserDataInvalidYAML, "not valid YAML: cloud-init ignores all of it"},
		{"unknown-key", Error, report.CodeUserDataUnknownKey, "a key that no cloud-init module reads"},
		{"wrong-type", Error, report.CodeUserDataWrongType, "a value of a type its module does not take"},
		{"bad-value", Error, report.CodeUserDataBadValue, "a value its module refuses"},
		{"duplicate-key", Warning, "", "a key twice: the last one counts"},
	}
}

var ruleByID = func() map[string]Rule {
	m := make(map[string]Rule)
	for _, r := range Rules() {
		m[r.ID] = r
	}
	return m
}()
