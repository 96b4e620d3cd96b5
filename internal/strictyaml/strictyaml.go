// Package strictyaml owns strict decoding of the YAML files people write for
// lecafe: an unknown key, a key given twice, a wrong type or a bad value is a
// problem with file, line, column, field and what to do, and all problems of a
// file are found at once. It refuses aliases, merge keys and several documents.
package strictyaml

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/lecafe/lecafe/internal/spelling"
)

// MaxBytes is the size above which a file is refused unread.
const MaxBytes = 1 << 20

// Problem is one thing wrong with a file. Line and Column count from 1 and are
// 0 where the problem is of no place (a missing file).
type Problem struct {
	File    string
	Line    int
	Column  int
	Field   string // dotted path, list items in brackets: config[0].source
	Value   string // what stood there, shortened; empty for secrets and structures
	Message string
	Hint    string // what to do next
}

func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Message)
	if p.Value != "" {
		fmt.Fprintf(&b, " (got %s)", strconv.Quote(p.Value))
	}
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// Problems is every problem of one or more files, one a line.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Err returns ps as an error, nil if there are none.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// Position is where a field's value stands.
type Position struct{ Line, Column int }

// Document is a decoded file: it remembers where each field stood, so that
// validation can point there.
type Document struct {
	File      string
	positions map[string]Position
}

// At returns the position of a field's value. A field that is absent has its
// nearest parent's position.
func (d *Document) At(field string) Position {
	for {
		if p, ok := d.positions[field]; ok {
			return p
		}
		i := strings.LastIndexAny(field, ".[")
		if i < 0 {
			return d.positions[""]
		}
		field = field[:i]
	}
}

// Has says whether the file sets field.
func (d *Document) Has(field string) bool { _, ok := d.positions[field]; return ok }

// Problem makes a problem at field's place.
func (d *Document) Problem(field, value, message, hint string) Problem {
	p := d.At(field)
	return Problem{File: d.File, Line: p.Line, Column: p.Column, Field: field, Value: shorten(value), Message: message, Hint: hint}
}

// Decode reads data over into, a pointer to a struct whose fields have yaml
// tags: what data does not set keeps its value, lists are replaced, maps gain
// keys. file names data in problems; its first line is firstLine (1 for a whole
// file). Structs, strings, integers, booleans, durations ("10m"), pointers,
// lists and maps with string keys are understood. The error is Problems.
func Decode(file string, data []byte, firstLine int, into any) (doc *Document, err error) {
	d := &decoder{doc: &Document{File: file, positions: map[string]Position{}}, shift: firstLine - 1}
	defer func() {
		// The parser sees outside bytes: whatever it may choke on is a problem
		// of the file, never the end of the program.
		if r := recover(); r != nil {
			doc, err = d.doc, Problems{{File: file, Message: "not readable as YAML", Hint: "check quotes and indentation"}}
		}
	}()
	if len(data) > MaxBytes {
		return d.doc, Problems{{File: file, Message: fmt.Sprintf("larger than %d bytes", MaxBytes), Hint: "keep settings small"}}
	}
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("strictyaml: %T is no pointer to a struct", into))
	}
	f, err := parser.ParseBytes(data, 0)
	if err != nil {
		return d.doc, Problems{d.syntax(err)}
	}
	docs := slices.DeleteFunc(f.Docs, func(n *ast.DocumentNode) bool { return n.Body == nil || n.Body.Type() == ast.CommentType })
	switch {
	case len(docs) == 0:
		return d.doc, nil
	case len(docs) > 1:
		d.problem(docs[1].Body, "", "", "a second YAML document", "use one document a file")
	}
	d.decode(docs[0].Body, "", v.Elem())
	return d.doc, d.problems.Err()
}

type decoder struct {
	doc      *Document
	shift    int
	problems Problems
}

func (d *decoder) syntax(err error) Problem {
	p := Problem{File: d.doc.File, Message: "not valid YAML", Hint: "check quotes and indentation"}
	var ye yaml.Error
	if errors.As(err, &ye) {
		p.Message = "not valid YAML: " + ye.GetMessage()
		if t := ye.GetToken(); t != nil && t.Position != nil {
			p.Line, p.Column = t.Position.Line+d.shift, t.Position.Column
		}
	}
	return p
}

func (d *decoder) at(t *token.Token) Position {
	if t == nil || t.Position == nil {
		return Position{}
	}
	return Position{t.Position.Line + d.shift, t.Position.Column}
}

func (d *decoder) problem(n ast.Node, field, value, message, hint string) {
	p := d.at(n.GetToken())
	d.problems = append(d.problems, Problem{
		File: d.doc.File, Line: p.Line, Column: p.Column, Field: field, Value: shorten(value), Message: message, Hint: hint,
	})
}

var durationType = reflect.TypeFor[time.Duration]()

func (d *decoder) decode(n ast.Node, field string, v reflect.Value) {
	switch x := n.(type) {
	case *ast.AnchorNode:
		n = x.Value
	case *ast.AliasNode, *ast.MergeKeyNode:
		d.problem(n, field, "", "aliases are not understood", "write the value out")
		return
	case *ast.TagNode:
		d.problem(n, field, "", "tags are not understood", "write the plain value")
		return
	}
	d.doc.positions[field] = d.at(n.GetToken())
	if n.Type() == ast.NullType {
		// `key:` with nothing behind it says "nothing here": the value stays.
		return
	}
	if v.Type() == durationType {
		d.duration(n, field, v)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if !v.IsNil() {
			p.Elem().Set(v.Elem())
		}
		before := len(d.problems)
		d.decode(n, field, p.Elem())
		if len(d.problems) == before {
			v.Set(p)
		}
	case reflect.Struct:
		d.structure(n, field, v)
	case reflect.Slice:
		d.list(n, field, v)
	case reflect.Map:
		d.mapping(n, field, v)
	case reflect.String:
		if s, ok := text(n); ok {
			v.SetString(s)
		} else {
			d.problem(n, field, raw(n), "must be text, not "+kind(n), "put it in quotes")
		}
	case reflect.Bool:
		if b, ok := n.(*ast.BoolNode); ok {
			v.SetBool(b.Value)
		} else {
			d.problem(n, field, raw(n), "must be true or false, not "+kind(n), "write true or false, without quotes")
		}
	case reflect.Int, reflect.Int64, reflect.Int32:
		i, ok := n.(*ast.IntegerNode)
		if !ok {
			d.problem(n, field, raw(n), "must be a whole number, not "+kind(n), "write digits, without quotes")
			return
		}
		x, err := strconv.ParseInt(fmt.Sprint(i.Value), 10, v.Type().Bits())
		if err != nil {
			d.problem(n, field, raw(n), "is out of range", "use a smaller number")
			return
		}
		v.SetInt(x)
	default:
		panic(fmt.Sprintf("strictyaml: field %s has unsupported type %s", field, v.Type()))
	}
}

func (d *decoder) duration(n ast.Node, field string, v reflect.Value) {
	s, ok := text(n)
	if !ok {
		d.problem(n, field, raw(n), "must be a duration, not "+kind(n), `write it with its unit, as "90s" or "10m"`)
		return
	}
	x, err := time.ParseDuration(s)
	if err != nil {
		d.problem(n, field, s, "is no duration", `write it with its unit, as "90s" or "10m"`)
		return
	}
	v.SetInt(int64(x))
}

// pairs returns the entries of a mapping; a mapping of one entry may be a bare
// MappingValueNode.
func pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch x := n.(type) {
	case *ast.MappingNode:
		return x.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{x}, true
	}
	return nil, false
}

func (d *decoder) structure(n ast.Node, field string, v reflect.Value) {
	entries, ok := pairs(n)
	if !ok {
		d.problem(n, field, raw(n), "must be a mapping of keys to values, not "+kind(n), "one of "+strings.Join(names(v.Type()), ", "))
		return
	}
	known := names(v.Type())
	seen := map[string]bool{}
	for _, e := range entries {
		key, ok := text(e.Key)
		path := join(field, key)
		if !ok {
			d.problem(e.Key, field, raw(e.Key), "a key must be text", "one of "+strings.Join(known, ", "))
			continue
		}
		i := slices.Index(known, key)
		switch {
		case i < 0:
			hint := "known here: " + strings.Join(known, ", ")
			if near := nearest(key, known); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			d.problem(e.Key, path, "", "unknown key", hint)
		case seen[key]:
			d.problem(e.Key, path, "", "given twice", "keep one of the two")
		default:
			seen[key] = true
			d.decode(e.Value, path, v.FieldByIndex(fields(v.Type())[i].Index))
		}
	}
}

func (d *decoder) list(n ast.Node, field string, v reflect.Value) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.problem(n, field, raw(n), "must be a list, not "+kind(n), "write [a, b] or one item a line, each behind a dash")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		d.decode(item, fmt.Sprintf("%s[%d]", field, i), out.Index(i))
	}
	v.Set(out)
}

func (d *decoder) mapping(n ast.Node, field string, v reflect.Value) {
	entries, ok := pairs(n)
	if !ok {
		d.problem(n, field, raw(n), "must be a mapping of keys to values, not "+kind(n), "")
		return
	}
	out := reflect.MakeMap(v.Type())
	for it := v.MapRange(); it.Next(); {
		out.SetMapIndex(it.Key(), it.Value())
	}
	seen := map[string]bool{}
	for _, e := range entries {
		key, ok := text(e.Key)
		if !ok {
			d.problem(e.Key, field, raw(e.Key), "a key must be text", "put it in quotes")
			continue
		}
		if seen[key] {
			d.problem(e.Key, join(field, key), "", "given twice", "keep one of the two")
			continue
		}
		seen[key] = true
		item := reflect.New(v.Type().Elem()).Elem()
		d.decode(e.Value, join(field, key), item)
		out.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), item)
	}
	v.Set(out)
}

// text returns a scalar that reads as text. Unquoted numbers do: a mode 0640
// or a version 1.20 keeps its digits.
func text(n ast.Node) (string, bool) {
	switch x := n.(type) {
	case *ast.StringNode:
		return x.Value, true
	case *ast.LiteralNode:
		return x.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func raw(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
		return ""
	}
	return n.GetToken().Value
}

func kind(n ast.Node) string {
	switch n.Type() {
	case ast.MappingType, ast.MappingValueType:
		return "a mapping"
	case ast.SequenceType:
		return "a list"
	case ast.BoolType:
		return "true or false"
	case ast.IntegerType, ast.FloatType:
		return "a number"
	case ast.StringType, ast.LiteralType:
		return "text"
	}
	return "this"
}

// fields returns the exported fields of t with a yaml name, in order.
func fields(t reflect.Type) []reflect.StructField {
	var out []reflect.StructField
	for f := range fieldsOf(t) {
		out = append(out, f)
	}
	return out
}

func names(t reflect.Type) []string {
	var out []string
	for f := range fieldsOf(t) {
		out = append(out, yamlName(f))
	}
	return out
}

func fieldsOf(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() && yamlName(f) != "-" && !yield(f) {
				return
			}
		}
	}
}

func yamlName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if name == "" {
		return strings.ToLower(f.Name)
	}
	return name
}

func join(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

func shorten(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return s
}

// nearest returns the known word at most two edits (or a third of its length)
// away from word.
func nearest(word string, known []string) string {
	best, at := "", max(2, len(word)/3)+1
	for _, k := range known {
		if n := spelling.Distance(word, k); n < at {
			best, at = k, n
		}
	}
	return best
}
