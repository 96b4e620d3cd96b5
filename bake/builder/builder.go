// Package builder is the program on a builder instance: it fetches the plan
// that the CLI staged, provisions, installs the agent, cleans and inspects the
// root file system, and says how it went. It talks to the CLI through the
// manifest's presigned URLs alone, holds no AWS credentials, and leaves
// nothing of itself in the image.
package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/cleanup"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

// Builder is one run. Fields are set before Run.
type Builder struct {
	Dir     string // manifest.Dir
	Root    string // "/"
	IMDS    string // http://169.254.169.254
	HTTP    *http.Client
	Log     *slog.Logger
	Scanner cleanup.Scanner // of secrets, for the inspection

	state  state
	renew  time.Duration
	selfMu sync.Mutex // state.Self, renew
	plan   *manifest.Plan
	tell   *teller
}

// state is what survives a reboot and a crash, in Dir/state.json.
type state struct {
	BakeID     string          `json:"bake_id"`
	InstanceID string          `json:"instance_id"`
	Self       string          `json:"self"`
	Deadline   time.Time       `json:"deadline"`
	Steps      []manifest.Step `json:"steps"`   // that ended
	Running    int             `json:"running"` // number of the step under way, 0 between steps
	BootID     string          `json:"boot_id"` // of the boot in which Running began
	Setuid     []string        `json:"setuid"`  // before the first step
	Began      bool            `json:"began"`
	Sent       bool            `json:"sent"` // the result is in S3: nothing is left but to wait
	Started    time.Time       `json:"started"`
}

// errStep says that a step failed; the result tells which.
var errStep = errors.New("step failed")

// ErrReboot says that the builder is rebooting and goes on in the next boot.
var ErrReboot = errors.New("rebooting")

// Run goes on from the state on disk to the final report, and returns when it
// is sent or, after the reboot was asked for, when the reboot is under way.
func (b *Builder) Run(ctx context.Context) error {
	if err := b.load(); err != nil {
		return err
	}
	if b.state.Sent {
		b.Log.Info("the result is sent, waiting to be stopped")
		return nil
	}
	m, err := b.manifest(ctx)
	if err != nil {
		return err
	}
	if b.state.Deadline = m.Deadline; b.state.Started.IsZero() {
		b.state.Started = time.Now()
	}
	b.state.BakeID = m.BakeID
	ctx, cancel := context.WithDeadlineCause(ctx, m.Deadline, errors.New("the builder's deadline has passed"))
	defer cancel()
	if b.state.InstanceID == "" {
		b.state.InstanceID = b.instanceID(ctx)
	}
	if err := b.save(); err != nil {
		return err
	}
	if err := b.fetchPlan(ctx); err != nil {
		return err
	}
	b.tell = newTeller(ctx, b)
	renewing := b.keepRenewed(ctx)
	defer renewing()

	res := manifest.Result{BakeID: b.state.BakeID}
	err = b.work(ctx, &res)
	if errors.Is(err, ErrReboot) || (err != nil && !errors.Is(err, errStep) && ctx.Err() != nil) {
		return err
	}
	res.Steps = b.state.Steps
	b.report(ctx, &res, err)
	b.tell.stop()
	if err := b.put(ctx, func(m *manifest.Manifest) string { return m.Result }, res); err != nil {
		return fmt.Errorf("send result: %w", err)
	}
	b.state.Sent = true
	if err := b.save(); err != nil {
		return err
	}
	b.Log.Info("done, waiting to be stopped", "verdict", res.Report.Verdict)
	return nil
}

// work does everything between the plan and the result.
func (b *Builder) work(ctx context.Context, res *manifest.Result) error {
	if b.plan.Canary != nil {
		return b.canary(ctx, res)
	}
	if !b.state.Began {
		// What set-uid files the source had, before anything changes.
		files, err := cleanup.Setuid(ctx, b.Root)
		if err != nil {
			return err
		}
		b.state.Setuid, b.state.Began = append([]string{}, files...), true // never nil: that would mean no check
		if err := b.save(); err != nil {
			return err
		}
	}
	if err := b.provision(ctx); err != nil {
		return err
	}
	b.tell.phase("agent", "lecafe-agent")
	if err := b.installAgent(ctx); err != nil {
		return err
	}
	b.tell.phase("clean", "cloud-init to end")
	if err := b.waitForCloudInit(ctx); err != nil {
		return err
	}
	return b.cleanAndInspect(ctx, res)
}

func (b *Builder) load() error {
	data, err := os.ReadFile(filepath.Join(b.Dir, "state.json"))
	if err == nil {
		err = json.Unmarshal(data, &b.state)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read state: %w", err)
	}
	// Newer than the state's: it is written with each renewal.
	url, err := os.ReadFile(filepath.Join(b.Dir, "url"))
	if err != nil {
		return fmt.Errorf("read the manifest's URL: %w", err)
	}
	b.state.Self = trimLine(url)
	return nil
}

func (b *Builder) save() error {
	b.selfMu.Lock()
	data, err := json.Marshal(b.state)
	b.selfMu.Unlock()
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return atomicfile.WriteFile(filepath.Join(b.Dir, "state.json"), data, 0o600)
}

// instanceID asks IMDS, by version 2 alone. The ID is only said in reports: a
// builder that cannot have it works all the same.
func (b *Builder) instanceID(ctx context.Context) string {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errors.New("IMDS did not answer within 5s"))
	defer cancel()
	direct := &http.Client{Transport: &http.Transport{}} // never through a proxy
	defer direct.CloseIdleConnections()
	ask := func(method, path string, h http.Header) (string, error) {
		req, err := http.NewRequestWithContext(ctx, method, b.IMDS+path, nil)
		if err != nil {
			return "", err
		}
		req.Header = h
		resp, err := direct.Do(req)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s %s: %s", method, path, resp.Status)
		}
		return string(body), err
	}
	token, err := ask(http.MethodPut, "/latest/api/token", http.Header{"X-aws-ec2-metadata-token-ttl-seconds": {"60"}})
	if err == nil {
		token, err = ask(http.MethodGet, "/latest/meta-data/instance-id", http.Header{"X-aws-ec2-metadata-token": {token}})
	}
	if err != nil {
		b.Log.Warn("no instance ID", "err", err)
		return ""
	}
	return token
}

// report fills in the final report from what happened.
func (b *Builder) report(ctx context.Context, res *manifest.Result, err error) {
	r := &res.Report
	r.Schema, r.ID, r.Kind, r.Verdict = report.Schema, report.NewID(), report.KindBuild, report.Success
	if r.Summary = "The builder was provisioned, cleaned and proved clean."; b.plan.Canary != nil {
		r.Summary = "The canary's agent says success and its tests passed."
	}
	r.Instance = report.Instance{ID: b.state.InstanceID, BakeID: b.state.BakeID}
	r.BootedAt, r.JudgedAt, r.BootID = b.state.Started.UTC(), time.Now().UTC(), b.bootID()
	if err != nil {
		if len(r.Causes) == 0 {
			r.Causes = append(r.Causes, b.cause(ctx, err))
		}
		r.Verdict, r.Summary = report.Failure, r.Causes[0].Message
	}
	// Encode redacts and normalises; the result carries the report so.
	if data, err := report.Encode(r); err == nil {
		if clean, err := report.Decode(data); err == nil {
			res.Report = *clean
		}
	}
}

func (b *Builder) cause(ctx context.Context, err error) report.Cause {
	c := report.Cause{Stage: report.StageSystem, Code: report.CodeBuildStep, Severity: report.SeverityFailure, Message: err.Error()}
	if cause := context.Cause(ctx); cause != nil {
		c.Code, c.Message = report.CodeDeadline, cause.Error()
	}
	if n := len(b.state.Steps); errors.Is(err, errStep) && n > 0 {
		s := b.state.Steps[n-1]
		c.Message = fmt.Sprintf("Step %d (%s) failed with exit code %d.", s.Number, s.Name, s.ExitCode)
		c.ExitCode, c.File, c.Line, c.Command, c.Output = &s.ExitCode, s.File, s.Line, s.Command, s.Output
	}
	return c
}

func (b *Builder) bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return trimLine(data)
}
