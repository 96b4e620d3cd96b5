package fleet

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/agent/report"
)

// Clue is one thing found about an instance. The higher its weight, the more
// telling it is.
type Clue struct {
	Cause
	Weight int `json:"weight"`

	judged report.Verdict // by the agent on the console, whose report is missing
}

// Codes of clues, besides those of report.Code.
const (
	CodeKernelPanic    report.Code = "kernel_panic"
	CodeEmergency      report.Code = "emergency_mode"
	CodeOutOfMemory    report.Code = "out_of_memory"
	CodeFilesystem     report.Code = "filesystem_error"
	CodeAgentAbsent    report.Code = "agent_not_started"
	CodeStatusImpaired report.Code = "status_check_failed"
	CodeNoRoute        report.Code = "no_route"
	CodeScaling        report.Code = "scaling_activity_failed"
	CodeBootStuck      report.Code = "boot_not_finished"
	CodeReportUnsent   report.Code = "report_not_delivered"
	CodeReportRefused  report.Code = "report_refused"
	CodeElsewhere      report.Code = "reports_elsewhere"
)

// Explain gathers everything that any channel tells about an instance, the
// most telling first. Channels that cannot be read are told in the next snapshot's notes.
func (r *Region) Explain(ctx context.Context, i Instance) ([]Clue, error) {
	var clues []Clue
	if i.StateReason != "" && (i.gone() || i.State == "stopped" || i.State == "stopping") {
		clues = append(clues, Clue{Cause: Cause{Code: stateCode(&i), Source: "ec2", Message: i.StateReason}, Weight: 90})
	}
	if i.IMDSDisabled || i.ProfileARN == "" {
		clues = append(clues, Clue{Cause: *silence(&i, 0), Weight: 80})
	}
	for _, channel := range []func(context.Context, Instance) ([]Clue, error){r.console, r.status, r.route, r.activity} {
		more, err := channel(ctx, i)
		switch {
		case err == nil:
			clues = append(clues, more...)
		case ctx.Err() != nil:
			return nil, err
		default:
			r.mu.Lock()
			r.notice(fmt.Sprintf("not looked at for a cause: %v", err))
			r.mu.Unlock()
		}
	}
	slices.SortStableFunc(clues, func(a, b Clue) int { return cmp.Compare(b.Weight, a.Weight) })
	return clues, nil
}

func stateCode(i *Instance) report.Code {
	if i.gone() {
		return CodeTerminated
	}
	return CodeStopped
}

// consoleSigns are what kernel, systemd and cloud-init say.
var consoleSigns = []struct {
	re      *regexp.Regexp
	code    report.Code
	stage   report.StageName
	weight  int
	message string
	fix     string
}{
	{regexp.MustCompile(`Kernel panic - not syncing: ?(.*)`), CodeKernelPanic, report.StageSystem, 100, "the kernel panicked: $1", "boot the image's previous version; compare kernel and initramfs"},
	{regexp.MustCompile(`(?:You are in emergency mode|Reached target (?:Emergency|emergency\.target)|Entering emergency mode)`), CodeEmergency, report.StageSystem, 95, "systemd is in emergency mode", "look for a failed mount in /etc/fstab (nofail keeps the boot going)"},
	{regexp.MustCompile(`(?:Out of memory: Killed process \d+ \(([^)]+)\)|oom-kill:)`), CodeOutOfMemory, report.StageSystem, 70, "the kernel killed $1 for want of memory", "take an instance type with more memory"},
	{regexp.MustCompile(`(EXT4-fs error.*|XFS.*(?:Corruption|corruption).*|No space left on device)`), CodeFilesystem, report.StageSystem, 70, "$1", "look at the volume's size and state"},
	{regexp.MustCompile(`(?:Failed to start|Failed to execute|Unit) lecafe-agent\.service[^\n]*`), CodeAgentAbsent, report.StageSystem, 75, "$0", "look at the agent's unit in the image"},
	{regexp.MustCompile(`(?i)cloud-init\[\d+\].*No (?:instance )?datasource found|DataSourceNone`), report.CodeDatasourceNone, report.StageCloudInitLocal, 65, "cloud-init did not find the metadata service", "check IMDS, hop limit and the network configuration"},
	{regexp.MustCompile(`(?i)cloud-init\[\d+\].*(?:Failed|failed|ERROR|error)[^\n]*`), report.CodeCloudInitError, report.StageCloudFinal, 50, "$0", ""},
	{regexp.MustCompile(`(?:Connect timeout on endpoint|Network is unreachable|Temporary failure in name resolution)`), report.CodeNetworkUnreachable, report.StageSystem, 45, "$0", "check routes, security groups and endpoints for S3, SQS and STS"},
}

func (r *Region) console(ctx context.Context, i Instance) ([]Clue, error) {
	out, err := r.EC2.GetConsoleOutput(ctx, &ec2.GetConsoleOutputInput{InstanceId: &i.ID, Latest: aws.Bool(true)})
	if code := apiCode(err); code == "UnsupportedOperation" || code == "InvalidParameterCombination" || code == "InvalidParameter" {
		// Latest is for Nitro instances only.
		out, err = r.EC2.GetConsoleOutput(ctx, &ec2.GetConsoleOutputInput{InstanceId: &i.ID})
	}
	if err != nil {
		if strings.HasPrefix(apiCode(err), "InvalidInstanceID") {
			return nil, nil
		}
		return nil, fmt.Errorf("get console output of %s: %w", i.ID, err)
	}
	text, err := base64.StdEncoding.DecodeString(aws.ToString(out.Output))
	if err != nil {
		return nil, fmt.Errorf("get console output of %s: not base64", i.ID)
	}
	return consoleClues(string(text)), nil
}

var ansi = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// consoleClues reads a console.
func consoleClues(text string) []Clue {
	text = ansi.ReplaceAllString(strings.ToValidUTF8(text, "\uFFFD"), "")
	clues := agentLines(text)
	for _, s := range consoleSigns {
		// The last one counts: a console may hold several boots.
		all := s.re.FindAllStringSubmatchIndex(text, -1)
		if len(all) == 0 {
			continue
		}
		at := all[len(all)-1]
		message := string(s.re.ExpandString(nil, s.message, text, at))
		clues = append(clues, Clue{Cause: Cause{Code: s.code, Stage: s.stage, Source: "console", Message: clip200(strings.TrimSpace(message)), Fix: s.fix}, Weight: s.weight})
	}
	if strings.TrimSpace(text) != "" && len(clues) == 0 {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		last := strings.TrimSpace(lines[len(lines)-1])
		if strings.Contains(last, "login:") {
			clues = append(clues, Clue{Cause: Cause{Code: CodeAgentAbsent, Stage: report.StageSystem, Source: "console",
				Message: "it booted to a login prompt, and the console has no line of the agent", Fix: "check that lecafe-agent.service is in the image, enabled and not masked"}, Weight: 40})
		} else {
			clues = append(clues, Clue{Cause: Cause{Code: CodeBootStuck, Stage: report.StageSystem, Source: "console", Message: "the console ends with: " + clip200(last)}, Weight: 20})
		}
	}
	return clues
}

func clip200(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

func (r *Region) status(ctx context.Context, i Instance) ([]Clue, error) {
	if i.State != "running" {
		return nil, nil
	}
	out, err := r.EC2.DescribeInstanceStatus(ctx, &ec2.DescribeInstanceStatusInput{InstanceIds: []string{i.ID}})
	if err != nil {
		return nil, fmt.Errorf("describe status of %s: %w", i.ID, err)
	}
	var clues []Clue
	for _, s := range out.InstanceStatuses {
		if s.SystemStatus != nil && s.SystemStatus.Status == types.SummaryStatusImpaired {
			clues = append(clues, Clue{Cause: Cause{Code: CodeStatusImpaired, Stage: report.StageSystem, Source: "status", Message: "EC2's system status check fails: the host or its network is at fault", Fix: "stop and start it, or replace it"}, Weight: 85})
		}
		if s.InstanceStatus != nil && s.InstanceStatus.Status == types.SummaryStatusImpaired {
			clues = append(clues, Clue{Cause: Cause{Code: CodeStatusImpaired, Stage: report.StageSystem, Source: "status", Message: "EC2's instance status check fails: it does not answer on its network interface", Fix: "look at the console"}, Weight: 60})
		}
	}
	return clues, nil
}

// route looks for a way out of the subnet: without one, and without endpoints
// (which show as routes to prefix lists for S3), no report can leave.
func (r *Region) route(ctx context.Context, i Instance) ([]Clue, error) {
	if i.SubnetID == "" || i.VPCID == "" {
		return nil, nil
	}
	out, err := r.EC2.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{Filters: []types.Filter{filter("association.subnet-id", i.SubnetID)}})
	if err == nil && len(out.RouteTables) == 0 {
		out, err = r.EC2.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{Filters: []types.Filter{filter("vpc-id", i.VPCID), filter("association.main", "true")}})
	}
	if err != nil {
		return nil, fmt.Errorf("describe route tables of %s: %w", i.SubnetID, err)
	}
	if len(out.RouteTables) == 0 {
		return nil, nil
	}
	for _, t := range out.RouteTables {
		for _, route := range t.Routes {
			all := aws.ToString(route.DestinationCidrBlock) == "0.0.0.0/0" || aws.ToString(route.DestinationIpv6CidrBlock) == "::/0" || route.DestinationPrefixListId != nil
			if !all {
				continue
			}
			if route.State == types.RouteStateBlackhole {
				return []Clue{{Cause: Cause{Code: CodeNoRoute, Stage: report.StageSystem, Source: "network", Message: fmt.Sprintf("the default route of subnet %s leads nowhere: its gateway is gone", i.SubnetID), Fix: "repair the route table " + aws.ToString(t.RouteTableId)}, Weight: 78}}, nil
			}
			return nil, nil
		}
	}
	return []Clue{{Cause: Cause{Code: CodeNoRoute, Stage: report.StageSystem, Source: "network",
		Message: fmt.Sprintf("subnet %s has no default route and no gateway endpoint", i.SubnetID), Fix: "add a NAT gateway, or endpoints for S3, SQS and STS (interface endpoints do not show in route tables)"}, Weight: 55}}, nil
}

func (r *Region) activity(ctx context.Context, i Instance) ([]Clue, error) {
	if i.Group == "" {
		return nil, nil
	}
	activities, err := r.activities(ctx, i.Group)
	if err != nil {
		return nil, err
	}
	for _, a := range activities {
		if strings.Contains(aws.ToString(a.Description), i.ID) && failedActivity(&a) {
			return []Clue{{Cause: Cause{Code: CodeScaling, Source: "activity", Message: clip200(cmp.Or(aws.ToString(a.StatusMessage), aws.ToString(a.Description)))}, Weight: 72}}, nil
		}
	}
	// Why Auto Scaling ended it is in the cause of the activity that did.
	for _, a := range activities {
		if strings.HasPrefix(aws.ToString(a.Description), "Terminating EC2 instance: "+i.ID) {
			weight := 92
			if strings.Contains(aws.ToString(a.Cause), "terminated or stopped") {
				weight = 60 // Auto Scaling found it gone: EC2's own reason tells more
			}
			return []Clue{{Cause: Cause{Code: CodeTerminated, Source: "activity", Message: clip200(aws.ToString(a.Cause))}, Weight: weight}}, nil
		}
	}
	return nil, nil
}

func failedActivity(a *asgtypes.Activity) bool {
	return a.StatusCode == asgtypes.ScalingActivityStatusCodeFailed || a.StatusCode == asgtypes.ScalingActivityStatusCodeCancelled
}

// activities returns the group's last 50.
func (r *Region) activities(ctx context.Context, group string) ([]asgtypes.Activity, error) {
	out, err := r.AutoScaling.DescribeScalingActivities(ctx, &autoscaling.DescribeScalingActivitiesInput{AutoScalingGroupName: &group, MaxRecords: aws.Int32(50)})
	if err != nil {
		return nil, fmt.Errorf("describe scaling activities of %s: %w", group, err)
	}
	return out.Activities, nil
}

func (w *Watcher) region(name string) *Region {
	for _, r := range w.Regions {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// Explain returns everything known about the cause of one standing.
func (w *Watcher) Explain(ctx context.Context, s *Standing) ([]Clue, error) {
	r := w.region(s.Region)
	if r == nil {
		return nil, errors.New("its region is not watched")
	}
	clues, err := r.Explain(ctx, s.Instance)
	if s.Verdict == Silent {
		if c := w.elsewhere(ctx, s); c != nil {
			clues = slices.Insert(clues, 0, Clue{Cause: *c, Weight: 110})
		}
	}
	return weighed(s, clues), err
}

// weighed holds what the console says of the agent's report against what is
// known of it here: that it has arrived, or that it was refused.
func weighed(s *Standing, clues []Clue) []Clue {
	if s.Report != "" {
		return slices.DeleteFunc(clues, func(c Clue) bool { return c.judged != "" })
	}
	for n := range clues {
		if c := &clues[n]; c.judged != "" && s.Refused > 0 {
			c.Code, c.Message = CodeReportRefused, fmt.Sprintf("the agent judged %s, and what reports there are for it were refused", c.judged)
			c.Fix = "see why each was refused; an emulator that knows no role IDs needs --no-verify-sender"
		}
	}
	return clues
}

// elsewhere is the cause of a silence that is the watcher's own: the instance's
// launch template version has its agent report to another place, as after a
// change of the template while the watcher runs. It is asked once for each
// version that somebody is silent of.
func (w *Watcher) elsewhere(ctx context.Context, s *Standing) *Cause {
	r := w.region(s.Region)
	if r == nil || s.TemplateID == "" || s.TemplateVersion == "" {
		return nil
	}
	v := templateVersion{s.Region, s.TemplateID, s.TemplateVersion}
	uri, known := w.sendsTo[v]
	if !known {
		where, _, err := r.reportsOf(ctx, v.id, v.number)
		if err != nil {
			w.note(fmt.Sprintf("not looked at for a cause: %v", err))
		}
		if w.sendsTo == nil {
			w.sendsTo = map[templateVersion]string{}
		}
		uri = where.Reports // empty where it does not say
		w.sendsTo[v] = uri
	}
	if uri == "" || uri == w.Reports.URI(w.Reports.Prefix) {
		return nil
	}
	return &Cause{Code: CodeElsewhere, Source: "template", Message: fmt.Sprintf("version %s of its launch template has it report to %s, and %s is watched", v.number, uri, w.Reports.URI(w.Reports.Prefix)),
		Fix: "watch it with --reports " + uri}
}

// lookIntoSilent finds the most telling cause of those that never reported,
// once for each instance.
func (w *Watcher) lookIntoSilent(ctx context.Context, standings []Standing) {
	budget := cmp.Or(w.Silent, 20)
	left := 0
	for n := range standings {
		s := &standings[n]
		if s.Verdict != Silent && s.Verdict != Terminated {
			continue
		}
		if s.Verdict == Silent {
			if c := w.elsewhere(ctx, s); c != nil {
				s.Cause = c
				continue
			}
		}
		clues, done := w.evidence[s.ID]
		if !done {
			if budget <= 0 {
				left++
				continue
			}
			budget--
			var err error
			if clues, err = w.Explain(ctx, s); err != nil {
				w.note(fmt.Sprintf("no cause was sought for %s: %v", s.ID, err))
				continue
			}
			w.evidence[s.ID] = clues
		}
		if len(clues) > 0 {
			c := clues[0].Cause
			s.Cause = &c
		}
	}
	if left > 0 {
		w.note(fmt.Sprintf("%d more silent instances were not looked into; --explain INSTANCE does", left))
	}
}

// lookIntoShort says why a group lacks instances.
func (w *Watcher) lookIntoShort(ctx context.Context, groups []Group) {
	for n := range groups {
		g := &groups[n]
		r := w.region(g.Region)
		if g.Short == 0 || r == nil {
			continue
		}
		g.Message = fmt.Sprintf("%d of %d instances are missing", g.Short, g.Desired)
		activities, err := r.activities(ctx, g.Name)
		if err != nil {
			w.note(fmt.Sprintf("no cause was sought for group %s: %v", g.Name, err))
			continue
		}
		if len(activities) > 0 && failedActivity(&activities[0]) {
			g.Message += ": " + clip200(aws.ToString(activities[0].StatusMessage))
		}
	}
}
