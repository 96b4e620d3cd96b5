package userdata

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// Options of Lint.
type Options struct {
	File   string   // what findings call the payload; default "user-data"
	Ignore []string // IDs of rules that are not wanted
}

// Lint returns what is wrong with data, in order of place. It executes and
// fetches nothing, and takes any bytes. A comment "# lecafe:ignore RULE" (or
// several rules, separated by commas) on the line of a finding, or alone on
// the line above it, silences it.
func Lint(data []byte, opts Options) []Finding {
	l := &linter{file: opts.File, ignore: opts.Ignore}
	if l.file == "" {
		l.file = "user-data"
	}
	l.run(data)
	sortFindings(l.found)
	return slices.Compact(l.found)
}

type linter struct {
	file    string
	ignore  []string
	payload *Payload
	found   []Finding
}

// place maps lines of a text to the payload and to the file on the instance.
type place struct {
	part   string // "" for the payload itself
	offset int    // lines of the payload before the text, -1: it stands nowhere
	skip   int    // lines of the instance's file before the text
	lines  []string
}

func placeOf(p *Part, multi bool) place {
	at := place{offset: p.Offset, skip: p.Skip, lines: strings.Split(string(p.Body), "\n")}
	if multi {
		at.part = p.Name
	}
	return at
}

// add records a problem whose line counts in the text of at.
func (l *linter) add(at place, q problem) {
	rule := ruleByID[q.rule]
	if slices.Contains(l.ignore, q.rule) || suppressed(at.lines, q.line, q.rule) {
		return
	}
	f := Finding{File: l.file, Rule: q.rule, Severity: rule.Severity, Message: q.message, Fix: q.fix, Part: at.part, Code: rule.Code}
	if q.severity != "" {
		f.Severity = q.severity
	}
	// A boot is reported for what surely went wrong in it: a key that nobody
	// reads did, whoever wrote it.
	if f.Severity == Info || f.Severity == Warning && q.rule != "unknown-key" {
		f.Code = ""
	}
	if q.line > 0 {
		f.Line, f.Column = q.line, q.col
		if at.offset >= 0 {
			f.Line += at.offset
		} else {
			f.File = l.file + "#" + at.part
		}
		f.PartLine = q.line + at.skip
	}
	l.found = append(l.found, f)
}

var ignoreComment = lazyregexp.New(`#\s*lecafe:ignore[ \t]+([a-z0-9-]+(?:[ \t]*,[ \t]*[a-z0-9-]+)*)`)

func suppressed(lines []string, line int, rule string) bool {
	if line < 1 || line > len(lines) {
		return false
	}
	names := func(s string) bool {
		for _, m := range ignoreComment().FindAllStringSubmatch(s, -1) {
			for name := range strings.SplitSeq(m[1], ",") {
				if strings.TrimSpace(name) == rule {
					return true
				}
			}
		}
		return false
	}
	if names(lines[line-1]) {
		return true
	}
	for i := line - 2; i >= 0 && strings.HasPrefix(strings.TrimSpace(lines[i]), "#"); i-- {
		if names(lines[i]) {
			return true
		}
	}
	return false
}

func (l *linter) run(data []byte) {
	whole := place{lines: strings.Split(string(data[:min(len(data), maxInflated)]), "\n")}
	l.size(whole, data)
	payload, err := Parse(data)
	if err != nil {
		rule, fix := "gzip", "compress the payload again; send it as binary, not as text"
		if !isGzip(data) {
			rule, fix = "not-text", "save the payload as UTF-8"
		}
		l.add(place{}, problem{rule: rule, line: 1, col: 1, message: strings.TrimPrefix(err.Error(), ErrPayload.Error()+": "), fix: fix})
		return
	}
	l.payload = payload
	if payload.Gzip {
		whole = place{offset: -1, part: "gzip", lines: strings.Split(string(payload.Text), "\n")}
	}
	if len(bytes.TrimSpace(payload.Text)) == 0 {
		l.add(whole, problem{rule: "empty", message: "the payload is empty", fix: "leave user data out"})
		return
	}
	for _, q := range payload.problems {
		l.add(whole, q)
	}
	multi := len(payload.Parts) > 1 || payload.Multipart
	if payload.Multipart && len(payload.Parts) == 0 && len(payload.problems) == 0 {
		l.add(whole, problem{rule: "mime-structure", line: 1, col: 1, message: "the message has no parts", fix: "put a boundary before each part"})
	}
	for _, p := range payload.Parts {
		l.part(p, placeOf(p, multi || payload.Gzip))
	}
	l.duplicates(payload)
	l.overridden(payload)
}

func (l *linter) size(at place, data []byte) {
	if len(data) <= MaxBytes {
		return
	}
	fix := "move it to S3 with lecafe userdata pack, or bake files into the image"
	if !isGzip(data) {
		if n := len(compress(data)); n <= MaxBytes {
			fix = fmt.Sprintf("lecafe userdata render compresses it to %d bytes, which cloud-init undoes by itself", n)
		}
	}
	l.add(at, problem{rule: "too-large", message: fmt.Sprintf("%d bytes, and EC2 takes %d before base64", len(data), MaxBytes), fix: fix})
}

// part looks at one part.
func (l *linter) part(p *Part, at place) {
	for _, q := range p.problems {
		l.add(at, q)
	}
	if len(p.problems) > 0 {
		return // what does not decode says nothing
	}
	body := p.Body
	if len(bytes.TrimSpace(body)) == 0 {
		if l.payload.Multipart {
			l.add(at, problem{rule: "dropped-part", severity: Warning, message: "part " + p.Name + " is empty", fix: "remove it"})
		}
		return
	}
	if p.Kind == KindUnhandled {
		l.unhandled(p, at)
		return
	}
	if !utf8.Valid(body) && p.Kind != KindScript {
		l.add(at, problem{rule: "not-text", line: 1, col: 1, message: "the part is not UTF-8 text", fix: "save it as UTF-8"})
		return
	}
	if l.payload.Multipart && !p.Jinja && at.offset >= 0 {
		if i := bytes.IndexFunc(body, func(r rune) bool { return r >= utf8.RuneSelf }); i >= 0 {
			line, col := position(body, i)
			l.add(at, problem{rule: "mime-8bit", line: line, col: col, message: "characters outside ASCII in an unencoded part: cloud-init writes other bytes for them", fix: "encode the part as base64; lecafe userdata render does"})
		}
	}
	l.lineEnds(p, at)
	l.text(p, at)

	trimmed := bytes.TrimLeftFunc(body, pythonSpace)
	lead := len(body) - len(trimmed)
	switch {
	case p.Kind.Script():
		if lead > 0 && bytes.HasPrefix(trimmed, []byte("#!")) {
			l.add(at, problem{rule: "leading-blank", line: 1, col: 1, message: "the script does not begin with #!, but with white space: the kernel refuses to run it (Exec format error)", fix: "remove everything before #!"})
		}
		l.script(p, at, trimmed, bytes.Count(body[:lead], []byte("\n")))
	case p.Kind == KindBoothook:
		l.boothook(at, trimmed, lead, bytes.Count(body[:lead], []byte("\n")))
	case p.Kind == KindCloudConfig:
		l.cloudConfig(p, at)
	case p.Kind == KindInclude, p.Kind == KindIncludeOnce:
		l.include(at, trimmed)
	}
}

// position turns an offset of bytes into line and column.
func position(text []byte, i int) (line, col int) {
	before := text[:i]
	nl := bytes.LastIndexByte(before, '\n')
	return 1 + bytes.Count(before, []byte("\n")), 1 + utf8.RuneCount(before[nl+1:])
}

// unhandled finds out why cloud-init would not take a part.
func (l *linter) unhandled(p *Part, at place) {
	body := p.Body
	if rest, ok := bytes.CutPrefix(body, []byte("\ufeff")); ok && sniff(rest) != "" {
		l.add(at, problem{rule: "byte-order-mark", line: 1, col: 1, message: "a byte order mark stands before the header, so cloud-init does not see it and runs nothing", fix: "save the file as UTF-8 without BOM"})
		return
	}
	if inner, ok := decodesTo(body); ok {
		l.add(at, problem{rule: "double-base64", line: 1, col: 1, message: "the payload is base64 text of " + inner + ": it was encoded twice, and EC2 undoes one", fix: "give the plain payload; the API's caller encodes it once"})
		return
	}
	if declared := p.Type; declared != "" && declared != "text/plain" {
		q := problem{rule: "dropped-part", line: 1, col: 1, message: fmt.Sprintf("cloud-init has no handler for %s and drops the part", declared), fix: "use text/x-shellscript, text/cloud-config or text/cloud-boothook"}
		if known := nearest(declared, mimeTypes()); known != "" {
			q.fix = "write " + known
		}
		if slices.Contains(elsewhere, declared) {
			q.severity = Info
			q.message = fmt.Sprintf("cloud-init leaves %s to another program of the image, which must be there", declared)
			q.fix = "nothing, if the image has that program"
		}
		l.add(at, q)
		return
	}
	if !utf8.Valid(body) || bytes.IndexByte(body, 0) >= 0 {
		l.add(at, problem{rule: "not-text", line: 1, col: 1, message: "the payload is binary data that cloud-init does not know", fix: "give text, or gzip of text"})
		return
	}
	l.add(at, l.noHeader(body))
	l.text(p, at)
}

// elsewhere are types of parts that a program other than cloud-init reads from
// the user data: nodeadm on Amazon's images for EKS.
// https://awslabs.github.io/amazon-eks-ami/nodeadm/
var elsewhere = []string{"application/node.eks.aws"}

var looksYAML = lazyregexp.New(`(?m)^(runcmd|packages|write_files|package_update|package_upgrade|users|bootcmd|ssh_authorized_keys|hostname|timezone|mounts):`)

// noHeader guesses what was meant.
func (l *linter) noHeader(body []byte) problem {
	line, _, _ := strings.Cut(strings.TrimLeftFunc(string(body), pythonSpace), "\n")
	first := strings.TrimSpace(line)
	q := problem{rule: "no-header", line: 1 + bytes.Count(body[:len(body)-len(bytes.TrimLeftFunc(body, pythonSpace))], []byte("\n")), col: 1,
		message: "cloud-init does not know what this is and runs none of it", fix: "begin a script with #!/bin/bash, a cloud-config with #cloud-config"}
	squeezed := strings.ToLower(strings.NewReplacer(" ", "", "_", "-", "\t", "").Replace(first))
	switch {
	case strings.HasPrefix(squeezed, "#cloud"), strings.HasPrefix(squeezed, "cloud-config"), looksYAML().Match(body):
		q.message = "the payload looks like cloud-config, but does not begin with #cloud-config: cloud-init runs none of it"
		q.fix = "make the first line exactly #cloud-config"
	case strings.HasPrefix(squeezed, "!/"), strings.HasPrefix(squeezed, "#/"), strings.HasPrefix(squeezed, "#!"), strings.Contains(first, "/bin/"):
		q.message = "the first line is not a #! line: cloud-init runs none of it"
		q.fix = "make the first line #!/bin/bash, with nothing before it"
	case strings.HasPrefix(squeezed, "<powershell>"), strings.HasPrefix(squeezed, "<script>"):
		q.message = "this is user data for Windows: cloud-init runs none of it"
	case strings.HasPrefix(strings.ToLower(first), "content-type:"):
		q.rule = "mime-structure"
		q.message = "MIME without the header MIME-Version: 1.0: cloud-init does not take it for MIME and runs none of it"
		q.fix = "add MIME-Version: 1.0 below Content-Type"
	case strings.HasPrefix(first, "{") || strings.HasPrefix(first, "["):
		q.fix = "TOML, JSON and Ignition are for other images; for cloud-init begin with #cloud-config or #!"
	}
	return q
}

// decodesTo says what base64 text holds, if that is user data.
func decodesTo(body []byte) (string, bool) {
	text := bytes.Join(bytes.Fields(body), nil)
	if len(text) < 12 {
		return "", false
	}
	out, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		if out, err = base64.RawStdEncoding.DecodeString(string(text)); err != nil {
			return "", false
		}
	}
	switch {
	case isGzip(out):
		return "gzip data", true
	case sniff(out) == "text/x-shellscript":
		return "a script", true
	case sniff(out) != "":
		return "a " + strings.TrimPrefix(sniff(out), "text/"), true
	case bytes.Contains(bytes.ToLower(out[:min(len(out), 4096)]), []byte("mime-version:")):
		return "a MIME message", true
	}
	return "", false
}

// lineEnds looks for \r. cloud-init removes them from a script whose first
// line ends in \r\n; in any other place they become part of commands.
func (l *linter) lineEnds(p *Part, at place) {
	i := bytes.IndexByte(p.Body, '\r')
	if i < 0 {
		return
	}
	line, col := position(p.Body, i)
	q := problem{rule: "crlf", line: line, col: col, message: "lines end in CR LF", fix: "save the file with LF line ends"}
	first, _, _ := bytes.Cut(p.Body, []byte("\n"))
	if p.Kind.Script() || p.Kind == KindBoothook {
		if bytes.HasSuffix(first, []byte("\r")) {
			q.message += "; cloud-init converts them, other readers do not"
		} else {
			q.severity = Error
			q.message = "some lines end in CR LF and the first does not: cloud-init leaves them, and the CR becomes part of commands"
		}
	}
	l.add(at, q)
}

func (l *linter) boothook(at place, trimmed []byte, lead, lines int) {
	if lead > 0 {
		l.add(at, problem{rule: "leading-blank", line: 1, col: 1, message: "white space stands before #cloud-boothook, so it stays in the file, which the kernel then refuses to run", fix: "remove everything before #cloud-boothook"})
		return
	}
	rest, found := bytes.CutPrefix(trimmed, []byte("#cloud-boothook"))
	hook := bytes.TrimLeftFunc(rest, pythonSpace)
	if found {
		lines += bytes.Count(rest[:len(rest)-len(hook)], []byte("\n"))
	}
	if !bytes.HasPrefix(hook, []byte("#!")) {
		l.add(at, problem{rule: "no-header", line: lines + 1, col: 1, message: "a boothook without #! is not run (Exec format error), and cloud-init only logs it", fix: "put #!/bin/sh below #cloud-boothook"})
		return
	}
	l.interpreterAndShell(at, hook, lines, true)
}

func (l *linter) include(at place, body []byte) {
	for i, line := range strings.Split(string(body), "\n") {
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(line), "#include-once"), "#include"))
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !strings.Contains(line, "://") {
			l.add(at, problem{rule: "wrong-header", line: i + 1, col: 1, message: "an include takes one URL a line, and this is none", fix: "write http:// or https:// before it"})
		} else if strings.Contains(line, "X-Amz-Signature=") {
			l.add(at, problem{rule: "secret", line: i + 1, col: 1, message: "a presigned URL in user data dies within a week, and with it every later launch", fix: "fetch the object with the instance's role"})
		}
	}
}

// duplicates finds parts that overwrite each other on the instance.
func (l *linter) duplicates(p *Payload) {
	seen := make(map[string]*Part)
	for _, part := range p.Parts {
		file := part.ScriptPath()
		if file == "" {
			continue
		}
		if earlier, ok := seen[file]; ok {
			l.add(placeOf(part, true), problem{rule: "duplicate-part", line: 1, col: 1, message: fmt.Sprintf("an earlier script is called %s too (%s): this one overwrites it and the earlier never runs", earlier.Name, path.Base(file)), fix: "give each part a filename of its own"})
		}
		seen[file] = part
	}
}

func mimeTypes() []string {
	var out []string
	for m := range kinds {
		out = append(out, m)
	}
	slices.Sort(out)
	return append(out, "text/jinja2", "text/cloud-config-archive")
}

// ErrRule says that a rule's ID is not known.
var ErrRule = errors.New("unknown rule")

// CheckRules refuses IDs that name no rule.
func CheckRules(ids []string) error {
	for _, id := range ids {
		if _, ok := ruleByID[id]; !ok {
			var known []string
			for _, r := range Rules() {
				known = append(known, r.ID)
			}
			hint := "see docs/lint.md"
			if n := nearest(id, known); n != "" {
				hint = "did you mean " + n + "?"
			}
			return fmt.Errorf("%w %q: %s", ErrRule, id, hint)
		}
	}
	return nil
}

// nearest returns the known word that is closest to word, "" where none is close.
func nearest(word string, known []string) string {
	fold := func(s string) string {
		return strings.NewReplacer("-", "_", " ", "_").Replace(strings.ToLower(s))
	}
	best, at := "", 1+max(1, len(word)/4)
	for _, k := range known {
		if d := distance(fold(word), fold(k)); d < at {
			best, at = k, d
		}
	}
	return best
}

// distance counts single characters to insert, delete, change or swap.
func distance(a, b string) int {
	rows := [3][]int{}
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		rows[2][0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[1][j]+1, rows[2][j-1]+1, rows[1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[0][j-2]+1)
			}
			rows[2][j] = d
		}
		rows[0], rows[1], rows[2] = rows[1], rows[2], rows[0]
	}
	return rows[1][len(b)]
}
