package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/bake/recipe"
	"github.com/lecafe/lecafe/fleet"
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
			if p := c.String("partition"); p != "aws" && !strings.HasPrefix(p, "aws-") {
				return badRequest("--partition %q: want aws, aws-cn, aws-us-gov or another of AWS's", p)
			}
			if id := c.String("account"); id != "" && !accountID.MatchString(id) {
				return badRequest("--account %q: want an account's ID, 12 digits", id)
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
			sub("promote", "for lecafe images promote and rollback, and bake --promote", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				o, err := promotingOf(c)
				if err == nil && o.LaunchTemplate == "" && (o.SSMParameter == "" || o.Group != "") {
					err = errors.New("policy promote: name a launch template, or an SSM parameter alone; --recipe takes them from a promote section")
				}
				return policy.Promote(w, o), err
			},
				&cli.StringFlag{Name: "recipe", Usage: "`FILE` whose promote section says where"},
				&cli.StringFlag{Name: "launch-template", Usage: "`NAME` or ID"},
				&cli.StringFlag{Name: "asg", Usage: "Auto Scaling group `NAME`"},
				&cli.StringFlag{Name: "ssm-parameter", Usage: "`NAME`"},
				&cli.BoolFlag{Name: "pin", Usage: "with what --pin needs"}),
			sub("images", "for lecafe images list", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				return policy.Images(w, c.StringSlice("parameter")), nil
			}, &cli.StringSliceFlag{Name: "parameter", Usage: "SSM parameter `NAME` (several times)"}),
			sub("prune", "for lecafe images prune", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				return policy.Prune(w, c.StringSlice("parameter")), nil
			}, &cli.StringSliceFlag{Name: "parameter", Usage: "SSM parameter `NAME` (several times)"}),
			sub("gc", "for lecafe gc, in all regions", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				o := policy.Collecting{Staging: c.StringSlice("staging"), AllRegions: c.Bool("all-regions"), Protects: len(c.StringSlice("recipe")) == 0}
				for _, file := range c.StringSlice("recipe") {
					r, err := recipe.Load(file)
					if err != nil {
						return policy.Document{}, err
					}
					o.Staging = append(o.Staging, "s3://"+r.Staging.Bucket+"/"+r.Staging.Prefix)
					o.Protects = o.Protects || r.Image.DeregistrationProtection
				}
				if len(o.Staging) == 0 {
					return policy.Document{}, errors.New("policy gc: name recipes or --staging, where their journals are")
				}
				return policy.GC(w, o), nil
			},
				&cli.StringSliceFlag{Name: "recipe", Usage: "`FILE` whose bakes are collected (several times)"},
				&cli.StringSliceFlag{Name: "staging", Usage: "`s3://BUCKET/PREFIX` of bakes (several times)"},
				&cli.BoolFlag{Name: "all-regions", Usage: "with what --all-regions needs"}),
			sub("packer", "for Packer's post-processor lecafe-publish", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				o, err := provingOf(c)
				if err != nil {
					return policy.Document{}, err
				}
				return policy.Packer(w, o), nil
			},
				&cli.StringFlag{Name: "recipe", Usage: "`FILE` that lecafe packer template makes the block of"},
				&cli.StringFlag{Name: "staging", Usage: "`s3://BUCKET/PREFIX`, as the block's staging says"},
				&cli.StringFlag{Name: "canary-launch-template", Usage: "`NAME` or ID, as canary.launch_template"},
				&cli.StringFlag{Name: "instance-profile", Usage: "`NAME` or ARN, as canary.instance_profile"},
				&cli.BoolFlag{Name: "subnet", Usage: "the block says canary.subnet"},
				&cli.BoolFlag{Name: "security-groups", Usage: "the block says canary.security_groups"},
				&cli.BoolFlag{Name: "keep-failed", Usage: "the block says keep_failed"},
				&cli.StringFlag{Name: "launch-template", Usage: "`NAME` or ID, as promote.launch_template"},
				&cli.StringFlag{Name: "asg", Usage: "Auto Scaling group `NAME`, as promote.auto_scaling_group"},
				&cli.StringFlag{Name: "ssm-parameter", Usage: "`NAME`, as promote.ssm_parameter"},
				&cli.BoolFlag{Name: "pin", Usage: "with what promote.pin needs"}),
			sub("publish", "for lecafe launch-template publish", func(_ *cli.Context, w policy.Where) (policy.Document, error) {
				return policy.Publish(w), nil
			}),
			sub("watch", "for lecafe watch", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				mode := c.String("on-failure")
				if !slices.Contains(fleet.Remedies(), fleet.OnFailure(mode)) {
					return policy.Document{}, fmt.Errorf("--on-failure %q: want none, unhealthy, abandon or terminate, as for lecafe watch", mode)
				}
				bucket, prefix, err := reportsOf(c)
				return policy.Watch(w, policy.Watching{Bucket: bucket, Prefix: prefix, Queue: c.String("queue"), OnFailure: mode}), err
			},
				&cli.StringFlag{Name: "on-failure", Usage: "with what this `MODE` of --on-failure needs: none, unhealthy, abandon or terminate", Value: string(fleet.None)},
				&cli.StringFlag{Name: "reports", Usage: "`s3://BUCKET/PREFIX` of the reports"},
				&cli.StringFlag{Name: "queue", Usage: "reports queue, `NAME` or URL"}),
			sub("deploy", "for lecafe deploy", func(c *cli.Context, w policy.Where) (policy.Document, error) {
				bucket, prefix, err := reportsOf(c)
				image, _ := strings.CutPrefix(c.String("image"), "ssm:")
				if image == c.String("image") {
					image = "" // an ID or latest
				}
				return policy.Deploy(w, policy.Deploying{
					Promoting: policy.Promoting{Group: c.String("asg"), SSMParameter: c.String("parameter"), Pin: c.Bool("pin")},
					Bucket:    bucket, Prefix: prefix, ImageParameter: image,
				}), err
			},
				&cli.StringFlag{Name: "asg", Usage: "Auto Scaling group `NAME`; any where not given", Value: "*"},
				&cli.StringFlag{Name: "reports", Usage: "`s3://BUCKET/PREFIX` of the reports"},
				&cli.StringFlag{Name: "image", Usage: "as for lecafe deploy: only ssm:`PARAMETER` makes a difference"},
				&cli.StringFlag{Name: "parameter", Usage: "SSM `PARAMETER` that gets the image's ID"},
				&cli.BoolFlag{Name: "pin", Usage: "with what --pin needs"}),
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

// provingOf is the block lecafe-publish that the recipe would have, and over
// it what the flags say.
func provingOf(c *cli.Context) (policy.Proving, error) {
	r := &recipe.Recipe{}
	if file := c.String("recipe"); file != "" {
		var err error
		if r, err = recipe.Load(file); err != nil {
			return policy.Proving{}, err
		}
		if r.Canary == nil && r.Promote == nil {
			return policy.Proving{}, fmt.Errorf("policy packer: %s has neither canary nor promote: its template has no lecafe-publish", file)
		}
	}
	if s := c.String("staging"); s != "" {
		bucket, prefix, _ := strings.Cut(strings.Trim(strings.TrimPrefix(s, "s3://"), "/"), "/")
		r.Staging = recipe.Staging{Bucket: bucket, Prefix: cmp.Or(prefix, "lecafe-bakes")}
	}
	if r.Staging.Bucket == "" {
		return policy.Proving{}, errors.New("policy packer: name a recipe, or --staging as the block's staging says")
	}
	canary := recipe.Canary{}
	if r.Canary != nil {
		canary = *r.Canary
	} else if r.Promote != nil { // as lecafe packer template writes it
		canary.LaunchTemplate = r.Promote.LaunchTemplate
	}
	canary.LaunchTemplate = cmp.Or(c.String("canary-launch-template"), canary.LaunchTemplate)
	canary.InstanceProfile = cmp.Or(c.String("instance-profile"), canary.InstanceProfile)
	if c.Bool("subnet") {
		canary.Subnet = "any"
	}
	if c.Bool("security-groups") {
		r.Builder.SecurityGroups = []string{"any"}
	}
	r.Canary = &canary
	p := policy.PromotingOf(r)
	p = policy.Promoting{
		LaunchTemplate: cmp.Or(c.String("launch-template"), p.LaunchTemplate), Group: cmp.Or(c.String("asg"), p.Group),
		SSMParameter: cmp.Or(c.String("ssm-parameter"), p.SSMParameter), Pin: p.Pin || c.Bool("pin"),
	}
	o := policy.Proving{Recipe: r, KeepFailed: c.Bool("keep-failed")}
	if p != (policy.Promoting{}) {
		o.Promote = &p
	}
	return o, nil
}

// reportsOf is where the reports are. Without, the policy lets nobody read them,
// which is said.
func reportsOf(c *cli.Context) (bucket, prefix string, err error) {
	uri := c.String("reports")
	if uri == "" {
		fmt.Fprintln(c.App.ErrWriter, "note: without --reports s3://BUCKET/PREFIX the policy has no permission for the bucket of the reports")
		return "", "", nil
	}
	r, err := fleet.NewReports(nil, uri)
	if err != nil {
		return "", "", fmt.Errorf("--reports: %w", err)
	}
	return r.Bucket, r.Prefix, nil
}

// promotingOf is the recipe's promote section, and over it what the flags say.
func promotingOf(c *cli.Context) (policy.Promoting, error) {
	var o policy.Promoting
	if file := c.String("recipe"); file != "" {
		r, err := recipe.Load(file)
		if err != nil {
			return o, err
		}
		o = policy.PromotingOf(r)
	}
	o.LaunchTemplate = cmp.Or(c.String("launch-template"), o.LaunchTemplate)
	o.Group = cmp.Or(c.String("asg"), o.Group)
	o.SSMParameter = cmp.Or(c.String("ssm-parameter"), o.SSMParameter)
	o.Pin = o.Pin || c.Bool("pin")
	return o, nil
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
