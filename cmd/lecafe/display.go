package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/lecafe/lecafe/bake"
)

// display shows a bake: on a terminal a last line that changes under the
// finished phases, elsewhere plain lines for what is news.
type display struct {
	w    io.Writer
	fd   int // of the terminal
	live bool

	mu      sync.Mutex
	phase   string
	began   time.Time
	text    string
	step    string
	drawn   bool
	stop    chan struct{}
	stopped sync.WaitGroup
}

func newDisplay(w io.Writer) *display {
	d := &display{w: w, stop: make(chan struct{})}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		d.live, d.fd = true, int(f.Fd())
		d.stopped.Go(d.tick)
	}
	return d
}

// tick keeps the clock of the live line going.
func (d *display) tick() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-t.C:
			d.mu.Lock()
			d.draw()
			d.mu.Unlock()
		}
	}
}

func (d *display) close() {
	close(d.stop)
	d.stopped.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wipe()
}

func (d *display) event(e bake.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e.Kind {
	case bake.EventPhase:
		d.phase, d.began, d.text, d.step = e.Phase, time.Now(), "", ""
		d.draw()
	case bake.EventDone:
		d.phase = "" // before the line is drawn again
		d.say("%-10s %6.1fs", e.Phase, e.Seconds)
	case bake.EventWarning:
		d.say("warning: %s", e.Text)
	case bake.EventInfo:
		d.say("%s", e.Text)
	case bake.EventProgress:
		if !d.live && e.Text != d.text {
			d.say("%-10s %s", e.Phase, e.Text)
		}
		d.text = e.Text
		d.draw()
	case bake.EventStep:
		step := e.Text
		if e.Step > 0 {
			step = fmt.Sprintf("step %d of %d, %s", e.Step, e.Steps, e.Text)
		}
		if step != d.step {
			d.step = step
			if !d.live {
				d.say("%-10s %s", e.Phase, step)
			}
		}
		d.text = step
		if n := len(e.Tail); n > 0 {
			d.text += ": " + e.Tail[n-1]
		}
		d.draw()
	}
}

func (d *display) say(format string, args ...any) {
	d.wipe()
	fmt.Fprintf(d.w, format+"\n", args...)
	d.draw()
}

func (d *display) wipe() {
	if d.drawn {
		fmt.Fprint(d.w, "\r\x1b[K")
		d.drawn = false
	}
}

func (d *display) draw() {
	if !d.live || d.phase == "" {
		return
	}
	d.wipe()
	line := fmt.Sprintf("%-10s %6.0fs  %s", d.phase, time.Since(d.began).Seconds(), d.text)
	// What a step prints must not steer the terminal.
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, line)
	width, _, err := term.GetSize(d.fd)
	if err != nil || width < 20 {
		width = 80
	}
	if r := []rune(line); len(r) >= width {
		line = string(r[:width-2]) + "…"
	}
	fmt.Fprint(d.w, line)
	d.drawn = true
}
