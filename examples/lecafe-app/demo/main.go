// Command demo plays Le Café's platform engineer against the lab (or any other
// endpoint with the same seed): it bakes the image, starts four Auto Scaling
// groups from it and lets `lecafe watch` say what became of them. It ends with
// 0 only if every verdict is the expected one and the good instance's order is
// in the queue. `make demo` runs it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	astypes "github.com/aws/aws-sdk-go-v2/service/autoscaling/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/internal/awsconf"
)

// group is one Auto Scaling group of one instance and what is expected of it.
type group struct {
	name     string
	userData string // file in user-data/
	rendered bool   // through lecafe userdata render; else as it is
	verdict  string
	code     string // of the first cause
}

var groups = []group{
	{"lecafe-good", "ordering.sh", true, "success", ""},
	{"lecafe-fails-half-way", "fails-half-way.sh", true, "failure", "script_exit"},
	{"lecafe-no-header", "no-header.txt", false, "failure", "user_data_no_header"},
	{"lecafe-agent-masked", "agent-masked.sh", false, "silent", ""},
}

// silentAfter is the deadline given to lecafe watch: several times what an
// instance takes to boot here.
const silentAfter = "75s"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demo LECAFE-BINARY EXAMPLE-DIRECTORY")
		os.Exit(2)
	}
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	lecafe, dir string
	took        []string
}

func run(ctx context.Context, lecafe, dir string) error {
	d := &demo{lecafe: lecafe, dir: dir}
	cfg, err := awsconf.Load(ctx, awsconf.Options{Endpoint: os.Getenv("AWS_ENDPOINT_URL")})
	if err != nil {
		return err
	}
	start := time.Now()

	var image struct {
		ID string `json:"image_id"`
	}
	err = d.step("bake", func() error {
		return d.json(ctx, &image, "bake", "--json", "--set", "agent.aws.endpoint_url="+os.Getenv("AWS_ENDPOINT_URL"), filepath.Join(dir, "recipe.yaml"))
	})
	if err != nil {
		return err
	}
	err = d.step("publish launch templates, create groups", func() error {
		for _, g := range groups {
			if err := d.launch(ctx, autoscaling.NewFromConfig(cfg), g, image.ID); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := d.step("boot, report, watch", func() error { return d.watch(ctx) }); err != nil {
		return err
	}
	if err := d.step("read the order from the queue", func() error { return order(ctx, sqs.NewFromConfig(cfg)) }); err != nil {
		return err
	}
	fmt.Printf("\n%s\n%-42s %6.1f s\n", strings.Join(d.took, "\n"), "in all", time.Since(start).Seconds())
	return nil
}

func (d *demo) step(name string, do func() error) error {
	fmt.Printf("\n── %s\n", name)
	start := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	d.took = append(d.took, fmt.Sprintf("%-42s %6.1f s", name, time.Since(start).Seconds()))
	return nil
}

// output runs lecafe and returns its standard output.
func (d *demo) output(ctx context.Context, args ...string) ([]byte, error) {
	fmt.Println("$ lecafe", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, d.lecafe, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute // a bake undoes what it made
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("lecafe %s: %w", args[0], err)
	}
	return out, nil
}

func (d *demo) json(ctx context.Context, into any, args ...string) error {
	out, err := d.output(ctx, args...)
	if err != nil {
		return err
	}
	return json.Unmarshal(out, into)
}

func (d *demo) launch(ctx context.Context, asg *autoscaling.Client, g group, image string) error {
	file := filepath.Join(d.dir, "user-data", g.userData)
	if g.rendered {
		payload, err := d.output(ctx, "userdata", "render", "--settings", filepath.Join(d.dir, "agent.yaml"), "--script", file)
		if err != nil {
			return err
		}
		tmp, err := os.CreateTemp("", "lecafe-demo-*.mime")
		if err != nil {
			return err
		}
		defer func() { _ = os.Remove(tmp.Name()) }()
		if _, err := tmp.Write(payload); err != nil {
			return err
		}
		if err := tmp.Close(); err != nil {
			return err
		}
		file = tmp.Name()
	}
	_, err := d.output(ctx, "launch-template", "publish", "--name", g.name, "--image", image, "--instance-type", "t3.micro",
		"--instance-profile", "lecafe-app-profile", "--user-data", file, "--default")
	if err != nil {
		return err
	}
	_, err = asg.CreateAutoScalingGroup(ctx, &autoscaling.CreateAutoScalingGroupInput{
		AutoScalingGroupName: aws.String(g.name), MinSize: aws.Int32(1), MaxSize: aws.Int32(1), DesiredCapacity: aws.Int32(1),
		AvailabilityZones: []string{zone()},
		LaunchTemplate:    &astypes.LaunchTemplateSpecification{LaunchTemplateName: aws.String(g.name), Version: aws.String("1")},
	})
	return err
}

func zone() string {
	if region := os.Getenv("AWS_REGION"); region != "" {
		return region + "a"
	}
	return "us-east-1a"
}

// seen is what the demo reads of lecafe watch's JSON.
type seen struct {
	Instances []struct {
		Group   string `json:"auto_scaling_group"`
		Verdict string `json:"verdict"`
		Cause   struct {
			Code string `json:"code"`
		} `json:"cause"`
	} `json:"instances"`
}

// watch lets lecafe watch wait until every instance has a verdict, prints the
// table as a person sees it, and compares with what is expected.
func (d *demo) watch(ctx context.Context) error {
	args := []string{"watch", "--reports", "s3://lecafe-reports/lecafe-reports", "--deadline", silentAfter}
	for _, g := range groups {
		args = append(args, "--asg", g.name)
	}
	out, err := d.output(ctx, append(args, "--wait", "--interval", "2s", "--json")...)
	if err := notWell(err); err != nil {
		return err
	}
	var fleet seen
	if err := json.Unmarshal(out, &fleet); err != nil {
		return fmt.Errorf("lecafe watch --json: %w", err)
	}
	table, err := d.output(ctx, append(args, "--once")...)
	fmt.Print(string(table))
	if err := notWell(err); err != nil {
		return err
	}
	var wrong []error
	for _, g := range groups {
		found := false
		for _, i := range fleet.Instances {
			if i.Group != g.name {
				continue
			}
			found = true
			if i.Verdict != g.verdict || g.code != "" && i.Cause.Code != g.code {
				wrong = append(wrong, fmt.Errorf("%s: verdict %s, cause %q; want %s, %q", g.name, i.Verdict, i.Cause.Code, g.verdict, g.code))
			}
		}
		if !found {
			wrong = append(wrong, fmt.Errorf("%s: no instance", g.name))
		}
	}
	return errors.Join(wrong...)
}

// notWell is nil for exit code 1: not all instances are well, as is expected.
func notWell(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		return fmt.Errorf("lecafe watch: want exit code 1 for a fleet that is not well: %v", err)
	}
	return nil
}

// order reads the good instance's order back.
func order(ctx context.Context, client *sqs.Client) error {
	url, err := client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String("lecafe-orders")})
	if err != nil {
		return err
	}
	got, err := client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: url.QueueUrl, WaitTimeSeconds: 20, MessageAttributeNames: []string{"All"}})
	if err != nil {
		return err
	}
	if len(got.Messages) == 0 {
		return errors.New("no order arrived in lecafe-orders")
	}
	for _, m := range got.Messages {
		fmt.Println(aws.ToString(m.Body))
	}
	return nil
}
