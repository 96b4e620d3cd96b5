package recipe

import (
	"errors"
	"reflect"
	"strings"
	"time"

	"github.com/lecafe/lecafe/internal/strictyaml"
)

// decoder gathers what is wrong with a recipe and its overrides, and where
// each field stands.
type decoder struct {
	file     string
	problems strictyaml.Problems
	places   map[string]place // field → where it stands
}

type place struct {
	file         string
	line, column int
	value        string
}

func newDecoder() *decoder { return &decoder{places: map[string]place{}} }

// rules of recipes: an empty key empties its field, so that an override can
// clear one; account IDs and versions are text, and only in quotes.
var rules = strictyaml.Rules{Replace: true, Aliases: true, Days: true, Quoted: true}

// value decodes data, the value of field, into v. It is false where data is
// empty or no YAML at all.
func (d *decoder) value(data []byte, v reflect.Value, field string) bool {
	doc, err := rules.DecodeField(d.file, data, field, v)
	for at, p := range doc.All() {
		d.places[at] = place{d.file, p.Line, p.Column, shorten(p.Value)}
	}
	var ps strictyaml.Problems
	if errors.As(err, &ps) {
		for _, p := range ps {
			p.Value = shorten(p.Value)
			d.add(p)
		}
	}
	return doc.Has(field)
}

func (d *decoder) add(p strictyaml.Problem) { d.problems = append(d.problems, p) }

// ParseDuration is time.ParseDuration with days: 7d, 1d12h.
func ParseDuration(s string) (time.Duration, error) { return strictyaml.ParseDuration(s) }

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

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}
