package bootstrap

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/lecafe/lecafe/internal/strictyaml"
	"github.com/lecafe/lecafe/userdata/trap"
)

// CloudUnits are the units of cloud-init's under all its naming schemes.
var CloudUnits = []string{
	"cloud-init-main.service", "cloud-init-local.service", "cloud-init.service", "cloud-init-network.service",
	"cloud-config.service", "cloud-final.service",
}

// Facts are what the other parts of the agent know at a moment.
type Facts struct {
	Options  Options
	Payload  Payload
	Settings strictyaml.Problems
	Troubles []Trouble
	Checks   []Check
	Previous *Memory
}

// Observer follows one boot.
type Observer struct {
	Root  string // "/" on an instance
	Facts func() Facts
	// Units returns the units to look at; nil where there is no systemd.
	Units func(ctx context.Context) ([]Unit, error)
	// Changed wakes the observer; files are watched besides.
	Changed <-chan struct{}
	// Now reads the clocks; the package's Now where nil.
	Now func() Clock
	// Watch tells of changes of files; the package's Watch where nil.
	Watch func(ctx context.Context, root string) (<-chan struct{}, error)
	// Progress is told of every judgement on the way, the last one included.
	Progress func(Judgement, Evidence)
}

const (
	// settle gathers what happens at once into one look: cloud-init replaces
	// files several times a second.
	settle = 30 * time.Millisecond
	// settleAfter is the same once cloud-init has ended: what wakes the observer
	// then are the agent's own answers, of which the last is awaited.
	settleAfter = time.Millisecond
	// lastLook is how long after the end the evidence is looked at again.
	lastLook = 150 * time.Millisecond
	// heartbeat bounds how late a change is noticed that nothing woke us for
	// (a child of a unit, the disk). It is slow on purpose.
	heartbeat = 20 * time.Second
	// blindHeartbeat is the same where no files are watched.
	blindHeartbeat = 2 * time.Second
)

// Run follows the boot until it can be judged or ctx ends.
func (o *Observer) Run(ctx context.Context) (Judgement, Evidence, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watch := o.Watch
	if watch == nil {
		watch = Watch
	}
	// A kernel that has no more watches to give must not keep the boot from being
	// judged: then it is looked at more often.
	files, err := watch(ctx, o.Root)
	atMost := heartbeat
	if err != nil {
		atMost = blindHeartbeat
	}
	now := o.Now
	if now == nil {
		now = Now
	}
	looked := false
	for {
		f := o.Facts()
		var units []Unit
		if o.Units != nil {
			// Without them the other evidence has to do; the next look asks again.
			units, _ = o.Units(ctx)
		}
		clock := now()
		ev := Collect(o.Root, clock, units)
		ev.Payload, ev.Settings, ev.Troubles, ev.Checks, ev.Previous = f.Payload, f.Settings, f.Troubles, f.Checks, f.Previous
		ev.Disks = disks(o.Root)
		j := Judge(ev, f.Options)
		if o.Progress != nil {
			o.Progress(j, ev)
		}
		if ctx.Err() != nil {
			return j, ev, ctx.Err() // Progress may end it
		}
		if j.Done {
			// What scripts wrote last passes through another process on its way
			// to the log: one more look a moment later has it. Not where all of it
			// is older than that.
			if looked || f.Options.Deadline > 0 && clock.Uptime >= f.Options.Deadline || quiet(o.Root, clock.At.Add(-lastLook)) {
				return j, ev, nil
			}
			looked = true
			if err := pause(ctx, lastLook); err != nil {
				return j, ev, err
			}
			continue
		}
		looked = false
		wait := atMost
		if left := f.Options.Deadline - clock.Uptime; f.Options.Deadline > 0 && left < wait {
			wait = max(left, 0) + time.Millisecond
		}
		timer := time.NewTimer(wait)
		gather := settle
		select {
		case <-ctx.Done():
			timer.Stop()
			return j, ev, ctx.Err()
		case <-timer.C:
			continue
		case <-files:
		case <-o.Changed:
			if ev.CloudInit.Ended() {
				gather = settleAfter
			}
		}
		timer.Stop()
		if err := pause(ctx, gather); err != nil {
			return j, ev, err
		}
	}
}

// quiet says that nothing the evidence is read from has changed since at. It is
// asked after the reading.
func quiet(root string, at time.Time) bool {
	for _, path := range []string{resultFile, logFile, outputFile, trap.RecordsDir} {
		info, err := os.Stat(filepath.Join(root, path))
		if err == nil && info.ModTime().After(at) {
			return false
		}
	}
	return true
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
