package bake

import (
	"fmt"
	"time"
)

// EventKind says what an event is about.
type EventKind int

// Kinds of events.
const (
	EventPhase    EventKind = iota + 1 // a phase begins
	EventDone                          // the phase ended, Seconds after it began
	EventProgress                      // Text, Percent and Left of the phase, where known
	EventStep                          // the builder: Step of Steps, Text, Tail of its output
	EventWarning                       // Text
	EventInfo                          // Text
)

// Event is what a person may want to know while a bake runs.
type Event struct {
	Kind        EventKind
	Phase       string
	Text        string
	Percent     int
	Left        time.Duration
	Step, Steps int
	Tail        []string
	Seconds     float64
}

// Phase is one part of a bake and how long it took.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

func (b *bake) emit(e Event) {
	if b.opts.Report != nil {
		b.opts.Report(e)
	}
}

func (b *bake) warn(format string, args ...any) {
	b.emit(Event{Kind: EventWarning, Phase: b.phaseName(), Text: fmt.Sprintf(format, args...)})
}

func (b *bake) phaseName() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current
}
