package strictyaml

import (
	"fmt"
	"iter"
	"strconv"
	"strings"
)

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
	if p.Value != "" {
		b.WriteString(strconv.Quote(p.Value) + ": ")
	}
	b.WriteString(p.Message)
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
	values    map[string]string // of scalars, as they stood there
}

// Place is where a field's value stands, and the value if it is a scalar.
type Place struct {
	Position
	Value string
}

// All yields every field that the document sets.
func (d *Document) All() iter.Seq2[string, Place] {
	return func(yield func(string, Place) bool) {
		for field, p := range d.positions {
			if !yield(field, Place{p, d.values[field]}) {
				return
			}
		}
	}
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

// Has says whether the file sets field; the empty one is there unless the file
// is empty or no YAML.
func (d *Document) Has(field string) bool { _, ok := d.positions[field]; return ok }

// Problem makes a problem at field's place.
func (d *Document) Problem(field, value, message, hint string) Problem {
	p := d.At(field)
	return Problem{File: d.File, Line: p.Line, Column: p.Column, Field: field, Value: shorten(value), Message: message, Hint: hint}
}
