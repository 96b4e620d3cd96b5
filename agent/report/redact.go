package report

import (
	"regexp"
	"strings"
	"sync"
)

// Redacted stands where a secret stood.
const Redacted = "[redacted]"

// rule replaces what it matches. Patterns are linear (RE2), so no input can
// make redaction slow.
type rule struct {
	form *regexp.Regexp
	with string
}

// secretWord is what a name has in it that holds a secret. "key" alone is too
// common ("key: value", "public key"); it counts joined to another word.
const secretWord = `(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key|encryption[_-]?key|signing[_-]?key|account[_-]?key|license[_-]?key|conn(?:ection)?[_-]?str(?:ing)?|session[_-]?id|cookie)`

// value is a word or a quoted string.
const value = `(?:\[redacted\]|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"',;&)}\]]+)`

// rules are compiled when the first text comes: other commands of the same
// program have none.
var rules = sync.OnceValue(func() []rule {
	return []rule{
		// Private keys, whole where the end is there, to the end of the text where not.
		{regexp.MustCompile(`(?s)-----BEGIN ([A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?)-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\z)`), Redacted},
		// Signed URLs: the signature and the session token.
		{regexp.MustCompile(`(?i)\b(X-Amz-(?:Signature|Security-Token|Credential)|Signature|AWSAccessKeyId|sig)=[^\s&"'<>]+`), "${1}=" + Redacted},
		// scheme://user:password@host
		{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@"'<>]+@`), "${1}" + Redacted + "@"},
		// Authorization headers and bearer tokens.
		{regexp.MustCompile(`(?i)\b((?:proxy-)?authorization)(["']?\s*[:=]\s*["']?)(?:(?:basic|bearer|digest|token|negotiate|aws4-hmac-sha256)\s+)?[^\s"',]+(?:,\s*\w+=[^\s"',]+)*`), "${1}${2}" + Redacted},
		{regexp.MustCompile(`(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{8,}`), "${1}${2}" + Redacted},
		// X-aws-ec2-metadata-token: ..., X-Vault-Token: ..., Cookie: ...
		{regexp.MustCompile(`(?i)\b((?:set-)?cookie|x-[a-z0-9-]*(?:token|key|secret)[a-z0-9-]*)(["']?\s*:\s*["']?)[^\s"']+`), "${1}${2}" + Redacted},
		// --password X, --token=X, -p X after mysql-like names is left to the next rule.
		{regexp.MustCompile(`(?i)(--?[a-z0-9-]*` + secretWord + `[a-z0-9-]*)([= ]\s*)` + value), "${1}${2}" + Redacted},
		// NAME=value, "name": "value", name: value
		{regexp.MustCompile(`(?i)([A-Za-z0-9_.-]*` + secretWord + `[A-Za-z0-9_.]*["']?\s*(?:=>|:=|[:=])\s*)` + value), "${1}" + Redacted},
		{regexp.MustCompile(`(?i)\b((?:curl|wget)\b[^\n]*?\s(?:-u|--user)[ =]?)` + value), "${1}" + Redacted},
		{regexp.MustCompile(`(?i)\b(sshpass\s+-p\s*|mysql(?:dump|admin)?\b[^\n]*?\s-p)` + value), "${1}" + Redacted},
		{regexp.MustCompile(`(?i)(<(?:[a-z0-9_:-]*` + secretWord + `[a-z0-9_:-]*)>)[^<]+`), "${1}" + Redacted},
		{regexp.MustCompile(`(?i)(\becho\s+["']?[a-z0-9_.-]+:)([^\s"'|]+)(["']?\s*\|\s*(?:sudo\s+)?chpasswd)`), "${1}" + Redacted + "${3}"},
		// Keys that are known by their form.
		{regexp.MustCompile(`\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b`), Redacted},
		{regexp.MustCompile(`\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{20,}\b|\bgithub_pat_[A-Za-z0-9_]{20,}\b|\bglpat-[A-Za-z0-9_-]{16,}`), Redacted},
		{regexp.MustCompile(`\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bsk_(?:live|test)_[A-Za-z0-9]{10,}|\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|\bnpm_[A-Za-z0-9]{30,}|\bhv[sb]\.[A-Za-z0-9_-]{20,}|\bAIza[A-Za-z0-9_-]{30,}`), Redacted},
		{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]+)?`), Redacted},
		// Session tokens: long, and they start in one of a few ways.
		{regexp.MustCompile(`\b(?:IQoJ|FwoG|FQoG|AQoD|AQoE)[A-Za-z0-9+/=]{40,}`), Redacted},
	}
})

// awsSecret finds 40 characters that may be an AWS secret access key. Hashes
// in hex have the same length and are kept: they are what one wants to read.
var (
	awsSecret = regexp.MustCompile(`(^|[^A-Za-z0-9+/=_-])([A-Za-z0-9+/]{40})($|[^A-Za-z0-9+/=_-])`)
	hexDigits = regexp.MustCompile(`^[0-9a-fA-F]+$`)
)

// Redact returns text without what looks like a secret: AWS keys and session
// tokens, private keys, bearer tokens, passwords in URLs, options, headers and
// assignments, tokens of well-known services. What stands around it stays
// readable. Redacting twice changes nothing more.
func Redact(text string) string {
	for _, r := range rules() {
		text = r.form.ReplaceAllString(text, r.with)
	}
	return redactKeys(text)
}

func redactKeys(text string) string {
	for {
		changed := false
		text = awsSecret.ReplaceAllStringFunc(text, func(m string) string {
			sub := awsSecret.FindStringSubmatch(m)
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

// secretLike says whether 40 characters mix upper and lower case and digits as
// random base64 does, and are no path.
func secretLike(s string) bool {
	return !hexDigits.MatchString(s) && strings.ContainsAny(s, "0123456789") &&
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
