package query

import (
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// TimeFormat is that of both protocols.
const TimeFormat = "2006-01-02T15:04:05.000Z"

// Append appends v as the element name. A struct's fields are named by their
// `out` (or `xml`) tags; "set>item" makes a list, fields without a tag are left out. Nil
// pointers, empty strings and lists and zero times are left out, strings and
// lists that end in ",keep" excepted; numbers and booleans are always written,
// behind a pointer where they may be absent.
//
// encoding/xml does the same at several times the cost, which shows where a
// fleet of 100,000 instances is listed.
func Append(b []byte, name string, v any) []byte {
	return appendValue(b, name, "", reflect.ValueOf(v))
}

type encoding struct {
	index      []int
	name, item string
	keep       bool
}

var encodings sync.Map // reflect.Type → []encoding

func encodingOf(t reflect.Type) []encoding {
	if e, ok := encodings.Load(t); ok {
		return e.([]encoding)
	}
	list := []encoding{}
	for _, f := range reflect.VisibleFields(t) {
		tag := f.Tag.Get("out")
		if tag == "" {
			tag = f.Tag.Get("xml")
		}
		if tag == "" || tag == "-" || !f.IsExported() {
			continue
		}
		tag, keep := strings.CutSuffix(tag, ",keep")
		name, item, _ := strings.Cut(tag, ">")
		list = append(list, encoding{f.Index, name, item, keep})
	}
	encodings.Store(t, list)
	return list
}

func appendValue(b []byte, name, item string, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Invalid:
		return b
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return b
		}
		return appendValue(b, name, item, v.Elem())
	case reflect.Slice:
		if v.Len() == 0 {
			return b
		}
		b = open(b, name)
		for i := range v.Len() {
			b = appendValue(b, item, "", v.Index(i))
		}
		return shut(b, name)
	case reflect.Struct:
		if v.Type() == timeType {
			t := v.Interface().(time.Time)
			if t.IsZero() {
				return b
			}
			return shut(t.AppendFormat(open(b, name), TimeFormat), name)
		}
		b = open(b, name)
		for _, e := range encodingOf(v.Type()) {
			f := v.FieldByIndex(e.index)
			if e.keep && f.Len() == 0 {
				b = shut(open(b, e.name), e.name)
				continue
			}
			b = appendValue(b, e.name, e.item, f)
		}
		return shut(b, name)
	case reflect.String:
		if v.Len() == 0 {
			return b
		}
		return shut(escape(open(b, name), v.String()), name)
	case reflect.Bool:
		return shut(strconv.AppendBool(open(b, name), v.Bool()), name)
	case reflect.Int, reflect.Int32, reflect.Int64:
		return shut(strconv.AppendInt(open(b, name), v.Int(), 10), name)
	default:
		panic("query: cannot encode " + v.Type().String() + " as " + name)
	}
}

func open(b []byte, name string) []byte {
	b = append(b, '<')
	b = append(b, name...)
	return append(b, '>')
}

func shut(b []byte, name string) []byte {
	b = append(b, '<', '/')
	if i := strings.IndexByte(name, ' '); i >= 0 { // attributes
		name = name[:i]
	}
	b = append(b, name...)
	return append(b, '>')
}

// escape keeps what XML can say; what it cannot, control characters and broken
// UTF-8, becomes U+FFFD.
func escape(b []byte, s string) []byte {
	from := 0
	for i := 0; i < len(s); {
		size, to := 1, ""
		switch c := s[i]; {
		case c == '&':
			to = "&amp;"
		case c == '<':
			to = "&lt;"
		case c == '>':
			to = "&gt;"
		case c == '"':
			to = "&#34;"
		case c == '\r':
			to = "&#xD;"
		case c >= utf8.RuneSelf:
			var r rune
			if r, size = utf8.DecodeRuneInString(s[i:]); r == utf8.RuneError && size == 1 || r == 0xFFFE || r == 0xFFFF {
				to = "\uFFFD"
			}
		case c < 0x20 && c != '\t' && c != '\n':
			to = "\uFFFD"
		}
		if to != "" {
			b = append(append(b, s[from:i]...), to...)
			from = i + size
		}
		i += size
	}
	return append(b, s[from:]...)
}
