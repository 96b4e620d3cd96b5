package userdata

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/lecafe/lecafe/internal/lazyregexp"
)

// configLint looks at one cloud-config.
type configLint struct {
	*linter
	at    place
	jinja bool
}

// cloudConfig looks at a cloud-config part.
func (l *linter) cloudConfig(p *Part, at place) {
	c := &configLint{linter: l, at: at, jinja: p.Jinja}
	first := strings.TrimSpace(at.lines[0])
	for i, line := range at.lines[:min(len(at.lines), 5)] {
		if strings.HasPrefix(line, "#!") {
			message := "the header says cloud-config and what follows is a script: cloud-init reads it as YAML and runs none of it"
			l.add(at, problem{rule: "wrong-header", line: i + 1, col: 1, message: message, fix: "remove the cloud-config header, or put the script under runcmd or into a part of its own"})
			return
		}
	}
	if strings.HasPrefix(strings.ToLower(first), "#cloud-config") {
		if rest := strings.TrimSpace(first[len("#cloud-config"):]); rest != "" && !strings.HasPrefix(rest, "#") {
			l.add(at, problem{rule: "wrong-header", severity: Warning, line: 1, col: 1, message: "the first line is more than #cloud-config", fix: "make the first line exactly #cloud-config"})
		}
	}
	doc := c.parse(p.Body)
	if doc == nil {
		return
	}
	if doc.Kind != yaml.MappingNode {
		c.problem("yaml", "", doc, fmt.Sprintf("a cloud-config must be a map of keys, and this is %s: cloud-init ignores all of it", describe(doc)), "write KEY: VALUE lines below the header")
		return
	}
	c.top(doc)
}

var (
	jinjaBlock = lazyregexp.New(`\{%.*?%\}|\{#.*?#\}`)
	jinjaValue = lazyregexp.New(`\{\{[^}\n]*\}\}`)
)

// parse reads YAML as Python's safe_load does, which takes one document and
// no tags of its own. It returns nil where there is nothing to look at.
func (c *configLint) parse(body []byte) *yaml.Node {
	if c.jinja {
		body = jinjaBlock().ReplaceAllFunc(body, func(b []byte) []byte { return bytes.Repeat([]byte(" "), len(b)) })
		body = jinjaValue().ReplaceAllFunc(body, func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) })
	}
	dec := yaml.NewDecoder(bytes.NewReader(body))
	var doc, more yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && (len(doc.Content) == 0 || doc.Content[0].ShortTag() == "!!null") {
		c.add(c.at, problem{rule: "empty", severity: Warning, line: 1, col: 1, message: "the cloud-config sets nothing", fix: "remove it"})
		return nil
	}
	if err == nil {
		if err = dec.Decode(&more); err == nil {
			c.problem("yaml", "", &more, "a second YAML document begins here: cloud-init takes one, and ignores all of it", "remove the line ---")
			return nil
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil {
		line, message := yamlError(err, body)
		fix := "correct the YAML; cloud-init only logs a warning and does nothing of what it says"
		if strings.Contains(message, "tab") || strings.Contains(message, "cannot start any token") && strings.Contains(c.lineText(line), "\t") {
			fix = "indent with spaces, not tabs"
		} else if strings.Contains(message, "mapping values are not allowed") {
			fix = "quote the value, which holds a colon and a space, or correct the indentation"
		}
		c.add(c.at, problem{rule: "yaml", line: line, col: 1, message: message + ": cloud-init ignores all of it", fix: fix})
		return nil
	}
	root := doc.Content[0]
	if bad := c.unsafe(root, 0); bad != nil {
		return nil
	}
	if line, col := strayTab(root, c.at.lines); line > 0 {
		c.add(c.at, problem{rule: "yaml", line: line, col: col, message: "a tab outside of quotes: cloud-init ignores all of the cloud-config", fix: "write spaces, or quote the text"})
		return nil
	}
	return root
}

// strayTab finds a tab that Python's parser does not take: one outside of
// quotes, comments and block scalars.
func strayTab(root *yaml.Node, lines []string) (line, col int) {
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "\t") }) {
		return 0, 0
	}
	var nodes []*yaml.Node
	var walk func(*yaml.Node, int)
	walk = func(n *yaml.Node, depth int) {
		nodes = append(nodes, n)
		for _, child := range n.Content {
			if depth < 100 {
				walk(child, depth+1)
			}
		}
	}
	walk(root, 0)
	free := make([]bool, len(lines)+2)
	for i, n := range nodes {
		if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle|yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0 || n.Kind != yaml.ScalarNode {
			continue
		}
		from, to := n.Line, len(lines)
		if i+1 < len(nodes) {
			to = nodes[i+1].Line - 1
		}
		if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
			from++
		}
		for l := from; l <= max(to, n.Line) && l < len(free); l++ {
			free[l] = true
		}
	}
	for i, text := range lines {
		at := strings.IndexByte(text, '\t')
		hash := strings.Index(text, "#")
		if at < 0 || free[i+1] || hash >= 0 && hash < at || strings.TrimSpace(text) == "" {
			continue
		}
		return i + 1, at + 1
	}
	return 0, 0
}

func (c *configLint) lineText(n int) string {
	if n < 1 || n > len(c.at.lines) {
		return ""
	}
	return c.at.lines[n-1]
}

// unsafe finds what the YAML parser here takes and Python's does not.
func (c *configLint) unsafe(n *yaml.Node, depth int) *yaml.Node {
	if depth > 100 {
		return nil
	}
	if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") && n.Tag != "!" {
		fix := "remove the tag"
		if strings.HasPrefix(n.Tag, "!Ref") || strings.HasPrefix(n.Tag, "!Sub") || strings.HasPrefix(n.Tag, "!GetAtt") {
			fix = "that is CloudFormation's, which did not see it: render it first"
		}
		c.problem("yaml", "", n, fmt.Sprintf("cloud-init does not know the tag %s and ignores all of the cloud-config", n.Tag), fix)
		return n
	}
	if n.Kind == yaml.MappingNode {
		for i := 0; i < len(n.Content); i += 2 {
			if k := alias(n.Content[i]); k.Kind != yaml.ScalarNode {
				c.problem("yaml", "", n.Content[i], "a map or list cannot be a key: cloud-init ignores all of the cloud-config", "quote the braces: a value that begins with { or [ must stand in quotes")
				return n
			}
		}
	}
	for _, child := range n.Content {
		if child.Kind == yaml.AliasNode {
			continue
		}
		if bad := c.unsafe(child, depth+1); bad != nil {
			return bad
		}
	}
	return nil
}

func (c *configLint) problem(rule string, severity Severity, n *yaml.Node, message, fix string) {
	c.add(c.at, problem{rule: rule, severity: severity, line: n.Line, col: n.Column, message: message, fix: fix})
}

// kindOf is the type of a node as Python's YAML 1.1 has it.
func kindOf(n *yaml.Node) string {
	n = alias(n)
	switch n.Kind {
	case yaml.MappingNode:
		return "map"
	case yaml.SequenceNode:
		return "list"
	}
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return "str"
	}
	switch v := n.Value; {
	case n.Tag == "!!str":
		if scalarBool().MatchString(v) {
			return "bool" // YAML 1.1 has more words for it
		}
		return "str"
	case v == "" || v == "~" || strings.EqualFold(v, "null"):
		return "null"
	case scalarBool().MatchString(v):
		return "bool"
	}
	switch n.ShortTag() {
	case "!!int":
		return "int"
	case "!!float":
		return "float"
	case "!!bool":
		return "bool"
	case "!!null":
		return "null"
	case "!!timestamp":
		return "date"
	}
	return "str"
}

var scalarBool = lazyregexp.New(`^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$`)

func describe(n *yaml.Node) string {
	n = alias(n)
	switch k := kindOf(n); k {
	case "map":
		return "a map"
	case "list":
		return "a list"
	case "null":
		return "nothing"
	case "str":
		return "the text " + strconv.Quote(clip(n.Value, 30))
	default:
		return "the " + map[string]string{"int": "number ", "float": "number ", "bool": "truth value ", "date": "date "}[k] + clip(n.Value, 30)
	}
}

func wanted(types string) string {
	names := map[string]string{"str": "text", "int": "a number", "float": "a number", "bool": "true or false", "list": "a list", "map": "a map", "null": "nothing", "date": "a date"}
	var out []string
	for t := range strings.SplitSeq(types, "|") {
		if !slices.Contains(out, names[t]) && t != "null" {
			out = append(out, names[t])
		}
	}
	return strings.Join(out, " or ")
}

func has(types, t string) bool { return slices.Contains(strings.Split(types, "|"), t) }

// top looks at the keys of a cloud-config.
func (c *configLint) top(doc *yaml.Node) {
	known := cloudConfigKeys()
	c.keys(doc, "", &shape{types: "map", fields: known})
	for key, value := range pairs(doc) {
		s, ok := known[key.Value]
		if !ok {
			continue
		}
		c.value(value, key.Value, s, 0)
		switch key.Value {
		case "runcmd", "bootcmd":
			c.commands(key.Value, value)
		case "write_files":
			c.files(value)
		}
	}
}

// pairs yields keys and values with aliases and merges resolved one level.
func pairs(n *yaml.Node) func(func(k, v *yaml.Node) bool) {
	return func(yield func(k, v *yaml.Node) bool) {
		n = alias(n)
		if n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], alias(n.Content[i+1])
			if k.Value == "<<" {
				continue
			}
			if !yield(k, v) {
				return
			}
		}
	}
}

// keys reports unknown, doubled and deprecated keys of a map.
func (c *configLint) keys(n *yaml.Node, path string, s *shape) {
	seen := make(map[string]bool)
	names := slices.Sorted(maps.Keys(s.fields))
	for k, v := range pairs(n) {
		if seen[k.Value] {
			c.problem("duplicate-key", "", k, fmt.Sprintf("%s stands here a second time: only the last one counts", join(path, k.Value)), "put both into one")
		}
		seen[k.Value] = true
		f, ok := s.fields[k.Value]
		switch {
		case ok && f.note != "":
			c.problem("unknown-key", Info, k, join(path, k.Value)+" is deprecated", "write "+f.note)
		case ok || s.open || s.fields == nil:
		case path == "" && (v.Anchor != "" || strings.HasPrefix(k.Value, "x-") || strings.HasPrefix(k.Value, ".") || strings.HasPrefix(k.Value, "_")):
			// A place to keep anchors.
		default:
			q := problem{rule: "unknown-key", line: k.Line, col: k.Column, message: "no cloud-init module reads " + join(path, clip(k.Value, 60)) + ", and cloud-init does not say so", fix: "see cloud-init's list of modules"}
			if near := nearest(k.Value, names); near != "" {
				q.fix = "did you mean " + near + "?"
			} else if path == "" {
				// A module of the image's own may read it.
				q.severity = Warning
			}
			c.add(c.at, q)
		}
	}
	for key := range strings.SplitSeq(s.need, "|") {
		if key != "" && !seen[key] {
			c.problem("bad-value", "", n, fmt.Sprintf("%s lacks %s", path, key), "add "+key+":")
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// value checks a value against its shape.
func (c *configLint) value(n *yaml.Node, path string, s *shape, depth int) {
	n = alias(n)
	if s == nil || s.types == "" || depth > 20 {
		return
	}
	kind := kindOf(n)
	if c.jinja && kind == "str" && strings.Contains(n.Value, "xx") {
		return
	}
	if !has(s.types, kind) {
		q := problem{rule: "wrong-type", line: n.Line, col: n.Column, message: fmt.Sprintf("%s must be %s, and this is %s", path, wanted(s.types), describe(n)), fix: fixType(s.types, kind)}
		if has(s.works, kind) {
			q.severity = Info
			if kind != "int" && kind != "float" && !(kind == "str" && has(s.types, "bool")) && !(kind == "str" && has(s.types, "int")) {
				q.severity = Warning
			} else if kind == "str" && has(s.types, "bool") && !slices.Contains([]string{"true", "false", "yes", "no", "on", "off", "1", "0"}, strings.ToLower(n.Value)) {
				q.severity = Error
			} else if _, err := strconv.Atoi(n.Value); kind == "str" && has(s.types, "int") && err != nil {
				q.severity = Error
			}
		}
		if kind == "map" && has(s.types, "str") && len(n.Content) == 2 {
			// - echo "a: b" without quotes around the whole.
			q.message = fmt.Sprintf("%s must be %s, and YAML makes this a map, because of the colon", path, wanted(s.types))
			q.fix = "quote the whole line"
		}
		if kind == "null" {
			q.message = fmt.Sprintf("%s has no value", path)
			q.fix = "give it one, or remove it"
			q.severity = Warning
		}
		c.add(c.at, q)
		return
	}
	switch kind {
	case "map":
		if s.fields != nil {
			c.keys(n, path, s)
			for k, v := range pairs(n) {
				if f, ok := s.fields[k.Value]; ok {
					c.value(v, join(path, k.Value), f, depth+1)
				}
			}
		}
	case "list":
		for i, item := range n.Content {
			c.value(item, fmt.Sprintf("%s[%d]", path, i), s.item, depth+1)
		}
	case "str":
		if s.enum != "" && !has(s.enum, n.Value) && !(c.jinja && strings.Contains(n.Value, "x")) {
			values := strings.Split(s.enum, "|")
			fix := "write one of " + strings.Join(values, ", ")
			if near := nearest(n.Value, values); near != "" {
				fix = "did you mean " + near + "?"
			}
			c.problem("bad-value", "", n, fmt.Sprintf("%s cannot be %q", path, clip(n.Value, 40)), fix)
		}
	}
}

func fixType(types, kind string) string {
	switch {
	case has(types, "list") && kind != "map":
		return "write a list: each value on a line of its own, behind a dash"
	case has(types, "str"):
		return "put it in quotes"
	case has(types, "bool"):
		return "write true or false"
	}
	return "write " + wanted(types)
}

// overridden finds keys that a later cloud-config replaces: without merge_how
// the last part that sets a key wins, lists included.
func (l *linter) overridden(p *Payload) {
	set := make(map[string]string)
	for _, part := range p.Parts {
		if part.Kind != KindCloudConfig || part.Jinja {
			continue
		}
		var doc yaml.Node
		if yaml.Unmarshal(part.Body, &doc) != nil || len(doc.Content) == 0 {
			continue
		}
		root := doc.Content[0]
		merges := part.Merge
		for k := range pairs(root) {
			merges = merges || k.Value == "merge_how" || k.Value == "merge_type"
		}
		for k := range pairs(root) {
			if earlier, ok := set[k.Value]; ok && !merges && earlier != part.Name && k.Value != "merge_how" {
				l.add(placeOf(part, true), problem{rule: "overridden-part", line: k.Line, col: k.Column, message: fmt.Sprintf("%s replaces what part %s set: lists are not joined", k.Value, earlier), fix: "add merge_how: 'list(append)+dict(recurse_list)+str()' to this part, or write both into one"})
			}
			set[k.Value] = part.Name
		}
	}
}
