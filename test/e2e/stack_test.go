package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/fleet"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/policy"
	"github.com/lecafe/lecafe/test/boots"
)

// TestStack makes Le Café's stack in a lab, bakes, brings a group up, deploys
// and watches with the stack's outputs and no other setting, and compares what
// the agents were allowed with what they used.
func TestStack(t *testing.T) {
	t.Parallel()
	l := boots.Lab(t, []string{"debian-12"}, func(o *lab.Options) { o.TimeScale, o.Seed = 20, nil })
	o := newOperator(t, l)
	o.env = append(o.env, "LECAFE_STACK=lecafe")
	began := time.Now()
	note := func(what string) { t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what) }
	must := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := o.lecafe(args...)
		if code != 0 {
			t.Fatalf("lecafe %s: exit code %d\n%s", strings.Join(args, " "), code, stderr)
		}
		return stdout
	}

	must("stack", "up", "--yes", "--interval", "50ms")
	note("the stack is there")
	var baked outcome
	if err := json.Unmarshal([]byte(must("bake", "--json", filepath.Join(example, "recipe.yaml"))), &baked); err != nil {
		t.Fatal(err)
	}
	note("baked " + baked.ImageID)
	must("stack", "up", "--yes", "--interval", "50ms", "--image", baked.ImageID, "--set", "MinSize=0")

	// One instance beside the group, before there is a configuration: slow, so
	// that it tells how far it is, and told that the object is missing, not that
	// it may not read it.
	lonely := o.lonelyInstance("sleep 8\n")
	r := boots.ReportOf(t, l, lonely)
	note(fmt.Sprintf("without its configuration: %s, %s", r.Verdict, r.Summary))
	if r.Verdict == report.Success || !slices.ContainsFunc(r.Causes, func(c report.Cause) bool { return c.Code == report.CodeConfigMissing }) {
		t.Errorf("report of an instance without its configuration: %s %+v", r.Verdict, r.Causes)
	}
	l.S3.Fill("lecafe-assets", maps.All(map[string][]byte{"app/config.txt": []byte(lab.Config)}))

	must("stack", "up", "--yes", "--interval", "50ms", "--set", "MinSize=2")
	boots.Eventually(t, "a group of two in service", func() bool {
		stdout, _, code := o.lecafe("watch", "--once", "--json", "--ignore-terminated")
		return code == 0 && len(inService(t, stdout)) == 2
	}, func() string { return must("watch", "--once") })
	note("two instances are in service")

	// The application's order, from an instance to the stack's queue.
	var s fleet.Snapshot
	if err := json.Unmarshal([]byte(must("watch", "--once", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Machines.Exec(t.Context(), s.Instances[0].ID, "lecafe-agent", "send", "two espressos"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	client := sqs.NewFromConfig(boots.Config(l))
	queue, err := client.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: aws.String("lecafe-orders")})
	if err != nil {
		t.Fatal(err)
	}
	boots.Eventually(t, "order in the queue", func() bool {
		got, err := client.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: queue.QueueUrl, WaitTimeSeconds: 1})
		return err == nil && len(got.Messages) > 0
	}, boots.Nothing)
	note("an order has arrived")

	// A copy is another image, and as good as another bake's.
	next, err := ec2.NewFromConfig(boots.Config(l)).CopyImage(t.Context(), &ec2.CopyImageInput{SourceImageId: &baked.ImageID, SourceRegion: aws.String(lab.Region), Name: aws.String("next")})
	if err != nil {
		t.Fatal(err)
	}
	boots.WaitImage(t, l, *next.ImageId)
	must("deploy", "--image", *next.ImageId, "--interval", "1s")
	note("deployed")
	status := must("stack", "status")
	if !strings.Contains(status, "/LaunchTemplate/Version is 2, not 1, as deployed") {
		t.Errorf("stack status after a deploy:\n%s", status)
	}
	must("stack", "up", "--yes", "--interval", "50ms")
	if status := must("stack", "status"); !strings.Contains(status, "drift: none") || !strings.Contains(status, "LaunchTemplateVersion  2") {
		t.Errorf("stack status after the next up:\n%s", status)
	}
	must("watch", "--once", "--ignore-terminated")

	o.compareRole("lecafe-app-role", "lecafe-agent")
	if _, err := ec2.NewFromConfig(boots.Config(l)).TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{lonely}}); err != nil {
		t.Fatal(err)
	}
	must("stack", "down", "--yes", "--interval", "200ms", "--delete-data")
	note("the stack is gone")
}

func inService(t *testing.T, snapshot string) []string {
	t.Helper()
	var s fleet.Snapshot
	if err := json.Unmarshal([]byte(snapshot), &s); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, i := range s.Instances {
		if i.Verdict == fleet.Success && i.LifecycleState == "InService" {
			out = append(out, i.ID)
		}
	}
	return out
}

// lonelyInstance launches the stack's template outside of its group, with a
// script beside the agent's settings.
func (o *operator) lonelyInstance(script string) string {
	t, api := o.t, ec2.NewFromConfig(boots.Config(o.l))
	t.Helper()
	v, err := api.DescribeLaunchTemplateVersions(t.Context(), &ec2.DescribeLaunchTemplateVersionsInput{LaunchTemplateName: aws.String("lecafe-app"), Versions: []string{"$Latest"}})
	if err != nil {
		t.Fatal(err)
	}
	userData, err := base64.StdEncoding.DecodeString(aws.ToString(v.LaunchTemplateVersions[0].LaunchTemplateData.UserData))
	if err != nil {
		t.Fatal(err)
	}
	source, ok, err := settings.SourceFromUserData(userData)
	if err != nil || !ok {
		t.Fatalf("the template's user data has no settings: %v", err)
	}
	dir := t.TempDir()
	for name, body := range map[string]string{"settings.yaml": string(source.Data), "script.sh": "#!/bin/sh\nset -e\n" + script} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	payload, stderr, code := o.lecafe("userdata", "render", "--settings", filepath.Join(dir, "settings.yaml"), "--script", filepath.Join(dir, "script.sh"))
	if code != 0 {
		t.Fatalf("userdata render: %s", stderr)
	}
	out, err := api.RunInstances(t.Context(), &ec2.RunInstancesInput{MinCount: aws.Int32(1), MaxCount: aws.Int32(1), UserData: aws.String(base64.StdEncoding.EncodeToString([]byte(payload))),
		LaunchTemplate: &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String("lecafe-app"), Version: aws.String("$Latest")}})
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.Instances[0].InstanceId)
}

// compareRole fails where a role's policy allows what no call needed, or lacks
// what one did. Session Manager's managed policy is apart: its agent is not in
// the example's image, and AWS keeps that policy in step with it.
func (o *operator) compareRole(role, name string) {
	t := o.t
	t.Helper()
	out, err := iam.NewFromConfig(boots.Config(o.l)).GetRolePolicy(t.Context(), &iam.GetRolePolicyInput{RoleName: &role, PolicyName: &name})
	if err != nil {
		t.Fatal(err)
	}
	text, err := url.PathUnescape(aws.ToString(out.PolicyDocument))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Statement []struct {
			Sid, Effect      string
			Action, Resource []string
		}
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	type use struct{ action, resource, user string }
	used := map[use]int{}
	calls := 0
	implied := o.l.Implied()
	for _, c := range append(o.l.Calls(), implied...) {
		if c.Caller.Role != role {
			continue
		}
		calls++
		if denied(c) {
			t.Errorf("the policy lacks %v on %v: %s", c.Permissions, c.Resources, c.Code)
		}
		for i, p := range c.Permissions {
			resource := "*"
			if i < len(c.Resources) {
				resource = c.Resources[i]
			}
			used[use{p, resource, c.Caller.UserID}]++
		}
	}
	actions := 0
	for _, s := range doc.Statement {
		for _, a := range s.Action {
			for _, r := range s.Resource {
				actions++
				n := 0
				for u, times := range used {
					if u.action == a && policy.Match(strings.ReplaceAll(r, "${aws:userid}", u.user), u.resource) {
						n += times
					}
				}
				if n == 0 {
					t.Errorf("%s: no agent used %s on %s", s.Sid, a, r)
				}
				t.Logf("%-24s %-44s %3d", s.Sid, a, n)
			}
		}
	}
	t.Logf("%d calls by %s, %d permissions in its policy", calls, role, actions)
	if actions == 0 || calls == 0 {
		t.Error("nothing was compared")
	}
}

func denied(c cloud.Call) bool {
	return strings.Contains(c.Code, "AccessDenied") || c.Code == "UnauthorizedOperation"
}
