package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/stack"
)

func stackCommand() *cli.Command {
	name := &cli.StringFlag{Name: "name", Usage: "`NAME` of the stack", Value: "lecafe"}
	interval := &cli.DurationFlag{Name: "interval", Usage: "between two looks", Value: 3 * time.Second}
	yes := &cli.BoolFlag{Name: "yes", Usage: "do not ask"}
	asJSON := &cli.BoolFlag{Name: "json", Usage: "print one JSON object"}
	wanted := []cli.Flag{
		name, interval,
		&cli.StringFlag{Name: "template", Usage: "`FILE` with a template of your own (see lecafe stack template)"},
		&cli.StringSliceFlag{Name: "set", Usage: "a parameter, `NAME=VALUE`, repeatable; the others keep their value"},
		&cli.StringFlag{Name: "image", Usage: "first `AMI` of the group, which is made with it; short for --set ImageId=AMI"},
		&cli.StringFlag{Name: "ssh-from", Usage: "open port 22 to a `CIDR`, or none to close it again; lecafe connect needs no port"},
		&cli.StringFlag{Name: "key-name", Usage: "EC2 key pair `NAME`, made if it is not there; needs --ssh-from"},
		&cli.StringFlag{Name: "key-file", Usage: "new `FILE` for the private key (default: KEY-NAME.pem)"},
	}
	return &cli.Command{
		Name:  "stack",
		Usage: "the ground under it: role, buckets, queues, security groups and Auto Scaling group, by CloudFormation",
		Subcommands: []*cli.Command{
			{
				Name: "template", Usage: "print the template, to read or to own", Action: func(c *cli.Context) error {
					_, err := c.App.Writer.Write(stack.Template())
					return err
				},
			},
			{
				Name: "plan", Usage: "show what up would change, and change nothing", Flags: append(slices.Clone(wanted), asJSON),
				Action: func(c *cli.Context) error { return stackUp(c, true) },
			},
			{
				Name: "up", Usage: "make the stack, or change it, after showing the changes", Flags: append(slices.Clone(wanted), yes),
				Description: "Safe to repeat. Parameters that are not given keep their value; the launch template\n" +
					"version that lecafe deploy promoted is kept, never reverted.",
				Action: func(c *cli.Context) error { return stackUp(c, false) },
			},
			{
				Name: "status", Usage: "the stack, its outputs, what was not made, and what has drifted",
				Description: "Exit 1: there is no stack, it is not complete, part of it was not made, or somebody changed\n" +
					"it behind CloudFormation. The launch template version that lecafe deploy promoted is no such change.",
				Flags: []cli.Flag{
					name, interval, asJSON,
					&cli.BoolFlag{Name: "no-drift", Usage: "do not have CloudFormation detect drift, which takes its time"},
				},
				Action: stackStatus,
			},
			{
				Name: "down", Usage: "remove the stack and wait until it is gone",
				Description: "Buckets and queues that hold data are kept; the next up takes them over.",
				Flags: []cli.Flag{
					name, interval, yes,
					&cli.BoolFlag{Name: "delete-data", Usage: "empty and delete buckets and queues too, for good"},
				},
				Action: stackDown,
			},
		},
	}
}

// newStack is the stack of the flags; its progress goes to stderr.
func newStack(c *cli.Context) (*stack.Stack, error) {
	s := &stack.Stack{Name: c.String("name"), Interval: c.Duration("interval"), Tell: func(line string) { fmt.Fprintln(c.App.ErrWriter, line) }}
	if err := s.Check(); err != nil {
		return nil, stackError(err)
	}
	return s, nil
}

func connectStack(c *cli.Context, s *stack.Stack) error {
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	s.Clients = stack.NewClients(cfg)
	return nil
}

func stackError(err error) error {
	if errors.Is(err, stack.ErrRequest) {
		return exitcode.With(exitcode.BadRequest, err)
	}
	// CloudFormation passes IAM's code on in an event's text alone.
	if err != nil && strings.Contains(err.Error(), "EntityAlreadyExists") {
		return fmt.Errorf("%w; another of that name is there: give the stack's own one with --set RoleName=NAME --set ProfileName=NAME, and start a lab for it with --seed none", err)
	}
	return awsError(err)
}

func stackRequest(c *cli.Context) (stack.Request, error) {
	r := stack.Request{Set: map[string]string{}}
	if file := c.String("template"); file != "" {
		var err error
		if r.Template, err = os.ReadFile(file); err != nil {
			return r, badRequest("--template: %w", err)
		}
	}
	if from := c.String("ssh-from"); from == "none" {
		r.Set["SshFrom"], r.Set["SshFromIpv6"] = "", ""
	} else if from != "" {
		set, err := stack.SSHFrom(from)
		if err != nil {
			return r, stackError(err)
		}
		if c.String("key-name") == "" {
			return r, badRequest("--ssh-from needs --key-name: an open port that no key fits is of no use")
		}
		maps.Copy(r.Set, set)
	}
	if key := c.String("key-name"); key != "" {
		if from := c.String("ssh-from"); from == "" || from == "none" {
			return r, badRequest("--key-name is for ssh: give --ssh-from CIDR too, or use lecafe connect, which needs no key")
		}
		if strings.ContainsAny(key, `/\`) {
			return r, badRequest("--key-name %q: want no slashes", key)
		}
		r.Set["KeyName"] = key
	}
	if image := c.String("image"); image != "" {
		if !strings.HasPrefix(image, "ami-") {
			return r, badRequest("--image %q: want an AMI ID (ami-...); lecafe images list has them", image)
		}
		r.Set["ImageId"] = image
	}
	for _, p := range c.StringSlice("set") {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return r, badRequest("--set %q: want NAME=VALUE", p)
		}
		// By the flag alone: it has the checks.
		if k == "SshFrom" || k == "SshFromIpv6" || k == "KeyName" {
			return r, badRequest("--set %s: use --ssh-from and --key-name", k)
		}
		r.Set[k] = v
	}
	return r, nil
}

func stackUp(c *cli.Context, only bool) error {
	s, err := newStack(c)
	if err != nil {
		return err
	}
	r, err := stackRequest(c)
	if err != nil {
		return err
	}
	if !only {
		if err := canAsk(c); err != nil {
			return err
		}
	}
	if err := connectStack(c, s); err != nil {
		return err
	}
	p, err := s.Plan(c.Context, r)
	if err != nil {
		return stackError(err)
	}
	if only && c.Bool("json") {
		changes := p.Changes
		if changes == nil {
			changes = []stack.Change{}
		}
		return errors.Join(writeJSON(c.App.Writer, map[string]any{"name": s.Name, "new": p.New, "changes": changes}), p.Discard(c.Context))
	}
	if p.Empty() {
		fmt.Fprintf(c.App.Writer, "stack %s: nothing to change\n", s.Name)
		if only {
			return nil
		}
		return sayMissing(c, s)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	for _, ch := range p.Changes {
		note := strings.Join(ch.Properties, ", ")
		switch ch.Replacement {
		case "True":
			note += " (replaces it)"
		case "Conditional":
			note += " (may replace it)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", ch.Action, ch.LogicalID, ch.Type, ch.PhysicalID, note)
	}
	if err := w.Flush(); err != nil {
		return errors.Join(err, p.Discard(c.Context))
	}
	if only {
		return p.Discard(c.Context)
	}
	if ok, err := ask(c, fmt.Sprintf("make these %d changes?", len(p.Changes))); err != nil || !ok {
		return errors.Join(err, p.Discard(c.Context), errNotWanted(err))
	}
	if key := r.Set["KeyName"]; key != "" {
		file := c.String("key-file")
		if file == "" {
			file = key + ".pem"
		}
		made, err := s.Key(c.Context, key, file)
		switch {
		case err != nil:
			return stackError(errors.Join(err, p.Discard(c.Context)))
		case made:
			fmt.Fprintf(c.App.ErrWriter, "key pair %s: private key in %s\n", key, file)
		default:
			fmt.Fprintf(c.App.ErrWriter, "key pair %s is there already: used as it is\n", key)
		}
	}
	if err := p.Execute(c.Context); err != nil {
		return stackError(err)
	}
	fmt.Fprintf(c.App.Writer, "stack %s: %d changes made\n", s.Name, len(p.Changes))
	return sayMissing(c, s)
}

// sayMissing warns about what the template has and the account has not.
func sayMissing(c *cli.Context, s *stack.Stack) error {
	st, err := s.Status(c.Context)
	if err != nil {
		return stackError(err)
	}
	for _, m := range st.Missing {
		fmt.Fprintf(c.App.ErrWriter, "NOT MADE: %s\n", m)
	}
	if len(st.Missing) > 0 {
		fmt.Fprintln(c.App.ErrWriter, "CloudFormation took the template, but this endpoint made only part of it: an emulator's gap, or a change behind the stack's back")
	}
	return nil
}

func stackStatus(c *cli.Context) error {
	s, err := newStack(c)
	if err != nil {
		return err
	}
	if err := connectStack(c, s); err != nil {
		return err
	}
	st, err := s.Status(c.Context)
	if err != nil {
		return stackError(err)
	}
	if !c.Bool("no-drift") && !strings.HasSuffix(st.Status, "_IN_PROGRESS") {
		if st.Drift, err = s.Drift(c.Context, st.ID); err != nil {
			return stackError(err)
		}
	}
	if c.Bool("json") {
		if err := writeJSON(c.App.Writer, st); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(c.App.Writer, strings.TrimSpace(st.Name+" "+st.Status+" "+st.Reason))
		w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
		for _, k := range slices.Sorted(maps.Keys(st.Outputs)) {
			fmt.Fprintf(w, "  %s\t%s\n", k, st.Outputs[k])
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, m := range st.Missing {
			fmt.Fprintf(c.App.Writer, "  NOT MADE: %s\n", m)
		}
		printDrift(c, st.Drift)
	}
	switch {
	case !strings.HasSuffix(st.Status, "_COMPLETE") || strings.HasSuffix(st.Status, "ROLLBACK_COMPLETE"):
		return fmt.Errorf("stack %s is %s", st.Name, st.Status)
	case len(st.Missing) > 0:
		return fmt.Errorf("%d parts of stack %s were not made", len(st.Missing), st.Name)
	case len(st.Drift.Unexpected()) > 0:
		return fmt.Errorf("%d resources of stack %s were changed behind its back: change them back, or change the stack with lecafe stack up", len(st.Drift.Unexpected()), st.Name)
	}
	return nil
}

func printDrift(c *cli.Context, d *stack.Drift) {
	switch {
	case d == nil:
		return
	case d.Status == "IN_SYNC":
		fmt.Fprintln(c.App.Writer, "  drift: none")
		return
	case len(d.Resources) == 0:
		fmt.Fprintf(c.App.Writer, "  drift: not looked at: %s\n", d.Reason)
		return
	}
	for _, r := range d.Resources {
		word := "DRIFT"
		note := ""
		if r.Deployed {
			word, note = "drift", ", as deployed: the next up takes it over"
		}
		if len(r.Differences) == 0 {
			fmt.Fprintf(c.App.Writer, "  %s: %s (%s) %s\n", word, r.LogicalID, r.PhysicalID, strings.ToLower(r.Status))
		}
		for _, p := range r.Differences {
			fmt.Fprintf(c.App.Writer, "  %s: %s (%s): %s is %s, not %s%s\n", word, r.LogicalID, r.PhysicalID, p.Path, cmp.Or(short(p.Actual), "not there"), cmp.Or(short(p.Expected), "absent"), note)
		}
	}
}

func stackDown(c *cli.Context) error {
	s, err := newStack(c)
	if err != nil {
		return err
	}
	if err := canAsk(c); err != nil {
		return err
	}
	if err := connectStack(c, s); err != nil {
		return err
	}
	r, err := s.PlanRemoval(c.Context)
	if errors.Is(err, stack.ErrNotFound) {
		fmt.Fprintf(c.App.Writer, "there is no stack %s\n", s.Name)
		return nil
	}
	if err != nil {
		return stackError(err)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	for _, v := range r.Resources {
		fmt.Fprintf(w, "Remove\t%s\t%s\n", v.LogicalID, v.PhysicalID)
	}
	for _, v := range r.Data {
		what := "Remove if empty"
		if c.Bool("delete-data") {
			what = "Empty and remove"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", what, v.LogicalID, v.PhysicalID)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if ok, err := ask(c, "remove stack "+s.Name+"?"); err != nil || !ok {
		return errors.Join(err, errNotWanted(err))
	}
	kept, err := s.Remove(c.Context, r, c.Bool("delete-data"))
	for _, k := range kept {
		fmt.Fprintf(c.App.Writer, "kept, for it holds data: %s\n", k.PhysicalID)
	}
	if err != nil {
		return stackError(err)
	}
	fmt.Fprintf(c.App.Writer, "stack %s is gone\n", s.Name)
	return nil
}

// canAsk refuses, before anything is done, to run where nobody can answer.
func canAsk(c *cli.Context) error {
	if c.Bool("yes") {
		return nil
	}
	if f, ok := c.App.Reader.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return badRequest("there is no terminal to ask at: look with lecafe stack plan or status, then give --yes")
}

func ask(c *cli.Context, question string) (bool, error) {
	if c.Bool("yes") {
		return true, nil
	}
	fmt.Fprintf(c.App.ErrWriter, "%s [y/N] ", question)
	// Ctrl-C at the prompt ends the program's wait, not the read: it is
	// looked at after either.
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(c.App.Reader).ReadString('\n') // no answer is no
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-c.Context.Done():
		return false, c.Context.Err()
	case a := <-answer:
		return a == "y" || a == "yes", nil
	}
}

// errNotWanted is the answer no, unless there was none.
func errNotWanted(err error) error {
	if err != nil {
		return nil
	}
	return errors.New("not done, as you said")
}

// short cuts a value to what a line holds; --json has all of it.
func short(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:60]) + "..."
	}
	return s
}
