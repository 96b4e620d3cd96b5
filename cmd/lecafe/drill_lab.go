package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/sinks"
	"github.com/lecafe/lecafe/drill"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/cloud"
	labec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/lab/machine"
)

// What the drill's image is told to use; lab.LeCafe has it.
const (
	drillBucket  = "lecafe-assets"
	drillKey     = "app/config.txt"
	drillConfig  = "greeting=Bonjour\n"
	drillQueue   = "lecafe-orders"
	drillReports = "lecafe-reports"
)

// drillSeed is Le Café's cloud, and the roles that cases need.
func drillSeed() *lab.Seed {
	s := lab.LeCafe()
	s.Profiles["drill-nothing"] = "drill-nothing-role"
	s.Policies["drill-nothing-role"] = `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}`
	s.Profiles["drill-no-config"] = "drill-no-config-role"
	s.Policies["drill-no-config-role"] = `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":"s3:PutObject","Resource":"arn:aws:s3:::lecafe-reports/*/${aws:userid}/*"},
		{"Effect":"Allow","Action":"sqs:*","Resource":"*"}]}`
	return s
}

// drillGround boots the drill's cases in a lab.
type drillGround struct {
	lab     *lab.Lab
	cfg     aws.Config
	imageID string
	clock   drillClock

	launch    sync.Mutex // one launch at a time, until it is known whose fault it has
	mu        sync.Mutex
	launching string               // fault around the instance that is launched now
	asked     chan struct{}        // closed when that instance has its fault
	faults    map[string]string    // instance → fault
	arrived   map[string]time.Time // ARN of an object → when it was put
}

func newDrillGround() *drillGround {
	return &drillGround{clock: drillClock{Clock: wire.Scaled(20)}, faults: map[string]string{}, arrived: map[string]time.Time{}}
}

// drillClock is AWS's clock, which a case may put a day ahead.
type drillClock struct {
	wire.Clock
	ahead atomic.Int64
}

func (c *drillClock) Now() time.Time { return c.Clock.Now().Add(time.Duration(c.ahead.Load())) }

// faultOf is the fault around an instance. Who is asked about for the first
// time is the one that is being launched.
func (g *drillGround) faultOf(id string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, ok := g.faults[id]
	if !ok {
		f = g.launching
		g.faults[id] = f
		if g.asked != nil {
			close(g.asked)
			g.asked = nil
		}
	}
	return f
}

// note remembers when objects arrive: as it happens, on this machine's clock,
// which is the instances' too.
func (g *drillGround) note(c cloud.Call) {
	if c.Service != "s3" || c.Action != "PutObject" || c.Status != http.StatusOK {
		return
	}
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, arn := range c.Resources {
		g.arrived[arn] = now
	}
}

// run launches an instance with a fault around it.
func (g *drillGround) run(ctx context.Context, fault string, in *ec2.RunInstancesInput) (string, error) {
	g.launch.Lock()
	defer g.launch.Unlock()
	asked := make(chan struct{})
	g.mu.Lock()
	g.launching, g.asked = fault, asked
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.launching, g.asked = "", nil
		g.mu.Unlock()
	}()
	out, err := ec2.NewFromConfig(g.cfg).RunInstances(ctx, in)
	if err != nil {
		return "", err
	}
	select {
	case <-asked:
	case <-ctx.Done(): // the report's wait says what is wrong
	}
	return *out.Instances[0].InstanceId, nil
}

func (g *drillGround) machineFaults(m labec2.Machine) machine.Faults {
	switch g.faultOf(m.InstanceID) {
	case "imds-down":
		return machine.Faults{IMDSDown: true}
	case "no-network":
		return machine.Faults{LinkDown: true}
	case "disk-full":
		return machine.Faults{Tmpfs: map[string]string{"/tmp": "1M"}}
	}
	return machine.Faults{}
}

// lateCredentials is how long a role stays away.
const lateCredentials = 20 * time.Second

func (g *drillGround) metadataFaults(id string, s *imds.Server) {
	if g.faultOf(id) != "late-credentials" {
		return
	}
	s.SetFaults(func(f *imds.Faults) { f.CredentialsMissing = -1 })
	time.AfterFunc(lateCredentials, func() { s.SetFaults(func(f *imds.Faults) { f.CredentialsMissing = 0 }) })
}

// breakCloud does what a case asks for to the cloud, and returns how it is undone.
func (g *drillGround) breakCloud(ctx context.Context, fault string) (undo func(), err error) {
	switch fault {
	case "config-missing":
		_, err := g.s3().DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String(drillBucket), Key: aws.String(drillKey)})
		return func() {
			g.lab.S3.Fill(drillBucket, maps.All(map[string][]byte{drillKey: []byte(drillConfig)}))
		}, err
	case "queue-missing":
		client := sqs.NewFromConfig(g.cfg)
		q, err := client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String(drillQueue)})
		if err != nil {
			return nil, err
		}
		_, err = client.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: q.QueueUrl})
		return func() { g.lab.SQS.CreateQueue(drillQueue, nil) }, err
	}
	return func() {}, nil
}

func (g *drillGround) s3() *s3.Client {
	return s3.NewFromConfig(g.cfg, func(o *s3.Options) { o.UsePathStyle = true })
}

// Boot implements drill.Ground.
func (g *drillGround) Boot(ctx context.Context, c drill.Case, payload []byte) (drill.Instance, error) {
	profile := "lecafe-app-profile"
	switch c.Fault {
	case "", "late-credentials", "config-missing", "queue-missing", "imds-down", "no-network", "disk-full", "clock-skew", "agent-killed":
	case "no-role":
		profile = ""
	case "wrong-role":
		profile = "drill-nothing"
	case "config-denied":
		profile = "drill-no-config"
	default:
		return nil, fmt.Errorf("no fault %q", c.Fault)
	}
	undo, err := g.breakCloud(ctx, c.Fault)
	if err != nil {
		return nil, err
	}
	in := &ec2.RunInstancesInput{
		ImageId: &g.imageID, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: ec2types.InstanceTypeT3Micro,
		UserData:        aws.String(base64.StdEncoding.EncodeToString(payload)),
		MetadataOptions: &ec2types.InstanceMetadataOptionsRequest{HttpTokens: ec2types.HttpTokensStateRequired, HttpPutResponseHopLimit: aws.Int32(1)},
	}
	if profile != "" {
		in.IamInstanceProfile = &ec2types.IamInstanceProfileSpecification{Name: &profile}
	}
	id, err := g.run(ctx, c.Fault, in)
	if err != nil {
		undo()
		return nil, err
	}
	if c.Fault == "clock-skew" { // from now on: the operator's own calls are dated too
		g.clock.ahead.Store(int64(24 * time.Hour))
		undo = func() { g.clock.ahead.Store(0) }
	}
	i := &drillInstance{g: g, id: id, undo: sync.OnceFunc(undo)}
	if c.Fault == "agent-killed" {
		i.kill(ctx)
	}
	return i, nil
}

type drillInstance struct {
	g      *drillGround
	id     string
	undo   func()
	killer sync.WaitGroup
	key    string // of the report
}

// Arrived implements drill.Instance.
func (i *drillInstance) Arrived() time.Time {
	i.g.mu.Lock()
	defer i.g.mu.Unlock()
	return i.g.arrived["arn:aws:s3:::"+drillReports+"/"+i.key]
}

// kill waits until user data runs and kills the agent.
func (i *drillInstance) kill(ctx context.Context) {
	i.killer.Go(func() {
		for ctx.Err() == nil {
			_, err := i.g.lab.Machines.Exec(ctx, i.id, "sh", "-c", "pgrep -f instance/scripts/part && systemctl kill -s KILL lecafe-agent.service")
			if err == nil || sleep(ctx, 500*time.Millisecond) != nil {
				return
			}
		}
	})
}

// Report implements drill.Instance. Where a report cannot leave the instance,
// its verdict on the console counts.
func (i *drillInstance) Report(ctx context.Context) (*report.Report, string, error) {
	var spoken *report.Report
	var since time.Time
	for {
		r, err := i.fromS3(ctx)
		if err != nil && ctx.Err() == nil {
			return nil, "", err
		}
		if r != nil {
			return r, "s3", nil
		}
		if spoken == nil {
			if spoken, err = i.fromConsole(); err != nil && ctx.Err() == nil {
				return nil, "", err
			}
			since = time.Now()
		}
		// A report follows its console line within seconds, if it can.
		if spoken != nil && time.Since(since) > 10*time.Second {
			return spoken, "console", nil
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			if spoken != nil {
				return spoken, "console", nil
			}
			return nil, "", fmt.Errorf("%w from %s", drill.ErrSilent, i.id)
		}
	}
}

func (i *drillInstance) fromS3(ctx context.Context) (*report.Report, error) {
	for _, key := range i.g.lab.S3.Objects(drillReports, "") {
		k, err := report.ParseKey(key)
		if err != nil || k.InstanceID() != i.id || k.Kind != report.KindBootstrap {
			continue
		}
		i.undo() // the report is out
		i.key = key
		out, err := i.g.s3().GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(drillReports), Key: &key})
		if err != nil {
			return nil, fmt.Errorf("read report: %w", err)
		}
		doc, err := io.ReadAll(out.Body)
		if err := errors.Join(err, out.Body.Close()); err != nil {
			return nil, fmt.Errorf("read report: %w", err)
		}
		return report.Decode(doc)
	}
	return nil, nil
}

func (i *drillInstance) fromConsole() (*report.Report, error) {
	text, err := i.g.lab.Machines.Console(i.id)
	if errors.Is(err, machine.ErrNotFound) {
		return nil, nil // not launched yet
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		_, doc, ok := strings.Cut(line, sinks.Prefix)
		if !ok {
			continue
		}
		var l sinks.Line
		if json.Unmarshal([]byte(strings.TrimSpace(doc)), &l) != nil || l.Event != "verdict" {
			continue
		}
		r := &report.Report{Verdict: l.Verdict, Summary: l.Message}
		if l.Code != "" {
			r.Causes = []report.Cause{{Stage: report.StageName(l.Stage), Code: l.Code, File: l.File, Line: l.Line, ExitCode: l.Exit, Message: l.Message}}
		}
		return r, nil
	}
	return nil, nil
}

// CloudInit implements drill.Instance.
func (i *drillInstance) CloudInit(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := i.g.lab.Machines.Exec(ctx, i.id, "sh", "-c", "cloud-init status 2>/dev/null; echo exit $?")
	if err != nil {
		return "not asked"
	}
	fields := strings.Fields(strings.ReplaceAll(string(out), "status: ", ""))
	return strings.Join(fields, " ")
}

// Close implements drill.Instance.
func (i *drillInstance) Close(ctx context.Context) error {
	i.undo()
	_, err := ec2.NewFromConfig(i.g.cfg).TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{i.id}})
	i.killer.Wait()
	return err
}
