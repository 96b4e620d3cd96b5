// Package agent is the wiring of lecafe-agent.service: it finds out who the
// instance is, pulls its config, follows its boot, and sends what comes of it.
// Each part decides on its own subject; this package only connects them.
package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/agent/bootstrap"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/agent/sinks"
	"github.com/lecafe/lecafe/internal/awsconf/instance"
	"github.com/lecafe/lecafe/internal/version"
	"github.com/lecafe/lecafe/systemd"
)

// Options place the agent. On an instance only Log is set.
type Options struct {
	Root         string // "/" where empty
	IMDSEndpoint string // http://169.254.169.254 where empty
	Console      string // device, /dev/console where empty
	Log          *slog.Logger
	Systemd      Systemd                // nil: the agent connects itself, and does without where it cannot
	Notify       func(state State)      // told of every change of state; may be nil
	Reload       <-chan os.Signal       // SIGHUP: ask S3 for the config at once
	Now          func() bootstrap.Clock // the clocks; bootstrap.Now where nil
	MarkAfter    time.Duration          // how long a stage lasts before it is told in S3; 5s where 0
}

// Systemd is what the agent asks of the service manager.
type Systemd interface {
	Units(ctx context.Context, names []string) ([]systemd.Unit, error)
	Changes(ctx context.Context, interesting func(string) bool) (<-chan struct{}, error)
	Run(ctx context.Context, argv []string, timeout time.Duration) error
	Reload(ctx context.Context, unit string) error
	Restart(ctx context.Context, unit string) error
}

// Agent runs on one instance. Make it with New.
type Agent struct {
	o        Options
	log      *slog.Logger
	systemd  Systemd
	console  *sinks.Console
	outbox   *sinks.Outbox
	changed  chan struct{} // wakes the observer
	advanced chan struct{} // wakes the marks
	reported chan struct{} // S3 has the bootstrap's report
	denied   chan struct{} // S3 takes no report from this sender
	looked   chan struct{} // the observer has looked: progress for the watchdog

	mu       sync.Mutex
	memory   bootstrap.Memory
	unkept   bool // the memory on disk says that nothing was judged: see remember
	facts    facts
	troubles map[string]bootstrap.Trouble
	lastSaid map[string]string // to the console, by subject
	state    State
}

// facts grow while the agent runs. Guarded by Agent.mu.
type facts struct {
	started   time.Time
	bootID    string
	settings  settings.Settings // with defaults
	problems  error
	payload   bootstrap.Payload
	instance  report.Instance
	sender    string
	awsWorks  bool // some AWS call was answered
	checks    []bootstrap.Check
	cloudInit bool             // has ended
	stage     report.StageName // that holds the verdict up
	before    bootstrap.Memory // of an earlier run of the agent
	unsent    bool             // that run's report had not arrived everywhere
}

// New opens the agent's state. It asks nothing of the network.
func New(ctx context.Context, o Options) (*Agent, error) {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Console == "" {
		o.Console = "/dev/console"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = bootstrap.Now
	}
	a := &Agent{
		o: o, log: o.Log, systemd: o.Systemd, changed: make(chan struct{}, 1), looked: make(chan struct{}, 1), advanced: make(chan struct{}, 1), reported: make(chan struct{}, 1), denied: make(chan struct{}, 1),
		troubles: map[string]bootstrap.Trouble{}, lastSaid: map[string]string{},
	}
	a.facts.started = time.Now()
	// Where the disk is full or read-only there is the more to report.
	if err := os.MkdirAll(a.stateDir(), 0o700); err != nil {
		a.log.Error("no state directory: nothing will be remembered", "error", err)
	}
	if err := os.MkdirAll(filepath.Join(o.Root, settings.RuntimeDir), 0o755); err != nil {
		return nil, fmt.Errorf("make runtime directory: %w", err)
	}
	files, err := settings.Files(o.Root)
	if err != nil {
		return nil, err
	}
	s, problems := settings.Decode(files...)
	a.facts.settings, a.facts.problems = s.WithDefaults(), problems
	if problems != nil {
		a.log.Error("settings are not valid", "error", report.Redact(problems.Error()))
	}
	if *a.facts.settings.Report.Console {
		// A machine without a console has other ways to speak.
		if a.console, err = sinks.OpenConsole(o.Console); err != nil {
			a.log.Warn("no console", "error", err)
		}
	}
	if a.outbox, err = sinks.OpenOutbox(filepath.Join(a.stateDir(), "outbox")); err != nil {
		a.log.Error("the outbox is not whole", "error", err)
	}
	if a.memory, err = bootstrap.LoadMemory(a.stateDir()); err != nil {
		a.log.Error("the bootstrap's memory cannot be read; it is judged again", "error", err)
	}
	a.facts.before = a.memory
	a.facts.unsent = slices.ContainsFunc(a.outbox.Pending(), func(p sinks.Pending) bool { return p.Report == a.memory.ReportID })
	id, err := os.ReadFile(filepath.Join(o.Root, "proc/sys/kernel/random/boot_id"))
	if err != nil {
		a.log.Warn("no boot ID", "error", err)
	}
	a.facts.bootID = bootID(strings.TrimSpace(string(id)), o.Now())
	a.open("imds", *a.imdsCause(errors.New("not asked yet")))
	if a.systemd == nil {
		if m, err := systemd.Connect(ctx); err != nil {
			a.log.Warn("no systemd: units are not looked at", "error", err)
		} else {
			a.systemd = m
		}
	}
	return a, nil
}

// bootID tells boots apart. In a container the kernel's ID may outlive the boot
// (below ProtectKernelTunables= it is the host's); there the age of process 1
// tells.
func bootID(kernel string, c bootstrap.Clock) string {
	began := (c.Kernel - c.Uptime).Truncate(time.Second)
	if began < time.Minute {
		return kernel
	}
	sum := sha256.Sum256([]byte(kernel + began.String()))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

func (a *Agent) stateDir() string { return filepath.Join(a.o.Root, settings.StateDir) }

// Run works until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	if c, ok := a.systemd.(io.Closer); ok {
		defer c.Close()
	}
	defer a.console.Close()
	a.say("start", sinks.Line{Message: "lecafe-agent " + version.String() + " follows this boot"})

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	errs := make(chan error, 1)
	wg.Go(func() { a.identify(ctx) })
	wg.Go(func() { a.watchdog(ctx) })
	wg.Go(func() {
		if err := a.observe(ctx); err != nil && ctx.Err() == nil {
			errs <- err
		}
	})
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
		stop()
	}
	wg.Wait()
	return err
}

// wake lets the observer look again.
func (a *Agent) wake() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// open says that a subject has no answer yet: until then the boot is not over.
func (a *Agent) open(subject string, cause report.Cause) {
	a.mu.Lock()
	a.troubles[subject] = bootstrap.Trouble{Cause: cause}
	a.mu.Unlock()
	a.wake()
}

// plain is an error as a person wants to read it, without secrets.
func plain(err error) string { return report.Redact(instance.Plain(err)) }

// trouble sets what one part has to say, or takes it back with a nil cause.
func (a *Agent) trouble(subject string, cause *report.Cause, settled bool) {
	a.mu.Lock()
	if cause == nil {
		delete(a.troubles, subject)
		delete(a.lastSaid, subject)
	} else {
		a.troubles[subject] = bootstrap.Trouble{Cause: *cause, Settled: settled}
		// Once a subject and cause: retries do not flood the console.
		if a.lastSaid[subject] != string(cause.Code) {
			a.lastSaid[subject] = string(cause.Code)
			defer a.say("trouble", sinks.Line{Stage: string(cause.Stage), Code: cause.Code, Message: cause.Message})
		}
	}
	a.mu.Unlock()
	a.wake()
}

// say writes one line to the console.
func (a *Agent) say(event string, l sinks.Line) {
	a.mu.Lock()
	if l.Instance == "" {
		l.Instance = a.facts.instance.ID
	}
	a.mu.Unlock()
	l.Event, l.Time = event, time.Now()
	a.console.Write(l)
}

// factsNow is what the observer judges by.
func (a *Agent) factsNow() bootstrap.Facts {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := bootstrap.Facts{
		Options:  bootstrap.Options{Deadline: a.facts.settings.Bootstrap.Deadline, Severity: a.facts.settings.Bootstrap.Severity},
		Payload:  a.facts.payload,
		Checks:   append([]bootstrap.Check(nil), a.facts.checks...),
		Previous: a.memory.Interrupted(a.instanceID(), a.facts.bootID),
	}
	f.Settings = problemsOf(a.facts.problems)
	for _, subject := range sortedKeys(a.troubles) {
		f.Troubles = append(f.Troubles, a.troubles[subject])
	}
	return f
}

// instanceID is IMDS's word, or, while IMDS does not answer, the memory's: an
// instance keeps its ID over its boots. Called with mu held.
func (a *Agent) instanceID() string {
	if a.facts.instance.ID != "" {
		return a.facts.instance.ID
	}
	return a.memory.InstanceID
}

// errJudged ends the observer early: this boot has nothing to be judged.
var errJudged = errors.New("the bootstrap was judged before")
