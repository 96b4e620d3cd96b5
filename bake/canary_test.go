package bake_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/userdata"
)

// production makes the launch template that instances of the shop have.
func (w *world) production() {
	w.t.Helper()
	payload, err := userdata.Render(userdata.RenderInput{
		Settings: &settings.Settings{Orders: settings.Orders{Queue: "lecafe-orders"}, Report: settings.Report{SQS: settings.SQSSink{Queue: "reports"}}},
		Sources:  []userdata.Source{{Name: "app.sh", Body: []byte("#!/bin/bash\necho application\n")}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.api.CreateLaunchTemplate(w.t.Context(), &ec2.CreateLaunchTemplateInput{LaunchTemplateName: aws.String("shop"), LaunchTemplateData: &types.RequestLaunchTemplateData{
		ImageId: &w.source, InstanceType: types.InstanceTypeM5Large, UserData: aws.String(base64.StdEncoding.EncodeToString(payload)),
		MetadataOptions: &types.LaunchTemplateInstanceMetadataOptionsRequest{HttpTokens: types.LaunchTemplateHttpTokensStateRequired},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestCanaryOfTheRealTemplate(t *testing.T) {
	w := newWorld(t)
	w.production()
	w.write("test.sh", "#!/bin/bash\ntrue\n")
	p := w.play(&player{})
	r := w.recipe("canary={launch_template: shop, test: [{script: test.sh}, {name: answers, run: \"true\"}]}")
	var canary types.Instance
	opts := w.options(r)
	inner := opts.Report
	opts.Report = func(e bake.Event) {
		inner(e)
		if e.Phase == "canary" && e.Kind == bake.EventProgress && canary.InstanceId == nil {
			out, err := w.api.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("tag:" + manifest.TagRole), Values: []string{"canary"}}}})
			if err != nil {
				t.Error(err)
				return
			}
			canary = out.Reservations[0].Instances[0]
		}
	}
	out, err := bake.Run(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if out.Canary != "passed" || canary.InstanceType != types.InstanceTypeM5Large || aws.ToString(canary.ImageId) != out.ImageID {
		t.Errorf("outcome %+v, canary %+v", out, canary)
	}
	src, ok, err := settings.SourceFromUserData(p.payload)
	if err != nil || !ok {
		t.Fatalf("the canary's settings: %v, %v", ok, err)
	}
	s, err := settings.Decode(src)
	if err != nil || !s.Canary || s.Orders.Queue != "" || s.Report.SQS.Queue != "" {
		t.Errorf("the canary would act on production: %+v, %v", s, err)
	}
	payload, err := userdata.Parse(p.payload)
	if err != nil {
		t.Fatal(err)
	}
	script := false
	for _, part := range payload.Parts {
		script = script || part.Kind == userdata.KindScript && strings.Contains(string(part.Body), "echo application")
	}
	if !script {
		t.Errorf("the application's script is not in the canary's user data:\n%s", p.payload)
	}
	if plan := p.plans[len(p.plans)-1]; plan.Canary == nil || len(plan.Canary.Tests) != 2 || plan.Names[plan.Canary.Tests[0].Script] != "test.sh" {
		t.Errorf("the canary's plan %+v", plan)
	}
	w.nothingLeakedBut("launch template shop")
}

// nothingLeakedBut is nothingLeaked but for what the test itself made.
func (w *world) nothingLeakedBut(own ...string) {
	w.t.Helper()
	for _, l := range w.leaked() {
		mine := false
		for _, o := range own {
			mine = mine || l == o
		}
		if !mine {
			w.t.Errorf("left behind: %s", l)
		}
	}
}

func TestCanaryThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		result func(*manifest.Result)
		want   string
	}{
		"report": {func(r *manifest.Result) {
			r.Report.Verdict, r.Report.Summary = report.Failure, "The agent's report says failure."
		}, "The agent's report says failure."},
		"test script": {func(r *manifest.Result) {
			r.Report.Verdict = report.Failure
			r.Steps = []manifest.Step{{Number: 1, Name: "answers", ExitCode: 22, File: "run", Line: 1, Command: "curl -f localhost"}}
		}, "step 1 (answers) failed with exit code 22 at run:1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.play(&player{Canary: c.result})
			_, err := bake.Run(t.Context(), w.options(w.recipe("canary={}")))
			var failed *bake.CanaryError
			if !errors.As(err, &failed) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Run: %v", err)
			}
			if len(w.images()) != 0 {
				t.Error("the image is still there")
			}
			w.nothingLeaked()
		})
	}
}

func TestKeepFailed(t *testing.T) {
	w := newWorld(t)
	w.play(&player{Canary: func(r *manifest.Result) { r.Report.Verdict = report.Degraded }})
	opts := w.options(w.recipe("canary={}"))
	opts.KeepFailed = true
	if _, err := bake.Run(t.Context(), opts); err == nil {
		t.Fatal("no error")
	}
	images := w.images()
	if len(images) != 1 || tag(images[0].Tags, manifest.TagState) != manifest.StateFailed {
		t.Fatalf("images %+v", images)
	}
	if l := w.leaked(); len(l) != 2 { // the image and its snapshot
		t.Errorf("left: %v", l)
	}
	// A failed image is not found as an unchanged one, and gc leaves it alone.
	plan, err := bake.MakePlan(t.Context(), opts)
	if err != nil || !plan.Bake {
		t.Errorf("plan %+v, %v", plan, err)
	}
	found, err := bake.GC(t.Context(), bake.GCOptions{Config: w.Config(), Remove: true})
	if err != nil || len(found) != 0 {
		t.Errorf("gc found %+v, %v", found, err)
	}
}
