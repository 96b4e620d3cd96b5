package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/smithy-go"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/internal/exitcode"
)

func watchCommand() *cli.Command {
	return &cli.Command{
		Name:      "watch",
		Usage:     "say of every instance whether it came up, and why not",
		UsageText: "lecafe watch [--once | --wait] (--asg NAME | --tag KEY=VALUE | --launch-template NAME | --instance ID)... [options]",
		Description: "Joins instances with the reports of their agents in S3. Verdicts: success,\n" +
			"degraded, failure, pending, silent (no report by the deadline) and terminated\n" +
			"(gone before it reported). Exit code 0 only if all are success, 1 otherwise.\n\n" +
			"Without --once and --wait it goes on until it is interrupted: a live table on a\n" +
			"terminal, one JSON object a line for each change otherwise.",
		Flags: slices.Concat(selectionFlags(), followFlags(), []cli.Flag{
			&cli.BoolFlag{Name: "once", Usage: "look once, print, and exit"},
			&cli.BoolFlag{Name: "wait", Usage: "like --once, when nothing is pending any more"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			&cli.StringFlag{Name: "explain", Usage: "show everything known about the instance `ID`, and exit"},
			&cli.BoolFlag{Name: "ignore-terminated", Usage: "leave out instances that are gone"},
			&cli.IntFlag{Name: "details", Usage: "reports read in full at most in a pass", Value: 100},
			&cli.IntFlag{Name: "silent-details", Usage: "silent instances looked into at most in a pass", Value: 20},
			&cli.DurationFlag{Name: "interval", Usage: "between two passes", Value: 15 * time.Second},
		}),
		Action: watch,
	}
}

func selectionFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "asg", Usage: "Auto Scaling group `NAME`, repeatable"},
		&cli.StringSliceFlag{Name: "tag", Usage: "instances with the tag `KEY[=VALUE]`, repeatable: with all of them"},
		&cli.StringSliceFlag{Name: "launch-template", Usage: "instances of the launch template `NAME` or ID, repeatable"},
		&cli.StringSliceFlag{Name: "instance", Usage: "instance `ID`, repeatable"},
		&cli.StringSliceFlag{Name: "regions", Usage: "look in these `REGIONS` instead of --region, separated by commas"},
		&cli.StringFlag{Name: "reports", Usage: "where the reports are, `s3://BUCKET/PREFIX` (default: from the launch templates' user data)", EnvVars: []string{"LECAFE_REPORTS"}},
		&cli.StringFlag{Name: "reports-region", Usage: "`REGION` of that bucket, where it is another"},
		&cli.DurationFlag{Name: "deadline", Usage: "silent after this time from launch (default: from the image's canary, else 12m)"},
		&cli.StringFlag{Name: "role-id", Usage: "believe reports of the role `AROA...` alone (default: looked up through IAM)"},
		&cli.BoolFlag{Name: "no-verify-sender", Usage: "believe reports of any role, where an emulator knows no role IDs"},
	}
}

var roleID = regexp.MustCompile(`^AROA[A-Z0-9]+$`)

// newWatcher wires a watcher from the selection's flags.
func newWatcher(c *cli.Context) (*fleet.Watcher, fleet.Where, error) {
	sel := fleet.Selection{Groups: c.StringSlice("asg"), Tags: c.StringSlice("tag"), Templates: c.StringSlice("launch-template"), InstanceIDs: c.StringSlice("instance")}
	if id := c.String("explain"); id != "" {
		sel.InstanceIDs = append(sel.InstanceIDs, id)
	}
	if len(sel.Groups)+len(sel.Tags)+len(sel.Templates)+len(sel.InstanceIDs) == 0 {
		return nil, fleet.Where{}, badRequest("nothing to watch: name it with --asg, --tag, --launch-template or --instance")
	}
	for _, id := range sel.InstanceIDs {
		if !instanceRE.MatchString(id) {
			return nil, fleet.Where{}, badRequest("instance %q: want an ID, as i-0123456789abcdef0", id)
		}
	}
	for _, t := range sel.Tags {
		if key, _, _ := strings.Cut(t, "="); key == "" {
			return nil, fleet.Where{}, badRequest("--tag %q: want KEY or KEY=VALUE", t)
		}
	}
	if id := c.String("role-id"); id != "" && !roleID.MatchString(id) {
		return nil, fleet.Where{}, badRequest("--role-id %q: want the role's ID (AROA...), as aws iam get-role --query Role.RoleId prints it; not its name or ARN", id)
	}
	if uri := c.String("reports"); uri != "" {
		if _, err := fleet.NewReports(nil, uri); err != nil {
			return nil, fleet.Where{}, badRequest("--reports: %w", err)
		}
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return nil, fleet.Where{}, err
	}
	meter := &fleet.Meter{Throttling: func() {
		fmt.Fprintln(c.App.ErrWriter, "note: AWS throttles the calls; they are repeated, which takes its time")
	}}
	cfg = meter.Config(cfg)
	w := &fleet.Watcher{Selection: sel, Meter: meter, Options: fleet.Options{
		Deadline: c.Duration("deadline"), Details: c.Int("details"), Silent: c.Int("silent-details"),
		IgnoreTerminated: c.Bool("ignore-terminated"), NoVerify: c.Bool("no-verify-sender"), RoleID: c.String("role-id"),
	}}
	var names []string
	for _, list := range c.StringSlice("regions") {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 {
		names = []string{cfg.Region}
	}
	for _, name := range names {
		regional := cfg.Copy()
		regional.Region = name
		r := &fleet.Region{Name: name, EC2: ec2.NewFromConfig(regional), AutoScaling: autoscaling.NewFromConfig(regional)}
		if w.RoleID == "" && !w.NoVerify {
			r.IAM = iam.NewFromConfig(regional)
		}
		w.Regions = append(w.Regions, r)
	}
	where := fleet.Where{Reports: c.String("reports"), Region: c.String("reports-region")}
	if where.Reports == "" {
		for _, r := range w.Regions {
			found, ok, err := r.Locate(c.Context, sel)
			if err != nil {
				return nil, where, awsError(err)
			}
			if ok {
				where = found
				where.Region = cmp.Or(c.String("reports-region"), found.Region, r.Name)
				break
			}
		}
	}
	if where.Reports == "" {
		if err := w.Check(c.Context); err != nil {
			return nil, where, watchError(err)
		}
		return nil, where, badRequest("where the reports are is not known: no launch template's user data names a bucket, and settings that are baked into an image cannot be seen from here; give --reports s3://BUCKET/PREFIX or set LECAFE_REPORTS")
	}
	bucket := cfg.Copy()
	bucket.Region = cmp.Or(where.Region, cfg.Region)
	if w.Reports, err = fleet.NewReports(awsconf.S3(bucket), where.Reports); err != nil {
		return nil, where, exitcode.With(exitcode.BadRequest, err)
	}
	return w, where, nil
}

func watch(c *cli.Context) error {
	if c.Bool("once") && c.Bool("wait") {
		return badRequest("--once and --wait exclude each other")
	}
	if c.Bool("once") || c.Bool("wait") || c.IsSet("explain") {
		for _, name := range []string{"queue", "listen"} {
			if c.IsSet(name) {
				return badRequest("--%s is for a watch that goes on: leave out --once, --wait and --explain", name)
			}
		}
	}
	if err := checkRemedy(c); err != nil {
		return err
	}
	if addr := c.String("listen"); addr != "" {
		if _, _, err := splitListen(addr); err != nil {
			return err
		}
	}
	w, where, err := newWatcher(c)
	if err != nil {
		return err
	}
	// Pages of a thousand instances make much garbage: collecting it sooner
	// keeps ten thousand instances below 100 MB for a few percent of time.
	debug.SetGCPercent(40)
	if id := c.String("explain"); id != "" {
		return explain(c, w, id)
	}
	if !c.Bool("once") && !c.Bool("wait") {
		return follow(c, w, where)
	}
	remedy := remedyOf(c, w)
	for {
		snap, err := w.Pass(c.Context)
		if err != nil {
			return watchError(err)
		}
		if remedy != nil {
			// What is done stands in the log, on stderr.
			if _, err := remedy.Act(c.Context, snap); err != nil {
				return watchError(err)
			}
		}
		if c.Bool("wait") && !snap.Settled() {
			if err := sleep(c.Context, c.Duration("interval")); err != nil {
				return err
			}
			continue
		}
		if c.Bool("json") {
			err = writeJSON(c.App.Writer, snap)
		} else {
			err = writeTable(c.App.Writer, snap)
		}
		if err != nil {
			return err
		}
		return notWell(snap)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// notWell is the exit code of a fleet: its table has said why already.
func notWell(s *fleet.Snapshot) error {
	if s.OK {
		return nil
	}
	return exitcode.With(exitcode.Failed, errors.New(""))
}

func watchError(err error) error {
	var ae smithy.APIError
	switch {
	case errors.Is(err, fleet.ErrSelection):
		return exitcode.With(exitcode.BadRequest, err)
	case errors.As(err, &ae) && ae.ErrorCode() == "NoSuchBucket":
		return exitcode.With(exitcode.BadRequest, fmt.Errorf("%w; check --reports (LECAFE_REPORTS)", err))
	}
	return awsError(err)
}

func writeTable(out io.Writer, s *fleet.Snapshot) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	several := slices.ContainsFunc(s.Instances, func(i fleet.Standing) bool { return i.Region != s.Instances[0].Region })
	if several {
		fmt.Fprint(w, "REGION\t")
	}
	fmt.Fprintln(w, "GROUP\tINSTANCE\tVERDICT\tAGE\tCAUSE")
	for n := range s.Instances {
		i := &s.Instances[n]
		if several {
			fmt.Fprint(w, i.Region+"\t")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", cmp.Or(i.Group, "-"), i.ID, i.Verdict, age(s.At, i.LaunchedAt), causeAt(s.At, i))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, g := range s.Groups {
		if g.Short > 0 {
			fmt.Fprintf(&b, "%s: %s\n", g.Name, g.Message)
		}
	}
	for _, r := range s.Refused {
		fmt.Fprintf(&b, "refused (%s): %s: %s\n", r.Reason, r.Name, r.Detail)
	}
	for _, n := range s.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	var counts []string
	for _, v := range fleet.Verdicts() {
		if n := s.Counts[v]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, v))
		}
	}
	if len(counts) > 0 {
		fmt.Fprintln(&b, strings.Join(counts, ", "))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func age(now, from time.Time) string {
	if from.IsZero() {
		return "-"
	}
	d := max(0, now.Sub(from))
	if d < 48*time.Hour {
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// causeAt is a cause in one line, or a stage and how long it has lasted.
func causeAt(now time.Time, i *fleet.Standing) string {
	s := causeLine(i)
	if i.Verdict != fleet.Pending || i.StageAt == nil {
		return s
	}
	s += " for " + age(now, *i.StageAt)
	if i.LifecycleState != "" && i.LifecycleState != "InService" {
		s += ", " + i.LifecycleState
	}
	return s
}

// causeLine is a cause in one line.
func causeLine(i *fleet.Standing) string {
	if i.Verdict == fleet.Pending {
		return i.Stage
	}
	c := i.Cause
	if c == nil {
		return "-"
	}
	parts := []string{string(c.Code)}
	if c.Stage != "" {
		parts[0] += " in " + string(c.Stage)
	}
	if c.File != "" || c.Line > 0 {
		at := c.File
		if c.Line > 0 {
			at = fmt.Sprintf("%s line %d", at, c.Line)
		}
		parts = append(parts, strings.TrimSpace(at))
	}
	if c.ExitCode != nil {
		parts = append(parts, fmt.Sprintf("exit code %d", *c.ExitCode))
	}
	if c.Message != "" {
		parts = append(parts, printable(c.Message))
	}
	return strings.Join(parts, ": ")
}

// printable keeps an instance's text from driving the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// explain shows one instance: its report if it has one, and what the other
// channels tell.
func explain(c *cli.Context, w *fleet.Watcher, id string) error {
	w.Details = 1000
	snap, err := w.Pass(c.Context)
	if err != nil {
		return watchError(err)
	}
	n := slices.IndexFunc(snap.Instances, func(s fleet.Standing) bool { return s.ID == id })
	if n < 0 {
		return badRequest("instance %s is not among the watched ones", id)
	}
	s := &snap.Instances[n]
	rep, err := w.Report(c.Context, s)
	if err != nil && !errors.Is(err, fleet.ErrRefused) {
		return watchError(err)
	}
	clues, err := w.Explain(c.Context, s)
	if err != nil {
		return watchError(err)
	}
	if c.Bool("json") {
		if clues == nil {
			clues = []fleet.Clue{}
		}
		if err := writeJSON(c.App.Writer, map[string]any{"instance": s, "report": rep, "clues": clues, "refused": snap.Refused, "notes": snap.Notes}); err != nil {
			return err
		}
	} else {
		out := c.App.Writer
		launched := ""
		if !s.LaunchedAt.IsZero() {
			launched = ", launched " + s.LaunchedAt.Format(time.RFC3339)
		}
		fmt.Fprintf(out, "%s in %s: %s, state %s%s\n", s.ID, s.Region, s.Verdict, s.State, launched)
		if s.StageAt != nil {
			fmt.Fprintf(out, "stage: %s for %s, as its agent says\n", s.Stage, age(snap.At, *s.StageAt))
		}
		if s.Cause != nil {
			fmt.Fprintf(out, "cause: %s\n", causeLine(s))
			if s.Cause.Fix != "" {
				fmt.Fprintf(out, "  fix: %s\n", printable(s.Cause.Fix))
			}
		}
		if rep != nil {
			fmt.Fprintf(out, "report: %s\n  %s\n", w.Reports.URI(s.Report), printable(rep.Summary))
			for _, cause := range rep.Causes {
				fmt.Fprintf(out, "  %s in %s: %s\n", cause.Code, cause.Stage, printable(cause.Message))
				for _, l := range cause.Output {
					fmt.Fprintf(out, "    | %s\n", printable(l))
				}
			}
			for _, st := range rep.Stages {
				fmt.Fprintf(out, "  %-20s %s\n", st.Name, st.Status)
			}
		}
		for _, cl := range clues {
			fmt.Fprintf(out, "%s: %s: %s\n", cl.Source, cl.Code, printable(cl.Message))
			if cl.Fix != "" {
				fmt.Fprintf(out, "  fix: %s\n", cl.Fix)
			}
		}
		for _, r := range snap.Refused {
			if r.InstanceID == s.ID {
				fmt.Fprintf(out, "refused (%s): %s: %s\n", r.Reason, r.Name, r.Detail)
			}
		}
		for _, note := range snap.Notes {
			fmt.Fprintf(out, "note: %s\n", note)
		}
	}
	if s.Verdict != fleet.Success {
		return exitcode.With(exitcode.Failed, errors.New(""))
	}
	return nil
}
