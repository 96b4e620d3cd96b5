package bake

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/bake/manifest"
)

// network makes the temporary security group, unless the recipe names groups.
// A group without rules lets nothing in; EC2 lets everything out by default.
func (b *bake) network(ctx context.Context) error {
	if len(b.recipe.Builder.SecurityGroups) > 0 || b.store.known().Group != "" {
		return nil
	}
	name := "lecafe-" + b.id
	find := func() (string, error) {
		out, err := b.ec2.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{Filters: append(byTag(tagBake, b.id), types.Filter{Name: aws.String("group-name"), Values: []string{name}})})
		if err != nil {
			return "", fmt.Errorf("look for security group %s: %w", name, err)
		}
		if len(out.SecurityGroups) == 0 {
			return "", nil
		}
		return aws.ToString(out.SecurityGroups[0].GroupId), nil
	}
	if b.resumed {
		if id, err := find(); err != nil || id != "" {
			b.store.learn(func(f *facts) { f.Group = id })
			return err
		}
	}
	vpc, err := b.vpc(ctx)
	if err != nil {
		return err
	}
	if err := b.store.intend(ctx, "CreateSecurityGroup", name); err != nil {
		return err
	}
	out, err := b.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{
		GroupName: &name, VpcId: vpc, Description: aws.String("lecafe builder: nothing comes in"),
		TagSpecifications: []types.TagSpecification{tagSpec(types.ResourceTypeSecurityGroup, b.tags())},
	})
	id := ""
	switch {
	case isCode(err, "InvalidGroup.Duplicate"):
		// The answer to our own call was lost.
		began := b.now()
		err = b.pace.until(ctx, func() (done bool, err error) {
			if id, err = find(); err == nil && id == "" {
				err = b.tooLate(began, "a security group of this name and bake")
			}
			return id != "", err
		})
	case isCode(err, "VPCIdNotSpecified"):
		return fmt.Errorf("create security group %s: there is no default VPC in %s; set builder.subnets in the recipe: %w", name, b.cfg.Region, err)
	case err == nil:
		id = aws.ToString(out.GroupId)
	}
	if err != nil {
		return fmt.Errorf("create security group %s: %w", name, err)
	}
	b.store.learn(func(f *facts) { f.Group = id })
	return nil
}

// vpc is the VPC of the builder's subnets; nil stands for the default one.
func (b *bake) vpc(ctx context.Context) (*string, error) {
	if len(b.recipe.Builder.Subnets) == 0 {
		return nil, nil
	}
	out, err := b.ec2.DescribeSubnets(ctx, &ec2.DescribeSubnetsInput{SubnetIds: b.recipe.Builder.Subnets})
	if err != nil {
		return nil, fmt.Errorf("describe the builder's subnets: %w", err)
	}
	var vpc *string
	for _, s := range out.Subnets {
		if vpc != nil && *vpc != aws.ToString(s.VpcId) {
			return nil, errors.New("the builder's subnets are in different VPCs; name security groups in the recipe, or subnets of one VPC")
		}
		vpc = s.VpcId
	}
	return vpc, nil
}

// noCapacity are the errors after which the next subnet or type is tried.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
var noCapacity = []string{
	"InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientReservedInstanceCapacity", "Unsupported", "InstanceLimitExceeded",
	"VcpuLimitExceeded", "InsufficientFreeAddressesInSubnet", "MaxSpotInstanceCountExceeded",
}

// launch starts the builder: the first instance type and subnet that has
// capacity. Each attempt has a client token of its own, so that a lost answer
// never makes two builders.
func (b *bake) launch(ctx context.Context, userData []byte) error {
	if b.store.known().Instance != "" {
		return nil
	}
	subnets := b.recipe.Builder.Subnets
	if len(subnets) == 0 {
		subnets = []string{""}
	}
	types := b.recipe.Builder.InstanceTypes
	attempts := len(types) * len(subnets)
	var last error
	for first := true; ; first = false {
		n := b.store.known().Attempt
		if n >= attempts {
			return fmt.Errorf("launch builder: no capacity in any of %d combinations of instance type and subnet: %w; add builder.instance_types or builder.subnets", attempts, last)
		}
		instanceType, subnet := types[n/len(subnets)], subnets[n%len(subnets)]
		id, err := b.launchOne(ctx, instanceType, subnet, userData, b.token(n), b.resumed && first)
		if err == nil {
			b.store.learn(func(f *facts) { f.Instance = id })
			return nil
		}
		if !isCode(err, noCapacity...) {
			return fmt.Errorf("launch builder (%s%s): %w", instanceType, cmp.Or(" in "+subnet, ""), err)
		}
		b.warn("%s cannot be launched%s: %s; trying the next", instanceType, strings.TrimSuffix(" in "+subnet, " in "), code(err))
		last = err
		b.store.learn(func(f *facts) { f.Attempt = n + 1 })
	}
}

func (b *bake) token(attempt int) string { return fmt.Sprintf("%s-%d", b.id, attempt) }

func (b *bake) launchOne(ctx context.Context, instanceType, subnet string, userData []byte, token string, look bool) (string, error) {
	find := func() (string, error) { return b.instanceByToken(ctx, token) }
	if look {
		if id, err := find(); err != nil || id != "" {
			return id, err
		}
	}
	known := b.store.known()
	tags := b.tags(b.recipe.Builder.Tags, map[string]string{tagRole: "builder", "Name": "lecafe builder: " + b.recipe.Name})
	volumeTags := maps.Clone(tags)
	in := &ec2.RunInstancesInput{
		ImageId: &known.SourceImage, InstanceType: types.InstanceType(instanceType), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), ClientToken: &token,
		UserData:                          aws.String(base64.StdEncoding.EncodeToString(userData)),
		InstanceInitiatedShutdownBehavior: types.ShutdownBehaviorTerminate,
		MetadataOptions: &types.InstanceMetadataOptionsRequest{
			HttpTokens: types.HttpTokensStateRequired, HttpEndpoint: types.InstanceMetadataEndpointStateEnabled, HttpPutResponseHopLimit: aws.Int32(1),
		},
		TagSpecifications:   []types.TagSpecification{tagSpec(types.ResourceTypeInstance, tags), tagSpec(types.ResourceTypeVolume, volumeTags)},
		BlockDeviceMappings: b.volumes(known.RootDevice),
	}
	if p := b.recipe.Builder.InstanceProfile; strings.HasPrefix(p, "arn:") {
		in.IamInstanceProfile = &types.IamInstanceProfileSpecification{Arn: &p}
	} else if p != "" {
		in.IamInstanceProfile = &types.IamInstanceProfileSpecification{Name: &p}
	}
	groups := b.recipe.Builder.SecurityGroups
	if known.Group != "" {
		groups = []string{known.Group}
	}
	if public := b.recipe.Builder.AssociatePublicIP; public != nil {
		// A public address is a matter of the interface, and then so are the
		// subnet and the groups.
		nic := types.InstanceNetworkInterfaceSpecification{DeviceIndex: aws.Int32(0), AssociatePublicIpAddress: public, Groups: groups, DeleteOnTermination: aws.Bool(true)}
		if subnet != "" {
			nic.SubnetId = &subnet
		}
		in.NetworkInterfaces = []types.InstanceNetworkInterfaceSpecification{nic}
	} else {
		in.SecurityGroupIds = groups
		if subnet != "" {
			in.SubnetId = &subnet
		}
	}
	if err := b.store.intend(ctx, "RunInstances", token); err != nil {
		return "", err
	}
	var out *ec2.RunInstancesOutput
	run := func() (err error) { out, err = b.ec2.RunInstances(ctx, in); return err }
	// A group made a moment ago may not be known yet.
	err := b.pace.visible(ctx, "InvalidGroup.NotFound", run)
	if isCode(err, "IdempotentParameterMismatch") {
		// The token was used by this bake before, with URLs signed earlier:
		// the instance exists, or soon shows.
		id, began := "", b.now()
		err := b.pace.until(ctx, func() (done bool, err error) {
			if id, err = find(); err == nil && id == "" {
				err = b.tooLate(began, "the builder that client token "+token+" was used for")
			}
			return id != "", err
		})
		return id, err
	}
	if err != nil {
		return "", err
	}
	return aws.ToString(out.Instances[0].InstanceId), nil
}

func (b *bake) instanceByToken(ctx context.Context, token string) (string, error) {
	out, err := b.ec2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("client-token"), Values: []string{token}}}})
	if err != nil {
		return "", fmt.Errorf("look for the builder: %w", err)
	}
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			if aws.ToString(i.ClientToken) == token {
				return aws.ToString(i.InstanceId), nil
			}
		}
	}
	return "", nil
}

// volumes are the builder's block devices: the recipe's changes to the root
// volume, its further volumes, and encryption, which the image inherits.
func (b *bake) volumes(root string) []types.BlockDeviceMapping {
	im := b.recipe.Image
	ebs := func(v ebsVolume) *types.EbsBlockDevice {
		d := &types.EbsBlockDevice{DeleteOnTermination: aws.Bool(true), VolumeType: types.VolumeType(v.Type)}
		if v.Size > 0 {
			d.VolumeSize = aws.Int32(v.Size)
		}
		if v.IOPS > 0 {
			d.Iops = aws.Int32(v.IOPS)
		}
		if v.Throughput > 0 {
			d.Throughput = aws.Int32(v.Throughput)
		}
		if e := im.Encryption; e != nil {
			d.Encrypted = aws.Bool(true)
			if e.KMSKey != "" {
				d.KmsKeyId = aws.String(e.KMSKey)
			}
		}
		return d
	}
	var out []types.BlockDeviceMapping
	if (im.Volume != ebsVolume{}) || im.Encryption != nil {
		out = append(out, types.BlockDeviceMapping{DeviceName: aws.String(cmp.Or(root, "/dev/xvda")), Ebs: ebs(im.Volume)})
	}
	for _, v := range im.Volumes {
		out = append(out, types.BlockDeviceMapping{DeviceName: aws.String(v.Device), Ebs: ebs(v)})
	}
	return out
}

// userData returns the builder's.
func (b *bake) userData(url string) ([]byte, error) {
	return manifest.UserData(b.boot(url, b.store.known().Deadline))
}

func (b *bake) boot(url string, deadline time.Time) manifest.Boot {
	return manifest.Boot{URL: url, Deadline: deadline, Proxy: b.recipe.Builder.Proxy, NoProxy: b.recipe.Builder.NoProxy, CABundle: []byte(b.store.known().CA)}
}

// describeInstance returns one instance; gone ones too.
func (b *bake) describeInstance(ctx context.Context, id string) (*types.Instance, error) {
	out, err := b.ec2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
	if err != nil {
		return nil, err
	}
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			return &i, nil
		}
	}
	return nil, nil
}

// waitInstances asks until each of the instances has one of the states. fresh
// says that this process has just told them to change. It returns the state of
// the last one asked about; one that EC2 does not know (not visible yet, or
// gone for an hour) counts as terminated.
func (b *bake) waitInstances(ctx context.Context, ids []string, limit time.Duration, fresh bool, states ...types.InstanceStateName) (types.InstanceStateName, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s not %s after %s", strings.Join(ids, ", "), states[0], limit))
	defer cancel()
	got := types.InstanceStateNameTerminated
	// By a filter: an unknown ID in a list would hide the others.
	in := &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("instance-id"), Values: ids}}}
	err := b.pace.await(ctx, fresh, nil, func() (bool, error) {
		out, err := b.ec2.DescribeInstances(ctx, in)
		if err != nil {
			return false, err
		}
		known := 0
		for _, r := range out.Reservations {
			for _, i := range r.Instances {
				if i.State == nil {
					continue
				}
				known++
				if got = i.State.Name; !slices.Contains(states, got) {
					return false, nil
				}
			}
		}
		return known == len(ids) || states[0] == types.InstanceStateNameTerminated, nil
	})
	return got, err
}
