package recipe

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/lecafe/lecafe/internal/strictyaml"
)

// override sets one field to a YAML value: "image.tags.team=shop",
// "builder.instance_types=[c7i.large]", "provision[0].timeout=5m". The value
// replaces the field as a whole; an empty one clears it.
func (d *decoder) override(assignment string, root reflect.Value) {
	d.file = "--set"
	path, text, ok := strings.Cut(assignment, "=")
	path = strings.TrimSpace(path)
	if !ok || path == "" {
		d.add(strictyaml.Problem{File: d.file, Value: shorten(assignment), Message: "is not path=value", Hint: "write for instance --set image.tags.team=shop"})
		return
	}
	target, store, why := d.lookup(path, root)
	if why != "" {
		d.add(strictyaml.Problem{File: d.file, Field: path, Message: why, Hint: "see lecafe recipe schema for the fields"})
		return
	}
	for old := range maps.Keys(d.places) { // what stood below it is replaced
		if old == path || strings.HasPrefix(old, path+".") || strings.HasPrefix(old, path+"[") {
			delete(d.places, old)
		}
	}
	d.places[path] = place{file: d.file, value: shorten(text)}
	if text == "" {
		target.SetZero()
		store()
		return
	}
	before := len(d.problems)
	// Text for a text field needs no quotes on a command line: 1.10 stays 1.10.
	if target.Kind() == reflect.String && !strings.HasPrefix(text, `"`) && !strings.HasPrefix(text, `'`) {
		target.SetString(text)
	} else {
		d.value([]byte(text), target, path)
	}
	for i := before; i < len(d.problems); i++ {
		d.problems[i].Line, d.problems[i].Column = 0, 0
		if d.problems[i].Field == "" {
			d.problems[i].Field = path
		}
	}
	for field, p := range d.places {
		if p.file == "--set" {
			p.line, p.column = 0, 0
			d.places[field] = p
		}
	}
	store()
}

// lookup walks path from v. It returns a settable value and a function that
// stores it where it belongs (maps hold no settable values), or why it cannot.
func (d *decoder) lookup(path string, v reflect.Value) (reflect.Value, func(), string) {
	store := func() {}
	walked := ""
	for _, part := range strings.Split(path, ".") {
		name, indexes, bad := cutIndexes(part)
		if bad {
			return v, nil, "is not a path"
		}
		for v.Kind() == reflect.Pointer {
			if v.IsNil() {
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		}
		outside := walked
		walked = join(walked, name)
		switch v.Kind() {
		case reflect.Struct:
			fields := fieldsOf(v.Type())
			i, ok := fields[name]
			if !ok {
				why := fmt.Sprintf("no field %q", walked)
				if near, ok := nearest(name, slices.Sorted(maps.Keys(fields))); ok {
					why += ", did you mean " + near + "?"
				}
				return v, nil, why
			}
			v = v.Field(i)
		case reflect.Map:
			m, key, outer := v, reflect.ValueOf(name), store
			if m.IsNil() {
				m.Set(reflect.MakeMap(m.Type()))
			}
			item := reflect.New(m.Type().Elem()).Elem()
			if old := m.MapIndex(key); old.IsValid() {
				item.Set(old)
			}
			store = func() { m.SetMapIndex(key, item); outer() }
			v = item
		default:
			return v, nil, fmt.Sprintf("%s has no fields", outside)
		}
		for _, i := range indexes {
			if v.Kind() != reflect.Slice || i > v.Len() {
				return v, nil, fmt.Sprintf("%s has no item %d", walked, i)
			}
			if i == v.Len() { // one past the end appends
				v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
			}
			v = v.Index(i)
		}
	}
	return v, store, ""
}

func cutIndexes(part string) (name string, indexes []int, bad bool) {
	name, rest, has := strings.Cut(part, "[")
	if !has {
		return name, nil, name == ""
	}
	for _, s := range strings.Split(rest, "[") {
		s, closed := strings.CutSuffix(s, "]")
		i, err := strconv.Atoi(s)
		if !closed || err != nil || i < 0 {
			return name, nil, true
		}
		indexes = append(indexes, i)
	}
	return name, indexes, name == ""
}
