package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"
	"github.com/aws/smithy-go"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/internal/exitcode"
)

func connectCommand() *cli.Command {
	return &cli.Command{
		Name:      "connect",
		Usage:     "a shell on an instance by Session Manager: no port, no key",
		ArgsUsage: "INSTANCE",
		Description: "Runs aws ssm start-session, for which the AWS CLI and its session-manager-plugin must be\n" +
			"installed; where they are not, prints the command and exits 3. An instance that Session\n" +
			"Manager cannot reach is exit 1, with the reason.",
		Action: connect,
	}
}

var instanceRE = regexp.MustCompile(`^i-([0-9a-f]{8}|[0-9a-f]{17})$`)

func connect(c *cli.Context) error {
	id := c.Args().First()
	if c.NArg() != 1 || !instanceRE.MatchString(id) {
		return badRequest("want one instance ID: lecafe connect i-0123456789abcdef0")
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	out, err := ssm.NewFromConfig(cfg).DescribeInstanceInformation(c.Context, &ssm.DescribeInstanceInformationInput{
		Filters: []ssmtypes.InstanceInformationStringFilter{{Key: aws.String("InstanceIds"), Values: []string{id}}},
	})
	var api smithy.APIError
	switch {
	// The service answers with the one, emulators without the call with others.
	case errors.As(err, &api) && slices.Contains([]string{"InvalidInstanceId", "InvalidInstanceID"}, api.ErrorCode()):
		out = &ssm.DescribeInstanceInformationOutput{}
	case err != nil:
		return awsError(fmt.Errorf("ask Session Manager for %s: %w", id, err))
	}
	at := slices.IndexFunc(out.InstanceInformationList, func(i ssmtypes.InstanceInformation) bool { return aws.ToString(i.InstanceId) == id })
	if at < 0 {
		why, err := whyNotManaged(c.Context, cfg, id)
		if err != nil {
			return awsError(err)
		}
		return fmt.Errorf("%s is unknown to Session Manager: %s", id, why)
	}
	if info := out.InstanceInformationList[at]; info.PingStatus != ssmtypes.PingStatusOnline {
		last := "never"
		if info.LastPingDateTime != nil {
			last = info.LastPingDateTime.UTC().Format(time.RFC3339)
		}
		return fmt.Errorf("%s is known to Session Manager but %s, heard of last %s: it is stopped, its amazon-ssm-agent is, or it lost its way to AWS; see its console with aws ec2 get-console-output --latest --instance-id %s", id, info.PingStatus, last, id)
	}
	argv := []string{"aws", "ssm", "start-session", "--target", id, "--region", cfg.Region}
	if p := c.String("profile"); p != "" {
		argv = append(argv, "--profile", p)
	}
	if e := c.String("endpoint-url"); e != "" {
		argv = append(argv, "--endpoint-url", e)
	}
	path, err := exec.LookPath("aws")
	if err == nil {
		_, err = exec.LookPath("session-manager-plugin")
	}
	if err != nil {
		fmt.Fprintln(c.App.Writer, strings.Join(argv, " "))
		return exitcode.With(exitcode.NotReady, fmt.Errorf("%s is managed, but %w; install it, or run the command above where both the AWS CLI and its session-manager-plugin are", id, err))
	}
	// In place of this process: the session owns terminal and signals.
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, argv, os.Environ()))
}

// core is the policy with which an instance registers with Session Manager.
const core = "AmazonSSMManagedInstanceCore"

// whyNotManaged says what keeps an instance from Session Manager, the first
// thing first.
func whyNotManaged(ctx context.Context, cfg aws.Config, id string) (string, error) {
	out, err := ec2.NewFromConfig(cfg).DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorCode() == "InvalidInstanceID.NotFound" || err == nil && len(out.Reservations) == 0 {
		return "there is no such instance in " + cfg.Region + "; another --region or --profile?", nil
	}
	if err != nil {
		return "", fmt.Errorf("describe instance %s: %w", id, err)
	}
	inst := out.Reservations[0].Instances[0]
	if inst.State != nil && inst.State.Name != ec2types.InstanceStateNameRunning {
		state := string(inst.State.Name)
		if inst.State.Name == ec2types.InstanceStateNameStopped {
			return "it is stopped; aws ec2 start-instances --instance-ids " + id, nil
		}
		return "it is " + state + ", not running", nil
	}
	if inst.IamInstanceProfile == nil {
		return "it has no instance profile, so its agent cannot register; attach one whose role has " + core +
			": aws ec2 associate-iam-instance-profile --instance-id " + id + " --iam-instance-profile Name=lecafe-app-profile", nil
	}
	arn := aws.ToString(inst.IamInstanceProfile.Arn)
	profile := arn[strings.LastIndexByte(arn, '/')+1:]
	roles, err := lackingCore(ctx, cfg, profile)
	switch {
	case err != nil:
		// The permission to read IAM is not everybody's: say what is left.
	case len(roles) == 0:
		return "its instance profile " + profile + " has no role", nil
	case roles[0] != "":
		return "its role " + roles[0] + " does not have the policy " + core + "; attach it: aws iam attach-role-policy --role-name " + roles[0] +
			" --policy-arn arn:aws:iam::aws:policy/" + core + " (if a policy of yours says the same, then see whether amazon-ssm-agent runs and reaches ssm." + cfg.Region + ".amazonaws.com)", nil
	}
	service := "ssm." + cfg.Region + ".amazonaws.com"
	switch way, why := wayOut(ctx, ec2.NewFromConfig(cfg), cfg.Region, inst); way {
	case blocked:
		return "its role and profile " + profile + " are right, but it has no route to " + service + ": " + why +
			"; give the subnet a NAT gateway, or the VPC the endpoints ssm, ssmmessages and ec2messages", nil
	case open:
		return "its role and profile " + profile + " are right and it has a route (" + why + "), so amazon-ssm-agent is not installed or not running on it, its security groups let nothing out to port 443, or it has not been up for long enough; lecafe watch shows whether it came up at all", nil
	}
	return "it runs with instance profile " + profile + ", so either amazon-ssm-agent is not installed or not running on it, it has not been up for long enough, or there is no route to " +
		service + " (NAT or VPC endpoints, port 443 out); lecafe watch shows whether it came up at all", nil
}

// way is what is known of an instance's route to Session Manager.
type way int

const (
	unknown way = iota // may not be read, or is not modelled by an emulator
	blocked
	open
)

// wayOut reads whether an instance can reach Session Manager: by an endpoint in
// its VPC, or by the default route of its subnet.
// https://docs.aws.amazon.com/systems-manager/latest/userguide/setup-create-vpc.html
func wayOut(ctx context.Context, api *ec2.Client, region string, inst ec2types.Instance) (way, string) {
	filter := func(name, value string) ec2types.Filter {
		return ec2types.Filter{Name: &name, Values: []string{value}}
	}
	endpoints, err := api.DescribeVpcEndpoints(ctx, &ec2.DescribeVpcEndpointsInput{Filters: []ec2types.Filter{
		filter("vpc-id", aws.ToString(inst.VpcId)), filter("service-name", "com.amazonaws."+region+".ssm"),
	}})
	if err != nil {
		return unknown, ""
	}
	if len(endpoints.VpcEndpoints) > 0 {
		return open, "VPC endpoint " + aws.ToString(endpoints.VpcEndpoints[0].VpcEndpointId)
	}
	tables, err := api.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{Filters: []ec2types.Filter{filter("association.subnet-id", aws.ToString(inst.SubnetId))}})
	if err == nil && len(tables.RouteTables) == 0 { // then the VPC's main one counts
		tables, err = api.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{Filters: []ec2types.Filter{filter("vpc-id", aws.ToString(inst.VpcId)), filter("association.main", "true")}})
	}
	if err != nil || len(tables.RouteTables) == 0 {
		return unknown, ""
	}
	table := tables.RouteTables[0]
	i := slices.IndexFunc(table.Routes, func(r ec2types.Route) bool {
		return aws.ToString(r.DestinationCidrBlock) == "0.0.0.0/0" && r.State != ec2types.RouteStateBlackhole
	})
	name := aws.ToString(table.RouteTableId)
	switch {
	case i < 0:
		return blocked, "the route table " + name + " of its subnet has no default route"
	case strings.HasPrefix(aws.ToString(table.Routes[i].GatewayId), "igw-") && aws.ToString(inst.PublicIpAddress) == "":
		return blocked, "the default route of " + name + " leads to an internet gateway, and it has no public address"
	}
	return open, "the default route of " + name
}

// lackingCore returns a profile's role if it lacks core, or "" for one that has
// it; nothing where the profile has no role.
func lackingCore(ctx context.Context, cfg aws.Config, profile string) ([]string, error) {
	api := iam.NewFromConfig(cfg)
	p, err := api.GetInstanceProfile(ctx, &iam.GetInstanceProfileInput{InstanceProfileName: &profile})
	if err != nil {
		return nil, err
	}
	if roles := p.InstanceProfile.Roles; len(roles) > 0 { // there is one at most
		r := roles[0]
		pages := iam.NewListAttachedRolePoliciesPaginator(api, &iam.ListAttachedRolePoliciesInput{RoleName: r.RoleName})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return nil, err
			}
			for _, a := range page.AttachedPolicies {
				if aws.ToString(a.PolicyName) == core {
					return []string{""}, nil
				}
			}
		}
		return []string{aws.ToString(r.RoleName)}, nil
	}
	return nil, nil
}
