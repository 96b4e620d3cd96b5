package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	asgtypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/smithy-go"
	"golang.org/x/sync/errgroup"
)

// Selection is what is watched: the union of all of it.
type Selection struct {
	Groups      []string // Auto Scaling group names
	Tags        []string // KEY=VALUE or KEY; instances that have all of them
	Templates   []string // launch template names or IDs
	InstanceIDs []string
}

// Group is one Auto Scaling group.
type Group struct {
	Name    string `json:"auto_scaling_group"`
	Region  string `json:"region"`
	Desired int    `json:"desired"`
	Listed  int    `json:"instances"` // that the group has
	Short   int    `json:"missing"`   // desired and not there
	Message string `json:"message,omitempty"`

	TemplateID, TemplateVersion string   `json:"-"`
	LaunchHooks                 []string `json:"-"`
}

type ec2Reader interface {
	DescribeInstances(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
	DescribeImages(context.Context, *ec2.DescribeImagesInput, ...func(*ec2.Options)) (*ec2.DescribeImagesOutput, error)
	DescribeLaunchTemplates(context.Context, *ec2.DescribeLaunchTemplatesInput, ...func(*ec2.Options)) (*ec2.DescribeLaunchTemplatesOutput, error)
	DescribeLaunchTemplateVersions(context.Context, *ec2.DescribeLaunchTemplateVersionsInput, ...func(*ec2.Options)) (*ec2.DescribeLaunchTemplateVersionsOutput, error)
	DescribeInstanceStatus(context.Context, *ec2.DescribeInstanceStatusInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceStatusOutput, error)
	DescribeRouteTables(context.Context, *ec2.DescribeRouteTablesInput, ...func(*ec2.Options)) (*ec2.DescribeRouteTablesOutput, error)
	GetConsoleOutput(context.Context, *ec2.GetConsoleOutputInput, ...func(*ec2.Options)) (*ec2.GetConsoleOutputOutput, error)
	TerminateInstances(context.Context, *ec2.TerminateInstancesInput, ...func(*ec2.Options)) (*ec2.TerminateInstancesOutput, error)
}

type asgAPI interface {
	DescribeAutoScalingGroups(context.Context, *autoscaling.DescribeAutoScalingGroupsInput, ...func(*autoscaling.Options)) (*autoscaling.DescribeAutoScalingGroupsOutput, error)
	DescribeScalingActivities(context.Context, *autoscaling.DescribeScalingActivitiesInput, ...func(*autoscaling.Options)) (*autoscaling.DescribeScalingActivitiesOutput, error)
	DescribeLifecycleHooks(context.Context, *autoscaling.DescribeLifecycleHooksInput, ...func(*autoscaling.Options)) (*autoscaling.DescribeLifecycleHooksOutput, error)
	SetInstanceHealth(context.Context, *autoscaling.SetInstanceHealthInput, ...func(*autoscaling.Options)) (*autoscaling.SetInstanceHealthOutput, error)
	CompleteLifecycleAction(context.Context, *autoscaling.CompleteLifecycleActionInput, ...func(*autoscaling.Options)) (*autoscaling.CompleteLifecycleActionOutput, error)
	RecordLifecycleActionHeartbeat(context.Context, *autoscaling.RecordLifecycleActionHeartbeatInput, ...func(*autoscaling.Options)) (*autoscaling.RecordLifecycleActionHeartbeatOutput, error)
	EnterStandby(context.Context, *autoscaling.EnterStandbyInput, ...func(*autoscaling.Options)) (*autoscaling.EnterStandbyOutput, error)
}

type iamAPI interface {
	GetInstanceProfile(context.Context, *iam.GetInstanceProfileInput, ...func(*iam.Options)) (*iam.GetInstanceProfileOutput, error)
}

// Region reads one region's instances. IAM may be nil: then role IDs are not
// looked up. It keeps what cannot change (image tags, role IDs).
type Region struct {
	Name        string
	EC2         ec2Reader
	AutoScaling asgAPI
	IAM         iamAPI

	mu     sync.Mutex
	boots  map[string]time.Duration // image → its canary's boot
	roles  map[string]string        // instance profile ARN → role ID
	told   map[string]bool          // what could not be checked
	untold []string
}

// filterValues is the most values one filter of EC2's takes.
const filterValues = 200

// Inventory is what a region has of a selection.
type Inventory struct {
	Instances []Instance // in order of ID
	Groups    []Group    // in order of name
	Missing   []string   // what was named and does not exist here: "Auto Scaling group x", "instance i-1"
}

// Instances reads what the selection names.
func (r *Region) Instances(ctx context.Context, sel Selection) (*Inventory, error) {
	inv := &Inventory{}
	groups, members, err := r.groups(ctx, sel.Groups)
	if err != nil {
		return nil, err
	}
	inv.Groups = groups
	for _, n := range sel.Groups {
		if !slices.ContainsFunc(groups, func(g Group) bool { return g.Name == n }) {
			inv.Missing = append(inv.Missing, fmt.Sprintf("Auto Scaling group %q", n))
		}
	}
	queries := groupQueries(groups)
	if len(sel.Tags) > 0 {
		var f []types.Filter
		for _, t := range sel.Tags {
			if k, v, ok := strings.Cut(t, "="); ok {
				f = append(f, filter("tag:"+k, v))
			} else {
				f = append(f, filter("tag-key", t))
			}
		}
		queries = append(queries, f)
	}
	if len(sel.Templates) > 0 {
		ids, missing, err := r.templateIDs(ctx, sel.Templates)
		if err != nil {
			return nil, err
		}
		inv.Missing = append(inv.Missing, missing...)
		if len(ids) > 0 {
			queries = append(queries, []types.Filter{filter("tag:aws:ec2launchtemplate:id", ids...)})
		}
	}
	for ids := range slices.Chunk(sel.InstanceIDs, filterValues) {
		queries = append(queries, []types.Filter{filter("instance-id", ids...)})
	}

	found := map[string]Instance{}
	if err := r.describe(ctx, queries, found); err != nil {
		return nil, err
	}
	// Members that the tag's index does not show yet (EC2 is eventually
	// consistent), and IDs that were asked for.
	var missing []string
	for id := range members {
		if _, ok := found[id]; !ok {
			missing = append(missing, id)
		}
	}
	slices.Sort(missing)
	queries = nil
	for ids := range slices.Chunk(missing, filterValues) {
		queries = append(queries, []types.Filter{filter("instance-id", ids...)})
	}
	if err := r.describe(ctx, queries, found); err != nil {
		return nil, err
	}
	for _, id := range sel.InstanceIDs {
		if _, ok := found[id]; !ok {
			inv.Missing = append(inv.Missing, "instance "+id)
		}
	}

	inv.Instances = make([]Instance, 0, len(found))
	for id, i := range found {
		if m, ok := members[id]; ok {
			i.LifecycleState, i.Health = string(m.LifecycleState), aws.ToString(m.HealthStatus)
		}
		inv.Instances = append(inv.Instances, i)
	}
	slices.SortFunc(inv.Instances, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
	if err := r.complete(ctx, inv.Instances); err != nil {
		return nil, err
	}
	return inv, nil
}

func filter(name string, values ...string) types.Filter {
	return types.Filter{Name: aws.String(name), Values: values}
}

// groups describes the named groups, at most 50 names a call.
func (r *Region) groups(ctx context.Context, names []string) ([]Group, map[string]asgtypes.Instance, error) {
	var groups []Group
	members := map[string]asgtypes.Instance{}
	seen := map[string]bool{}
	for chunk := range slices.Chunk(names, 50) {
		in := &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: chunk, MaxRecords: aws.Int32(100)}
		for {
			out, err := r.AutoScaling.DescribeAutoScalingGroups(ctx, in)
			if err != nil {
				return nil, nil, fmt.Errorf("describe Auto Scaling groups in %s: %w", r.Name, err)
			}
			for _, g := range out.AutoScalingGroups {
				name := aws.ToString(g.AutoScalingGroupName)
				if seen[name] {
					continue
				}
				seen[name] = true
				group := Group{Name: name, Region: r.Name, Desired: int(aws.ToInt32(g.DesiredCapacity)), Listed: len(g.Instances)}
				group.Short = max(0, group.Desired-group.Listed)
				if lt := templateOf(&g); lt != nil {
					group.TemplateID, group.TemplateVersion = aws.ToString(lt.LaunchTemplateId), aws.ToString(lt.Version)
				}
				groups = append(groups, group)
				for _, i := range g.Instances {
					members[aws.ToString(i.InstanceId)] = i
				}
			}
			if aws.ToString(out.NextToken) == "" {
				break
			}
			in.NextToken = out.NextToken
		}
	}
	slices.SortFunc(groups, func(a, b Group) int { return cmp.Compare(a.Name, b.Name) })
	return groups, members, nil
}

func templateOf(g *asgtypes.AutoScalingGroup) *asgtypes.LaunchTemplateSpecification {
	if p := g.MixedInstancesPolicy; p != nil && p.LaunchTemplate != nil {
		return p.LaunchTemplate.LaunchTemplateSpecification
	}
	return g.LaunchTemplate
}

// groupQueries packs groups so that one query's answer is about one page: the
// pages are then read side by side rather than one after the other.
func groupQueries(groups []Group) [][]types.Filter {
	var queries [][]types.Filter
	var names []string
	n := 0
	flush := func() {
		if len(names) > 0 {
			queries = append(queries, []types.Filter{filter("tag:aws:autoscaling:groupName", names...)})
		}
		names, n = nil, 0
	}
	for _, g := range groups {
		if len(names) == filterValues || n+g.Listed > pageSize {
			flush()
		}
		names = append(names, g.Name)
		n += g.Listed
	}
	flush()
	return queries
}

// pageSize is DescribeInstances' most.
const pageSize = 1000

// sideBySide is how many calls are under way at once in a region: enough to
// hide their times, few enough for EC2's token bucket.
const sideBySide = 4

func (r *Region) describe(ctx context.Context, queries [][]types.Filter, found map[string]Instance) error {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(sideBySide)
	for _, q := range queries {
		g.Go(func() error {
			in := &ec2.DescribeInstancesInput{Filters: q, MaxResults: aws.Int32(pageSize)}
			for {
				out, err := r.EC2.DescribeInstances(ctx, in)
				if err != nil {
					return fmt.Errorf("describe instances in %s: %w", r.Name, err)
				}
				mu.Lock()
				for _, res := range out.Reservations {
					for n := range res.Instances {
						i := r.instance(&res.Instances[n])
						found[i.ID] = i
					}
				}
				mu.Unlock()
				if aws.ToString(out.NextToken) == "" {
					return nil
				}
				in.NextToken = out.NextToken
			}
		})
	}
	return g.Wait()
}

func (r *Region) instance(i *types.Instance) Instance {
	out := Instance{
		ID: aws.ToString(i.InstanceId), Region: r.Name, ImageID: aws.ToString(i.ImageId), Type: string(i.InstanceType),
		LaunchedAt: aws.ToTime(i.LaunchTime).UTC(), SubnetID: aws.ToString(i.SubnetId), VPCID: aws.ToString(i.VpcId),
	}
	if i.State != nil {
		out.State = string(i.State.Name)
	}
	if i.StateReason != nil {
		out.StateReason = aws.ToString(i.StateReason.Message)
		if out.StateReason == "" {
			out.StateReason = aws.ToString(i.StateReason.Code)
		}
	}
	out.StateReason = cmp.Or(out.StateReason, aws.ToString(i.StateTransitionReason))
	if i.Placement != nil {
		out.Zone = aws.ToString(i.Placement.AvailabilityZone)
	}
	if i.IamInstanceProfile != nil {
		out.ProfileARN = aws.ToString(i.IamInstanceProfile.Arn)
	}
	if i.MetadataOptions != nil {
		out.IMDSDisabled = i.MetadataOptions.HttpEndpoint == types.InstanceMetadataEndpointStateDisabled
	}
	for _, t := range i.Tags {
		switch aws.ToString(t.Key) {
		case "aws:autoscaling:groupName":
			out.Group = aws.ToString(t.Value)
		case "aws:ec2launchtemplate:id":
			out.TemplateID = aws.ToString(t.Value)
		case "aws:ec2launchtemplate:version":
			out.TemplateVersion = aws.ToString(t.Value)
		}
	}
	return out
}

func (r *Region) templateIDs(ctx context.Context, names []string) (ids, missing []string, err error) {
	for _, n := range names {
		if strings.HasPrefix(n, "lt-") {
			ids = append(ids, n)
			continue
		}
		// One call each: a missing name fails the call for all of them.
		out, err := r.EC2.DescribeLaunchTemplates(ctx, &ec2.DescribeLaunchTemplatesInput{LaunchTemplateNames: []string{n}})
		switch code := apiCode(err); {
		case strings.HasPrefix(code, "InvalidLaunchTemplateName"), err == nil && len(out.LaunchTemplates) == 0:
			missing = append(missing, fmt.Sprintf("launch template %q", n))
		case err != nil:
			return nil, nil, fmt.Errorf("describe launch template %q in %s: %w", n, r.Name, err)
		default:
			ids = append(ids, aws.ToString(out.LaunchTemplates[0].LaunchTemplateId))
		}
	}
	return ids, missing, nil
}

// complete adds boot times of images and role IDs of profiles.
func (r *Region) complete(ctx context.Context, instances []Instance) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.boots == nil {
		r.boots, r.roles = map[string]time.Duration{}, map[string]string{}
	}
	// Thousands of instances share a few of these strings.
	shared := map[string]string{}
	for n := range instances {
		i := &instances[n]
		for _, s := range []*string{&i.Group, &i.TemplateID, &i.TemplateVersion, &i.ImageID, &i.Type, &i.Zone, &i.State, &i.LifecycleState, &i.Health, &i.ProfileARN, &i.SubnetID, &i.VPCID} {
			if same, ok := shared[*s]; ok {
				*s = same
			} else {
				shared[*s] = *s
			}
		}
	}
	unknown := map[string]bool{}
	profiles := map[string]bool{}
	for n := range instances {
		i := &instances[n]
		if _, ok := r.boots[i.ImageID]; !ok && i.ImageID != "" {
			unknown[i.ImageID] = true
		}
		if _, ok := r.roles[i.ProfileARN]; !ok && i.ProfileARN != "" {
			profiles[i.ProfileARN] = true
		}
	}
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(unknown)), filterValues) {
		if err := r.bootTimes(ctx, ids); err != nil {
			return err
		}
	}
	for _, arn := range slices.Sorted(maps.Keys(profiles)) {
		if err := r.role(ctx, arn); err != nil {
			return err
		}
	}
	for n := range instances {
		i := &instances[n]
		i.BootTime, i.RoleID = r.boots[i.ImageID], r.roles[i.ProfileARN]
	}
	return nil
}

func (r *Region) bootTimes(ctx context.Context, images []string) error {
	out, err := r.EC2.DescribeImages(ctx, &ec2.DescribeImagesInput{Filters: []types.Filter{filter("image-id", images...)}})
	if err != nil {
		if denied(err) {
			r.notice("no permission for ec2:DescribeImages: deadlines are not taken from image tags")
			return nil
		}
		return fmt.Errorf("describe images in %s: %w", r.Name, err)
	}
	for _, id := range images {
		r.boots[id] = 0 // deregistered, or not ours
	}
	for _, img := range out.Images {
		r.boots[aws.ToString(img.ImageId)] = BootTime(&img, 0)
	}
	return nil
}

// BootTime is how long the image's canary took to report, by the image's tag;
// unknown where it has none.
func BootTime(img *types.Image, unknown time.Duration) time.Duration {
	for _, t := range img.Tags {
		if s, err := strconv.ParseFloat(aws.ToString(t.Value), 64); aws.ToString(t.Key) == TagBootSeconds && err == nil && s > 0 && s < 86400 {
			return time.Duration(s * float64(time.Second))
		}
	}
	return unknown
}

// role looks up the ID of the role in an instance profile. Whoever may assume
// some role can name the session i-...: only the right role's is believed.
func (r *Region) role(ctx context.Context, arn string) error {
	if r.IAM == nil {
		return nil
	}
	name := arn[strings.LastIndex(arn, "/")+1:]
	out, err := r.IAM.GetInstanceProfile(ctx, &iam.GetInstanceProfileInput{InstanceProfileName: &name})
	switch code := apiCode(err); {
	case denied(err):
		r.notice("no permission for iam:GetInstanceProfile: the senders' roles are not checked")
	case code == "NoSuchEntity", code == "NoSuchEntityException":
		r.notice(fmt.Sprintf("instance profile %s does not exist any more: its role is not checked", name))
	case unsupported(err):
		r.notice("this endpoint has no iam:GetInstanceProfile: the senders' roles are not checked")
	case err != nil:
		return fmt.Errorf("get instance profile %s: %w", name, err)
	case out.InstanceProfile == nil || len(out.InstanceProfile.Roles) == 0:
		r.notice(fmt.Sprintf("instance profile %s has no role", name))
	default:
		r.roles[arn] = aws.ToString(out.InstanceProfile.Roles[0].RoleId)
		return nil
	}
	r.roles[arn] = ""
	return nil
}

// notice keeps what could not be checked for the next snapshot, once. The
// caller holds mu.
func (r *Region) notice(s string) {
	if r.told == nil {
		r.told = map[string]bool{}
	}
	if !r.told[s] {
		r.told[s] = true
		r.untold = append(r.untold, s)
	}
}

// notices takes what was kept.
func (r *Region) notices() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.untold
	r.untold = nil
	return list
}

func apiCode(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}

func denied(err error) bool {
	code := apiCode(err)
	return code == "UnauthorizedOperation" || strings.HasPrefix(code, "AccessDenied")
}

// passing says that a call which failed is worth making again: throttled, or no
// answer, or one that blames the service.
func passing(err error) bool {
	if err == nil {
		return false
	}
	var status interface{ HTTPStatusCode() int }
	if errors.As(err, &status) && (status.HTTPStatusCode() == 0 || status.HTTPStatusCode() == 429 || status.HTTPStatusCode() >= 500 && status.HTTPStatusCode() != 501) {
		return true
	}
	switch apiCode(err) {
	case "Throttling", "ThrottlingException", "RequestLimitExceeded", "ResourceContention":
		return true
	}
	return false
}

// unsupported recognises an emulator that has no such call.
func unsupported(err error) bool {
	switch apiCode(err) {
	case "UnsupportedOperation", "NotImplemented", "InvalidAction", "UnknownOperationException", "501":
		return true
	}
	var status interface{ HTTPStatusCode() int }
	return errors.As(err, &status) && (status.HTTPStatusCode() == 501 || status.HTTPStatusCode() == 404 && apiCode(err) == "UnknownError")
}
