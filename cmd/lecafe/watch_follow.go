package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/internal/exitcode"
)

// followFlags are those of the continuous mode.
func followFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "queue", Usage: "`NAME` or URL of the reports' queue: its messages wake the watcher, and are deleted after ten minutes"},
		&cli.StringFlag{Name: "on-failure", Usage: "`WHAT` to do about failed and silent instances: none, unhealthy, abandon or terminate", Value: string(fleet.None)},
		&cli.IntFlag{Name: "brake", Usage: "after `N` failures of one kind replace nothing more, and keep one for study", Value: 3},
		&cli.DurationFlag{Name: "brake-window", Usage: "time in which failures count for the brake", Value: 6 * time.Hour},
		&cli.BoolFlag{Name: "dry-run", Usage: "say what --on-failure would do, and do nothing"},
		&cli.StringFlag{Name: "webhook", Usage: "POST changes to this `URL` (JSON, Slack-compatible)", EnvVars: []string{"LECAFE_WEBHOOK"}},
		&cli.StringFlag{Name: "listen", Usage: "serve /metrics and /healthz at `[HOST]:PORT`, on loopback where no host is given"},
	}
}

// checkRemedy refuses flags of remediation that are wrong.
func checkRemedy(c *cli.Context) error {
	mode := fleet.OnFailure(c.String("on-failure"))
	switch {
	case !slices.Contains(fleet.Remedies(), mode):
		return badRequest("--on-failure %q: want none, unhealthy, abandon or terminate", mode)
	case c.Int("brake") < 1:
		return badRequest("--brake %d: want at least 1", c.Int("brake"))
	case c.Duration("brake-window") == 0:
		return badRequest("--brake-window 0s: want a positive duration, as 6h")
	case c.Bool("dry-run") && mode == fleet.None:
		return badRequest("--dry-run says what --on-failure would do: give both")
	}
	return nil
}

// remedyOf is what the flags say is done about failures; nil for nothing.
func remedyOf(c *cli.Context, w *fleet.Watcher) *fleet.Remedy {
	mode := fleet.OnFailure(c.String("on-failure"))
	if mode == fleet.None {
		return nil
	}
	return &fleet.Remedy{OnFailure: mode, After: c.Int("brake"), Window: c.Duration("brake-window"), DryRun: c.Bool("dry-run"),
		Bucket: w.Reports.Bucket, Prefix: w.Reports.Prefix, S3: w.Reports.Store(), Regions: w.Regions,
		Log: slog.New(slog.NewTextHandler(c.App.ErrWriter, nil))}
}

func splitListen(addr string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(addr)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		return "", "", badRequest("--listen %q: want [HOST]:PORT, with a number up to 65535", addr)
	}
	return host, port, nil
}

// follow watches until it is interrupted. Its exit code is then that of the
// last look.
func follow(c *cli.Context, w *fleet.Watcher, where fleet.Where) error {
	remedy := remedyOf(c, w)
	var err error
	var hook *fleet.Webhook
	if u := c.String("webhook"); u != "" {
		if hook, err = fleet.NewWebhook(u); err != nil {
			return exitcode.With(exitcode.BadRequest, err)
		}
	}
	metrics := &fleet.Metrics{Meter: w.Meter, Interval: c.Duration("interval")}
	var ln net.Listener
	if addr := c.String("listen"); addr != "" {
		host, port, err := splitListen(addr)
		if err != nil {
			return err
		}
		if ln, err = net.Listen("tcp", net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port)); err != nil {
			return exitcode.With(exitcode.NotReady, fmt.Errorf("listen for metrics: %w", err))
		}
		fmt.Fprintf(c.App.ErrWriter, "metrics on http://%s/metrics\n", ln.Addr())
	}

	out := newScreen(c)
	if f, ok := c.App.ErrWriter.(*os.File); ok && out.terminal != nil && remedy != nil && term.IsTerminal(int(f.Fd())) {
		remedy.Log = nil // the table shows actions; a log would tear it
	}
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	var wake chan []string
	refused := make(chan fleet.Refusal, 1000)
	if queue := cmp.Or(c.String("queue"), where.Queue); queue != "" {
		cfg, err := loadAWS(c)
		if err != nil {
			return err
		}
		wake = make(chan []string)
		waker := &fleet.Waker{API: sqs.NewFromConfig(cfg), Queue: queue, NoVerify: w.NoVerify,
			Notice: func(s string) { fmt.Fprintf(c.App.ErrWriter, "note: %s\n", s) },
			Refused: func(r fleet.Refusal) {
				metrics.Refuse(r)
				select {
				case refused <- r:
				default: // counted; nobody reads a thousand of them
				}
			}}
		g.Go(func() error {
			_ = waker.Run(ctx, wake) // the interval stands in; it has told why
			return nil
		})
	}
	if ln != nil {
		srv := &http.Server{Handler: metrics, ReadHeaderTimeout: 5 * time.Second}
		g.Go(func() error {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve metrics: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return srv.Close()
		})
	}
	news := make(chan fleet.News, 100)
	if hook != nil {
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case n := <-news:
					if err := hook.Post(ctx, n); err != nil && ctx.Err() == nil {
						fmt.Fprintf(c.App.ErrWriter, "note: %v\n", err)
					}
				}
			}
		})
	}

	var last *fleet.Snapshot
	known := map[string]bool{}
	began := time.Now()
	g.Go(func() error {
		defer cancel()
		return w.Follow(ctx, c.Duration("interval"), wake, func(snap *fleet.Snapshot, changes []fleet.Change, err error) bool {
			metrics.Pass(snap, time.Since(began), err)
			if err != nil {
				fmt.Fprintf(c.App.ErrWriter, "note: %v\n", err)
				began = time.Now()
				return false
			}
			last = snap
			var fresh []fleet.Refusal
			for _, r := range drain(refused, snap.Refused) {
				if !known[r.Name] {
					known[r.Name] = true
					fresh = append(fresh, r)
				}
			}
			var actions []fleet.Action
			var brakes []fleet.Brake
			if remedy != nil {
				if actions, err = remedy.Act(ctx, snap); err != nil {
					fmt.Fprintf(c.App.ErrWriter, "note: nothing is done about failures: %v\n", err)
				}
				brakes = remedy.Brakes()
				metrics.Acted(actions, brakes)
			}
			out.show(snap, changes, actions, fresh)
			if n, ok := fleet.NewsOf(snap, changes, actions, fresh, brakes); ok && hook != nil {
				select {
				case news <- n:
				default:
					fmt.Fprintln(c.App.ErrWriter, "note: the webhook is too slow, news is dropped")
				}
			}
			began = time.Now()
			return false
		})
	})
	err = g.Wait()
	switch {
	case err != nil && !errors.Is(err, context.Canceled):
		return watchError(err)
	case last == nil:
		return c.Context.Err()
	}
	return notWell(last)
}

func drain(ch chan fleet.Refusal, list []fleet.Refusal) []fleet.Refusal {
	list = slices.Clone(list)
	for {
		select {
		case r := <-ch:
			list = append(list, r)
		default:
			return list
		}
	}
}

// screen shows passes: a live table on a terminal, else one JSON object a line
// for each change.
type screen struct {
	out      io.Writer
	terminal *os.File // nil for lines
	recent   []fleet.Action
}

func newScreen(c *cli.Context) *screen {
	s := &screen{out: c.App.Writer}
	if f, ok := c.App.Writer.(*os.File); ok && term.IsTerminal(int(f.Fd())) && !c.Bool("json") {
		s.terminal = f
	}
	return s
}

// line is one line of NDJSON. Event says which of the others is set.
type line struct {
	Event   string         `json:"event"` // change, action, refused or note
	Change  *fleet.Change  `json:"change,omitempty"`
	Action  *fleet.Action  `json:"action,omitempty"`
	Refused *fleet.Refusal `json:"refused,omitempty"`
	Note    string         `json:"note,omitempty"`
}

func (s *screen) show(snap *fleet.Snapshot, changes []fleet.Change, actions []fleet.Action, refused []fleet.Refusal) {
	if s.terminal != nil {
		s.table(snap, actions)
		return
	}
	e := json.NewEncoder(s.out)
	e.SetEscapeHTML(false)
	for n := range changes {
		_ = e.Encode(line{Event: "change", Change: &changes[n]})
	}
	for n := range actions {
		_ = e.Encode(line{Event: "action", Action: &actions[n]})
	}
	for n := range refused {
		_ = e.Encode(line{Event: "refused", Refused: &refused[n]})
	}
	for _, n := range snap.Notes {
		_ = e.Encode(line{Event: "note", Note: n})
	}
}

// table redraws the screen, those that are not well first, as far as it has
// room.
func (s *screen) table(snap *fleet.Snapshot, actions []fleet.Action) {
	width, height, err := term.GetSize(int(s.terminal.Fd()))
	if err != nil || width < 20 || height < 5 { // some terminals do not know their size
		width, height = 80, 24
	}
	s.recent = append(s.recent, actions...)
	s.recent = s.recent[max(0, len(s.recent)-5):]
	shown := *snap
	shown.Instances = slices.Clone(snap.Instances)
	rank := func(v fleet.Verdict) int {
		return slices.Index([]fleet.Verdict{fleet.Failure, fleet.Silent, fleet.Terminated, fleet.Degraded, fleet.Pending, fleet.Success}, v)
	}
	slices.SortStableFunc(shown.Instances, func(a, b fleet.Standing) int { return cmp.Compare(rank(a.Verdict), rank(b.Verdict)) })
	room := max(3, height-6-len(snap.Notes)-len(snap.Refused)-len(s.recent))
	hidden := 0
	if len(shown.Instances) > room {
		hidden = len(shown.Instances) - room
		shown.Instances = shown.Instances[:room]
	}
	var b strings.Builder
	_ = writeTable(&b, &shown) // a Builder takes everything
	if hidden > 0 {
		fmt.Fprintf(&b, "and %d more\n", hidden)
	}
	for _, a := range s.recent {
		fmt.Fprintf(&b, "%s %s\n", a.At.Format(time.TimeOnly), printable(a.Line()))
	}
	fmt.Fprintf(&b, "at %s, %d calls\n", snap.At.Format(time.TimeOnly), snap.APICalls)
	fmt.Fprint(s.out, "\x1b[H\x1b[2J")
	for l := range strings.Lines(b.String()) {
		r := []rune(strings.TrimSuffix(l, "\n"))
		fmt.Fprintln(s.out, string(r[:min(len(r), width)]))
	}
}
