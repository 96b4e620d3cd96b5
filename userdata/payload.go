// Package userdata owns what an instance is told at launch: it renders agent
// settings, scripts and cloud-config into one payload, reads a payload the way
// cloud-init does, finds what would fail silently in it, and wraps payloads for
// images that lecafe did not bake. Bytes in, bytes out: it sends and fetches
// nothing, and imports no AWS SDK.
package userdata

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// MaxBytes is EC2's limit for user data before base64.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-add-user-data.html
const MaxBytes = 16 * 1024

// maxInflated bounds what a compressed payload may grow to: a small gzip can
// hold gigabytes, and the agent reads payloads it did not write.
const maxInflated = 8 << 20

// maxParts bounds parts and nesting for the same reason.
const (
	maxParts = 1000
	maxDepth = 16
)

// Kind is what cloud-init takes a part for.
type Kind string

const (
	KindScript            Kind = "shell-script"
	KindScriptPerBoot     Kind = "shell-script-per-boot"
	KindScriptPerInstance Kind = "shell-script-per-instance"
	KindScriptPerOnce     Kind = "shell-script-per-once"
	KindCloudConfig       Kind = "cloud-config"
	KindJSONPatch         Kind = "cloud-config-jsonp"
	KindBoothook          Kind = "cloud-boothook"
	KindPartHandler       Kind = "part-handler"
	KindInclude           Kind = "include"
	KindIncludeOnce       Kind = "include-once"
	KindUnhandled         Kind = "unhandled" // no handler: cloud-init drops it with a warning at most
)

// Script says whether cloud-init executes a part of this kind as a script in
// its last stage.
func (k Kind) Script() bool {
	switch k {
	case KindScript, KindScriptPerBoot, KindScriptPerInstance, KindScriptPerOnce:
		return true
	}
	return false
}

// Part is one leaf of a payload.
type Part struct {
	Name     string // file name as cloud-init gives it: the part's own, or part-001
	Type     string // MIME type as declared, "" where nothing was declared
	Kind     Kind
	Jinja    bool   // a template: cloud-init renders it first
	Body     []byte // decoded; for a template, without its first line
	Encoding string // Content-Transfer-Encoding, lower case
	Merge    bool   // a header says how a cloud-config is merged
	Named    bool   // Name was given in the payload

	// Offset is the number of lines that stand before Body in the payload's
	// text, -1 where the body is encoded or compressed and has no place there.
	Offset int
	// Skip is the number of lines of the file on the instance that stand
	// before Body: 1 for a template's header.
	Skip int

	problems []problem
}

// ScriptName is the name of the file below a scripts directory that cloud-init
// writes a script to, with what it does not allow in names removed.
func (p *Part) ScriptName() string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '/':
			return '_'
		case r < utf8.RuneSelf && (strings.ContainsRune("_-.()", r) || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'):
			return r
		}
		return -1
	}, p.Name))
}

// ScriptPath is the file on the instance that a script is executed from, ""
// for a part that is no script.
func (p *Part) ScriptPath() string {
	dir := map[Kind]string{
		KindScript:            "/var/lib/cloud/instance/scripts/",
		KindScriptPerBoot:     "/var/lib/cloud/scripts/per-boot/",
		KindScriptPerInstance: "/var/lib/cloud/scripts/per-instance/",
		KindScriptPerOnce:     "/var/lib/cloud/scripts/per-once/",
	}[p.Kind]
	if dir == "" {
		return ""
	}
	return dir + p.ScriptName()
}

// Payload is user data as cloud-init sees it.
type Payload struct {
	// Format is none, shell-script, cloud-config, another Kind, multipart or
	// unknown; "gzip " stands before it for a compressed payload.
	Format    string
	Multipart bool
	Gzip      bool
	Text      []byte // the payload, decompressed
	Parts     []*Part

	problems []problem
}

// Scripts returns the parts that cloud-init executes as scripts.
func (p *Payload) Scripts() []*Part {
	var out []*Part
	for _, part := range p.Parts {
		if part.Kind.Script() {
			out = append(out, part)
		}
	}
	return out
}

// problem is a finding in the making: at is an offset of lines in the
// payload's text or in a part.
type problem struct {
	rule      string
	line, col int
	message   string
	fix       string
	severity  Severity // zero: the rule's own
}

// ErrPayload says that bytes cannot be read as user data at all.
var ErrPayload = errors.New("unreadable user data")

// Parse reads data as cloud-init does. What cloud-init ignores or drops is no
// error here: see Lint. An error wraps ErrPayload and means that nothing of
// the payload would be used: broken or too large gzip, or text that is not
// UTF-8 where MIME is declared.
func Parse(data []byte) (*Payload, error) {
	p := &Payload{Text: data}
	if isGzip(data) {
		text, err := inflate(data)
		if err != nil {
			return nil, fmt.Errorf("%w: gzip: %w", ErrPayload, err)
		}
		p.Gzip, p.Text = true, text
	}
	r := reader{payload: p}
	r.take(p.Text, !p.Gzip, 0)
	if r.err != nil {
		return nil, r.err
	}
	p.Format = format(p)
	return p, nil
}

func format(p *Payload) string {
	f := "unknown"
	switch {
	case len(bytes.TrimSpace(p.Text)) == 0:
		f = "none"
	case p.Multipart:
		f = "multipart"
	case len(p.Parts) > 0 && p.Parts[0].Kind != KindUnhandled:
		f = string(p.Parts[0].Kind)
	}
	if p.Gzip {
		return "gzip " + f
	}
	return f
}

func isGzip(b []byte) bool { return len(b) > 2 && b[0] == 0x1f && b[1] == 0x8b }

func inflate(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(z, maxInflated+1))
	if err != nil {
		return nil, err
	}
	if len(out) > maxInflated {
		return nil, fmt.Errorf("it grows beyond %d bytes", maxInflated)
	}
	return out, nil
}

// reader collects the parts of a payload in cloud-init's order.
type reader struct {
	payload *Payload
	err     error
}

// take reads one blob: the payload, or what an archive holds. placed says that
// lines of text are lines of the payload.
func (r *reader) take(text []byte, placed bool, depth int) {
	head := text[:min(len(text), 4096)]
	if !bytes.Contains(bytes.ToLower(head), []byte("mime-version:")) {
		r.add(&Part{Type: "", Body: text, Offset: at(placed, 0)}, "text/x-not-multipart", depth)
		return
	}
	if !utf8.Valid(text) {
		r.err = fmt.Errorf("%w: MIME text is not UTF-8", ErrPayload)
		return
	}
	if depth == 0 {
		r.payload.Multipart = true
	}
	for _, leaf := range readMIME(text, r.payload) {
		body, ok := leaf.decode()
		part := &Part{Type: leaf.contentType, Body: body, Encoding: leaf.encoding, Merge: leaf.merge, Offset: at(placed && !leaf.encoded(), leaf.offset), problems: leaf.problems}
		if !ok {
			part.problems = append(part.problems, problem{rule: "mime-encoding", message: "the part says it is " + leaf.encoding + " and does not decode", fix: "encode it again, or leave it unencoded (7bit)"})
		}
		if leaf.filename != "" {
			part.Name, part.Named = leaf.filename, true
		}
		declared := leaf.contentType
		if slices.Contains(gzipTypes, declared) {
			inflated, err := inflate(body)
			if err != nil {
				// cloud-init drops the part.
				part.Kind, part.Offset = KindUnhandled, -1
				part.problems = append(part.problems, problem{rule: "gzip", message: "the part does not decompress and is dropped: " + err.Error(), fix: "compress it again"})
				r.attach(part)
				continue
			}
			part.Body, part.Offset, declared = inflated, -1, "text/plain"
		}
		r.add(part, declared, depth)
		if len(r.payload.Parts) > maxParts {
			return
		}
	}
}

func at(placed bool, line int) int {
	if placed {
		return line
	}
	return -1
}

var gzipTypes = []string{
	"application/gzip", "application/gzip-compressed", "application/gzipped", "application/x-compress",
	"application/x-compressed", "application/x-gunzip", "application/x-gzip", "application/x-gzip-compressed",
}

// headers are the beginnings cloud-init knows, the longest first. It compares
// in lower case and skips white space before them.
var headers = []struct{ prefix, mime string }{
	{"#cloud-config-archive", "text/cloud-config-archive"},
	{"#cloud-config-jsonp", "text/cloud-config-jsonp"},
	{"## template: jinja", "text/jinja2"},
	{"#cloud-boothook", "text/cloud-boothook"},
	{"#cloud-config", "text/cloud-config"},
	{"#include-once", "text/x-include-once-url"},
	{"#part-handler", "text/part-handler"},
	{"#include", "text/x-include-url"},
	{"#!", "text/x-shellscript"},
}

var kinds = map[string]Kind{
	"text/x-shellscript":              KindScript,
	"text/x-shellscript-per-boot":     KindScriptPerBoot,
	"text/x-shellscript-per-instance": KindScriptPerInstance,
	"text/x-shellscript-per-once":     KindScriptPerOnce,
	"text/cloud-config":               KindCloudConfig,
	"text/cloud-config-jsonp":         KindJSONPatch,
	"text/cloud-boothook":             KindBoothook,
	"text/part-handler":               KindPartHandler,
	"text/x-include-url":              KindInclude,
	"text/x-include-once-url":         KindIncludeOnce,
}

// sniff returns the type of a body by its beginning, "" for none.
func sniff(body []byte) string {
	if !utf8.Valid(body) {
		return ""
	}
	lower := strings.ToLower(strings.TrimLeftFunc(string(body[:min(len(body), 4096)]), pythonSpace))
	for _, h := range headers {
		if strings.HasPrefix(lower, h.prefix) {
			return h.mime
		}
	}
	return ""
}

// pythonSpace is what Python's lstrip takes from text.
func pythonSpace(r rune) bool {
	switch r {
	case 0x1c, 0x1d, 0x1e, 0x1f, 0x85, 0xa0, 0x1680, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000:
		return true
	}
	return r == ' ' || r >= '\t' && r <= '\r' || r >= 0x2000 && r <= 0x200a
}

// add decides what a leaf is and attaches it; an archive is taken apart.
func (r *reader) add(part *Part, declared string, depth int) {
	mime := declared
	switch declared {
	case "text/plain", "text/x-not-multipart", "text/x-shellscript":
		if s := sniff(part.Body); s != "" {
			mime = s
		}
	}
	if mime == "text/jinja2" {
		part.Jinja = true
		body := bytes.TrimLeftFunc(part.Body, pythonSpace)
		lead := bytes.Count(part.Body[:len(part.Body)-len(body)], []byte("\n"))
		_, rest, _ := bytes.Cut(body, []byte("\n"))
		part.Body, part.Skip = rest, lead+1
		if part.Offset >= 0 {
			part.Offset += lead + 1
		}
		// The template's handler knows scripts and cloud-config alone.
		switch s := sniff(rest); s {
		case "text/x-shellscript", "text/cloud-config":
			mime = s
		}
	}
	if mime == "text/cloud-config-archive" {
		r.archive(part, depth)
		return
	}
	part.Kind = KindUnhandled
	if k, ok := kinds[mime]; ok {
		part.Kind = k
	}
	r.attach(part)
}

func (r *reader) attach(part *Part) {
	if part.Name == "" {
		part.Name = fmt.Sprintf("part-%03d", len(r.payload.Parts)+1)
	}
	r.payload.Parts = append(r.payload.Parts, part)
}

// archive attaches the entries of a #cloud-config-archive.
func (r *reader) archive(part *Part, depth int) {
	if depth >= maxDepth {
		return
	}
	bad := func(line, col int, message string) {
		part.Kind = KindUnhandled
		part.problems = append(part.problems, problem{rule: "yaml", line: line, col: col, message: message, fix: "write a list of entries with type and content"})
		r.attach(part)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(part.Body, &doc); err != nil {
		line, message := yamlError(err, part.Body)
		bad(line, 0, message)
		return
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.SequenceNode {
		bad(1, 1, "a cloud-config-archive must be a list")
		return
	}
	for _, entry := range doc.Content[0].Content {
		entry = alias(entry)
		content, declared, name := "", "", ""
		line := entry.Line
		switch entry.Kind {
		case yaml.ScalarNode:
			content, line = entry.Value, bodyLine(entry)
		case yaml.MappingNode:
			for i := 0; i+1 < len(entry.Content); i += 2 {
				value := alias(entry.Content[i+1])
				switch entry.Content[i].Value {
				case "content":
					content, line = value.Value, bodyLine(value)
				case "type":
					declared = strings.ToLower(value.Value)
				case "filename":
					name = value.Value
				}
			}
		default:
			continue
		}
		sub := &Part{Type: declared, Body: []byte(content), Name: name, Named: name != "", Offset: -1}
		if part.Offset >= 0 && line > 0 {
			sub.Offset = part.Offset + line - 1
		}
		if declared == "" {
			if declared = sniff(sub.Body); declared == "" {
				declared = "text/cloud-config"
			}
		}
		sub.Kind = KindUnhandled
		if k, ok := kinds[declared]; ok {
			sub.Kind = k
		}
		if r.attach(sub); len(r.payload.Parts) > maxParts {
			return
		}
	}
}

// bodyLine is the line of a scalar's first line of text: the one below the
// indicator of a block scalar. A folded scalar has no lines of its own (0).
func bodyLine(n *yaml.Node) int {
	switch {
	case n.Style&yaml.LiteralStyle != 0:
		return n.Line + 1
	case n.Style&yaml.FoldedStyle != 0:
		return 0
	}
	return n.Line
}

func alias(n *yaml.Node) *yaml.Node {
	for i := 0; n.Kind == yaml.AliasNode && i < maxDepth; i++ {
		n = n.Alias
	}
	return n
}
