package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// zones that the group of a new stack is over.
const zones = 2

// network sets VpcId and Subnets of a new stack to the default VPC's, where
// the template has these parameters and neither is set.
func (s *Stack) network(ctx context.Context, known map[string]Parameter, set map[string]string) error {
	_, vpc := known["VpcId"]
	_, subnets := known["Subnets"]
	switch {
	case !vpc || !subnets, set["VpcId"] != "" && set["Subnets"] != "":
		return nil
	case set["VpcId"] != "" || set["Subnets"] != "":
		return fmt.Errorf("%w: VpcId and Subnets belong together: give both with --set, or neither for the default VPC", ErrRequest)
	}
	vpcs, err := s.Clients.EC2.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{Filters: []ec2types.Filter{{Name: aws.String("is-default"), Values: []string{"true"}}}})
	if err != nil {
		return fmt.Errorf("describe VPCs: %w", err)
	}
	if len(vpcs.Vpcs) == 0 {
		return fmt.Errorf("%w: the region has no default VPC: name one with --set VpcId=ID and --set Subnets=ID,ID", ErrRequest)
	}
	id := aws.ToString(vpcs.Vpcs[0].VpcId)
	out, err := s.Clients.EC2.DescribeSubnets(ctx, &ec2.DescribeSubnetsInput{Filters: []ec2types.Filter{
		{Name: aws.String("vpc-id"), Values: []string{id}}, {Name: aws.String("default-for-az"), Values: []string{"true"}},
	}})
	if err != nil {
		return fmt.Errorf("describe subnets of %s: %w", id, err)
	}
	slices.SortFunc(out.Subnets, func(a, b ec2types.Subnet) int {
		return cmp.Compare(aws.ToString(a.AvailabilityZone), aws.ToString(b.AvailabilityZone))
	})
	var chosen []string // the default subnets are one a zone
	for _, n := range out.Subnets[:min(zones, len(out.Subnets))] {
		chosen = append(chosen, aws.ToString(n.SubnetId))
	}
	if len(chosen) < zones {
		return fmt.Errorf("%w: the default VPC %s has default subnets in %d zones, not %d: name one with --set VpcId=ID and --set Subnets=ID,ID", ErrRequest, id, len(chosen), zones)
	}
	set["VpcId"], set["Subnets"] = id, strings.Join(chosen, ",")
	s.tell("a new stack: in the default VPC %s, subnets %s", id, set["Subnets"])
	return nil
}

// The widest ranges that may reach ssh: the largest that one registry gives to
// one network. What is wider is the internet in two or four pieces.
const (
	widestIPv4 = 8
	widestIPv6 = 19
)

// SSHFrom returns the parameters that open port 22 to cidr. It refuses the
// whole internet and what comes close to it.
func SSHFrom(cidr string) (map[string]string, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil, fmt.Errorf("%w: ssh from %q: want a range as 203.0.113.0/24 or 2001:db8::/32, or one address as 203.0.113.7/32", ErrRequest, cidr)
	}
	widest, name := widestIPv4, "SshFrom"
	if p.Addr().Is6() {
		widest, name = widestIPv6, "SshFromIpv6"
	}
	if p.Addr().Is4In6() {
		return nil, fmt.Errorf("%w: ssh from %s: write it as IPv4", ErrRequest, cidr)
	}
	if p.Bits() < widest {
		return nil, fmt.Errorf("%w: ssh from %s is the internet, or a large part of it (wider than /%d): name your own network, or use lecafe connect, which needs no port", ErrRequest, cidr, widest)
	}
	set := map[string]string{"SshFrom": "", "SshFromIpv6": ""}
	set[name] = p.Masked().String()
	return set, nil
}

// Key makes the EC2 key pair name once and writes its private key to file,
// mode 0400, which must not exist. A key pair that is there already is left
// alone: AWS gives a private key out once. The key appears nowhere else.
func (s *Stack) Key(ctx context.Context, name, file string) (created bool, err error) {
	_, err = s.Clients.EC2.DescribeKeyPairs(ctx, &ec2.DescribeKeyPairsInput{KeyNames: []string{name}})
	if err == nil {
		return false, nil
	}
	if !hasCode(err, "InvalidKeyPair.NotFound") {
		return false, fmt.Errorf("describe key pair %s: %w", name, err)
	}
	// The file first: a key that cannot be written would be lost.
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if errors.Is(err, os.ErrExist) {
		return false, fmt.Errorf("%w: there is no key pair %s, but a file %s, which is not overwritten: move it away, or give another --key-file", ErrRequest, name, file)
	}
	if err != nil {
		return false, fmt.Errorf("%w: key file: %w", ErrRequest, err)
	}
	out, err := s.Clients.EC2.CreateKeyPair(ctx, &ec2.CreateKeyPairInput{KeyName: &name, KeyType: ec2types.KeyTypeEd25519,
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeKeyPair, Tags: []ec2types.Tag{{Key: aws.String(tagStack), Value: &s.Name}}}}})
	if err != nil {
		return false, errors.Join(fmt.Errorf("create key pair %s: %w", name, err), f.Close(), os.Remove(file))
	}
	_, err = f.WriteString(aws.ToString(out.KeyMaterial))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = syncDir(filepath.Dir(file))
	}
	if err != nil {
		// Nobody has the private key: the pair is of no use.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
		defer cancel()
		_, undo := s.Clients.EC2.DeleteKeyPair(ctx, &ec2.DeleteKeyPairInput{KeyName: &name})
		return false, errors.Join(fmt.Errorf("write key file %s: %w", file, err), undo, os.Remove(file))
	}
	return true, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// tagStack marks key pairs that a stack's up made; down removes them.
const tagStack = "lecafe:stack"

// removeKeys deletes the key pairs that Key made for this stack. The private
// keys' files are their owner's.
func (s *Stack) removeKeys(ctx context.Context) error {
	out, err := s.Clients.EC2.DescribeKeyPairs(ctx, &ec2.DescribeKeyPairsInput{Filters: []ec2types.Filter{{Name: aws.String("tag:" + tagStack), Values: []string{s.Name}}}})
	if err != nil {
		return fmt.Errorf("describe key pairs of stack %s: %w", s.Name, err)
	}
	for _, k := range out.KeyPairs {
		// Read back: an emulator may take no notice of the filter.
		if !slices.ContainsFunc(k.Tags, func(t ec2types.Tag) bool {
			return aws.ToString(t.Key) == tagStack && aws.ToString(t.Value) == s.Name
		}) {
			continue
		}
		if _, err := s.Clients.EC2.DeleteKeyPair(ctx, &ec2.DeleteKeyPairInput{KeyPairId: k.KeyPairId, KeyName: k.KeyName}); err != nil {
			return fmt.Errorf("delete key pair %s: %w", aws.ToString(k.KeyName), err)
		}
		s.tell("removed key pair %s", aws.ToString(k.KeyName))
	}
	return nil
}
