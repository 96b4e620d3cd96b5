package audit

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/smithy-go"
	"golang.org/x/sync/errgroup"
)

// Region is what the checks look at.
type Region struct {
	Name       string
	Groups     []ec2types.SecurityGroup
	Interfaces []ec2types.NetworkInterface
	Instances  []ec2types.Instance
	Templates  []Template
	Images     []ec2types.Image // owned, and those that instances run
	Snapshots  []ec2types.Snapshot
	Volumes    []ec2types.Volume
	Scaling    []astypes.AutoScalingGroup
	Profiles   []Profile

	// With whom an image or snapshot is shared, by its ID: account IDs, ARNs
	// of organizations, or "all".
	ImageShares    map[string][]string
	SnapshotShares map[string][]string
	// Unread says which parts an emulator or a missing permission kept back.
	Unread []string

	own  map[string]bool // IDs of the account's own images
	opts Options
}

// Template is a launch template with the versions that count: the default
// one, the latest one and those that groups use.
type Template struct {
	ec2types.LaunchTemplate
	Versions []ec2types.LaunchTemplateVersion
}

// Profile is an instance profile that instances or templates name, with the
// policies of its role.
type Profile struct {
	Name     string
	Policies map[string]PolicyDocument // by name
}

// PolicyDocument is as much of an IAM policy as the check needs.
type PolicyDocument struct {
	Statement statements `json:"Statement"`
}

type statement struct {
	Effect   string `json:"Effect"`
	Action   words  `json:"Action"`
	Resource words  `json:"Resource"`
}

// IAM allows one object for a list of one, in both places.
type (
	statements []statement
	words      []string
)

func (s *statements) UnmarshalJSON(b []byte) error { return oneOrMany((*[]statement)(s), b) }
func (w *words) UnmarshalJSON(b []byte) error      { return oneOrMany((*[]string)(w), b) }

func oneOrMany[T any](into *[]T, b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, into)
	}
	var one T
	if err := json.Unmarshal(b, &one); err != nil {
		return err
	}
	*into = []T{one}
	return nil
}

// ParsePolicy reads an IAM policy document.
func ParsePolicy(text string) (PolicyDocument, error) {
	var d PolicyDocument
	err := json.Unmarshal([]byte(text), &d)
	return d, err
}

// Clients are the SDK's. IAM may be nil: then Profiles stays empty and Unread
// says so.
type Clients struct {
	EC2         *ec2.Client
	AutoScaling *autoscaling.Client
	IAM         *iam.Client
}

// pageSize is the largest that the Describe calls take.
const pageSize = 1000

// Collect reads one region. It pages through everything once; an error means
// that the audit would be incomplete, except for what Unread names.
func Collect(ctx context.Context, region string, c Clients) (*Region, error) {
	r := &Region{Name: region, ImageShares: map[string][]string{}, SnapshotShares: map[string][]string{}, own: map[string]bool{}}
	g, gctx := errgroup.WithContext(ctx)
	// Each goroutine fills a field of its own.
	g.Go(func() error { return r.securityGroups(gctx, c.EC2) })
	g.Go(func() error { return r.interfaces(gctx, c.EC2) })
	g.Go(func() error { return r.instances(gctx, c.EC2) })
	g.Go(func() error { return r.volumes(gctx, c.EC2) })
	g.Go(func() error { return r.snapshots(gctx, c.EC2) })
	g.Go(func() error { return r.scaling(gctx, c.AutoScaling) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := r.templates(ctx, c.EC2); err != nil {
		return nil, err
	}
	if err := r.images(ctx, c.EC2); err != nil {
		return nil, err
	}
	if err := r.shares(ctx, c.EC2); err != nil {
		return nil, err
	}
	if c.IAM == nil {
		r.Unread = append(r.Unread, "instance profiles")
		return r, nil
	}
	return r, r.profiles(ctx, c.IAM)
}

func (r *Region) securityGroups(ctx context.Context, c *ec2.Client) error {
	p := ec2.NewDescribeSecurityGroupsPaginator(c, &ec2.DescribeSecurityGroupsInput{MaxResults: aws.Int32(pageSize)})
	for p.HasMorePages() {
		out, err := p.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("describe security groups: %w", err)
		}
		r.Groups = append(r.Groups, out.SecurityGroups...)
	}
	return nil
}

func (r *Region) interfaces(ctx context.Context, c *ec2.Client) error {
	p := ec2.NewDescribeNetworkInterfacesPaginator(c, &ec2.DescribeNetworkInterfacesInput{MaxResults: aws.Int32(pageSize)})
	for p.HasMorePages() {
		out, err := p.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("describe network interfaces: %w", err)
		}
		r.Interfaces = append(r.Interfaces, out.NetworkInterfaces...)
	}
	return nil
}

func (r *Region) instances(ctx context.Context, c *ec2.Client) error {
	p := ec2.NewDescribeInstancesPaginator(c, &ec2.DescribeInstancesInput{
		MaxResults: aws.Int32(pageSize),
		Filters:    []ec2types.Filter{{Name: aws.String("instance-state-name"), Values: []string{"pending", "running", "stopping", "stopped"}}},
	})
	for p.HasMorePages() {
		out, err := p.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("describe instances: %w", err)
		}
		for _, res := range out.Reservations {
			r.Instances = append(r.Instances, res.Instances...)
		}
	}
	return nil
}

func (r *Region) volumes(ctx context.Context, c *ec2.Client) error {
	p := ec2.NewDescribeVolumesPaginator(c, &ec2.DescribeVolumesInput{MaxResults: aws.Int32(pageSize)})
	for p.HasMorePages() {
		out, err := p.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("describe volumes: %w", err)
		}
		r.Volumes = append(r.Volumes, out.Volumes...)
	}
	return nil
}

func (r *Region) snapshots(ctx context.Context, c *ec2.Client) error {
	p := ec2.NewDescribeSnapshotsPaginator(c, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, MaxResults: aws.Int32(pageSize)})
	for p.HasMorePages() {
		out, err := p.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("describe snapshots: %w", err)
		}
		r.Snapshots = append(r.Snapshots, out.Snapshots...)
	}
	return nil
}

// atOnce bounds the calls that are made one a resource.
const atOnce = 8

// shares reads with whom owned images and snapshots are shared: no Describe
// call lists that, so it is one call each.
func (r *Region) shares(ctx context.Context, c *ec2.Client) error {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	add := func(into map[string][]string, id, with string) {
		mu.Lock()
		defer mu.Unlock()
		if with != "" {
			into[id] = append(into[id], with)
		}
	}
	for _, i := range r.Images {
		if !r.owned(i) {
			continue
		}
		g.Go(func() error {
			out, err := c.DescribeImageAttribute(ctx, &ec2.DescribeImageAttributeInput{ImageId: i.ImageId, Attribute: ec2types.ImageAttributeNameLaunchPermission})
			if err != nil {
				return fmt.Errorf("describe launch permissions of %s: %w", aws.ToString(i.ImageId), err)
			}
			for _, p := range out.LaunchPermissions {
				for _, with := range []string{string(p.Group), aws.ToString(p.UserId), aws.ToString(p.OrganizationArn), aws.ToString(p.OrganizationalUnitArn)} {
					add(r.ImageShares, aws.ToString(i.ImageId), with)
				}
			}
			return nil
		})
	}
	for _, s := range r.Snapshots {
		g.Go(func() error {
			out, err := c.DescribeSnapshotAttribute(ctx, &ec2.DescribeSnapshotAttributeInput{SnapshotId: s.SnapshotId, Attribute: ec2types.SnapshotAttributeNameCreateVolumePermission})
			if err != nil {
				return fmt.Errorf("describe permissions of %s: %w", aws.ToString(s.SnapshotId), err)
			}
			for _, p := range out.CreateVolumePermissions {
				add(r.SnapshotShares, aws.ToString(s.SnapshotId), string(p.Group))
				add(r.SnapshotShares, aws.ToString(s.SnapshotId), aws.ToString(p.UserId))
			}
			return nil
		})
	}
	return g.Wait()
}

// owned says that the image is the account's own.
func (r *Region) owned(i ec2types.Image) bool { return r.own[aws.ToString(i.ImageId)] }

func (r *Region) scaling(ctx context.Context, c *autoscaling.Client) error {
	p := autoscaling.NewDescribeAutoScalingGroupsPaginator(c, &autoscaling.DescribeAutoScalingGroupsInput{MaxRecords: aws.Int32(100)})
	for p.HasMorePages() {
		out, err := p.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("describe Auto Scaling groups: %w", err)
		}
		r.Scaling = append(r.Scaling, out.AutoScalingGroups...)
	}
	return nil
}

func (r *Region) templates(ctx context.Context, c *ec2.Client) error {
	used := map[string]map[string]bool{}
	for _, g := range r.Scaling {
		if s := templateOf(g); s != nil && s.LaunchTemplateId != nil {
			id := aws.ToString(s.LaunchTemplateId)
			if used[id] == nil {
				used[id] = map[string]bool{}
			}
			used[id][aws.ToString(s.Version)] = true
		}
	}
	p := ec2.NewDescribeLaunchTemplatesPaginator(c, &ec2.DescribeLaunchTemplatesInput{MaxResults: aws.Int32(200)})
	for p.HasMorePages() {
		out, err := p.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("describe launch templates: %w", err)
		}
		for _, lt := range out.LaunchTemplates {
			id := aws.ToString(lt.LaunchTemplateId)
			want := []string{"$Default", "$Latest"}
			for v := range used[id] {
				if !strings.HasPrefix(v, "$") && v != "" {
					want = append(want, v)
				}
			}
			versions, err := c.DescribeLaunchTemplateVersions(ctx, &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateId: lt.LaunchTemplateId, Versions: want})
			if err != nil {
				return fmt.Errorf("describe versions of launch template %s: %w", id, err)
			}
			t := Template{LaunchTemplate: lt}
			seen := map[int64]bool{}
			for _, v := range versions.LaunchTemplateVersions {
				if n := aws.ToInt64(v.VersionNumber); !seen[n] {
					seen[n] = true
					t.Versions = append(t.Versions, v)
				}
			}
			r.Templates = append(r.Templates, t)
		}
	}
	return nil
}

func (r *Region) images(ctx context.Context, c *ec2.Client) error {
	seen := map[string]bool{}
	add := func(in *ec2.DescribeImagesInput) error {
		p := ec2.NewDescribeImagesPaginator(c, in)
		for p.HasMorePages() {
			out, err := p.NextPage(ctx)
			if err != nil {
				return fmt.Errorf("describe images: %w", err)
			}
			for _, i := range out.Images {
				if id := aws.ToString(i.ImageId); !seen[id] {
					seen[id] = true
					r.Images = append(r.Images, i)
				}
			}
		}
		return nil
	}
	if err := add(&ec2.DescribeImagesInput{Owners: []string{"self"}, IncludeDeprecated: aws.Bool(true), IncludeDisabled: aws.Bool(true), MaxResults: aws.Int32(pageSize)}); err != nil {
		return err
	}
	for id := range seen {
		r.own[id] = true
	}
	// Images that instances run and others own. A filter, unlike ImageIds,
	// does not fail for the deregistered ones.
	var foreign []string
	for _, i := range r.Instances {
		if id := aws.ToString(i.ImageId); id != "" && !seen[id] {
			seen[id] = true
			foreign = append(foreign, id)
		}
	}
	for _, id := range foreign {
		delete(seen, id)
	}
	for len(foreign) > 0 {
		n := min(len(foreign), 200) // values a filter takes
		err := add(&ec2.DescribeImagesInput{IncludeDeprecated: aws.Bool(true), IncludeDisabled: aws.Bool(true),
			Filters: []ec2types.Filter{{Name: aws.String("image-id"), Values: foreign[:n]}}})
		if err != nil {
			return err
		}
		foreign = foreign[n:]
	}
	return nil
}

// profiles reads the policies of the profiles that instances use.
func (r *Region) profiles(ctx context.Context, c *iam.Client) error {
	names := map[string]bool{}
	for _, i := range r.Instances {
		if i.IamInstanceProfile != nil {
			names[last(aws.ToString(i.IamInstanceProfile.Arn))] = true
		}
	}
	for _, t := range r.Templates {
		for _, v := range t.Versions {
			if p := v.LaunchTemplateData.IamInstanceProfile; p != nil {
				names[cmp.Or(aws.ToString(p.Name), last(aws.ToString(p.Arn)))] = true
			}
		}
	}
	for name := range names {
		p, err := profile(ctx, c, name)
		var api smithy.APIError
		if errors.As(err, &api) && (api.ErrorCode() == "NoSuchEntity" || api.ErrorCode() == "UnsupportedOperation" || api.ErrorCode() == "AccessDenied") {
			r.Unread = append(r.Unread, "instance profile "+name+" ("+api.ErrorCode()+")")
			continue
		}
		if err != nil {
			return fmt.Errorf("read instance profile %s: %w", name, err)
		}
		r.Profiles = append(r.Profiles, p)
	}
	return nil
}

func profile(ctx context.Context, c *iam.Client, name string) (Profile, error) {
	p := Profile{Name: name, Policies: map[string]PolicyDocument{}}
	out, err := c.GetInstanceProfile(ctx, &iam.GetInstanceProfileInput{InstanceProfileName: &name})
	if err != nil {
		return p, err
	}
	add := func(name, encoded string) error {
		text, err := url.QueryUnescape(encoded) // IAM's documents are URL-encoded
		if err != nil {
			return err
		}
		d, err := ParsePolicy(text)
		if err != nil {
			return fmt.Errorf("policy %s: %w", name, err)
		}
		p.Policies[name] = d
		return nil
	}
	for _, role := range out.InstanceProfile.Roles {
		inline := iam.NewListRolePoliciesPaginator(c, &iam.ListRolePoliciesInput{RoleName: role.RoleName})
		for inline.HasMorePages() {
			page, err := inline.NextPage(ctx)
			if err != nil {
				return p, err
			}
			for _, n := range page.PolicyNames {
				doc, err := c.GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: role.RoleName, PolicyName: &n})
				if err != nil {
					return p, err
				}
				if err := add(n, aws.ToString(doc.PolicyDocument)); err != nil {
					return p, err
				}
			}
		}
		attached := iam.NewListAttachedRolePoliciesPaginator(c, &iam.ListAttachedRolePoliciesInput{RoleName: role.RoleName})
		for attached.HasMorePages() {
			page, err := attached.NextPage(ctx)
			if err != nil {
				return p, err
			}
			for _, a := range page.AttachedPolicies {
				pol, err := c.GetPolicy(ctx, &iam.GetPolicyInput{PolicyArn: a.PolicyArn})
				if err != nil {
					return p, err
				}
				v, err := c.GetPolicyVersion(ctx, &iam.GetPolicyVersionInput{PolicyArn: a.PolicyArn, VersionId: pol.Policy.DefaultVersionId})
				if err != nil {
					return p, err
				}
				if err := add(aws.ToString(a.PolicyName), aws.ToString(v.PolicyVersion.Document)); err != nil {
					return p, err
				}
			}
		}
	}
	return p, nil
}

func last(arn string) string { return arn[strings.LastIndexByte(arn, '/')+1:] }

// userData decodes a launch template's user data; nil where it is none.
func userData(v ec2types.LaunchTemplateVersion) []byte {
	if v.LaunchTemplateData == nil || v.LaunchTemplateData.UserData == nil {
		return nil
	}
	out, err := base64.StdEncoding.DecodeString(*v.LaunchTemplateData.UserData)
	if err != nil {
		return []byte(*v.LaunchTemplateData.UserData) // not base64: the linter says what that means
	}
	return out
}
