package recipe

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// decoder fills Go values from YAML nodes and goes on after an error, so that
// one run reports them all; go-yaml's own strict decoding stops at the first.
type decoder struct {
	file     string
	problems []Problem
	places   map[string]place // field → where it stands
	anchors  map[string]ast.Node
	budget   int // nodes still allowed: aliases of aliases grow fast
}

type place struct {
	file         string
	line, column int
	value        string
}

const nodeBudget = 50000

func newDecoder() *decoder {
	return &decoder{places: map[string]place{}, anchors: map[string]ast.Node{}, budget: nodeBudget}
}

// parse returns the one document of data; nil where there is none or it is
// not YAML.
func (d *decoder) parse(data []byte) (body ast.Node) {
	// The parser has panicked on hostile input before; a recipe is a file that
	// a person wrote, and gets an answer in any case.
	defer func() {
		if r := recover(); r != nil {
			d.add(Problem{File: d.file, Line: 1, Column: 1, What: "not valid YAML", Fix: "check indentation and quotes"})
			body = nil
		}
	}()
	f, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		p := Problem{File: d.file, Line: 1, Column: 1, What: "not valid YAML", Fix: "check indentation and quotes"}
		var ye yaml.Error
		if errors.As(err, &ye) {
			p.What += ": " + ye.GetMessage()
			if tk := ye.GetToken(); tk != nil && tk.Position != nil {
				p.Line, p.Column, p.Value = tk.Position.Line, tk.Position.Column, shorten(tk.Value)
			}
		}
		d.add(p)
		return nil
	}
	for _, doc := range f.Docs {
		switch {
		case doc.Body == nil:
		case body != nil:
			d.report(doc.Body, "", "a second YAML document", "keep one recipe in a file")
		default:
			body = doc.Body
		}
	}
	return body
}

func (d *decoder) add(p Problem) { d.problems = append(d.problems, p) }

func (d *decoder) report(n ast.Node, field, what, fix string) {
	p := Problem{File: d.file, Field: field, What: what, Fix: fix, Value: scalarText(n)}
	p.Line, p.Column = position(n)
	d.add(p)
}

func position(n ast.Node) (line, column int) {
	var tk *token.Token
	switch n := n.(type) {
	case *ast.MappingNode:
		if len(n.Values) > 0 && !n.IsFlowStyle {
			return position(n.Values[0])
		}
		tk = n.Start
	case *ast.MappingValueNode:
		tk = n.Key.GetToken()
	default:
		tk = n.GetToken()
	}
	if tk == nil || tk.Position == nil {
		return 0, 0
	}
	return tk.Position.Line, tk.Position.Column
}

func scalarText(n ast.Node) string {
	switch n := n.(type) {
	case *ast.StringNode:
		return shorten(n.Value)
	case *ast.LiteralNode:
		return shorten(n.Value.Value)
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		return shorten(n.GetToken().Value)
	}
	return ""
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.BoolNode:
		return "true or false"
	case *ast.IntegerNode:
		return "a whole number"
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	case *ast.NullNode:
		return "nothing"
	}
	return "text"
}

// resolve follows anchors, aliases and tags to the node that has the value.
func (d *decoder) resolve(n ast.Node, field string) ast.Node {
	for depth := 0; depth < 100; depth++ {
		switch x := n.(type) {
		case *ast.AnchorNode:
			d.anchors[x.Name.GetToken().Value] = x.Value
			n = x.Value
		case *ast.AliasNode:
			target, ok := d.anchors[x.Value.GetToken().Value]
			if !ok {
				d.report(n, field, "no anchor of this name before it", "define it with & first")
				return nil
			}
			n = target
		case *ast.TagNode:
			d.report(n, field, "YAML tags are not understood", "leave the !tag out")
			return nil
		default:
			return n
		}
	}
	d.report(n, field, "aliases nest too deep", "write the value out")
	return nil
}

var durationType = reflect.TypeFor[time.Duration]()

// value decodes n into v, which it empties first.
func (d *decoder) value(n ast.Node, v reflect.Value, field string) {
	if d.budget--; d.budget <= 0 {
		if d.budget == 0 {
			d.report(n, field, "the recipe is too large", "aliases multiply what they stand for: write less")
		}
		return
	}
	if n = d.resolve(n, field); n == nil {
		return
	}
	p := place{file: d.file, value: scalarText(n)}
	p.line, p.column = position(n)
	d.places[field] = p
	v.SetZero()
	if _, null := n.(*ast.NullNode); null {
		return
	}
	if v.Type() == durationType {
		d.duration(n, v, field)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), field)
	case reflect.Struct:
		d.structure(n, v, field)
	case reflect.Map:
		d.mapping(n, v, field)
	case reflect.Slice:
		d.list(n, v, field)
	case reflect.String:
		switch n := n.(type) {
		case *ast.StringNode:
			v.SetString(n.Value)
		case *ast.LiteralNode:
			v.SetString(n.Value.Value)
		default:
			d.report(n, field, "is "+kindOf(n)+" where text is expected", "put it in quotes")
		}
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.report(n, field, "is "+kindOf(n)+" where true or false is expected", "write true or false, without quotes")
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Int32, reflect.Int64:
		d.integer(n, v, field)
	default:
		panic("recipe: no decoding for " + v.Type().String())
	}
}

func (d *decoder) integer(n ast.Node, v reflect.Value, field string) {
	in, ok := n.(*ast.IntegerNode)
	if !ok {
		d.report(n, field, "is "+kindOf(n)+" where a whole number is expected", "write the number without quotes or unit")
		return
	}
	var i int64
	switch x := in.Value.(type) {
	case int64:
		i = x
	case uint64:
		if x > 1<<62 {
			d.report(n, field, "is too large a number", "use a smaller one")
			return
		}
		i = int64(x)
	}
	if v.OverflowInt(i) {
		d.report(n, field, "is too large a number", "use a smaller one")
		return
	}
	v.SetInt(i)
}

func (d *decoder) duration(n ast.Node, v reflect.Value, field string) {
	s, ok := n.(*ast.StringNode)
	if !ok {
		d.report(n, field, "is "+kindOf(n)+" where a duration is expected", "write a number with a unit, as 90s, 10m, 2h or 7d")
		return
	}
	t, err := ParseDuration(s.Value)
	if err != nil {
		d.report(n, field, "is not a duration", "write a number with a unit, as 90s, 10m, 2h or 7d")
		return
	}
	v.SetInt(int64(t))
}

var days = regexp.MustCompile(`^([0-9]{1,5})d(.*)$`)

// ParseDuration is time.ParseDuration with days: 7d, 1d12h.
func ParseDuration(s string) (time.Duration, error) {
	m := days.FindStringSubmatch(s)
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

// entries returns the key-value pairs of a mapping node.
func (d *decoder) entries(n ast.Node, field string) ([]*ast.MappingValueNode, bool) {
	var all []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		all = n.Values
	case *ast.MappingValueNode:
		all = []*ast.MappingValueNode{n}
	default:
		d.report(n, field, "is "+kindOf(n)+" where a mapping is expected", "write key: value lines below it")
		return nil, false
	}
	seen := map[string]bool{}
	kept := make([]*ast.MappingValueNode, 0, len(all))
	for _, e := range all {
		name := keyName(e)
		switch {
		case e.Key.IsMergeKey():
			d.report(e.Key, join(field, "<<"), "merge keys are not understood", "write the keys out")
		case seen[name]:
			d.report(e.Key, join(field, name), "the key stands here twice", "keep one of them")
		default:
			seen[name] = true
			kept = append(kept, e)
		}
	}
	return kept, true
}

func keyName(e *ast.MappingValueNode) string {
	if s, ok := e.Key.(*ast.StringNode); ok {
		return s.Value
	}
	return e.Key.GetToken().Value
}

func (d *decoder) structure(n ast.Node, v reflect.Value, field string) {
	entries, ok := d.entries(n, field)
	if !ok {
		return
	}
	fields := fieldsOf(v.Type())
	for _, e := range entries {
		name := keyName(e)
		i, known := fields[name]
		if !known {
			p := Problem{File: d.file, Field: join(field, name), What: "unknown key", Fix: "known here: " + strings.Join(slices.Sorted(maps.Keys(fields)), ", ")}
			if near, ok := nearest(name, slices.Sorted(maps.Keys(fields))); ok {
				p.Fix = "did you mean " + near + "?"
			}
			p.Line, p.Column = position(e.Key)
			d.add(p)
			continue
		}
		if e.Value == nil {
			continue
		}
		d.value(e.Value, v.Field(i), join(field, name))
	}
}

// fieldsOf maps YAML keys to field indexes.
func fieldsOf(t reflect.Type) map[string]int {
	fields := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name != "" && name != "-" {
			fields[name] = i
		}
	}
	return fields
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, field string) {
	entries, ok := d.entries(n, field)
	if !ok {
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(entries)))
	for _, e := range entries {
		item := reflect.New(v.Type().Elem()).Elem()
		if e.Value != nil {
			d.value(e.Value, item, join(field, keyName(e)))
		}
		v.SetMapIndex(reflect.ValueOf(keyName(e)), item)
	}
}

func (d *decoder) list(n ast.Node, v reflect.Value, field string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.report(n, field, "is "+kindOf(n)+" where a list is expected", "write - item lines below it, or [item, item]")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		if item != nil {
			d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", field, i))
		}
	}
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}
