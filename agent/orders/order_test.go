package orders

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestIDsAreUUIDs(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1763780400123)
	a, b := NewID(now), NewID(now.Add(time.Millisecond))
	if a.String() >= b.String() || a.String()[14] != '7' || !strings.Contains("89ab", a.String()[19:20]) {
		t.Errorf("%s, %s", a, b)
	}
	k := IDOfKey("order-1")
	if k != IDOfKey("order-1") || k == IDOfKey("order-2") || k.String()[14] != '8' {
		t.Errorf("%s", k)
	}
	for _, id := range []ID{a, b, k} {
		if got, err := ParseID(id.String()); err != nil || got != id {
			t.Errorf("parse %s: %s, %v", id, got, err)
		}
	}
	for _, s := range []string{"", "x", a.String()[1:], a.String() + "0", strings.ReplaceAll(a.String(), "-", "")} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("parse %q: %s", s, id)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, o := range []*Order{
		{Body: "x"},
		{ID: IDOfKey("k"), Accepted: time.UnixMilli(1), Body: "☕", Group: "g", Delay: 5 * time.Second, Attributes: map[string]string{"a": "b", "c": "d"}},
	} {
		f.Add(o.appendRecord(nil))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := DecodeRecord(b)
		if err != nil {
			return
		}
		again, err := DecodeRecord(o.appendRecord(nil))
		if err != nil || !reflect.DeepEqual(o, again) {
			t.Fatalf("%+v, then %+v, %v", o, again, err)
		}
	})
}

// FuzzBatch: whatever is accepted is what SQS takes, has an ID, and survives
// both the spool's form and the sealed one.
func FuzzBatch(f *testing.F) {
	f.Add([]byte(`{"body":"a"}` + "\n" + `{"body":"b","group":"g","delay_seconds":3,"idempotency_key":"k","attributes":{"Name":"v"}}`))
	f.Add([]byte(`{"body":"\ud800"}`))
	f.Add([]byte("{\"body\":\"\xff\"}\n\n{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, keys, problems := parseBatch(b, MaxMessage, false, time.UnixMilli(1))
		if len(list) != len(keys) {
			t.Fatal("keys missing")
		}
		for _, p := range problems {
			if p.Line < 1 || p.Code == "" || p.Error == "" {
				t.Fatalf("%+v", p)
			}
		}
		for _, o := range list {
			if p := o.Check(MaxMessage, false); p != nil || !utf8.ValidString(o.Body) || o.ID == (ID{}) {
				t.Fatalf("%+v: %v", o, p)
			}
			back, err := DecodeRecord(o.appendRecord(nil))
			if err != nil || back.Body != o.Body || back.Group != o.Group || back.ID != o.ID {
				t.Fatalf("%+v, %v", back, err)
			}
			line, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := ReadSealed(strings.NewReader(string(line) + "\n"))
			if err != nil || sealed[0].Body != o.Body {
				t.Fatalf("%v, %v", sealed, err)
			}
		}
	})
}

// FuzzPlainLine: what the short way reads, the long way reads the same. Only a
// control character may pass here that JSON refuses: Check refuses it.
func FuzzPlainLine(f *testing.F) {
	f.Add([]byte(`{"body":"a"}`))
	f.Add([]byte(` { "body" : "b" , "group":"g","delay_seconds": 30,"idempotency_key":"k" } `))
	f.Add([]byte(`{"delay_seconds":1,"delay_seconds":2}`))
	f.Add([]byte(`{"body":"a","attributes":{"Name":"v"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var short, long posted
		if badUTF8(b) >= 0 || strings.ContainsRune(string(b), '\n') || !plainLine(b, &short) {
			return
		}
		if err := strictJSON(b, &long); err != nil {
			for _, s := range []*string{short.Body, &short.Group, &short.IdempotencyKey} {
				if s != nil && badCharacter(*s) >= 0 {
					return
				}
			}
			t.Fatalf("%q: %+v, but: %v", b, short, err)
		}
		if !reflect.DeepEqual(short, long) {
			t.Fatalf("%q: %+v, want %+v", b, short, long)
		}
	})
}

func TestSpotActions(t *testing.T) {
	t.Parallel()
	for doc, want := range map[string]bool{
		`{"action": "terminate", "time": "2026-09-18T08:22:00Z"}`: true,
		`{"action": "stop", "time": "2026-09-18T08:22:00Z"}`:      false,
		`{"action": "hibernate"}`:                                 false,
		``:                                                        false,
	} {
		if spotTerminates(doc) != want {
			t.Errorf("%s", doc)
		}
	}
}
