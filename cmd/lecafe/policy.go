package main

import (
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/policy"
)

func policyCommand() *cli.Command {
	where := []cli.Flag{
		&cli.StringFlag{Name: "partition", Usage: "of ARNs", Value: "aws"},
		&cli.StringFlag{Name: "account", Usage: "12-digit `ID` in ARNs; any where not given"},
	}
	sub := func(name, usage string, doc func(*cli.Context, policy.Where) (policy.Document, error), flags ...cli.Flag) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Flags: append(flags, where...), Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return badRequest("unexpected argument %q; see lecafe policy %s --help", c.Args().First(), name)
			}
			d, err := doc(c, policy.Where{Partition: c.String("partition"), Region: c.String("region"), Account: c.String("account")})
			if err != nil {
				return exitcode.With(exitcode.BadRequest, err)
			}
			_, err = c.App.Writer.Write(d.JSON())
			return err
		}}
	}
	return &cli.Command{
		Name:  "policy",
		Usage: "print the least IAM policy that a part of lecafe needs",
		Subcommands: []*cli.Command{
			sub("bake", "for lecafe bake and a recipe", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				r, err := recipe.Load(c.String("recipe"))
				if err != nil {
					return policy.Document{}, err
				}
				return policy.Bake(w, r), nil
			}, &cli.StringFlag{Name: "recipe", Usage: "`FILE`", Required: true}),
			sub("publish", "for lecafe launch-template publish", func(_ *cli.Context, w policy.Where) (policy.Document, error) {
				return policy.Publish(w), nil
			}),
			sub("watch", "for lecafe watch", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				bucket, prefix, _ := strings.Cut(strings.TrimPrefix(c.String("reports"), "s3://"), "/")
				return policy.Watch(w, policy.Watching{Bucket: bucket, Prefix: prefix, Queue: c.String("queue"), Remedy: c.Bool("on-failure")}), nil
			},
				&cli.BoolFlag{Name: "on-failure", Usage: "with what --on-failure needs"},
				&cli.StringFlag{Name: "reports", Usage: "s3://BUCKET/PREFIX"},
				&cli.StringFlag{Name: "queue", Usage: "reports queue, `NAME` or URL"}),
			sub("agent", "for the instances' role", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				s, err := agentSettings(c)
				if err != nil {
					return policy.Document{}, err
				}
				return policy.Agent(w, s, c.String("group")), nil
			},
				&cli.StringFlag{Name: "recipe", Usage: "`FILE` whose baked settings count too"},
				&cli.StringSliceFlag{Name: "settings", Usage: "agent settings `FILE`, as for userdata render"},
				&cli.StringSliceFlag{Name: "set", Usage: "one setting (`PATH=VALUE`)"},
				&cli.StringFlag{Name: "group", Usage: "Auto Scaling group `NAME` of the lifecycle hook"}),
		},
	}
}

// agentSettings are those an instance will have: the recipe's, baked in, and
// over them those of the user data.
func agentSettings(c *cli.Context) (settings.Settings, error) {
	var sources []settings.Source
	if file := c.String("recipe"); file != "" {
		r, err := recipe.Load(file)
		if err != nil {
			return settings.Settings{}, err
		}
		baked, err := yaml.Marshal(r.Agent)
		if err != nil {
			return settings.Settings{}, err
		}
		sources = append(sources, settings.Source{Name: file, Data: baked})
	}
	s, err := readSettings(c.StringSlice("settings"), c.StringSlice("set"))
	if err != nil {
		return settings.Settings{}, err
	}
	if s != nil {
		sent, err := yaml.Marshal(*s)
		if err != nil {
			return settings.Settings{}, err
		}
		sources = append(sources, settings.Source{Name: "settings", Data: sent})
	}
	return settings.Decode(sources...)
}
