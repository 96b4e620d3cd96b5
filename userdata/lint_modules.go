package userdata

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// files looks into write_files.
func (c *configLint) files(list *yaml.Node) {
	if list.Kind != yaml.SequenceNode {
		return
	}
	for i, entry := range list.Content {
		entry = alias(entry)
		path := fmt.Sprintf("write_files[%d]", i)
		var content, encoding *yaml.Node
		for k, v := range pairs(entry) {
			switch k.Value {
			case "content":
				content = v
			case "encoding":
				encoding = v
			case "path":
				if kindOf(v) == "str" && !strings.HasPrefix(v.Value, "/") && !c.jinja {
					c.problem("bad-value", Warning, v, path+".path is not absolute", "begin it with /")
				}
			case "permissions":
				c.permissions(path, v)
			}
		}
		if content == nil || encoding == nil || c.jinja {
			continue
		}
		switch e := strings.ToLower(encoding.Value); e {
		case "b64", "base64", "gz+b64", "gz+base64", "gzip+b64", "gzip+base64":
			raw, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields([]byte(content.Value)), nil)))
			if err != nil {
				c.problem("bad-value", "", content, path+".content is not the base64 that encoding says", "encode the content again, or remove encoding")
			} else if strings.HasPrefix(e, "gz") && !isGzip(raw) {
				c.problem("bad-value", "", content, path+".content is not the gzip that encoding says", "compress the content, or write encoding: b64")
			}
		}
	}
}

// permissions looks for a number that is not octal to YAML.
func (c *configLint) permissions(path string, n *yaml.Node) {
	v := n.Value
	switch kindOf(n) {
	case "int":
		if !strings.HasPrefix(v, "0") {
			c.problem("bad-value", "", n, fmt.Sprintf("%s.permissions: %s is a decimal number here, which makes other permissions than it looks like", path, v), "write '0"+v+"'")
		}
	case "str":
		if _, err := strconv.ParseUint(strings.TrimPrefix(v, "0o"), 8, 32); err != nil && !c.jinja {
			c.problem("bad-value", "", n, fmt.Sprintf("%s.permissions is not an octal number: %q", path, clip(v, 20)), "write '0644'")
		}
	}
}

// commands looks at runcmd and bootcmd as the one script that cloud-init
// makes of each.
func (c *configLint) commands(key string, list *yaml.Node) {
	if list.Kind != yaml.SequenceNode {
		return
	}
	var src strings.Builder
	type spot struct{ line, col int }
	spots := []spot{{list.Line, list.Column}}
	src.WriteString("#!/bin/sh\n")
	text := func(n *yaml.Node) {
		lines := strings.Split(n.Value, "\n")
		for i, line := range lines {
			at := spot{n.Line, n.Column}
			switch {
			case n.Style&yaml.LiteralStyle != 0:
				at = spot{n.Line + 1 + i, 1}
				if orig := c.lineText(at.line); strings.Contains(orig, line) {
					at.col = 1 + strings.Index(orig, line)
				}
			case n.Style&yaml.FoldedStyle != 0:
				at = spot{n.Line + 1, 1}
			case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
				at.col++
			}
			spots = append(spots, at)
			src.WriteString(line + "\n")
		}
	}
	for _, item := range list.Content {
		item = alias(item)
		switch {
		case item.Kind == yaml.SequenceNode:
			var words []string
			for _, w := range item.Content {
				words = append(words, "'"+strings.ReplaceAll(alias(w).Value, "'", `'\''`)+"'")
			}
			line := strings.Join(words, " ")
			for range 1 + strings.Count(line, "\n") {
				spots = append(spots, spot{item.Line, item.Column})
			}
			src.WriteString(line + "\n")
			c.inner(item)
		case item.Kind == yaml.ScalarNode && kindOf(item) == "str":
			text(item)
		}
	}
	sl := &shellLint{linter: c.linter, at: c.at, runcmd: true, boothook: key == "bootcmd", where: func(line, col int) (int, int) {
		if line < 1 || line > len(spots) {
			return list.Line, list.Column
		}
		at := spots[line-1]
		return at.line, at.col + col - 1
	}}
	sl.run([]byte(src.String()))
}

// inner looks at the script of [bash, -c, SCRIPT].
func (c *configLint) inner(item *yaml.Node) {
	if len(item.Content) < 3 {
		return
	}
	var words []string
	for _, w := range item.Content {
		words = append(words, alias(w).Value)
	}
	bash := words[0] == "bash" || words[0] == "/bin/bash"
	if !bash && words[0] != "sh" && words[0] != "/bin/sh" || !hasFlag(words[1:2], 'c') {
		return
	}
	script := alias(item.Content[2])
	sl := &shellLint{linter: c.linter, at: c.at, runcmd: true, bash: bash, errexit: hasFlag(words[1:2], 'e'), where: func(line, col int) (int, int) {
		switch {
		case script.Style&yaml.LiteralStyle != 0:
			return script.Line + line, col
		case script.Style == 0 && line == 1:
			return script.Line, script.Column + col - 1
		}
		return script.Line, script.Column
	}}
	sl.run([]byte(script.Value))
}
