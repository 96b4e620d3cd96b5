package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/stack"
)

// withStack gives a command --stack: what the command line does not say is
// then taken from the stack's outputs. fill sets the command's flags.
func withStack(cmd *cli.Command, what string, fill func(c *cli.Context, out map[string]string) error) *cli.Command {
	cmd.Flags = append(cmd.Flags, &cli.StringFlag{Name: "stack", Usage: "take " + what + " from the outputs of the stack `NAME` (see lecafe stack), where no flag gives them", EnvVars: []string{"LECAFE_STACK"}})
	cmd.Before = func(c *cli.Context) error {
		name := c.String("stack")
		if name == "" {
			return nil
		}
		s := &stack.Stack{Name: name}
		if err := s.Check(); err != nil {
			return stackError(err)
		}
		if err := connectStack(c, s); err != nil {
			return err
		}
		out, err := s.Outputs(c.Context)
		if errors.Is(err, stack.ErrNotFound) {
			return badRequest("--stack (LECAFE_STACK): %w", err)
		}
		if err != nil {
			return stackError(err)
		}
		return fill(c, out)
	}
	return cmd
}

// tell says what a stack has set: a value that nobody typed is not to surprise.
func tellStack(c *cli.Context, what, value string) {
	fmt.Fprintf(c.App.ErrWriter, "stack %s: %s is %s\n", c.String("stack"), what, value)
}

// bakeFromStack overrides the recipe's staging bucket and report sinks, so that
// one recipe serves every stack. What --set says stays.
func bakeFromStack(c *cli.Context, out map[string]string) error {
	given := c.StringSlice("set")
	for _, f := range []struct{ path, value string }{
		{"staging.bucket", out[stack.OutputStagingBucket]},
		{"agent.report.s3.bucket", out[stack.OutputReportsBucket]},
		{"agent.report.sqs.queue", last(out[stack.OutputReportsQueue])},
		// Instances of an emulator's find it where its operator does. AWS's own
		// services have no one URL.
		{"agent.aws.endpoint_url", c.String("endpoint-url")},
	} {
		overridden := slices.ContainsFunc(given, func(s string) bool {
			path, _, _ := strings.Cut(s, "=")
			return path == f.path || strings.HasPrefix(f.path, path+".")
		})
		if f.value == "" || overridden {
			continue
		}
		tellStack(c, f.path, f.value)
		if err := c.Set("set", f.path+"="+f.value); err != nil {
			return err
		}
	}
	return nil
}

// fleetFromStack selects the stack's group and its reports.
func fleetFromStack(c *cli.Context, out map[string]string) error {
	selected := slices.ContainsFunc([]string{"asg", "tag", "launch-template", "instance", "explain"}, c.IsSet)
	group := out[stack.OutputGroup]
	switch {
	case selected:
	case group == "":
		return badRequest("stack %s has no group yet: make it with lecafe stack up --name %s --image AMI", c.String("stack"), c.String("stack"))
	default:
		if err := setFromStack(c, "asg", group); err != nil {
			return err
		}
	}
	if bucket := out[stack.OutputReportsBucket]; bucket != "" {
		if err := setFromStack(c, "reports", "s3://"+bucket+"/"+settings.DefaultReportPrefix); err != nil {
			return err
		}
	}
	if c.Command.Name == "watch" && out[stack.OutputReportsQueue] != "" && !c.Bool("once") && !c.Bool("wait") && !c.IsSet("explain") {
		return setFromStack(c, "queue", out[stack.OutputReportsQueue])
	}
	return nil
}

func setFromStack(c *cli.Context, flag, value string) error {
	if c.IsSet(flag) {
		return nil
	}
	tellStack(c, "--"+flag, value)
	return c.Set(flag, value)
}

// last is the part of a queue's URL that is its name.
func last(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }
