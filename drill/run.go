package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lecafe/lecafe/agent/report"
)

// ErrSilent says that an instance said nothing before the drill's patience
// was over.
var ErrSilent = errors.New("no report")

// Ground is where the image under test is booted.
type Ground interface {
	// Boot launches an instance with the payload, and with the case's fault
	// around it.
	Boot(ctx context.Context, c Case, payload []byte) (Instance, error)
}

// Instance is one boot of the image under test.
type Instance interface {
	// Report waits for the report of the bootstrap, or for what the console
	// says of it; the error is ErrSilent if neither comes.
	Report(ctx context.Context) (r *report.Report, channel string, err error)
	// Arrived is when the report arrived, on the clock that the instance's own
	// times are of; zero where that is not known.
	Arrived() time.Time
	// CloudInit is what cloud-init itself says of the boot, in a few words.
	CloudInit(ctx context.Context) string
	// Close ends the instance and its fault.
	Close(ctx context.Context) error
}

// Result is the outcome of one case.
type Result struct {
	Name      string         `json:"name"`
	About     string         `json:"about"`
	CloudInit string         `json:"cloud_init"` // what cloud-init says by itself
	Verdict   report.Verdict `json:"verdict,omitempty"`
	Cause     *report.Cause  `json:"cause,omitempty"` // the first one
	Summary   string         `json:"summary,omitempty"`
	Channel   string         `json:"channel,omitempty"`     // s3 or console
	Seconds   float64        `json:"seconds"`               // from launch to verdict
	Lag       *float64       `json:"lag_seconds,omitempty"` // from the end of cloud-init to the report's arrival
	Wrong     string         `json:"wrong,omitempty"`       // how it differs from what is expected
}

// Options of Run.
type Options struct {
	Parallel int           // boots at once, beside those that only wait
	Patience time.Duration // per boot
	Done     func(Result)  // called after each case, one at a time
}

// Run boots each case and returns the results in the order of cases. A case
// that could not be booted is a wrong result, not an error.
func Run(ctx context.Context, cases []Case, g Ground, o Options) ([]Result, error) {
	out := make([]Result, len(cases))
	finished := make(chan Result)
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		for r := range finished {
			if o.Done != nil {
				o.Done(r)
			}
		}
	}()
	defer func() { close(finished); <-reported }()

	var group, waiting errgroup.Group
	group.SetLimit(max(1, o.Parallel))
	waiting.SetLimit(maxWaiting)
	boot := func(i int) func() error {
		return func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			out[i] = one(ctx, cases[i], g, o.Patience)
			finished <- out[i]
			return ctx.Err()
		}
	}
	started := make(chan struct{})
	go func() {
		defer close(started)
		for i, c := range cases {
			if c.Waits && !c.Alone {
				waiting.Go(boot(i))
			}
		}
	}()
	for i, c := range cases {
		if !c.Waits && !c.Alone {
			group.Go(boot(i))
		}
	}
	<-started
	if err := errors.Join(group.Wait(), waiting.Wait()); err != nil {
		return out, err
	}
	for i, c := range cases {
		if c.Alone {
			if err := boot(i)(); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// maxWaiting is how many instances wait for a deadline at once: they take
// memory, and hardly any time of a CPU.
const maxWaiting = 3

// closeTime bounds the end of one instance, also when the drill is interrupted.
const closeTime = time.Minute

func one(ctx context.Context, c Case, g Ground, patience time.Duration) (r Result) {
	r = Result{Name: c.Name, About: c.About}
	payload, err := c.Payload()
	if err != nil {
		r.Wrong = err.Error()
		return r
	}
	start := time.Now()
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	instance, err := g.Boot(bounded, c, payload)
	if err != nil {
		r.Wrong = "cannot be booted: " + err.Error()
		return r
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		defer cancel()
		if err := instance.Close(ending); err != nil && r.Wrong == "" {
			r.Wrong = "cannot be ended: " + err.Error()
		}
	}()
	rep, channel, err := instance.Report(bounded)
	r.Seconds = time.Since(start).Round(100 * time.Millisecond).Seconds()
	r.CloudInit = instance.CloudInit(ctx)
	if err != nil {
		r.Wrong = err.Error()
		return r
	}
	r.Verdict, r.Channel, r.Summary = rep.Verdict, channel, rep.Summary
	if len(rep.Causes) > 0 {
		r.Cause = &rep.Causes[0]
	}
	r.Lag = lag(rep, instance.Arrived())
	r.Wrong = c.Expect.Met(rep)
	if r.Wrong == "" && c.Expect.Channel != "" && channel != c.Expect.Channel {
		r.Wrong = fmt.Sprintf("told by %s, want %s", channel, c.Expect.Channel)
	}
	return r
}

// lag is the time from the end of the last stage to the report's arrival, nil
// where one of them is not known.
func lag(r *report.Report, arrived time.Time) *float64 {
	var end time.Time
	for _, s := range r.Stages {
		if s.FinishedAt == nil {
			return nil
		}
		if s.FinishedAt.After(end) {
			end = *s.FinishedAt
		}
	}
	if end.IsZero() || arrived.IsZero() {
		return nil
	}
	d := arrived.Sub(end).Round(time.Millisecond).Seconds()
	return &d
}

// Lags returns median and maximum of the lags of boots without a fault, 0
// where there are none.
func Lags(results []Result, cases []Case) (median, longest float64, n int) {
	var all []float64
	for i, r := range results {
		if r.Lag != nil && cases[i].Fault == "" {
			all = append(all, *r.Lag)
		}
	}
	if len(all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)-1], len(all)
}

// WriteMatrix prints results as a table.
func WriteMatrix(w io.Writer, results []Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CASE\tWHAT WAS DONE\tCLOUD-INIT SAYS\tLECAFE SAYS\tCAUSE\tSECONDS\t")
	for _, r := range results {
		cause := "-"
		if r.Cause != nil {
			cause = string(r.Cause.Code)
			if r.Cause.Line > 0 {
				cause += fmt.Sprintf(" (%s)", strings.TrimPrefix(fmt.Sprintf("%s:%d", r.Cause.File, r.Cause.Line), ":"))
			}
		}
		verdict := string(r.Verdict)
		if verdict == "" {
			verdict = "silent"
		}
		wrong := ""
		if r.Wrong != "" {
			wrong = "WRONG: " + r.Wrong
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%.1f\t%s\n", r.Name, r.About, r.CloudInit, verdict, cause, r.Seconds, wrong)
	}
	return t.Flush()
}
