package userdata

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// secretForm is one shape of a secret. What it found is never repeated in a
// finding.
type secretForm struct {
	form func() *regexp.Regexp // its first group, where it has one, is the value
	what string
	// known says that the value's own form gives it away; any other value may
	// be a path, an ARN or a word of documentation.
	known bool
}

var secretForms = []secretForm{
	{lazyregexp.New(`\b((?:AKIA|ASIA)[A-Z0-9]{16})\b`), "an AWS access key", true},
	{lazyregexp.New(`(?i)aws_?secret_?(?:access_?)?key['"]?\s*[:=]\s*['"]?([A-Za-z0-9/+=]{40})\b`), "an AWS secret key", true},
	{lazyregexp.New(`-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----`), "a private key", true},
	{lazyregexp.New(`\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{18,}|xox[abprs]-[A-Za-z0-9-]{10,}|sk_live_[A-Za-z0-9]{16,}|AIza[A-Za-z0-9_-]{35}|npm_[A-Za-z0-9]{36}|dckr_pat_[A-Za-z0-9_-]{20,}|hvs\.[A-Za-z0-9_-]{24,})`), "an access token", true},
	{lazyregexp.New(`\b(eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})`), "a signed token", true},
	{lazyregexp.New(`\b[a-z][a-z0-9+.-]*://[^/\s:@"'$]*:([^/\s:@"'${}<>*]{3,})@[A-Za-z0-9]`), "a password in a URL", false},
	{lazyregexp.New(`(?i)\bAuthorization:\s*(?:Bearer|token)\s+([A-Za-z0-9._~+/-]{20,})`), "an access token", false},
	{lazyregexp.New(`\bhooks\.slack\.com/services/(T[A-Z0-9]{8,}/B[A-Z0-9]{8,}/[A-Za-z0-9]{20,})`), "a webhook's secret address", true},
	{lazyregexp.New(`[{,]\s*['"]?(?:password|passwd|plain_text_passwd)['"]?\s*:\s*['"]?([^\s'"${}<>|&*!\[\],#]{5,})['"]?\s*[,}]`), "a secret in a setting", false},
	{lazyregexp.New(`\b(?:PGPASSWORD|MYSQL_PWD|SSHPASS|REDISCLI_AUTH)=['"]?([^\s'"$` + "`" + `{}<>;|&()\\]{4,})`), "a secret in an assignment", false},
	{lazyregexp.New(`\bsshpass\s+-p\s*['"]?([^\s'"$` + "`" + `]{4,})`), "a secret on a command line", false},
	{lazyregexp.New(`(?i)\b(?:[a-z0-9_]*_)?(?:password|passwd|passphrase|secret|secret_?key|token|api_?key|access_?key|private_?key|auth_?key|credentials?)\s*=\s*['"]?([^\s'"$` + "`" + `{}<>;|&()\\]{6,})`), "a secret in an assignment", false},
	{lazyregexp.New(`(?i)^\s*-?\s*['"]?(?:password|plain_text_passwd|plain-text-passwd|[a-z0-9_]*(?:_password|_secret|_token|_api_key|api_key|secret_key))['"]?\s*:\s*['"]?([^\s'"${}<>|&*!\[\]#]{5,})['"]?\s*$`), "a secret in a setting", false},
	{lazyregexp.New(`(?i)\s--?(?:password|passwd|token|api-?key|secret)[ =]['"]?([^\s'"$` + "`" + `{}<>;|&()\\-][^\s'"$` + "`" + `{}<>;|&()\\]{5,})`), "a secret on a command line", false},
	{lazyregexp.New(`\bcurl\b[^|;]*\s(?:-u|--user)[ =]?['"]?[A-Za-z0-9._-]+:([^\s'"$` + "`" + `]{4,})`), "a password on a command line", false},
	{lazyregexp.New(`\becho\s+['"]?[a-z_][a-z0-9_-]*:([^\s'"$` + "`" + `:]{4,})['"]?\s*\|\s*(?:sudo\s+)?chpasswd\b`), "a password for chpasswd", false},
}

// notSecret recognises values that only say where a secret is.
var notSecret = lazyregexp.New(`(?i)^(?:/|\./|~/|%|file:|https?:|arn:|ssm:|vault:|resolve:|secretsmanager:|true$|false$|none$|null$|required$|optional$|enabled$|disabled$|yes$|no$|\d{1,9}$|x+$|\*+$|.*(?:change_?me|example|placeholder|replace))`)

// expression says that a value without quotes is a program's own words: a call
// or a field, as in token = answer.json().
func expression(line string, from, to int) bool {
	if from > 0 && (line[from-1] == '"' || line[from-1] == '\'') {
		return to < len(line) && line[to] == ' ' && strings.IndexByte(line[to:], line[from-1]) >= 0 // words, as of a command
	}
	return to < len(line) && (line[to] == '(' || line[to] == '[') || from > 1 && line[from-1] == ' ' && strings.Contains(line[from:to], ".")
}

// placeholderForm is one template language's placeholder.
type placeholderForm struct {
	needs    []string // a match has one of these: most lines need no look at the form
	form     func() *regexp.Regexp
	what     string
	severity Severity
	template bool // it is at home in a jinja template
}

var placeholderForms = []placeholderForm{
	{[]string{"${"}, lazyregexp.New(`\$\{(?:var|local|module|data|path|terraform|each|self|count|aws_[a-z0-9_]+|random_[a-z]+|tls_[a-z_]+)\.[A-Za-z_][A-Za-z0-9_.\[\]"*-]*\}`), "Terraform", Error, false},
	{[]string{"${"}, lazyregexp.New(`\$\{(?:file|templatefile|jsonencode|yamlencode|base64encode|lookup|element)\(`), "Terraform", Error, false},
	{[]string{"%{"}, lazyregexp.New(`%\{\s*~?\s*(?:if|for|else|endif|endfor)\b[^}\n]*\}`), "Terraform", Error, false},
	{[]string{"$${"}, lazyregexp.New(`\$\$\{[A-Za-z_][A-Za-z0-9_]*\}`), "Terraform (an escaped $${...} is for templatefile alone)", Error, false},
	{[]string{"${"}, lazyregexp.New(`\$\{AWS::[A-Za-z]+\}|\$\{[A-Z][A-Za-z0-9]*\.[A-Z][A-Za-z0-9.]*\}`), "CloudFormation", Error, false},
	{[]string{"Fn::", "!Sub", "!Ref", "!GetAtt", "!Join", "!ImportValue", "!FindInMap", `"Ref"`}, lazyregexp.New(`"?\bFn::(?:Sub|Join|Base64|GetAtt|ImportValue|FindInMap|Select)\b|(?:^|[\s:\[-])!(?:Sub|Ref|GetAtt|Join|ImportValue|FindInMap)\s+['"|>\[A-Za-z]|\{\s*"Ref"\s*:`), "CloudFormation", Error, false},
	{[]string{"${Token["}, lazyregexp.New(`\$\{Token\[[^\]\n]+\]\}`), "CDK", Error, false},
	{[]string{"{{"}, lazyregexp.New(`\{\{-?\s*(?:ds|v1|v2)\.[a-z_][^}\n]*\}\}`), "jinja (the payload does not begin with ## template: jinja)", Error, true},
	{[]string{"{%"}, lazyregexp.New(`\{%-?\s*(?:if|for|set|else|elif|endif|endfor)\b[^%\n]*%\}`), "jinja (the payload does not begin with ## template: jinja)", Error, true},
	{[]string{"{{"}, lazyregexp.New(`\{\{-?\s*(?:[a-z_][a-z0-9_]*|\.Values\.[A-Za-z0-9_.]+)\s*-?\}\}`), "a template", Warning, true},
	{[]string{"<", "REPLACE", "CHANGE", "INSERT"}, lazyregexp.New(`<(?:YOUR|REPLACE|INSERT|CHANGE|ENTER|MY)[-_ A-Z0-9]+>|\b(?:REPLACE|CHANGE)_?ME\b|\b(?:REPLACE|INSERT)_(?:WITH|YOUR)_[A-Z0-9_]+\b`), "a person", Warning, false},
	{[]string{"@@", "%%", "__"}, lazyregexp.New(`(?:^|[\s="'/:@])(?:@@[A-Z][A-Z0-9_]+@@|%%[A-Z][A-Z0-9_]+%%|__[A-Z][A-Z0-9_]*[A-Z0-9]__)`), "a template", Warning, false},
}

// find is where line has the placeholder, nil where it has none.
func (f *placeholderForm) find(line string) []int {
	if !slices.ContainsFunc(f.needs, func(word string) bool { return strings.Contains(line, word) }) {
		return nil
	}
	return f.form().FindStringIndex(line)
}

// noShell is a variable in a key of cloud-config that is text and nothing else.
var noShell = lazyregexp.New(`^(?:hostname|fqdn|timezone|locale|prefer_fqdn_over_hostname|locale_configfile):\s[^#]*?(\$\{[A-Za-z_][A-Za-z0-9_]*\})`)

// text looks for what is wrong in any language. It works on lines: words in
// comments count for secrets, which are no safer there, and for nothing else.
func (l *linter) text(p *Part, at place) {
	script := p.Kind.Script() || p.Kind == KindBoothook
	token := bytes.Contains(bytes.ToLower(p.Body), []byte("x-aws-ec2-metadata-token"))
	shell := script && isShell(bytes.TrimSpace(p.Body))
	v1 := false
	var secrets []secretForm
	if !slices.Contains(l.ignore, "secret") {
		secrets = secretForms
	}
	for i, line := range at.lines {
		for _, s := range secrets {
			m := s.form().FindStringSubmatchIndex(line)
			if m == nil || !s.known && (notSecret().MatchString(line[m[2]:m[3]]) || expression(line, m[2], m[3])) {
				continue
			}
			l.add(at, problem{rule: "secret", line: i + 1, col: 1 + utf8.RuneCountInString(line[:m[0]]), message: s.what + " stands in the payload in clear", fix: "keep it in SSM Parameter Store or Secrets Manager and fetch it with the instance's role; then replace this one"})
			break
		}
		if strings.HasPrefix(strings.TrimSpace(line), "#") && i > 0 {
			continue
		}
		for _, f := range placeholderForms {
			if f.template && p.Jinja {
				continue
			}
			m := f.find(line)
			if m == nil || mark().MatchString(line[m[0]:m[1]]) || heredocWord(p.Body, line, line[m[0]:m[1]]) || goTemplate(line) && strings.HasPrefix(line[m[0]:], "{{") {
				continue
			}
			l.add(at, problem{rule: "placeholder", severity: f.severity, line: i + 1, col: 1 + utf8.RuneCountInString(line[:m[0]]), message: "a placeholder for " + f.what + " was left unrendered: " + clip(strings.TrimSpace(line[m[0]:m[1]]), 60), fix: "render the template before it becomes user data"})
			break
		}
		if m := noShell().FindStringSubmatchIndex(line); m != nil && p.Kind == KindCloudConfig {
			l.add(at, problem{rule: "placeholder", severity: Warning, line: i + 1, col: 1 + utf8.RuneCountInString(line[:m[2]]), message: "no shell fills in " + clip(line[m[2]:m[3]], 60) + " here: it is taken as it stands", fix: "render the template before it becomes user data"})
		}
		if !shell && !v1 && !token && p.Kind != KindCloudConfig && strings.Contains(line, "169.254.169.254/") {
			v1 = true
			l.add(at, problem{rule: "imds-v1", line: i + 1, col: 1 + utf8.RuneCountInString(line[:strings.Index(line, "169.254.169.254/")]), message: "instance metadata is read without a token, which fails where IMDSv2 is required", fix: "PUT to /latest/api/token first and send the token in X-aws-ec2-metadata-token"})
		}
	}
}

// mark recognises names that look like a template's and end text or belong to
// a language.
var mark = lazyregexp.New(`__(?:EOF|EOT|END|DATA|WARN|DIE|FILE|LINE|MAIN|PACKAGE|ELF|HEREDOC)__$`)

// heredocWord says that a word begins or ends a heredoc.
func heredocWord(body []byte, line, word string) bool {
	word = strings.TrimLeft(word, " \t=\"'")
	return strings.HasPrefix(word, "__") && (strings.Contains(line, "<<") || strings.TrimSpace(line) == word && bytes.Contains(body, []byte("<<")))
}

// goTemplate says that a line formats a command's output by a Go template.
func goTemplate(line string) bool {
	return strings.Contains(line, "{{range") || strings.Contains(line, "{{ range") || strings.Contains(line, "{{with") || strings.Contains(line, "{{ with") || strings.Contains(line, "--format") || strings.Contains(line, " -f ") || strings.Contains(line, "-o go-template") || strings.Contains(line, "-o template") || strings.Contains(line, "--template")
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
