package query

import (
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

type node struct {
	value string
	set   bool
	kids  map[string]*node
}

func (n *node) child(name string) *node {
	if n.kids == nil {
		n.kids = map[string]*node{}
	}
	c := n.kids[name]
	if c == nil {
		c = &node{}
		n.kids[name] = c
	}
	return c
}

// Decode fills the struct that into points at from form. A field is named by
// its `q` tag, or its own name. Lists are Name.1, Name.2 (EC2) or
// Name.member.1 (query); both are taken.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Query-Requests.html
func Decode(form url.Values, into any) error {
	root := &node{}
	for key, values := range form {
		if key == "Action" || key == "Version" {
			continue
		}
		n := root
		for part := range strings.SplitSeq(key, ".") {
			n = n.child(part)
		}
		if len(values) > 0 {
			n.value, n.set = values[0], true
		}
	}
	return decodeStruct(root, reflect.ValueOf(into).Elem(), "")
}

var plans sync.Map // reflect.Type → map[string]int, of the fields to decode

func fieldsOf(t reflect.Type) map[string][]int {
	if p, ok := plans.Load(t); ok {
		return p.(map[string][]int)
	}
	fields := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		tag := f.Tag.Get("q")
		if f.Anonymous || !f.IsExported() || tag == "-" {
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		fields[tag] = f.Index
	}
	plans.Store(t, fields)
	return fields
}

func decodeStruct(n *node, v reflect.Value, path string) error {
	if n.set && n.value != "" {
		return Errorf("InvalidParameter", "%s: a structure is expected, not the value %q", path, n.value)
	}
	fields := fieldsOf(v.Type())
	for _, name := range slices.Sorted(maps.Keys(n.kids)) {
		index, ok := fields[name]
		if !ok {
			return Errorf("UnknownParameter", "The parameter %s is not recognized, or the lab does not model it", join(path, name))
		}
		if err := decodeValue(n.kids[name], v.FieldByIndex(index), join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

var timeType = reflect.TypeFor[time.Time]()

func decodeValue(n *node, v reflect.Value, path string) error {
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		return decodeValue(n, v.Elem(), path)
	}
	if v.Kind() == reflect.Slice {
		return decodeList(n, v, path)
	}
	if v.Type() == timeType {
		t, err := time.Parse(time.RFC3339, n.value)
		if err != nil {
			return Errorf("InvalidParameterValue", "Invalid value '%s' for %s. Must be in ISO 8601 format", n.value, path)
		}
		v.Set(reflect.ValueOf(t.UTC()))
		return nil
	}
	if v.Kind() == reflect.Struct {
		return decodeStruct(n, v, path)
	}
	if len(n.kids) > 0 {
		return Errorf("InvalidParameter", "%s is not a structure or a list", path)
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.value)
	case reflect.Bool:
		b, err := strconv.ParseBool(n.value)
		if err != nil {
			return Errorf("InvalidParameterValue", "Invalid value '%s' for %s. Must be true or false", n.value, path)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(n.value, 10, 64)
		if err != nil {
			return Errorf("InvalidParameterValue", "Invalid value '%s' for %s. Must be a number", n.value, path)
		}
		v.SetInt(i)
	default:
		panic("query: " + path + " has a kind that forms do not have")
	}
	return nil
}

func decodeList(n *node, v reflect.Value, path string) error {
	if m, ok := n.kids["member"]; ok && len(n.kids) == 1 {
		n = m
	}
	type item struct {
		at int
		n  *node
	}
	items := make([]item, 0, len(n.kids))
	for key, kid := range n.kids {
		at, err := strconv.Atoi(key)
		if err != nil {
			return Errorf("InvalidParameter", "%s.%s is not the index of a list", path, key)
		}
		items = append(items, item{at, kid})
	}
	slices.SortFunc(items, func(a, b item) int { return a.at - b.at })
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, it := range items {
		if err := decodeValue(it.n, v.Index(i), path+"."+strconv.Itoa(it.at)); err != nil {
			return err
		}
	}
	return nil
}
