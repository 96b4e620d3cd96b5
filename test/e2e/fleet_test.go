package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	s3api "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/test/boots"
)

// fleetGroup is one Auto Scaling group of the test.
type fleetGroup struct {
	name     string
	settings string // of the agent; "" for user data as it is
	userData string
	size     int32
	hook     bool
}

// launchGroup publishes the group's template and creates it.
func (o *operator) launchGroup(image string, g fleetGroup) {
	o.t.Helper()
	dir := o.t.TempDir()
	file := filepath.Join(dir, "user-data")
	if err := os.WriteFile(file, []byte(g.userData), 0o600); err != nil {
		o.t.Fatal(err)
	}
	if g.settings != "" {
		settings := filepath.Join(dir, "settings.yaml")
		if err := os.WriteFile(settings, []byte(g.settings), 0o600); err != nil {
			o.t.Fatal(err)
		}
		payload, stderr, code := o.lecafe("userdata", "render", "--settings", settings, "--script", file)
		if code != 0 {
			o.t.Fatalf("userdata render: %s", stderr)
		}
		if err := os.WriteFile(file, []byte(payload), 0o600); err != nil {
			o.t.Fatal(err)
		}
	}
	if _, stderr, code := o.lecafe("launch-template", "publish", "--name", g.name, "--image", image, "--instance-type", "t3.micro",
		"--instance-profile", "lecafe-app-profile", "--user-data", file); code != 0 {
		o.t.Fatalf("launch-template publish: %s", stderr)
	}
	in := &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: aws.String(g.name), MinSize: aws.Int32(0), MaxSize: aws.Int32(2 * g.size), DesiredCapacity: aws.Int32(g.size),
		AvailabilityZones: []string{lab.Region + "a"},
		LaunchTemplate:    &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String(g.name), Version: aws.String("1")},
	}
	if g.hook {
		in.LifecycleHookSpecificationList = []types.LifecycleHookSpecification{{LifecycleHookName: aws.String("ready"), LifecycleTransition: aws.String("autoscaling:EC2_INSTANCE_LAUNCHING"), HeartbeatTimeout: aws.Int32(7200)}}
	}
	if _, err := autoscaling.NewFromConfig(boots.Config(o.l)).CreateAutoScalingGroup(o.t.Context(), in); err != nil {
		o.t.Fatal(err)
	}
}

// watch returns what lecafe watch --once says of groups.
func (o *operator) watch(args ...string) (*fleet.Snapshot, int) {
	o.t.Helper()
	out, stderr, code := o.lecafe(append([]string{"watch", "--once", "--json", "--reports", "s3://lecafe-reports/lecafe-reports"}, args...)...)
	var s fleet.Snapshot
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		o.t.Fatalf("lecafe watch: exit code %d, %v\n%s", code, err, stderr)
	}
	return &s, code
}

// TestFleet boots one group of each kind and asks lecafe watch about them,
// then deploys a bad image to a good group.
func TestFleet(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-13"}, func(o *lab.Options) { o.TimeScale = 10 })
	o := newOperator(t, l)
	image := o.bake("debian-13").ImageID

	const masked = "#cloud-boothook\n#!/bin/sh\nsystemctl mask --now lecafe-agent.service\n"
	groups := []fleetGroup{
		{name: "good", settings: "orders: {queue: lecafe-orders}\n", userData: "#!/bin/sh\ntrue\n", size: 1},
		{name: "degraded", settings: "bootstrap: {severity: {script_exit: degraded, cloud_init_error: degraded}}\n", userData: "#!/bin/sh\nexit 4\n", size: 1},
		{name: "failing", settings: "orders: {queue: lecafe-orders}\n", userData: "#!/bin/sh\nset -e\necho one\nfalse\n", size: 1},
		{name: "hanging", settings: "bootstrap: {deadline: 40s}\n", userData: "#!/bin/sh\nsleep 10000\n", size: 1},
		{name: "silent", userData: masked, size: 1},
		{name: "forged", userData: masked, size: 1},
	}
	var names []string
	for _, g := range groups {
		o.launchGroup(image, g)
		names = append(names, "--asg", g.name)
	}
	of := func(s *fleet.Snapshot, group string) *fleet.Standing {
		for n := range s.Instances {
			if s.Instances[n].Group == group {
				return &s.Instances[n]
			}
		}
		return &fleet.Standing{}
	}

	// Somebody with another role names a session after the silent instance and
	// says that it came up.
	boots.Eventually(t, "an instance of the group forged", func() bool {
		s, _ := o.watch("--asg", "forged")
		return of(s, "forged").ID != ""
	}, boots.Nothing)
	s, _ := o.watch("--asg", "forged")
	victim := of(s, "forged").ID
	if err := l.PutRolePolicy("intruder", "all", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}`); err != nil {
		t.Fatal(err)
	}
	creds := l.Vault.Vend("intruder", victim, time.Hour)
	rep := &report.Report{ID: report.NewID(), Kind: report.KindBootstrap, Verdict: report.Success, Sender: creds.Caller.UserID, Instance: report.Instance{ID: victim}, JudgedAt: time.Now()}
	body, err := report.Encode(rep)
	if err != nil {
		t.Fatal(err)
	}
	cfg := boots.Config(l)
	cfg.Credentials = credentials.NewStaticCredentialsProvider(creds.AccessKeyID, creds.SecretAccessKey, creds.SessionToken)
	if _, err := boots.S3(cfg).PutObject(t.Context(), &s3api.PutObjectInput{
		Bucket: aws.String("lecafe-reports"), Key: aws.String(report.KeyOf("lecafe-reports", rep).String()), Body: bytes.NewReader(body)}); err != nil {
		t.Fatal(err)
	}

	// All that report have reported; the others are silent by a deadline that
	// has then passed for them.
	boots.Eventually(t, "reports of four groups", func() bool {
		s, _ = o.watch(names...)
		return s.Counts[fleet.Success]+s.Counts[fleet.Degraded]+s.Counts[fleet.Failure] == 4
	}, func() string { b, _ := json.MarshalIndent(s, "", " "); return string(b) })
	s, code := o.watch(append(names, "--deadline", "1s")...)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for group, want := range map[string]struct {
		verdict fleet.Verdict
		code    report.Code
	}{
		"good": {fleet.Success, ""}, "degraded": {fleet.Degraded, ""}, "failing": {fleet.Failure, report.CodeScriptExit},
		"hanging": {fleet.Failure, report.CodeDeadline}, "silent": {fleet.Silent, ""}, "forged": {fleet.Silent, ""},
	} {
		i := of(s, group)
		if i.Verdict != want.verdict || want.code != "" && (i.Cause == nil || i.Cause.Code != want.code) {
			t.Errorf("%s: %s, cause %+v; want %s, %s", group, i.Verdict, i.Cause, want.verdict, want.code)
		}
	}
	if i := of(s, "silent"); i.Cause == nil || i.Cause.Code == fleet.CodeNoReport {
		t.Errorf("no cause was found for the silent instance: %+v", i.Cause)
	} else {
		t.Logf("cause of the silence: %+v", *i.Cause)
	}
	if !slices.ContainsFunc(s.Refused, func(r fleet.Refusal) bool { return r.Reason == fleet.Forged && r.InstanceID == victim }) {
		t.Errorf("the forged report was not refused: %+v, notes %q", s.Refused, s.Notes)
	}
	for _, g := range groups {
		if _, err := autoscaling.NewFromConfig(boots.Config(l)).DeleteAutoScalingGroup(t.Context(), &autoscaling.DeleteAutoScalingGroupInput{AutoScalingGroupName: &g.name, ForceDelete: aws.Bool(true)}); err != nil {
			t.Error(err)
		}
	}

	o.deployBadImage(image)
}

// deployBadImage rolls an image whose agent finds it not ready out to a group
// of three good instances.
func (o *operator) deployBadImage(image string) {
	t, l := o.t, o.l
	o.launchGroup(image, fleetGroup{name: "app", settings: "bootstrap: {deadline: 90s}\nreport: {lifecycle_hook: {name: ready}}\n", userData: "#!/bin/sh\ntrue\n", size: 3, hook: true})
	var good []string
	boots.Eventually(t, "three good instances", func() bool {
		s, code := o.watch("--asg", "app")
		good = nil
		for _, i := range s.Instances {
			good = append(good, i.ID)
			if i.LifecycleState != "InService" {
				return false
			}
		}
		return code == 0 && len(good) == 3
	}, func() string {
		s, _ := o.watch("--asg", "app")
		b, _ := json.MarshalIndent(s, "", " ")
		return string(b)
	})

	api := ec2.NewFromConfig(boots.Config(l))
	id := boots.RunInstance(t, l, image, "#!/bin/sh\ntrue\n", nil)
	boots.ReportOf(t, l, id)
	out, err := l.Machines.Exec(t.Context(), id, "sh", "-c", `set -e
mkdir -p /etc/lecafe/agent.d
printf 'bootstrap: {ready: {units: [no-such.service]}}\n' > /etc/lecafe/agent.d/bad.yaml
rm -rf /var/lib/lecafe/*
cloud-init clean --logs; : > /etc/machine-id; sync`)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	bad := boots.Capture(t, l, id, "bad")
	if _, err := api.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}}); err != nil {
		t.Fatal(err)
	}

	start := time.Now()
	_, stderr, code := o.lecafe("deploy", "--asg", "app", "--image", bad, "--reports", "s3://lecafe-reports/lecafe-reports", "--interval", "2s", "--min-healthy", "60", "--timeout", "10m")
	if code != 1 || !strings.Contains(stderr, "the brake tripped") || !strings.Contains(stderr, "the instance refresh was rolled back") {
		t.Fatalf("deploy: exit code %d\n%s", code, stderr)
	}
	t.Logf("stopped at the brake and rolled back in %.0f s", time.Since(start).Seconds())
	s, _ := o.watch("--asg", "app", "--ignore-terminated")
	kept := 0
	for _, i := range s.Instances {
		if slices.Contains(good, i.ID) {
			kept++
		}
		if i.TemplateVersion != "1" {
			t.Errorf("%s is on version %s", i.ID, i.TemplateVersion)
		}
	}
	if kept < 2 {
		t.Errorf("%d of 3 good instances are left: %s", kept, fmt.Sprint(good))
	}
}
