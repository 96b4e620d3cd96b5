package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/audit"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/internal/sarif"
	"github.com/lecafe/lecafe/internal/version"
)

func auditCommand() *cli.Command {
	var checks strings.Builder
	for _, c := range audit.Checks() {
		fmt.Fprintf(&checks, "\n  %-23s %s", c.Name, c.Why)
	}
	return &cli.Command{
		Name:  "audit",
		Usage: "ten read-only checks over a region or all of them",
		Description: "Exit 0: nothing found. 1: findings. The checks:" + checks.String() +
			"\n\n--ignore takes CHECK, CHECK:RESOURCE, and either with @DATE, the last day on which it is ignored.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all-regions", Usage: "every region that is enabled for the account"},
			&cli.StringFlag{Name: "format", Usage: "text, json or sarif", Value: "text"},
			&cli.StringSliceFlag{Name: "ignore", Usage: "`CHECK[:RESOURCE][@YYYY-MM-DD]`, repeatable"},
			&cli.IntFlag{Name: "max-image-age", Usage: "`DAYS` after which an image is old", Value: 90},
			&cli.StringSliceFlag{Name: "account", Usage: "account `ID` that images may be shared with, repeatable"},
		},
		Action: runAudit,
	}
}

// exemption is one --ignore.
type exemption struct {
	check, resource string
	until           time.Time // the end of its last day; zero for ever
}

func parseExemptions(values []string) ([]exemption, error) {
	var out []exemption
	for _, v := range values {
		rest, date, dated := strings.Cut(v, "@")
		var e exemption
		e.check, e.resource, _ = strings.Cut(rest, ":")
		if !slices.ContainsFunc(audit.Checks(), func(c audit.Check) bool { return c.Name == e.check }) {
			return nil, badRequest("--ignore %q: no check %q; see lecafe audit --help", v, e.check)
		}
		if dated {
			day, err := time.Parse(time.DateOnly, date)
			if err != nil {
				return nil, badRequest("--ignore %q: %q is no date; write YYYY-MM-DD", v, date)
			}
			e.until = day.AddDate(0, 0, 1)
		}
		out = append(out, e)
	}
	return out, nil
}

func (e exemption) covers(f audit.Finding, now time.Time) bool {
	return e.check == f.Check && (e.resource == "" || e.resource == f.Resource) && (e.until.IsZero() || now.Before(e.until))
}

var accountID = regexp.MustCompile(`^[0-9]{12}$`)

func runAudit(c *cli.Context) error {
	for _, id := range c.StringSlice("account") {
		if !accountID.MatchString(id) {
			return badRequest("--account %q: want an account's ID, 12 digits", id)
		}
	}
	format := c.String("format")
	if !slices.Contains([]string{"text", "json", "sarif"}, format) {
		return badRequest("--format %q: text, json or sarif", format)
	}
	if c.Int("max-image-age") < 1 {
		return badRequest("--max-image-age %d: at least 1 day", c.Int("max-image-age"))
	}
	ignore, err := parseExemptions(c.StringSlice("ignore"))
	if err != nil {
		return err
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	regions := []string{cfg.Region}
	if c.Bool("all-regions") {
		out, err := ec2.NewFromConfig(cfg).DescribeRegions(c.Context, &ec2.DescribeRegionsInput{})
		if err != nil {
			return awsError(fmt.Errorf("describe regions: %w", err))
		}
		regions = nil
		for _, r := range out.Regions {
			regions = append(regions, aws.ToString(r.RegionName))
		}
	}
	now := time.Now().UTC()
	findings := []audit.Finding{}
	for _, region := range regions {
		cfg := cfg.Copy()
		cfg.Region = region
		read, err := audit.Collect(c.Context, region, audit.Clients{EC2: ec2.NewFromConfig(cfg), AutoScaling: autoscaling.NewFromConfig(cfg), IAM: iam.NewFromConfig(cfg)})
		if err != nil {
			return awsError(fmt.Errorf("audit %s: %w", region, err))
		}
		for _, part := range read.Unread {
			fmt.Fprintf(c.App.ErrWriter, "%s: NOT READ: %s\n", region, part)
		}
		found := audit.Audit(read, audit.Options{Now: now, MaxImageAge: time.Duration(c.Int("max-image-age")) * 24 * time.Hour, Accounts: c.StringSlice("account")})
		findings = append(findings, slices.DeleteFunc(found, func(f audit.Finding) bool {
			return slices.ContainsFunc(ignore, func(e exemption) bool { return e.covers(f, now) })
		})...)
	}
	if err := writeAudit(c, format, findings); err != nil {
		return err
	}
	if len(findings) > 0 {
		return exitcode.With(exitcode.Failed, fmt.Errorf("%d findings", len(findings)))
	}
	return nil
}

func writeAudit(c *cli.Context, format string, findings []audit.Finding) error {
	switch format {
	case "json":
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(findings)
	case "sarif":
		var rules []sarif.Rule
		for _, k := range audit.Checks() {
			rules = append(rules, sarif.Rule{ID: k.Name, Summary: k.Why, Help: k.Fix})
		}
		var results []sarif.Result
		for _, f := range findings {
			results = append(results, sarif.Result{RuleID: f.Check, Level: string(f.Severity), Message: f.Message, Object: f.Region + "/" + f.Resource})
		}
		return sarif.Write(c.App.Writer, version.String(), rules, results)
	}
	last := ""
	for _, f := range findings {
		if f.Check != last {
			fmt.Fprintf(c.App.Writer, "%s (%s): %s\n  fix: %s\n", f.Check, f.Severity, f.Why, f.Fix)
			last = f.Check
		}
		fmt.Fprintf(c.App.Writer, "  %s %s: %s\n", f.Region, f.Resource, f.Message)
	}
	return nil
}
