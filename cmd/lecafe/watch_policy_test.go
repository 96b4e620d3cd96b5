package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/cloudtest"
	labec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/launchtemplate"
)

// shop is a cloud with a launch template, to run commands against with what
// their printed policy allows and nothing else.
type shop struct {
	*testing.T
	*cloudtest.Cloud
	asg      *autoscaling.Client
	old, new string // images
	subnet   string
	granted  []string
}

func newShop(t *testing.T) *shop {
	c := cloudtest.New(t, cloud.Options{Clock: wire.Scaled(200)})
	s := &shop{T: t, Cloud: c, asg: autoscaling.NewFromConfig(c.Config())}
	for n, id := range []*string{&s.old, &s.new} {
		var err error
		if *id, err = c.EC2.AddImage("us-east-1", labec2.ImageSeed{Name: "app-" + strconv.Itoa(n), Owner: "000000000000", Created: time.Now().Add(time.Duration(n-2) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	api := ec2.NewFromConfig(c.Config())
	if _, err := api.CreateTags(t.Context(), &ec2.CreateTagsInput{Resources: []string{s.old, s.new}, Tags: []ec2types.Tag{
		{Key: aws.String(manifest.TagRecipe), Value: aws.String("app")}, {Key: aws.String(manifest.TagState), Value: aws.String(manifest.StateDone)},
	}}); err != nil {
		t.Fatal(err)
	}
	c.S3.CreateBucket("b", "us-east-1")
	c.SQS.CreateQueue("boots", nil)
	c.EC2.PutInstanceProfile("app-profile", "app")
	if _, err := launchtemplate.Publish(t.Context(), api, launchtemplate.Spec{Name: "app", ImageID: s.old, InstanceType: "t3.micro", InstanceProfile: "app-profile"}); err != nil {
		t.Fatal(err)
	}
	subnets, err := api.DescribeSubnets(t.Context(), &ec2.DescribeSubnetsInput{})
	if err != nil {
		t.Fatal(err)
	}
	s.subnet = *subnets.Subnets[0].SubnetId
	return s
}

func (s *shop) group(name, version string, size int32, hooked bool) {
	s.Helper()
	in := &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: &name, MinSize: aws.Int32(0), MaxSize: aws.Int32(10), DesiredCapacity: &size, VPCZoneIdentifier: &s.subnet,
		LaunchTemplate: &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String("app"), Version: &version},
	}
	want := astypes.LifecycleStateInService
	if hooked {
		want = astypes.LifecycleStatePendingWait
		in.LifecycleHookSpecificationList = []astypes.LifecycleHookSpecification{{LifecycleHookName: aws.String("boot"), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_LAUNCHING"), HeartbeatTimeout: aws.Int32(7200)}}
	}
	if _, err := s.asg.CreateAutoScalingGroup(s.Context(), in); err != nil {
		s.Fatal(err)
	}
	s.Until(s, "instances of "+name, func() bool {
		n := 0
		for _, i := range s.instances(name) {
			if i.LifecycleState == want {
				n++
			}
		}
		return n == int(size)
	})
}

func (s *shop) instances(group string) []astypes.Instance {
	out, err := s.asg.DescribeAutoScalingGroups(s.Context(), &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{group}})
	if err != nil || len(out.AutoScalingGroups) != 1 {
		return nil // the test's end, too
	}
	return out.AutoScalingGroups[0].Instances
}

// say puts the report of an instance.
func (s *shop) say(id string, v report.Verdict) error {
	r := &report.Report{ID: report.NewID(), Kind: report.KindBootstrap, Verdict: v, Instance: report.Instance{ID: id}, Sender: s.Vault.RoleID("app") + ":" + id, JudgedAt: time.Now(), BootedAt: time.Now()}
	if v != report.Success {
		r.Causes = []report.Cause{{Code: report.CodeScriptExit, Stage: report.StageCloudFinal, Line: 7}}
	}
	b, err := report.Encode(r)
	if err != nil {
		return err
	}
	_, err = awsconf.S3(s.Config()).PutObject(s.Context(), &s3.PutObjectInput{Bucket: aws.String("b"), Key: aws.String(report.KeyOf("p", r).String()), Body: bytes.NewReader(b)})
	return err
}

// agents reports v for every instance of the group's version until stop.
func (s *shop) agents(group, version string, v report.Verdict) (stop func()) {
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		said := map[string]bool{}
		for changes := s.Changes(); ctx.Err() == nil; {
			for _, i := range s.instances(group) {
				if id := *i.InstanceId; aws.ToString(i.LaunchTemplate.Version) == version && !said[id] {
					said[id] = s.say(id, v) == nil
				}
			}
			select {
			case <-changes:
			case <-ctx.Done():
			}
		}
	}()
	return func() { cancel(); <-done }
}

// allow prints a policy by the CLI and acts with it alone from now on.
func (s *shop) allow(args ...string) {
	s.Helper()
	var doc bytes.Buffer
	if code := run(append([]string{"lecafe", "--region", "us-east-1", "policy"}, args...), nil, &doc, io.Discard); code != 0 {
		s.Fatalf("policy %q: exit code %d", args, code)
	}
	var d struct{ Statement []struct{ Action []string } }
	if err := json.Unmarshal(doc.Bytes(), &d); err != nil {
		s.Fatal(err)
	}
	for _, st := range d.Statement {
		s.granted = append(s.granted, st.Action...)
	}
	creds, err := s.Role(s.T, "operator", doc.Bytes()).Credentials.Retrieve(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	for _, kv := range s.Env() {
		k, v, _ := strings.Cut(kv, "=")
		s.Setenv(k, v)
	}
	s.Setenv("AWS_ACCESS_KEY_ID", creds.AccessKeyID)
	s.Setenv("AWS_SECRET_ACCESS_KEY", creds.SecretAccessKey)
	s.Setenv("AWS_SESSION_TOKEN", creds.SessionToken)
}

func (s *shop) lecafe(want int, args ...string) string {
	s.Helper()
	var out, stderr bytes.Buffer
	if code := run(append([]string{"lecafe"}, args...), nil, &out, &stderr); code != want {
		s.Fatalf("lecafe %q: exit code %d, want %d\n%s%s", args, code, want, &out, &stderr)
	}
	return out.String() + stderr.String()
}

// compare says what was granted and not needed, or the other way round.
func (s *shop) compare(besides ...string) {
	s.Helper()
	used := append(cloudtest.Permissions(s.Calls(), "operator"), besides...)
	slices.Sort(used)
	slices.Sort(s.granted)
	if d := cmp.Diff(slices.Compact(s.granted), slices.Compact(used)); d != "" {
		s.Errorf("granted and not needed -, needed and not granted +\n%s", d)
	}
}

// Whoever has the printed policy and nothing else can deploy, be rolled back
// and be told why, and has no action too many.
func TestDeploysPolicyIsWhatIsNeeded(t *testing.T) {
	// Auto Scaling asks for these on the caller's behalf, which the cloud does
	// not.
	launching := []string{"ec2:RunInstances", "ec2:CreateTags", "iam:PassRole"}
	for _, whole := range []bool{false, true} {
		t.Run(fmt.Sprintf("whole=%v", whole), func(t *testing.T) {
			s := newShop(t)
			version, options := "1", []string{"--asg", "app", "--reports", "s3://b/p"}
			if whole {
				version, options = "$Latest", append(options, "--pin", "--parameter", "/app/image")
			}
			s.group("app", version, 4, false)
			s.allow(slices.Concat([]string{"deploy"}, options, []string{"--account", "000000000000"})...)
			deploy := func(want int, verdict report.Verdict, version string, args ...string) string {
				t.Helper()
				stop := func() {}
				if verdict != "" {
					stop = s.agents("app", version, verdict)
				}
				defer stop()
				return s.lecafe(want, slices.Concat([]string{"deploy", "--interval", "20ms", "--timeout", "30s"}, options, args)...)
			}
			if out := deploy(0, report.Success, "2", "--image", "latest"); !strings.Contains(out, "is up and the default") {
				t.Errorf("no success:\n%s", out)
			}
			// Two at a time, and ten minutes between: the refresh is under way
			// when the brake trips.
			if out := deploy(1, report.Failure, "3", "--image", s.old, "--warmup", "10m", "--min-healthy", "50"); !strings.Contains(out, "the brake tripped, 2 failed the same way: script_exit") || !strings.Contains(out, "rolling the instance refresh back") {
				t.Errorf("no failure:\n%s", out)
			}
			if out := deploy(1, "", "3", "--image", s.old, "--warmup", "10m", "--min-healthy", "50", "--deadline", "10ms"); !strings.Contains(out, "the brake tripped") || !strings.Contains(out, "silent") {
				t.Errorf("no silence:\n%s", out)
			}
			s.compare(launching...)
		})
	}
}

// The same for watching, with each kind of remediation by itself: instances in
// service and at their hook, replaced and kept for study.
func TestWatchsPolicyIsWhatIsNeeded(t *testing.T) {
	for mode, does := range map[string]struct {
		serving map[string]int // of four in service, one pass
		waiting string         // of one at its hook
	}{
		"none":      {},
		"unhealthy": {map[string]int{"unhealthy": 2, "specimen": 1, "brake": 1}, "unhealthy"},
		"abandon":   {map[string]int{"nothing": 4}, "abandon"},
		"terminate": {map[string]int{"terminate": 2, "specimen": 1, "brake": 1}, "terminate"},
	} {
		t.Run(mode, func(t *testing.T) {
			s := newShop(t)
			s.group("quiet", "1", 1, false)
			policy := []string{"watch", "--reports", "s3://b/p", "--account", "000000000000", "--on-failure", mode}
			if mode == "none" {
				policy = append(policy, "--queue", "boots")
			} else {
				s.group("serving", "1", 4, false)
				s.group("waiting", "1", 1, true)
				s.group("kept", "1", 1, true)
			}
			for _, g := range []string{"serving", "waiting", "kept"} {
				for _, i := range s.instances(g) {
					if err := s.say(*i.InstanceId, report.Failure); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.allow(policy...)
			watch := func(want map[string]int, args ...string) {
				t.Helper()
				out := s.lecafe(1, append([]string{"watch", "--once", "--reports", "s3://b/p", "--on-failure", mode}, args...)...)
				for did, n := range want {
					if strings.Count(out, "did="+did+" ") != n {
						t.Errorf("want %d of %s:\n%s", n, did, out)
					}
				}
				if strings.Count(out, "did=") != sum(want) || strings.Contains(out, "AccessDenied") || strings.Contains(out, "UnauthorizedOperation") {
					t.Errorf("did not do just %v:\n%s", want, out)
				}
			}
			s.lecafe(1, "watch", "--once", "--reports", "s3://b/p", "--asg", "quiet", "--deadline", "1ms", "--launch-template", "app")
			s.lecafe(2, "watch", "--once", "--asg", "quiet") // where the reports are is looked for in the launch template
			if mode != "none" {
				watch(does.serving, "--asg", "serving")
				// Each alone: what failed before is out of the window.
				watch(map[string]int{does.waiting: 1}, "--asg", "waiting", "--brake-window", "1ns")
				watch(map[string]int{"specimen": 1}, "--asg", "kept", "--brake", "1", "--brake-window", "1ns")
				s.compare()
				return
			}
			// Until it is interrupted, with the queue.
			look := s.Called(func(c cloud.Call) bool { return c.Action == "ReceiveMessage" })
			go func() {
				select {
				case <-look:
					_ = syscall.Kill(syscall.Getpid(), syscall.SIGINT)
				case <-t.Context().Done():
				}
			}()
			if err := s.say(*s.instances("quiet")[0].InstanceId, report.Failure); err != nil {
				t.Fatal(err)
			}
			s.lecafe(1, "watch", "--reports", "s3://b/p", "--queue", "boots", "--asg", "quiet")
			// Messages are deleted after ten minutes.
			s.compare("sqs:DeleteMessage")
		})
	}
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}
