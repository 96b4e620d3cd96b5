package report

import (
	"regexp"
	"slices"
	"strings"

	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// Redacted stands where a secret stood.
const Redacted = "[redacted]"

// rule replaces what it matches. Patterns are linear (RE2), so no input can
// make redaction slow.
type rule struct {
	needs []string // lower case; what the form matches has one of them
	form  func() *regexp.Regexp
	with  string
}

// secretWord is what a name has in it that holds a secret. "key" alone is too
// common ("key: value", "public key"); it counts joined to another word.
const secretWord = `(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key|encryption[_-]?key|signing[_-]?key|account[_-]?key|license[_-]?key|conn(?:ection)?[_-]?str(?:ing)?|session[_-]?id|cookie)`

// secretNeeds are words of which secretWord has one.
var secretNeeds = []string{"pass", "pwd", "secret", "token", "key", "conn", "session", "cookie"}

// value is a word or a quoted string.
const value = `(?:\[redacted\]|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"',;&)}\]]+)`

var rules = []rule{
	// Private keys, whole where the end is there, to the end of the text where not.
	{[]string{"-----begin "}, lazyregexp.New(`(?s)-----BEGIN ([A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?)-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\z)`), Redacted},
	// Signed URLs: the signature and the session token.
	{[]string{"signature=", "x-amz-", "awsaccesskeyid=", "sig="}, lazyregexp.New(`(?i)\b(X-Amz-(?:Signature|Security-Token|Credential)|Signature|AWSAccessKeyId|sig)=[^\s&"'<>]+`), "${1}=" + Redacted},
	// scheme://user:password@host
	{[]string{"://"}, lazyregexp.New(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@"'<>]+@`), "${1}" + Redacted + "@"},
	// Authorization headers and bearer tokens.
	{[]string{"authorization"}, lazyregexp.New(`(?i)\b((?:proxy-)?authorization)(["']?\s*[:=]\s*["']?)(?:(?:basic|bearer|digest|token|negotiate|aws4-hmac-sha256)\s+)?[^\s"',]+(?:,\s*\w+=[^\s"',]+)*`), "${1}${2}" + Redacted},
	{[]string{"bearer", "basic"}, lazyregexp.New(`(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{8,}`), "${1}${2}" + Redacted},
	// X-aws-ec2-metadata-token: ..., X-Vault-Token: ..., Cookie: ...
	{[]string{"cookie", "token", "key", "secret"}, lazyregexp.New(`(?i)\b((?:set-)?cookie|x-[a-z0-9-]*(?:token|key|secret)[a-z0-9-]*)(["']?\s*:\s*["']?)[^\s"']+`), "${1}${2}" + Redacted},
	// --password X, --token=X, -p X after mysql-like names is left to the next rule.
	{secretNeeds, lazyregexp.New(`(?i)(--?[a-z0-9-]*` + secretWord + `[a-z0-9-]*)([= ]\s*)` + value), "${1}${2}" + Redacted},
	// NAME=value, "name": "value", name: value
	{secretNeeds, lazyregexp.New(`(?i)([A-Za-z0-9_.-]*` + secretWord + `[A-Za-z0-9_.]*["']?\s*(?:=>|:=|[:=])\s*)` + value), "${1}" + Redacted},
	{[]string{"curl", "wget"}, lazyregexp.New(`(?i)\b((?:curl|wget)\b[^\n]*?\s(?:-u|--user)[ =]?)` + value), "${1}" + Redacted},
	{[]string{"sshpass", "mysql"}, lazyregexp.New(`(?i)\b(sshpass\s+-p\s*|mysql(?:dump|admin)?\b[^\n]*?\s-p)` + value), "${1}" + Redacted},
	{secretNeeds, lazyregexp.New(`(?i)(<(?:[a-z0-9_:-]*` + secretWord + `[a-z0-9_:-]*)>)[^<]+`), "${1}" + Redacted},
	{[]string{"chpasswd"}, lazyregexp.New(`(?i)(\becho\s+["']?[a-z0-9_.-]+:)([^\s"'|]+)(["']?\s*\|\s*(?:sudo\s+)?chpasswd)`), "${1}" + Redacted + "${3}"},
	// Keys that are known by their form.
	{[]string{"akia", "asia", "abia", "acca"}, lazyregexp.New(`\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b`), Redacted},
	{[]string{"ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-"}, lazyregexp.New(`\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{20,}\b|\bgithub_pat_[A-Za-z0-9_]{20,}\b|\bglpat-[A-Za-z0-9_-]{16,}`), Redacted},
	{[]string{"xox", "sk_", "sg.", "npm_", "hvb.", "hvs.", "aiza"}, lazyregexp.New(`\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bsk_(?:live|test)_[A-Za-z0-9]{10,}|\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|\bnpm_[A-Za-z0-9]{30,}|\bhv[sb]\.[A-Za-z0-9_-]{20,}|\bAIza[A-Za-z0-9_-]{30,}`), Redacted},
	{[]string{"eyj"}, lazyregexp.New(`\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]+)?`), Redacted},
	// Session tokens: long, and they start in one of a few ways.
	{[]string{"iqoj", "fwog", "fqog", "aqod", "aqoe"}, lazyregexp.New(`\b(?:IQoJ|FwoG|FQoG|AQoD|AQoE)[A-Za-z0-9+/=]{40,}`), Redacted},
}

// awsSecret finds 40 characters that may be an AWS secret access key. Hashes
// in hex have the same length and are kept: they are what one wants to read.
var (
	awsSecret = lazyregexp.New(`(^|[^A-Za-z0-9+/=_-])([A-Za-z0-9+/]{40})($|[^A-Za-z0-9+/=_-])`)
	hexDigits = lazyregexp.New(`^[0-9a-fA-F]+$`)
)

// Redact returns text without what looks like a secret: AWS keys and session
// tokens, private keys, bearer tokens, passwords in URLs, options, headers and
// assignments, tokens of well-known services. What stands around it stays
// readable. Redacting twice changes nothing more.
func Redact(text string) string {
	// (?i) folds this one letter more than ToLower.
	lower := strings.ReplaceAll(strings.ToLower(text), "ſ", "s")
	for _, r := range rules {
		if slices.ContainsFunc(r.needs, func(word string) bool { return strings.Contains(lower, word) }) {
			text = r.form().ReplaceAllString(text, r.with)
		}
	}
	if hasRun(text, 40) {
		text = awsKeys(text)
	}
	return text
}

func awsKeys(text string) string {
	for {
		changed := false
		text = awsSecret().ReplaceAllStringFunc(text, func(m string) string {
			sub := awsSecret().FindStringSubmatch(m)
			if !secretLike(sub[2]) {
				return m
			}
			changed = true
			return sub[1] + Redacted + sub[3]
		})
		if !changed {
			return text
		}
	}
}

// hasRun says whether n characters of base64 stand together in text.
func hasRun(text string, n int) bool {
	run := 0
	for i := range len(text) {
		c := text[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/' {
			if run++; run == n {
				return true
			}
			continue
		}
		run = 0
	}
	return false
}

// secretLike says whether 40 characters mix upper and lower case and digits as
// random base64 does, and are no path.
func secretLike(s string) bool {
	return !hexDigits().MatchString(s) && strings.ContainsAny(s, "0123456789") &&
		strings.ToLower(s) != s && strings.ToUpper(s) != s && strings.Count(s, "/") < 4
}

// RedactLines redacts lines that belong together: a private key over several
// lines is found. A secret's lines may become one.
func RedactLines(lines []string) []string {
	if len(lines) == 0 {
		return nil
	}
	return strings.Split(Redact(strings.Join(lines, "\n")), "\n")
}
