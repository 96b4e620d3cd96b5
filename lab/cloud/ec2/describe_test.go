package ec2_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
)

func where(pairs ...string) []types.Filter {
	var fs []types.Filter
	for i := 0; i < len(pairs); i += 2 {
		fs = append(fs, types.Filter{Name: &pairs[i], Values: strings.Split(pairs[i+1], "|")})
	}
	return fs
}

// found returns the IDs of the instances that filters find, sorted.
func (l *lab) found(fs []types.Filter) []string {
	l.Helper()
	var ids []string
	for _, r := range must(l.api.DescribeInstances(l.Context(), &sdk.DescribeInstancesInput{Filters: fs}))(l).Reservations {
		for _, i := range r.Instances {
			ids = append(ids, *i.InstanceId)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestFilters(t *testing.T) {
	l := newLab(t)
	a := l.running(func(in *sdk.RunInstancesInput) { in.TagSpecifications = tagged("instance", "role", "web-1") })
	b := l.run(func(in *sdk.RunInstancesInput) {
		in.TagSpecifications = tagged("instance", "role", "web-2")
		in.InstanceType = types.InstanceTypeT3Small
	})
	both := []string{a, b}
	slices.Sort(both)
	for _, c := range []struct {
		fs   []types.Filter
		want []string
	}{
		{where("tag:role", "web-1"), []string{a}},
		{where("tag:role", "web-*"), both},
		{where("tag:role", "web-?", "instance-type", "t3.small"), []string{b}},
		{where("tag:role", "WEB-1"), nil},
		{where("tag:role", "web"), nil},
		{where("tag-key", "role"), both},
		{where("tag:role", "web-1|web-2"), both},
		{where("instance-state-name", "pending"), []string{b}},
		{where("instance-state-code", "16"), []string{a}},
		{where("image-id", l.base, "availability-zone", "eu-central-1a"), both},
		{where("vpc-id", "vpc-none"), nil},
		{where("instance.group-name", "default"), both},
		{where("tag:aws:autoscaling:groupName", "*"), nil},
	} {
		if got := l.found(c.fs); !slices.Equal(got, c.want) {
			t.Errorf("filter %s %v found %v, want %v", *c.fs[0].Name, c.fs[0].Values, got, c.want)
		}
	}
	_, err := l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{Filters: where("colour", "blue")})
	l.code(err, "InvalidParameterValue")
	_, err = l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("image-id")}}})
	l.code(err, "InvalidParameterValue")
	_, err = l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("image-id"), Values: slices.Repeat([]string{"x"}, 201)}}})
	l.code(err, "FilterLimitExceeded")
	_, err = l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{InstanceIds: []string{"i-1"}})
	l.code(err, "InvalidInstanceID.Malformed")
}

func TestImageFilters(t *testing.T) {
	l := newLab(t)
	l.baked("cafe-1")
	evil := must(l.fake.AddImage("eu-central-1", ec2.ImageSeed{Name: "debian-12-amd64-20260102", Owner: "666666666666"}))(l)
	images := func(in *sdk.DescribeImagesInput) []string {
		var ids []string
		for _, i := range must(l.api.DescribeImages(t.Context(), in))(l).Images {
			ids = append(ids, *i.ImageId)
		}
		return ids
	}
	named := where("name", "debian-12-*", "state", "available")
	if got := images(&sdk.DescribeImagesInput{Filters: named}); !slices.Equal(got, []string{l.base, evil}) {
		t.Fatalf("without an owner: %v", got)
	}
	if got := images(&sdk.DescribeImagesInput{Filters: named, Owners: []string{"136693071363"}}); !slices.Equal(got, []string{l.base}) {
		t.Fatalf("with an owner: %v", got)
	}
	if got := images(&sdk.DescribeImagesInput{Owners: []string{"self"}}); len(got) != 1 {
		t.Fatalf("own: %v", got)
	}
	if got := images(&sdk.DescribeImagesInput{Owners: []string{"amazon"}}); len(got) != 0 {
		t.Fatalf("amazon's: %v", got)
	}
	_, err := l.api.DescribeImages(t.Context(), &sdk.DescribeImagesInput{Owners: []string{"debian"}})
	l.code(err, "InvalidUserID.Malformed")
	_, err = l.api.DescribeImages(t.Context(), &sdk.DescribeImagesInput{Filters: where("colour", "blue")})
	l.code(err, "InvalidParameterValue")
}

func TestPagination(t *testing.T) {
	l := newLab(t)
	want := map[string]bool{}
	for range 4 {
		out := must(l.api.RunInstances(t.Context(), &sdk.RunInstancesInput{ImageId: &l.base, InstanceType: "t3.micro", MinCount: aws.Int32(3), MaxCount: aws.Int32(3)}))(l)
		for _, i := range out.Instances {
			want[*i.InstanceId] = true
		}
	}
	pages := 0
	p := sdk.NewDescribeInstancesPaginator(l.api, &sdk.DescribeInstancesInput{MaxResults: aws.Int32(5)})
	for p.HasMorePages() {
		page := must(p.NextPage(t.Context()))(l)
		pages++
		n := 0
		for _, r := range page.Reservations {
			for _, i := range r.Instances {
				n++
				if !want[*i.InstanceId] {
					t.Fatalf("%s twice", *i.InstanceId)
				}
				delete(want, *i.InstanceId)
			}
		}
		if n > 5 {
			t.Fatalf("page of %d", n)
		}
	}
	if pages != 3 || len(want) != 0 {
		t.Fatalf("%d pages, %d instances missing", pages, len(want))
	}
	for _, n := range []int32{4, 1001} {
		_, err := l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{MaxResults: &n})
		l.code(err, "InvalidParameterValue")
	}
	_, err := l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{MaxResults: aws.Int32(5), NextToken: aws.String("bogus")})
	l.code(err, "InvalidNextToken")
	_, err = l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{MaxResults: aws.Int32(5), InstanceIds: []string{"i-00000000000000000"}})
	l.code(err, "InvalidParameterCombination")
}

func TestInvisible(t *testing.T) {
	l := newLab(t)
	l.fake.Invisible(5 * time.Second)
	id := l.run()
	_, err := l.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{InstanceIds: []string{id}})
	l.code(err, "InvalidInstanceID.NotFound")
	if ids := l.found(nil); len(ids) != 0 {
		t.Fatalf("listed already: %v", ids)
	}
	_, err = l.api.CreateTags(t.Context(), &sdk.CreateTagsInput{Resources: []string{id}, Tags: []types.Tag{{Key: aws.String("a"), Value: aws.String("b")}}})
	l.code(err, "InvalidInstanceID.NotFound")
	_, err = l.api.TerminateInstances(t.Context(), &sdk.TerminateInstancesInput{InstanceIds: []string{id}})
	l.code(err, "InvalidInstanceID.NotFound")
	name := aws.String("app")
	group := must(l.api.CreateSecurityGroup(t.Context(), &sdk.CreateSecurityGroupInput{GroupName: name, Description: name}))(l)
	_, err = l.api.DescribeSecurityGroups(t.Context(), &sdk.DescribeSecurityGroupsInput{GroupIds: []string{*group.GroupId}})
	l.code(err, "InvalidGroup.NotFound")
	_, err = l.api.CreateSecurityGroup(t.Context(), &sdk.CreateSecurityGroupInput{GroupName: name, Description: name})
	l.code(err, "InvalidGroup.Duplicate") // the name is taken though nobody sees it
	l.clock.Advance(5 * time.Second)
	l.state(id, types.InstanceStateNamePending)
}

func TestCapacityOfTypes(t *testing.T) {
	l := newLab(t)
	l.fake.Capacity("t3.micro", "", false)
	run := func(it types.InstanceType) error {
		_, err := l.api.RunInstances(t.Context(), &sdk.RunInstancesInput{ImageId: &l.base, InstanceType: it, MinCount: aws.Int32(1), MaxCount: aws.Int32(1)})
		return err
	}
	l.code(run("t3.micro"), "InsufficientInstanceCapacity")
	l.ok(run("t3.small"))
	l.fake.Capacity("t3.micro", "", true)
	l.ok(run("t3.micro"))
}

func TestLaunchThatFails(t *testing.T) {
	l := newLab(t)
	l.fake.FailNextLaunch("Client.VolumeLimitExceeded: Volume limit exceeded")
	id := l.run()
	l.state(id, types.InstanceStateNamePending)
	l.clock.Advance(time.Minute)
	l.state(id, types.InstanceStateNameTerminated)
	if r := l.instance(id).StateReason; *r.Code != "Client.VolumeLimitExceeded" {
		t.Fatalf("state reason %s", *r.Code)
	}
	l.running() // only the next one fails
}

func TestShutdownFromInside(t *testing.T) {
	l := newLab(t)
	stops := l.running()
	ends := l.running(func(in *sdk.RunInstancesInput) {
		in.InstanceInitiatedShutdownBehavior = types.ShutdownBehaviorTerminate
	})
	// StopInstances stops such a one all the same.
	other := l.running(func(in *sdk.RunInstancesInput) {
		in.InstanceInitiatedShutdownBehavior = types.ShutdownBehaviorTerminate
	})
	must(l.api.StopInstances(t.Context(), &sdk.StopInstancesInput{InstanceIds: []string{other}}))(l)
	l.fake.PoweredOff(stops)
	l.fake.PoweredOff(ends)
	l.state(stops, types.InstanceStateNameStopping)
	l.state(ends, types.InstanceStateNameShuttingDown)
	l.clock.Advance(time.Minute)
	l.state(stops, types.InstanceStateNameStopped)
	l.state(ends, types.InstanceStateNameTerminated)
	l.state(other, types.InstanceStateNameStopped)
	if r := l.instance(ends).StateReason; *r.Code != "Client.InstanceInitiatedShutdown" {
		t.Fatalf("state reason %s", *r.Code)
	}
}

func TestSpotOnce(t *testing.T) {
	l := newLab(t)
	id := l.running(func(in *sdk.RunInstancesInput) {
		in.InstanceMarketOptions = &types.InstanceMarketOptionsRequest{MarketType: types.MarketTypeSpot}
	})
	_, err := l.api.StopInstances(t.Context(), &sdk.StopInstancesInput{InstanceIds: []string{id}})
	l.code(err, "UnsupportedOperation")
	l.state(id, types.InstanceStateNameRunning)
}

func TestAttributes(t *testing.T) {
	l := newLab(t)
	id := l.running()
	set := func(in *sdk.ModifyInstanceAttributeInput) error {
		in.InstanceId = &id
		_, err := l.api.ModifyInstanceAttribute(t.Context(), in)
		return err
	}
	l.ok(set(&sdk.ModifyInstanceAttributeInput{InstanceInitiatedShutdownBehavior: &types.AttributeValue{Value: aws.String("terminate")}}))
	l.code(set(&sdk.ModifyInstanceAttributeInput{InstanceInitiatedShutdownBehavior: &types.AttributeValue{Value: aws.String("sleep")}}), "InvalidParameterValue")
	l.code(set(&sdk.ModifyInstanceAttributeInput{UserData: &types.SecureBlobAttributeValue{Value: []byte("x")}}), "IncorrectInstanceState")
	l.ok(set(&sdk.ModifyInstanceAttributeInput{DisableApiTermination: &types.AttributeBooleanValue{Value: aws.Bool(true)}}))
	_, err := l.api.TerminateInstances(t.Context(), &sdk.TerminateInstancesInput{InstanceIds: []string{id}})
	l.code(err, "OperationNotPermitted")
	m := must(l.api.ModifyInstanceMetadataOptions(t.Context(), &sdk.ModifyInstanceMetadataOptionsInput{InstanceId: &id, HttpTokens: types.HttpTokensStateRequired}))(l)
	if m.InstanceMetadataOptions.State != types.InstanceMetadataOptionsStatePending {
		t.Fatalf("metadata options %s", m.InstanceMetadataOptions.State)
	}
	l.clock.Advance(time.Second)
	if got := l.instance(id).MetadataOptions; got.State != types.InstanceMetadataOptionsStateApplied || got.HttpTokens != types.HttpTokensStateRequired || *got.HttpPutResponseHopLimit != 1 {
		t.Fatalf("metadata options %+v", got)
	}
	_, err = l.api.ModifyInstanceMetadataOptions(t.Context(), &sdk.ModifyInstanceMetadataOptionsInput{InstanceId: &id, HttpPutResponseHopLimit: aws.Int32(65)})
	l.code(err, "InvalidParameterValue")
}

func TestConsoleAndStatus(t *testing.T) {
	l := newLab(t)
	id := l.running()
	status := func() types.InstanceStatus {
		return must(l.api.DescribeInstanceStatus(t.Context(), &sdk.DescribeInstanceStatusInput{InstanceIds: []string{id}}))(l).InstanceStatuses[0]
	}
	if s := status().InstanceStatus.Status; s != types.SummaryStatusInitializing {
		t.Fatalf("status %s", s)
	}
	l.clock.Advance(2 * time.Minute)
	if s := status().InstanceStatus.Status; s != types.SummaryStatusOk {
		t.Fatalf("status %s", s)
	}
	l.fake.Impair(id, true)
	if s := status(); s.InstanceStatus.Status != types.SummaryStatusImpaired || s.SystemStatus.Status != types.SummaryStatusOk {
		t.Fatalf("instance %s, system %s", s.InstanceStatus.Status, s.SystemStatus.Status)
	}
	l.fake.SetConsole(id, []byte(strings.Repeat("x", 70<<10)+"END"))
	out := must(l.api.GetConsoleOutput(t.Context(), &sdk.GetConsoleOutputInput{InstanceId: &id, Latest: aws.Bool(true)}))(l)
	if n := len(*out.Output); n != (65536+2)/3*4 || !strings.HasPrefix(*out.Output, "eHh4") {
		t.Fatalf("console output of %d characters", n)
	}
	old := l.run(func(in *sdk.RunInstancesInput) { in.InstanceType = types.InstanceTypeT2Micro })
	_, err := l.api.GetConsoleOutput(t.Context(), &sdk.GetConsoleOutputInput{InstanceId: &old, Latest: aws.Bool(true)})
	l.code(err, "UnsupportedOperation")
	if all := must(l.api.DescribeInstanceStatus(t.Context(), &sdk.DescribeInstanceStatusInput{}))(l); len(all.InstanceStatuses) != 1 {
		t.Fatalf("%d statuses: pending ones are left out", len(all.InstanceStatuses))
	}
	if all := must(l.api.DescribeInstanceStatus(t.Context(), &sdk.DescribeInstanceStatusInput{IncludeAllInstances: aws.Bool(true)}))(l); len(all.InstanceStatuses) != 2 {
		t.Fatalf("%d statuses of all", len(all.InstanceStatuses))
	}
}

func TestTags(t *testing.T) {
	l := newLab(t)
	id := l.run()
	put := func(key, value string) error {
		_, err := l.api.CreateTags(t.Context(), &sdk.CreateTagsInput{Resources: []string{id}, Tags: []types.Tag{{Key: &key, Value: &value}}})
		return err
	}
	l.ok(put("a", "1"))
	l.ok(put("a", "2"))
	l.ok(put("b", ""))
	if got := tags(l.instance(id).Tags); got["a"] != "2" || len(got) != 2 {
		t.Fatalf("tags %v", got)
	}
	l.code(put("aws:x", "1"), "InvalidParameterValue")
	l.code(put(strings.Repeat("k", 129), "1"), "InvalidParameterValue")
	_, err := l.api.CreateTags(t.Context(), &sdk.CreateTagsInput{Resources: []string{"i-00000000000000000"}, Tags: []types.Tag{{Key: aws.String("a"), Value: aws.String("b")}}})
	l.code(err, "InvalidInstanceID.NotFound")
	d := must(l.api.DescribeTags(t.Context(), &sdk.DescribeTagsInput{Filters: where("resource-id", id, "key", "a")}))(l)
	if len(d.Tags) != 1 || *d.Tags[0].Value != "2" || d.Tags[0].ResourceType != types.ResourceTypeInstance {
		t.Fatalf("described %+v", d.Tags)
	}
	for _, n := range []int32{-1, 4, 1001} {
		_, err = l.api.DescribeTags(t.Context(), &sdk.DescribeTagsInput{MaxResults: &n})
		l.code(err, "InvalidParameterValue")
	}
	// A token from nowhere, larger than any position.
	_, err = l.api.DescribeTags(t.Context(), &sdk.DescribeTagsInput{NextToken: aws.String("YWZ0ZXI6M3c1ZTExMjY0c2dzZg")})
	l.code(err, "InvalidNextToken")
	del := func(tag types.Tag) {
		must(l.api.DeleteTags(t.Context(), &sdk.DeleteTagsInput{Resources: []string{id}, Tags: []types.Tag{tag}}))(l)
	}
	del(types.Tag{Key: aws.String("a"), Value: aws.String("other")}) // another value: stays
	del(types.Tag{Key: aws.String("b")})
	if got := tags(l.instance(id).Tags); got["a"] != "2" || len(got) != 1 {
		t.Fatalf("tags %v", got)
	}
	for n := range 49 {
		l.ok(put(fmt.Sprint("n", n), ""))
	}
	l.code(put("one-more", ""), "TagLimitExceeded")
}

func TestSecurityGroups(t *testing.T) {
	l := newLab(t)
	create := func(name string) (string, error) {
		out, err := l.api.CreateSecurityGroup(t.Context(), &sdk.CreateSecurityGroupInput{GroupName: &name, Description: &name, TagSpecifications: tagged("security-group", "a", "b")})
		if err != nil {
			return "", err
		}
		return *out.GroupId, nil
	}
	app := must(create("app"))(l)
	alb := must(create("alb"))(l)
	_, err := create("app")
	l.code(err, "InvalidGroup.Duplicate")
	_, err = create("sg-x")
	l.code(err, "InvalidParameterValue")
	from := []types.IpPermission{{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(80), ToPort: aws.Int32(80), UserIdGroupPairs: []types.UserIdGroupPair{{GroupId: &alb}}}}
	must(l.api.AuthorizeSecurityGroupIngress(t.Context(), &sdk.AuthorizeSecurityGroupIngressInput{GroupId: &app, IpPermissions: from}))(l)
	_, err = l.api.AuthorizeSecurityGroupIngress(t.Context(), &sdk.AuthorizeSecurityGroupIngressInput{GroupId: &app, IpPermissions: from})
	l.code(err, "InvalidPermission.Duplicate")
	_, err = l.api.AuthorizeSecurityGroupIngress(t.Context(), &sdk.AuthorizeSecurityGroupIngressInput{GroupId: &app, IpPermissions: []types.IpPermission{{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(1), ToPort: aws.Int32(2), IpRanges: []types.IpRange{{CidrIp: aws.String("everywhere")}}}}})
	l.code(err, "InvalidParameterValue")
	_, err = l.api.DeleteSecurityGroup(t.Context(), &sdk.DeleteSecurityGroupInput{GroupId: &alb})
	l.code(err, "DependencyViolation")
	got := must(l.api.DescribeSecurityGroups(t.Context(), &sdk.DescribeSecurityGroupsInput{Filters: where("ip-permission.group-id", alb)}))(l).SecurityGroups
	if len(got) != 1 || *got[0].GroupId != app || *got[0].IpPermissions[0].UserIdGroupPairs[0].GroupId != alb || len(got[0].IpPermissionsEgress) != 1 {
		t.Fatalf("groups %+v", got)
	}
	must(l.api.RevokeSecurityGroupIngress(t.Context(), &sdk.RevokeSecurityGroupIngressInput{GroupId: &app, IpPermissions: from}))(l)
	_, err = l.api.RevokeSecurityGroupIngress(t.Context(), &sdk.RevokeSecurityGroupIngressInput{GroupId: &app, IpPermissions: from})
	l.code(err, "InvalidPermission.NotFound")
	must(l.api.DeleteSecurityGroup(t.Context(), &sdk.DeleteSecurityGroupInput{GroupId: &alb}))(l)
	id := l.running(func(in *sdk.RunInstancesInput) { in.SecurityGroupIds = []string{app} })
	_, err = l.api.DeleteSecurityGroup(t.Context(), &sdk.DeleteSecurityGroupInput{GroupId: &app})
	l.code(err, "DependencyViolation")
	must(l.api.TerminateInstances(t.Context(), &sdk.TerminateInstancesInput{InstanceIds: []string{id}}))(l)
	_, err = l.api.DeleteSecurityGroup(t.Context(), &sdk.DeleteSecurityGroupInput{GroupId: &app})
	l.code(err, "DependencyViolation") // not before it is terminated
	l.clock.Advance(time.Minute)
	must(l.api.DeleteSecurityGroup(t.Context(), &sdk.DeleteSecurityGroupInput{GroupId: &app}))(l)
}

func TestKeyPairs(t *testing.T) {
	l := newLab(t)
	for _, kind := range []types.KeyType{types.KeyTypeEd25519, types.KeyTypeRsa} {
		name := string(kind)
		out := must(l.api.CreateKeyPair(t.Context(), &sdk.CreateKeyPairInput{KeyName: &name, KeyType: kind}))(l)
		if !strings.Contains(*out.KeyMaterial, "PRIVATE KEY") {
			t.Fatalf("key material %q", *out.KeyMaterial)
		}
		_, err := l.api.CreateKeyPair(t.Context(), &sdk.CreateKeyPairInput{KeyName: &name})
		l.code(err, "InvalidKeyPair.Duplicate")
	}
	id := l.run(func(in *sdk.RunInstancesInput) { in.KeyName = aws.String("ed25519") })
	if info, _ := l.fake.Instance(id); !strings.HasPrefix(info.PublicKey, "ssh-ed25519 ") {
		t.Fatalf("public key %q", info.PublicKey)
	}
	_, err := l.api.ImportKeyPair(t.Context(), &sdk.ImportKeyPairInput{KeyName: aws.String("x"), PublicKeyMaterial: []byte("not a key")})
	l.code(err, "InvalidKey.Format")
	_, err = l.api.DescribeKeyPairs(t.Context(), &sdk.DescribeKeyPairsInput{KeyNames: []string{"none"}})
	l.code(err, "InvalidKeyPair.NotFound")
	must(l.api.DeleteKeyPair(t.Context(), &sdk.DeleteKeyPairInput{KeyName: aws.String("rsa")}))(l)
	must(l.api.DeleteKeyPair(t.Context(), &sdk.DeleteKeyPairInput{KeyName: aws.String("rsa")}))(l)
	if left := must(l.api.DescribeKeyPairs(t.Context(), &sdk.DescribeKeyPairsInput{}))(l); len(left.KeyPairs) != 1 {
		t.Fatalf("%d key pairs left", len(left.KeyPairs))
	}
}

func TestNetwork(t *testing.T) {
	l := newLab(t)
	vpcs := must(l.api.DescribeVpcs(t.Context(), &sdk.DescribeVpcsInput{Filters: where("is-default", "true")}))(l).Vpcs
	if len(vpcs) != 1 {
		t.Fatalf("%d default VPCs", len(vpcs))
	}
	subnets := must(l.api.DescribeSubnets(t.Context(), &sdk.DescribeSubnetsInput{Filters: where("vpc-id", *vpcs[0].VpcId)}))(l).Subnets
	if len(subnets) != 3 || *subnets[0].AvailableIpAddressCount != 4091 {
		t.Fatalf("%d subnets, %d addresses", len(subnets), *subnets[0].AvailableIpAddressCount)
	}
	zones := must(l.api.DescribeAvailabilityZones(t.Context(), &sdk.DescribeAvailabilityZonesInput{}))(l).AvailabilityZones
	if len(zones) != 3 || *zones[2].ZoneId != "euc1-az3" {
		t.Fatalf("zones %+v", zones)
	}
	routes := must(l.api.DescribeRouteTables(t.Context(), &sdk.DescribeRouteTablesInput{Filters: where("vpc-id", *vpcs[0].VpcId)}))(l).RouteTables
	if len(routes) != 1 || len(routes[0].Routes) != 2 {
		t.Fatalf("route tables %+v", routes)
	}
	id := l.run(func(in *sdk.RunInstancesInput) { in.SubnetId = subnets[1].SubnetId })
	nics := must(l.api.DescribeNetworkInterfaces(t.Context(), &sdk.DescribeNetworkInterfacesInput{Filters: where("attachment.instance-id", id)}))(l).NetworkInterfaces
	if len(nics) != 1 || *nics[0].SubnetId != *subnets[1].SubnetId || *nics[0].PrivateIpAddress != *l.instance(id).PrivateIpAddress {
		t.Fatalf("interfaces %+v", nics)
	}
	must(l.api.CreateTags(t.Context(), &sdk.CreateTagsInput{Resources: []string{*nics[0].NetworkInterfaceId}, Tags: []types.Tag{{Key: aws.String("a"), Value: aws.String("b")}}}))(l)
	nics = must(l.api.DescribeNetworkInterfaces(t.Context(), &sdk.DescribeNetworkInterfacesInput{Filters: where("tag:a", "b")}))(l).NetworkInterfaces
	if len(nics) != 1 || *nics[0].Attachment.InstanceId != id {
		t.Fatalf("interfaces with the tag: %+v", nics)
	}
	must(l.api.TerminateInstances(t.Context(), &sdk.TerminateInstancesInput{InstanceIds: []string{id}}))(l)
	l.clock.Advance(time.Minute)
	_, gone := l.api.DescribeNetworkInterfaces(t.Context(), &sdk.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{*nics[0].NetworkInterfaceId}})
	l.code(gone, "InvalidNetworkInterfaceID.NotFound")
	_, err := l.api.DescribeRegions(t.Context(), &sdk.DescribeRegionsInput{RegionNames: []string{"moon-1"}})
	l.code(err, "InvalidParameterValue")
	// A private subnet gives no public address, and a full one no more.
	small := must(l.fake.AddSubnet("eu-central-1", "eu-central-1b", "10.9.0.0/28"))(l)
	run := func(min, max int32) (*sdk.RunInstancesOutput, error) {
		return l.api.RunInstances(t.Context(), &sdk.RunInstancesInput{ImageId: &l.base, InstanceType: "t3.micro", MinCount: &min, MaxCount: &max, SubnetId: &small})
	}
	out := must(run(1, 20))(l)
	if len(out.Instances) != 11 || out.Instances[0].PublicIpAddress != nil {
		t.Fatalf("%d instances in a /28, public %v", len(out.Instances), out.Instances[0].PublicIpAddress)
	}
	_, err = run(1, 1)
	l.code(err, "InsufficientFreeAddressesInSubnet")
}

func TestInstanceTypes(t *testing.T) {
	l := newLab(t)
	out := must(l.api.DescribeInstanceTypes(t.Context(), &sdk.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{"t4g.small"}}))(l)
	if it := out.InstanceTypes[0]; it.ProcessorInfo.SupportedArchitectures[0] != types.ArchitectureTypeArm64 || *it.MemoryInfo.SizeInMiB != 2048 || *it.VCpuInfo.DefaultVCpus != 2 {
		t.Fatalf("t4g.small: %+v", it)
	}
	_, err := l.api.DescribeInstanceTypes(t.Context(), &sdk.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{"t9.huge"}})
	l.code(err, "InvalidInstanceType")
	off := must(l.api.DescribeInstanceTypeOfferings(t.Context(), &sdk.DescribeInstanceTypeOfferingsInput{LocationType: types.LocationTypeAvailabilityZone, Filters: where("instance-type", "m7i.large")}))(l)
	if len(off.InstanceTypeOfferings) != 3 {
		t.Fatalf("%d offerings", len(off.InstanceTypeOfferings))
	}
}

func TestProfiles(t *testing.T) {
	l := newLab(t)
	l.fake.PutInstanceProfile("app", "app-role")
	id := l.running(func(in *sdk.RunInstancesInput) {
		in.IamInstanceProfile = &types.IamInstanceProfileSpecification{Name: aws.String("app")}
	})
	out := must(l.api.DescribeIamInstanceProfileAssociations(t.Context(), &sdk.DescribeIamInstanceProfileAssociationsInput{Filters: where("instance-id", id)}))(l)
	if len(out.IamInstanceProfileAssociations) != 1 {
		t.Fatalf("%d associations", len(out.IamInstanceProfileAssociations))
	}
	first, _ := l.fake.Instance(id)
	if want := l.vault.RoleID("app-role") + ":" + id; first.Credentials.Caller.UserID != want {
		t.Fatalf("user ID %q, want %q", first.Credentials.Caller.UserID, want)
	}
	l.clock.Advance(4 * time.Hour)
	if same, _ := l.fake.Instance(id); same.Credentials.AccessKeyID != first.Credentials.AccessKeyID {
		t.Fatal("credentials changed with two hours left")
	}
	l.clock.Advance(90 * time.Minute)
	next, _ := l.fake.Instance(id)
	if next.Credentials.AccessKeyID == first.Credentials.AccessKeyID || !l.clock.Now().Before(first.Credentials.Expiration) {
		t.Fatal("no new credentials before the old expired")
	}
	bare := l.running()
	if info, _ := l.fake.Instance(bare); info.RoleName != "" || info.Credentials.AccessKeyID != "" {
		t.Fatal("credentials without a profile")
	}
}

func TestUnsupported(t *testing.T) {
	l := newLab(t)
	_, err := l.api.CreateNatGateway(t.Context(), &sdk.CreateNatGatewayInput{SubnetId: aws.String("subnet-1")})
	l.code(err, "UnsupportedOperation")
	if !strings.Contains(err.Error(), "CreateNatGateway") {
		t.Fatalf("error does not name the action: %v", err)
	}
}
