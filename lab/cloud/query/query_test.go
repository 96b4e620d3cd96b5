package query_test

import (
	"encoding/xml"
	"errors"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

type inner struct {
	Key   string
	Value *string
}

type request struct {
	Name  string
	Count *int
	On    bool
	IDs   []string `q:"Id"`
	Tags  []inner  `q:"Tag"`
	One   *inner
	At    time.Time
}

func TestDecode(t *testing.T) {
	form, err := url.ParseQuery("Action=A&Version=1&Name=n&Count=3&On=true&Id.2=b&Id.1=a&Id.10=c&Tag.1.Key=k&Tag.1.Value=&Tag.2.Key=l&One.Key=x&At=2026-03-01T12:00:00Z")
	if err != nil {
		t.Fatal(err)
	}
	var got request
	if err := query.Decode(form, &got); err != nil {
		t.Fatal(err)
	}
	want := request{
		Name: "n", Count: new(3), On: true, IDs: []string{"a", "b", "c"}, Tags: []inner{{"k", new("")}, {"l", nil}}, One: &inner{Key: "x"},
		At: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	members, _ := url.ParseQuery("Id.member.1=a&Id.member.2=b")
	got = request{}
	if err := query.Decode(members, &got); err != nil || len(got.IDs) != 2 {
		t.Fatalf("%v, %v", got.IDs, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for form, code := range map[string]string{
		"Colour=blue":    "UnknownParameter",
		"One.Colour=x":   "UnknownParameter",
		"Tag.1.Colour=x": "UnknownParameter",
		"Count=many":     "InvalidParameterValue",
		"On=perhaps":     "InvalidParameterValue",
		"At=today":       "InvalidParameterValue",
		"Id.first=a":     "InvalidParameter",
		"Name.1=a":       "InvalidParameter",
		"One=x":          "InvalidParameter",
	} {
		values, _ := url.ParseQuery(form)
		err := query.Decode(values, new(request))
		var e *query.Error
		if !errors.As(err, &e) || e.Code != code {
			t.Errorf("%s: got %v, want %s", form, err, code)
		}
	}
}

type answer struct {
	Name  string    `out:"name"`
	Empty string    `out:"empty,keep"`
	None  string    `out:"none"`
	N     int       `out:"n"`
	Maybe *bool     `out:"maybe"`
	List  []answer  `out:"set>item"`
	At    time.Time `out:"at"`
	Own   string
}

func TestAppend(t *testing.T) {
	got := string(query.Append(nil, "a", answer{Name: "<&>\"\r\x01é", List: []answer{{N: 2, Maybe: new(false)}}, At: time.Date(2026, 3, 1, 12, 0, 0, 5e6, time.UTC), Own: "x"}))
	want := "<a><name>&lt;&amp;&gt;&#34;&#xD;\uFFFDé</name><empty></empty><n>0</n><set><item><empty></empty><n>2</n><maybe>false</maybe></item></set><at>2026-03-01T12:00:00.005Z</at></a>"
	if got != want {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
}

// FuzzAppend: whatever a string holds, an XML parser reads it back.
func FuzzAppend(f *testing.F) {
	f.Add("plain")
	f.Add("<a>&amp;\r\n\t\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		b := query.Append(nil, "a", s)
		if s == "" {
			return
		}
		var got string
		if err := xml.Unmarshal(b, &got); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		clean := strings.Map(func(r rune) rune {
			if r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r != 0xFFFE && r != 0xFFFF {
				return r
			}
			return '\uFFFD'
		}, s) // broken bytes are U+FFFD to a range
		if got != clean {
			t.Fatalf("%q came back as %q, want %q", s, got, clean)
		}
	})
}

func TestErrors(t *testing.T) {
	w := httptest.NewRecorder()
	query.EC2Error(w, query.As(errors.New("disk full")))
	if w.Code != 500 || !strings.Contains(w.Body.String(), "<Code>InternalError</Code><Message>disk full</Message>") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	query.QueryError(w, "urn:x", query.Errorf("ValidationError", "no %s", "name"))
	if w.Code != 400 || !strings.Contains(w.Body.String(), "<Type>Sender</Type><Code>ValidationError</Code><Message>no name</Message>") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}
