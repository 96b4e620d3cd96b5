package orders

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// posted is one line of a batch as an application posts it.
type posted struct {
	Body           *string           `json:"body"`
	Group          string            `json:"group"`
	DelaySeconds   int               `json:"delay_seconds"`
	IdempotencyKey string            `json:"idempotency_key"`
	Attributes     map[string]string `json:"attributes"`
}

// kept is one line of a sealed object, and of `spool cat --json`.
type kept struct {
	ID           string            `json:"id"`
	AcceptedAt   time.Time         `json:"accepted_at"`
	Group        string            `json:"group,omitempty"`
	DelaySeconds int               `json:"delay_seconds,omitempty"`
	Attributes   map[string]string `json:"attributes,omitempty"`
	Body         string            `json:"body"`
}

// MarshalJSON writes the form that sealed objects hold, one order a line.
func (o *Order) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(kept{o.ID.String(), o.Accepted.UTC(), o.Group, int(o.Delay / time.Second), o.Attributes, o.Body})
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

// UnmarshalJSON reads what MarshalJSON wrote and nothing else.
func (o *Order) UnmarshalJSON(b []byte) error {
	var k kept
	if err := strictJSON(b, &k); err != nil {
		return err
	}
	id, err := ParseID(k.ID)
	if err != nil {
		return err
	}
	*o = Order{ID: id, Accepted: k.AcceptedAt, Group: k.Group, Delay: time.Duration(k.DelaySeconds) * time.Second, Attributes: k.Attributes, Body: k.Body}
	if p := o.Check(MaxMessage, false); p != nil {
		return fmt.Errorf("order %s: %w", k.ID, p)
	}
	return nil
}

func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value in the line")
	}
	return nil
}

// plainJSON is a decoder's error without Go's own names.
func plainJSON(err error) string {
	var typed *json.UnmarshalTypeError
	if errors.As(err, &typed) {
		want := map[reflect.Kind]string{reflect.Int: "an integer", reflect.String: "a string", reflect.Pointer: "a string", reflect.Map: "an object of strings", reflect.Struct: "an object"}[typed.Type.Kind()]
		what := typed.Field
		if what == "" {
			what = "the line"
		}
		return fmt.Sprintf("%s is %s, want %s", what, article(typed.Value), want)
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

// article puts a or an before one of JSON's types.
func article(kind string) string {
	if kind == "bool" {
		return "a boolean"
	}
	if strings.HasPrefix(kind, "a") || strings.HasPrefix(kind, "o") {
		return "an " + kind
	}
	return "a " + kind
}

// lineProblem is what is wrong with one line of a batch.
type lineProblem struct {
	Line  int    `json:"line"`
	Code  string `json:"code"`
	Error string `json:"error"`
}

// maxLineProblems bounds the answer to a batch that is wrong throughout.
const maxLineProblems = 20

// parseBatch reads newline-delimited JSON. Either all lines are orders, or the
// problems say which are not.
func parseBatch(body []byte, limit int64, fifo bool, now time.Time) ([]*Order, []string, []lineProblem) {
	var orders []*Order
	var keys []string
	var problems []lineProblem
	for n := 1; len(body) > 0 && len(problems) < maxLineProblems; n++ {
		line, rest, _ := bytes.Cut(body, []byte("\n"))
		body = rest
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		if i := badUTF8(line); i >= 0 {
			problems = append(problems, lineProblem{n, "invalid_character", fmt.Sprintf("byte %d is not UTF-8", i)})
			continue
		}
		var p posted
		if !plainLine(line, &p) {
			p = posted{}
			if err := strictJSON(line, &p); err != nil {
				problems = append(problems, lineProblem{n, "bad_json", plainJSON(err)})
				continue
			}
		}
		o := &Order{Accepted: now, Group: p.Group, Delay: time.Duration(p.DelaySeconds) * time.Second, Attributes: p.Attributes}
		if p.Body != nil {
			o.Body = *p.Body
		}
		pr := checkKey(p.IdempotencyKey)
		if pr == nil {
			pr = o.Check(limit, fifo)
		}
		if pr != nil {
			problems = append(problems, lineProblem{n, pr.Code, pr.Message})
			continue
		}
		if p.IdempotencyKey != "" {
			o.ID = IDOfKey(p.IdempotencyKey)
		} else {
			o.ID = NewID(now)
		}
		orders = append(orders, o)
		keys = append(keys, p.IdempotencyKey)
	}
	return orders, keys, problems
}

// plainLine reads a line of the usual form at a fraction of the cost: strings
// without escapes, numbers without a sign, no attributes. It reports false for
// everything else, right or wrong, and leaves it to strictJSON.
func plainLine(b []byte, p *posted) bool {
	i := 0
	next := func(want byte) bool {
		for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\r') {
			i++
		}
		if i >= len(b) || b[i] != want {
			return false
		}
		i++
		return true
	}
	text := func() ([]byte, bool) {
		if !next('"') {
			return nil, false
		}
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return nil, false
		}
		s := b[i : i+n]
		i += n + 1
		// JSON wants control characters escaped; the others are found later.
		return s, bytes.IndexByte(s, '\\') < 0 && bytes.IndexByte(s, '\t') < 0 && bytes.IndexByte(s, '\r') < 0
	}
	if !next('{') {
		return false
	}
	for {
		key, ok := text()
		if !ok || !next(':') {
			return false
		}
		if string(key) == "delay_seconds" {
			for i < len(b) && b[i] == ' ' {
				i++
			}
			from := i
			p.DelaySeconds = 0
			for i < len(b) && i < from+4 && b[i] >= '0' && b[i] <= '9' {
				p.DelaySeconds = 10*p.DelaySeconds + int(b[i]-'0')
				i++
			}
			// A second one, a leading zero, a fraction: not here.
			if i == from || i-from > 1 && b[from] == '0' || p.DelaySeconds > 9999 {
				return false
			}
		} else {
			value, ok := text()
			if !ok {
				return false
			}
			switch string(key) {
			case "body":
				s := string(value)
				p.Body = &s
			case "group":
				p.Group = string(value)
			case "idempotency_key":
				p.IdempotencyKey = string(value)
			default:
				return false
			}
		}
		if next('}') {
			i += len(b[i:]) - len(bytes.TrimLeft(b[i:], " \t\r"))
			return i == len(b)
		}
		if !next(',') {
			return false
		}
	}
}

func checkKey(key string) *Problem {
	if len(key) > maxKey || badCharacter(key) >= 0 {
		return problem("bad_key", "Idempotency-Key must have at most %d bytes of text", maxKey)
	}
	return nil
}

// spotTerminates reads IMDS's spot/instance-action.
func spotTerminates(document string) bool {
	var d struct {
		Action string `json:"action"`
	}
	return json.Unmarshal([]byte(document), &d) == nil && d.Action == "terminate"
}
