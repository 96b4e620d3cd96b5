// Package strictyaml owns strict decoding of the YAML files people write for
// lecafe, recipes and agent settings: an unknown key, a key given twice, a
// wrong type or a bad value is a problem with file, line, column, field and
// what to do, and all problems of a file are found at once. It refuses merge
// keys, tags, several documents and, unless Rules allow them, aliases.
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

	"github.com/lecafe/lecafe/internal/lazyregexp"
	"github.com/lecafe/lecafe/internal/spelling"
)

// MaxBytes is the size above which a file is refused unread.
const MaxBytes = 1 << 20

// Rules are what the kinds of files differ in.
type Rules struct {
	FirstLine int  // that data's first line has in its file; default 1
	Replace   bool // what the file names takes the place of what was there, and null empties it; else null leaves it and maps gain keys
	Aliases   bool // *anchors stand for what they name
	Days      bool // durations may have days, as 7d
	Quoted    bool // a number is text only in quotes
}

// Decode is Rules.Decode where null changes nothing and aliases are refused.
func Decode(file string, data []byte, firstLine int, into any) (*Document, error) {
	return Rules{FirstLine: firstLine}.Decode(file, data, into)
}

// Decode reads data over into, a pointer to a struct whose fields have yaml
// tags: what data does not set keeps its value, lists are replaced. file names
// data in problems. Structs, strings, integers, booleans, durations ("10m"),
// pointers, lists and maps with string keys are understood. The error is
// Problems.
func (r Rules) Decode(file string, data []byte, into any) (*Document, error) {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("strictyaml: %T is no pointer to a struct", into))
	}
	return r.DecodeField(file, data, "", v.Elem())
}

// DecodeField is Decode of data that is the value of one field.
func (r Rules) DecodeField(file string, data []byte, field string, v reflect.Value) (doc *Document, err error) {
	d := &decoder{
		Rules: r, doc: &Document{File: file, positions: map[string]Position{}, values: map[string]string{}},
		shift: max(r.FirstLine, 1) - 1, anchors: map[string]ast.Node{}, budget: nodeBudget,
	}
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
	f, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey()) // they are found with their field
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
	d.decode(docs[0].Body, field, v)
	return d.doc, d.problems.Err()
}

// nodeBudget bounds what aliases of aliases may become.
const nodeBudget = 50000

type decoder struct {
	Rules
	doc      *Document
	shift    int
	problems Problems
	anchors  map[string]ast.Node
	budget   int // of nodes
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

// at is where a node begins: a mapping in block style at its first key.
func (d *decoder) at(n ast.Node) Position {
	var t *token.Token
	switch x := n.(type) {
	case *ast.MappingNode:
		if len(x.Values) > 0 && !x.IsFlowStyle {
			return d.at(x.Values[0])
		}
		t = x.Start
	case *ast.MappingValueNode:
		t = x.Key.GetToken()
	default:
		t = n.GetToken()
	}
	if t == nil || t.Position == nil {
		return Position{}
	}
	return Position{t.Position.Line + d.shift, t.Position.Column}
}

func (d *decoder) problem(n ast.Node, field, value, message, hint string) {
	p := d.at(n)
	d.problems = append(d.problems, Problem{
		File: d.doc.File, Line: p.Line, Column: p.Column, Field: field, Value: shorten(value), Message: message, Hint: hint,
	})
}

var durationType = reflect.TypeFor[time.Duration]()

// resolve follows anchors and aliases to the node that has the value; nil
// where there is none.
func (d *decoder) resolve(n ast.Node, field string) ast.Node {
	for range 100 {
		switch x := n.(type) {
		case *ast.AnchorNode:
			d.anchors[x.Name.GetToken().Value] = x.Value
			n = x.Value
		case *ast.AliasNode:
			if !d.Aliases {
				d.problem(n, field, "", "aliases are not understood", "write the value out")
				return nil
			}
			target, ok := d.anchors[x.Value.GetToken().Value]
			if !ok {
				d.problem(n, field, "", "no anchor of this name before it", "define it with & first")
				return nil
			}
			n = target
		case *ast.MergeKeyNode:
			d.problem(n, field, "", "merge keys are not understood", "write the keys out")
			return nil
		case *ast.TagNode:
			d.problem(n, field, "", "tags are not understood", "write the plain value")
			return nil
		default:
			return n
		}
	}
	d.problem(n, field, "", "aliases nest too deep", "write the value out")
	return nil
}

func (d *decoder) decode(n ast.Node, field string, v reflect.Value) {
	if d.budget--; d.budget <= 0 {
		if d.budget == 0 {
			d.problem(n, field, "", "the file is too large", "aliases multiply what they stand for: write less")
		}
		return
	}
	if n = d.resolve(n, field); n == nil {
		return
	}
	d.doc.positions[field] = d.at(n)
	d.doc.values[field] = scalar(n)
	if d.Replace {
		v.SetZero()
	}
	if n.Type() == ast.NullType {
		// `key:` with nothing behind it says "nothing here": the value stays,
		// or is empty now.
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
		if d.Replace || len(d.problems) == before {
			v.Set(p)
		}
	case reflect.Struct:
		d.structure(n, field, v)
	case reflect.Slice:
		d.list(n, field, v)
	case reflect.Map:
		d.mapping(n, field, v)
	case reflect.String:
		if s, ok := text(n); ok && !(d.Quoted && isNumber(n)) {
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
	parse, hint := time.ParseDuration, `write it with its unit, as "90s" or "10m"`
	if d.Days {
		parse, hint = ParseDuration, "write it with its unit, as 90s, 10m, 2h or 7d"
	}
	s, ok := text(n)
	if !ok {
		d.problem(n, field, raw(n), "must be a duration, not "+kind(n), hint)
		return
	}
	x, err := parse(s)
	if err != nil {
		d.problem(n, field, s, "is no duration", hint)
		return
	}
	v.SetInt(int64(x))
}

var days = lazyregexp.New(`^([0-9]{1,5})d(.*)$`)

// ParseDuration is time.ParseDuration with days: 7d, 1d12h.
func ParseDuration(s string) (time.Duration, error) {
	m := days().FindStringSubmatch(s)
	if m == nil {
		return time.ParseDuration(s)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0, err
	}
	d := time.Duration(n) * 24 * time.Hour
	if m[2] == "" {
		return d, nil
	}
	rest, err := time.ParseDuration(m[2])
	return d + rest, err
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
		if e.Key.IsMergeKey() {
			d.problem(e.Key, join(field, "<<"), "", "merge keys are not understood", "write the keys out")
			continue
		}
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
			if e.Value == nil {
				continue
			}
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
		if item == nil {
			continue
		}
		d.decode(item, fmt.Sprintf("%s[%d]", field, i), out.Index(i))
	}
	v.Set(out)
}

func (d *decoder) mapping(n ast.Node, field string, v reflect.Value) {
	entries, ok := pairs(n)
	if !ok {
		d.problem(n, field, raw(n), "must be a mapping of keys to values, not "+kind(n), "write key: value lines below it")
		return
	}
	out := reflect.MakeMap(v.Type())
	for it := v.MapRange(); it.Next(); {
		out.SetMapIndex(it.Key(), it.Value())
	}
	seen := map[string]bool{}
	for _, e := range entries {
		key, ok := text(e.Key)
		if e.Key.IsMergeKey() {
			d.problem(e.Key, join(field, "<<"), "", "merge keys are not understood", "write the keys out")
			continue
		}
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
		if e.Value != nil {
			d.decode(e.Value, join(field, key), item)
		}
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

func isNumber(n ast.Node) bool {
	switch n.(type) {
	case *ast.IntegerNode, *ast.FloatNode:
		return true
	}
	return false
}

// scalar is a scalar's value as it stands there; empty for the others.
func scalar(n ast.Node) string {
	if s, ok := text(n); ok {
		return s
	}
	switch n.(type) {
	case *ast.BoolNode, *ast.NullNode:
		return n.GetToken().Value
	}
	return ""
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
