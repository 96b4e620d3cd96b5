package userdata

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"strings"

	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// Python's email parser, which cloud-init uses, takes almost anything for MIME
// and turns what it cannot read into text. A strict parser would call a
// payload broken that runs, and a payload sound whose parts are all dropped,
// so this one follows Python's. https://docs.python.org/3/library/email.parser.html

// leaf is a part that contains no others.
type leaf struct {
	contentType string // lower case; "text/plain" is the default
	encoding    string
	filename    string
	merge       bool
	body        []byte
	offset      int // lines before body
	problems    []problem
}

func (l *leaf) encoded() bool {
	switch l.encoding {
	case "base64", "quoted-printable", "x-uuencode", "uuencode", "uue", "x-uue":
		return true
	}
	return false
}

// decode undoes the transfer encoding. Like Python it is lenient, and leaves
// the text as it is where it cannot be decoded.
func (l *leaf) decode() (body []byte, ok bool) {
	switch l.encoding {
	case "base64":
		// Like Python's, this reads past characters that do not belong there.
		dirty := false
		text := bytes.Map(func(r rune) rune {
			switch {
			case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '+', r == '/':
				return r
			case r != '=' && r != '\r' && r != '\n' && r != ' ' && r != '\t':
				dirty = true
			}
			return -1
		}, l.body)
		out := make([]byte, base64.RawStdEncoding.DecodedLen(len(text)))
		n, err := base64.RawStdEncoding.Decode(out, text)
		if err != nil {
			return l.body, false
		}
		return out[:n], !dirty
	case "quoted-printable":
		out, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(l.body)))
		if err != nil {
			return l.body, false
		}
		return out, true
	}
	return l.body, !l.encoded()
}

// entity is one level of the message while it is read.
type entity struct {
	lines []string // with their ends
	line  int      // index of the next one
	depth int
	out   []leaf
	note  func(problem)
}

// readMIME returns the leaves in order. What is wrong with the message as a
// whole is noted in p.
func readMIME(text []byte, p *Payload) []leaf {
	e := &entity{lines: strings.SplitAfter(string(text), "\n"), note: func(q problem) { p.problems = append(p.problems, q) }}
	if n := len(e.lines); e.lines[n-1] == "" {
		e.lines = e.lines[:n-1]
	}
	e.read(len(e.lines))
	return e.out
}

var headerLine = lazyregexp.New(`^([\x21-\x39\x3b-\x7e]+):(.*)`)

// read takes one entity whose lines end at end.
func (e *entity) read(end int) {
	header := make(map[string]string)
	start := e.line
	last := ""
	for e.line < end {
		line := strings.TrimRight(e.lines[e.line], "\r\n")
		if line == "" {
			if e.line == 0 {
				e.note(problem{rule: "mime-structure", line: 1, col: 1, message: "a blank line stands before the MIME headers, so cloud-init reads the payload as one text part", fix: "remove everything before the first header"})
			}
			e.line++
			break
		}
		if strings.HasPrefix(line, "From ") && e.line == start {
			e.line++
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			if last != "" {
				header[last] += " " + strings.TrimSpace(line)
			}
			e.line++
			continue
		}
		m := headerLine().FindStringSubmatch(line)
		if m == nil {
			// Python ends the headers here and takes the line for text.
			if e.line == start && e.depth == 0 {
				e.note(problem{rule: "mime-structure", line: e.line + 1, col: 1, message: "the payload does not begin with MIME headers, so cloud-init reads it as one text part", fix: "begin the payload with its Content-Type: multipart/... header"})
			} else {
				e.note(problem{rule: "mime-structure", line: e.line + 1, col: 1, message: "a line that is no header stands before the blank line that ends the headers", fix: "put a blank line between headers and body"})
			}
			break
		}
		last = strings.ToLower(m[1])
		if _, again := header[last]; again {
			last = "" // the first one counts
			e.line++
			continue
		}
		header[last] = strings.TrimSpace(m[2])
		e.line++
	}

	ctype, params := mediaType(header["content-type"])
	if strings.HasPrefix(ctype, "multipart/") && e.depth < maxDepth {
		e.multipart(ctype, params["boundary"], start, end)
		return
	}
	l := leaf{contentType: ctype, encoding: strings.ToLower(strings.TrimSpace(header["content-transfer-encoding"])), offset: e.line}
	_, disposition := mediaType("x/" + strings.TrimLeft(header["content-disposition"], "/"))
	if l.filename = disposition["filename"]; l.filename == "" {
		l.filename = params["name"]
	}
	l.merge = header["merge-type"] != "" || header["x-merge-type"] != ""
	l.body = []byte(strings.Join(e.lines[e.line:end], ""))
	e.line = end
	e.out = append(e.out, l)
}

func (e *entity) multipart(ctype, boundary string, start, end int) {
	if boundary == "" {
		e.note(problem{rule: "mime-structure", line: start + 1, col: 1, message: ctype + " names no boundary: cloud-init drops all of its parts", fix: `add boundary="..." to the Content-Type header`})
		e.line = end
		return
	}
	from, parts, closed := -1, 0, false
	finish := func(to int) {
		if from < 0 {
			return
		}
		// The end of the last line belongs to the boundary.
		saved := ""
		if to > from {
			saved = e.lines[to-1]
			e.lines[to-1] = strings.TrimSuffix(strings.TrimSuffix(saved, "\n"), "\r")
		}
		e.line = from
		e.depth++
		e.read(to)
		e.depth--
		if to > from {
			e.lines[to-1] = saved
		}
		parts++
	}
	i := e.line
	for ; i < end; i++ {
		rest, ok := strings.CutPrefix(e.lines[i], "--"+boundary)
		if !ok {
			continue
		}
		rest = strings.TrimRight(rest, " \t\r\n")
		if rest != "" && rest != "--" {
			continue
		}
		if rest == "" && from == i {
			from = i + 1 // boundaries that follow each other are one
			continue
		}
		finish(i)
		from = i + 1
		if rest == "--" {
			closed, from = true, -1
			i++
			break
		}
		if parts > maxParts {
			break
		}
	}
	switch {
	case closed:
		for ; i < end; i++ {
			if strings.TrimSpace(e.lines[i]) != "" {
				e.note(problem{rule: "mime-structure", line: i + 1, col: 1, message: "text behind the closing boundary is dropped", fix: "move it into a part of its own, or remove it"})
				break
			}
		}
	case from >= 0:
		finish(end)
		e.note(problem{rule: "mime-structure", line: end, col: 1, severity: Warning, message: fmt.Sprintf("the closing boundary --%s-- is missing: the payload may have been cut off", boundary), fix: "end the message with --" + boundary + "--"})
	default:
		e.note(problem{rule: "mime-structure", line: start + 1, col: 1, message: fmt.Sprintf("the boundary %q is declared and never used: cloud-init drops everything", boundary), fix: "put --" + boundary + " before each part"})
	}
	e.line = end
}

var parameter = lazyregexp.New(`;\s*([A-Za-z0-9_-]+)\*?\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))`)

// mediaType is mime.ParseMediaType for headers that need not be well formed.
func mediaType(header string) (string, map[string]string) {
	if t, params, err := mime.ParseMediaType(header); err == nil && strings.Count(t, "/") == 1 {
		return t, params
	}
	t, _, _ := strings.Cut(header, ";")
	t = strings.ToLower(strings.TrimSpace(t))
	params := make(map[string]string)
	for _, m := range parameter().FindAllStringSubmatch(header, -1) {
		value := m[3]
		if m[2] != "" {
			value = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(m[2])
		}
		if name := strings.ToLower(m[1]); params[name] == "" {
			params[name] = value
		}
	}
	if strings.Count(t, "/") != 1 {
		t = "text/plain"
	}
	return t, params
}
