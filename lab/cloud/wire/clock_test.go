package wire_test

import (
	"slices"
	"testing"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/wire"
)

func TestManual(t *testing.T) {
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	c := wire.NewManual(begin)
	var log []string
	note := func(s string) func() {
		return func() { log = append(log, s+" "+c.Now().Sub(begin).String()) }
	}
	c.AfterFunc(3*time.Second, note("c"))
	c.AfterFunc(time.Second, note("a"))
	c.AfterFunc(3*time.Second, note("d")) // the same instant: in the order made
	c.AfterFunc(2*time.Second, func() {
		note("b")()
		c.AfterFunc(500*time.Millisecond, note("nested"))
	})
	stop := c.AfterFunc(time.Second, note("stopped"))
	if !stop() || stop() {
		t.Fatal("stop does not report what it did")
	}
	c.AfterFunc(11*time.Second, note("later"))
	c.Advance(10 * time.Second)
	if want := []string{"a 1s", "b 2s", "nested 2.5s", "c 3s", "d 3s"}; !slices.Equal(log, want) {
		t.Fatalf("got %v, want %v", log, want)
	}
	if now := c.Now(); !now.Equal(begin.Add(10 * time.Second)) {
		t.Fatalf("now %v", now)
	}
	ran := c.AfterFunc(0, note("at once"))
	c.Advance(0)
	if ran() || len(log) != 6 {
		t.Fatalf("after an advance by nothing: %v", log)
	}
}
