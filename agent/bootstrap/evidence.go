// Package bootstrap observes one boot of an instance and judges it. It owns
// what counts as evidence, how cloud-init of 22.2 to 25.x records what it did,
// and which verdict and causes follow. It changes nothing on the instance,
// fetches nothing and sends nothing: what other parts of the agent find out
// (identity, config, queue) reaches it as Trouble.
//
// cloud-init's own word is not enough. It says "done" for invalid YAML, for a
// script without #!, for commands that fail in mid-script, and "running" for
// ever for a hang; so every source is asked: the payload itself, cloud-init's
// records and log, systemd's units, the trap's records, the processes.
package bootstrap

import (
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/internal/strictyaml"
)

// Evidence is everything known of a boot at one moment.
type Evidence struct {
	Uptime time.Duration // since the kernel's start: deadlines follow it, not a clock that may be set
	At     time.Time     // the clock's time at Uptime

	Payload   Payload
	CloudInit CloudInit
	Units     []Unit
	Running   []Process // in the cgroups of cloud-init's units
	Trapped   []Trapped
	Troubles  []Trouble
	Checks    []Check
	Disks     []Disk
	Settings  strictyaml.Problems // of the agent's own settings
	Previous  *Memory             // an earlier boot of this instance that was not judged
	LogTail   []string            // last lines of cloud-init-output.log
	// Said are the lines of the log, further back than LogTail, in which a shell
	// speaks of a script: cloud-init 24.3 and later flush other output behind them.
	Said []string
}

// Payload is the user data as IMDS gives it. Known is false until it was read;
// a payload that is known and empty is an instance without user data.
type Payload struct {
	Known    bool
	SHA256   string
	Size     int
	Format   string
	Findings []Finding
	Scripts  []string // names of the script parts that have to run
	Exits    []Exit   // where they end by themselves
	Lasts    []Last   // what they end with otherwise
	Keys     []Key    // of cloud-configs
}

// Last is the statement that a shell script ends with, where its exit code
// would be the script's.
type Last struct {
	File    string
	Line    int
	Command string
	List    bool // && or ||: a failure in it is not trapped
	Trapped bool // bash runs it: other failures are
}

// Exit is a statement `exit N` of a script part.
type Exit struct {
	File    string
	Line    int
	Code    int
	Command string
}

// Finding is what lint says of a payload and what a boot would be reported
// with for it. File is the part, Line counts in the part where it has one.
type Finding struct {
	Code    report.Code
	Error   bool // it will not do what it says
	File    string
	Line    int
	Column  int
	Message string
	Fix     string
}

// CloudInit is what cloud-init recorded of this boot.
type CloudInit struct {
	Version    string
	Installed  bool
	Disabled   bool // by file, kernel command line or its generator
	Datasource string
	Stages     [4]StageRecord // in the order of stageModes
	Result     bool           // result.json is there: the last stage has ended
	Warnings   []string       // WARNING lines of its log, without time
	Errors     []string       // ERROR and CRITICAL lines, and recoverable_errors of that level
	Failures   []ExecFailure  // commands that failed, as its log has them
	Ran        map[string]bool
	Skipped    []string        // modules that "already ran"
	Modules    map[string]bool // that it runs, with underscores; nil where that is not known; read once it has ended
	Debug      bool            // its log has DEBUG lines, so that what is missing there did not happen
}

// StageRecord is one stage in status.json. Start and Finish are zero where the
// stage has not got there.
type StageRecord struct {
	Start, Finish time.Time
	Errors        []string
	Recoverable   map[string][]string // level → messages, from 23.4
}

// Modes of status.json, in order, with the stage each is.
var stageModes = [4]struct {
	mode  string
	stage report.StageName
}{
	{"init-local", report.StageCloudInitLocal},
	{"init", report.StageCloudInitNetwork},
	{"modules-config", report.StageCloudConfig},
	{"modules-final", report.StageCloudFinal},
}

// Ended says whether the last stage has ended.
func (c *CloudInit) Ended() bool { return c.Result || !c.Stages[3].Finish.IsZero() }

// ExecFailure is a command cloud-init ran that failed, as subp.py logs it.
type ExecFailure struct {
	Path   string // of the program
	Exit   *int   // negative: minus the signal; nil: it could not be started
	Reason string // why it could not be started: "[Errno 8] Exec format error: ..."
}

// Unit is a unit of systemd's.
type Unit struct {
	Name   string
	Load   string // loaded, not-found, masked
	Active string // active, inactive, failed, activating, deactivating, reloading
	Sub    string
	Result string // of a failed service: exit-code, signal, timeout, ...
	Code   int    // of a failed service: exit code or signal
}

// Process runs in one of cloud-init's units.
type Process struct {
	PID, Parent int
	Started     uint64 // clock ticks since boot
	Unit        string
	Command     []string
}

// Trapped is a record of the trap: a command of a script failed and nobody
// handled it.
type Trapped struct {
	File       string // base name of the script
	Line       int
	Exit       int
	Command    string
	Background bool // in a job that nobody waited for
	Fatal      bool // set -e was on: it ended the script
}

// Trouble is what another part of the agent has to say. While it is not
// Settled it is still being tried, the boot is not over, and it is a cause only
// once the deadline has passed. A Severity in Cause goes before the code's own.
type Trouble struct {
	Cause   report.Cause
	Settled bool
}

// Check is one readiness check of the settings.
type Check struct {
	Name  string // what is checked, as "unit app.service"
	Unit  string // set for units
	OK    bool
	Final bool   // it has failed for good
	Why   string // what it answered last
}

// Disk is a file system and what is left on it for an unprivileged program.
type Disk struct {
	Path       string
	Size, Free uint64 // bytes
	Inodes     uint64 // 0 where the file system has no such limit
	FreeInodes uint64
}

// Full says whether nothing useful can be written there any more.
func (d Disk) Full() bool {
	return d.Size > 0 && d.Free <= min(d.Size/100, 1<<20) || d.Inodes > 0 && d.FreeInodes == 0
}
