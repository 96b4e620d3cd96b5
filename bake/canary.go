package bake

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/launchtemplate"
	"github.com/lecafe/lecafe/userdata"
)

// CanaryError says that the image did not prove itself.
type CanaryError struct {
	Image string
	Err   error
}

func (e *CanaryError) Error() string {
	return fmt.Sprintf("the canary of %s failed, nothing was promoted: %v", e.Image, e.Err)
}
func (e *CanaryError) Unwrap() error { return e.Err }

// canarySub is where the canary's staging objects stand.
const canarySub = "canary"

// canary boots the new image from the launch template that production uses,
// and waits until its agent and the recipe's tests say that it works. The
// instance is in no group and behind no load balancer; its agent is told to
// send nothing but reports to S3.
func (b *bake) canary(ctx context.Context) error {
	known := b.store.known()
	if known.CanaryPassed {
		return nil
	}
	if err := b.dropCanary(ctx); err != nil {
		return err
	}
	if err := b.bootCanary(ctx); err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	known = b.store.known()
	life, err := b.urlLife(ctx)
	if err != nil {
		return err
	}
	stop := b.renew(ctx, canarySub, life)
	defer stop()
	res, err := b.follow(ctx, canarySub, known.Canary, known.CanaryDeadline)
	if err == nil {
		err = verdictOf(res)
	}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return &CanaryError{Image: known.Image, Err: err}
	}
	b.store.learn(func(f *facts) { f.CanaryPassed = true })
	return nil
}

// dropCanary removes the canary of a process that died: its URLs are old.
func (b *bake) dropCanary(ctx context.Context) error {
	if !b.resumed {
		return nil
	}
	out, err := b.ec2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: append(byTag(tagBake, b.id), types.Filter{Name: aws.String("tag:" + tagRole), Values: []string{"canary"}})})
	if err != nil {
		return fmt.Errorf("look for an earlier canary: %w", err)
	}
	var old []string
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			if b.made(&i) && (i.State == nil || i.State.Name != types.InstanceStateNameTerminated) {
				old = append(old, aws.ToString(i.InstanceId))
			}
		}
	}
	if err := b.terminate(ctx, old); err != nil {
		return err
	}
	b.store.learn(func(f *facts) { f.Canary = ""; f.CanaryTry++ })
	for _, name := range []string{progressName, resultName} { // of the earlier one
		if err := b.deleteObject(ctx, path.Join(canarySub, name)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bake) bootCanary(ctx context.Context) error {
	k := b.recipe.Canary
	var data *types.ResponseLaunchTemplateData
	if k.LaunchTemplate != "" {
		v, err := launchtemplate.Describe(ctx, b.ec2, k.LaunchTemplate, "$Default")
		if err != nil {
			return err
		}
		data = v.LaunchTemplateData
	}
	deadline := b.now().Add(k.Deadline + 10*time.Minute)
	for _, t := range k.Test {
		deadline = deadline.Add(t.Timeout)
	}
	b.store.learn(func(f *facts) { f.CanaryDeadline = deadline.UTC().Truncate(time.Second) })
	self, _, err := b.writeManifest(ctx, canarySub)
	if err != nil {
		return err
	}
	payload, err := b.canaryUserData(data, self)
	if err != nil {
		return err
	}
	template, err := b.canaryTemplate(ctx)
	if err != nil {
		return err
	}
	known := b.store.known()
	token := fmt.Sprintf("%s-canary-%d", b.id, known.CanaryTry)
	tags := b.tags(map[string]string{tagRole: "canary", "Name": "lecafe canary: " + b.recipe.Name})
	in := &ec2.RunInstancesInput{
		MinCount: aws.Int32(1), MaxCount: aws.Int32(1), ClientToken: &token, ImageId: &known.Image, LaunchTemplate: template,
		UserData:                          aws.String(base64.StdEncoding.EncodeToString(payload)),
		InstanceInitiatedShutdownBehavior: types.ShutdownBehaviorTerminate,
		DisableApiTermination:             aws.Bool(false), // the template may protect production's
		TagSpecifications:                 []types.TagSpecification{tagSpec(types.ResourceTypeInstance, tags), tagSpec(types.ResourceTypeVolume, tags)},
	}
	if k.InstanceType != "" {
		in.InstanceType = types.InstanceType(k.InstanceType)
	}
	if p := k.InstanceProfile; strings.HasPrefix(p, "arn:") {
		in.IamInstanceProfile = &types.IamInstanceProfileSpecification{Arn: &p}
	} else if p != "" {
		in.IamInstanceProfile = &types.IamInstanceProfileSpecification{Name: &p}
	}
	if k.Subnet != "" {
		in.SubnetId = &k.Subnet
	}
	if err := b.store.intend(ctx, "RunInstances", token); err != nil {
		return err
	}
	var out *ec2.RunInstancesOutput
	err = b.pace.visible(ctx, "InvalidLaunchTemplateId.NotFound", func() (err error) { out, err = b.ec2.RunInstances(ctx, in); return err })
	if err != nil {
		return fmt.Errorf("launch: %w", err)
	}
	b.store.learn(func(f *facts) { f.Canary = aws.ToString(out.Instances[0].InstanceId) })
	return nil
}

// canaryTemplate names the real launch template, or makes a temporary one
// like the builder: closed, and with IMDSv2 alone.
func (b *bake) canaryTemplate(ctx context.Context) (*types.LaunchTemplateSpecification, error) {
	if name := b.recipe.Canary.LaunchTemplate; name != "" {
		spec := &types.LaunchTemplateSpecification{Version: aws.String("$Default")}
		if strings.HasPrefix(name, "lt-") {
			spec.LaunchTemplateId = &name
		} else {
			spec.LaunchTemplateName = &name
		}
		return spec, nil
	}
	known := b.store.known()
	name := "lecafe-canary-" + b.id
	if known.Template == "" {
		data := &types.RequestLaunchTemplateData{
			ImageId: &known.Image, InstanceType: types.InstanceType(b.recipe.Builder.InstanceTypes[0]),
			MetadataOptions: &types.LaunchTemplateInstanceMetadataOptionsRequest{HttpTokens: types.LaunchTemplateHttpTokensStateRequired, HttpPutResponseHopLimit: aws.Int32(1)},
		}
		groups := b.recipe.Builder.SecurityGroups
		if known.Group != "" {
			groups = []string{known.Group}
		}
		if subnets := b.recipe.Builder.Subnets; b.recipe.Canary.Subnet == "" && len(subnets) > 0 {
			data.NetworkInterfaces = []types.LaunchTemplateInstanceNetworkInterfaceSpecificationRequest{{
				DeviceIndex: aws.Int32(0), SubnetId: &subnets[0], Groups: groups, AssociatePublicIpAddress: b.recipe.Builder.AssociatePublicIP,
			}}
		} else {
			data.SecurityGroupIds = groups
		}
		if err := b.store.intend(ctx, "CreateLaunchTemplate", name); err != nil {
			return nil, err
		}
		out, err := b.ec2.CreateLaunchTemplate(ctx, &ec2.CreateLaunchTemplateInput{
			LaunchTemplateName: &name, LaunchTemplateData: data, ClientToken: aws.String(b.id + "-canary"),
			TagSpecifications: []types.TagSpecification{tagSpec(types.ResourceTypeLaunchTemplate, b.tags())},
		})
		id := ""
		switch {
		case isCode(err, "InvalidLaunchTemplateName.AlreadyExistsException"):
			found, findErr := b.ec2.DescribeLaunchTemplates(ctx, &ec2.DescribeLaunchTemplatesInput{LaunchTemplateNames: []string{name}})
			if findErr != nil || len(found.LaunchTemplates) == 0 {
				return nil, fmt.Errorf("create launch template %s: %w", name, errors.Join(err, findErr))
			}
			id = aws.ToString(found.LaunchTemplates[0].LaunchTemplateId)
		case err != nil:
			return nil, fmt.Errorf("create launch template %s: %w", name, err)
		default:
			id = aws.ToString(out.LaunchTemplate.LaunchTemplateId)
		}
		b.store.learn(func(f *facts) { f.Template = id })
		known.Template = id
	}
	return &types.LaunchTemplateSpecification{LaunchTemplateId: aws.String(known.Template), Version: aws.String("$Latest")}, nil
}

// canaryUserData is the recipe's or the launch template's, with the agent told
// that it is a canary, and with what fetches the tests.
func (b *bake) canaryUserData(data *types.ResponseLaunchTemplateData, self string) ([]byte, error) {
	var original []byte
	switch {
	case b.recipe.Canary.UserData != "":
		original = []byte(b.store.known().CanaryData)
	case data != nil && aws.ToString(data.UserData) != "":
		text, err := decodeBase64(*data.UserData)
		if err != nil {
			return nil, fmt.Errorf("the launch template's user data is not base64: %w", err)
		}
		original = []byte(text)
	}
	var s settings.Settings
	if src, ok, err := settings.SourceFromUserData(original); err != nil {
		return nil, fmt.Errorf("the agent's settings in the user data: %w", err)
	} else if ok {
		if s, err = settings.Decode(src); err != nil {
			return nil, fmt.Errorf("the agent's settings in the user data: %w", err)
		}
	}
	s.Canary = true
	// What the image has baked in for another place is the canary's too.
	starter, err := manifest.UserData(b.boot(self, b.store.known().CanaryDeadline))
	if err != nil {
		return nil, err
	}
	in := userdata.RenderInput{Settings: &s, Sources: []userdata.Source{{Name: "lecafe-canary.sh", Body: append([]byte("#cloud-boothook\n"), starter...)}}}
	payload, err := userdata.Parse(original)
	if err != nil {
		return nil, fmt.Errorf("the user data of the canary: %w", err)
	}
	for _, p := range payload.Parts {
		if p.Name == settings.UserDataPart || len(bytes.TrimSpace(p.Body)) == 0 {
			continue
		}
		body := p.Body
		if p.Kind == userdata.KindBoothook && !bytes.HasPrefix(body, []byte("#cloud-boothook")) {
			body = append([]byte("#cloud-boothook\n"), body...)
		}
		name := cmp.Or(p.Name, "user-data")
		if f := b.recipe.Canary.UserData; !payload.Multipart && f != "" {
			name = filepath.Base(f) // as causes shall name it
		}
		in.Sources = append(in.Sources, userdata.Source{Name: name, Body: body})
	}
	out, err := userdata.Render(in)
	if err != nil {
		return nil, fmt.Errorf("the user data of the canary: %w", err)
	}
	return out, nil
}

// stageCanary puts the canary's plan and tests into S3, at the start, so that
// a bake can be resumed without the recipe's files.
func (b *bake) stageCanary(ctx context.Context) error {
	k := b.recipe.Canary
	p := &manifest.Plan{BakeID: b.id, Recipe: b.recipe.Name, Names: map[string]string{}, Canary: &manifest.Canary{Deadline: k.Deadline}}
	files := map[string]string{}
	for i, t := range k.Test {
		if t.Script != "" {
			in := fmt.Sprintf("files/%d", i+1)
			files[in], p.Names[in] = b.recipe.Resolve(t.Script), t.Script
			t.Script = in
		}
		p.Canary.Tests = append(p.Canary.Tests, t)
	}
	var buf bytes.Buffer
	if err := bundle(&buf, p, files); err != nil {
		return err
	}
	userData := ""
	if k.UserData != "" {
		text, err := os.ReadFile(b.recipe.Resolve(k.UserData))
		if err != nil {
			return fmt.Errorf("read canary.user_data: %w", err)
		}
		userData = string(text)
	}
	data := buf.Bytes()
	sum, err := sumReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	name := path.Join(canarySub, bundleName)
	b.store.learn(func(f *facts) {
		all := map[string]file{name: sum}
		for k, v := range f.Files {
			if k != name {
				all[k] = v
			}
		}
		f.Files, f.CanaryData = all, userData
	})
	return b.putObject(ctx, name, bytes.NewReader(data))
}

// keepFailed leaves the image of a failed canary for study.
func (b *bake) keepFailed(ctx context.Context) error {
	if err := b.markImages(ctx, manifest.StateFailed); err != nil {
		return err
	}
	b.store.learn(func(f *facts) { f.Image, f.Snapshots = "", nil })
	return nil
}
