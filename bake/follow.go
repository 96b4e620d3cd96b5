package bake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
)

// StepError says that a provision step failed, and where.
type StepError struct{ Step manifest.Step }

func (e *StepError) Error() string {
	s := e.Step
	text := fmt.Sprintf("step %d (%s) failed with exit code %d", s.Number, s.Name, s.ExitCode)
	if s.File != "" {
		text += " at " + s.File
		if s.Line > 0 {
			text += fmt.Sprintf(":%d", s.Line)
		}
	}
	if s.Command != "" {
		text += ": " + shorten(strings.SplitN(s.Command, "\n", 2)[0])
	}
	return text
}

// ReportError says that the builder's or canary's report is a failure.
type ReportError struct{ Report report.Report }

func (e *ReportError) Error() string {
	lines := []string{e.Report.Summary}
	var shown []string
	for _, c := range e.Report.Causes {
		line, between := "  "+string(c.Code)+where(c), ": "
		if c.Message != e.Report.Summary { // that of one cause is its message
			line, between = line+between+strings.TrimSuffix(c.Message, "."), "; "
		}
		if c.Fix != "" {
			line += between + c.Fix
		}
		lines = append(lines, line)
		tail := c.Output[max(0, len(c.Output)-12):]
		if slices.Equal(tail, shown) {
			continue // several causes have the end of one log
		}
		shown = tail
		for _, out := range tail {
			lines = append(lines, "    | "+out)
		}
	}
	return strings.Join(lines, "\n")
}

// where is the place of a cause, as far as it is known.
func where(c report.Cause) string {
	text := ""
	if c.Stage != "" && c.Stage != report.StageSystem {
		text = " in " + string(c.Stage)
	}
	if c.File != "" && !strings.HasPrefix(c.Message, c.File) {
		text += ", " + c.File
		if c.Line > 0 {
			text += fmt.Sprintf(":%d", c.Line)
		}
	}
	if c.ExitCode != nil {
		text += fmt.Sprintf(", exit code %d", *c.ExitCode)
	}
	return text
}

// instanceEvery is how often the builder's state is asked for while it works.
const instanceEvery = 15 * time.Second

// provision follows the builder to its result.
func (b *bake) provision(ctx context.Context) error {
	known := b.store.known()
	if known.Provisioned {
		return nil
	}
	res, err := b.follow(ctx, "", known.Instance, known.Deadline)
	if err != nil {
		return fmt.Errorf("provision: %w", err)
	}
	if err := verdictOf(res); err != nil {
		return err
	}
	b.store.learn(func(f *facts) { f.Provisioned, f.Used = true, res.Used })
	if limit := b.recipe.Clean.MaxUsed << 30; limit > 0 && res.Used > limit {
		b.warn("the image has %.1f GiB in use, more than the %d GiB of clean.max_used", float64(res.Used)/(1<<30), b.recipe.Clean.MaxUsed)
	}
	return nil
}

func verdictOf(res *manifest.Result) error {
	if n := len(res.Steps); n > 0 && res.Steps[n-1].ExitCode != 0 {
		return &StepError{res.Steps[n-1]}
	}
	if res.Report.Verdict != report.Success {
		return &ReportError{res.Report}
	}
	return nil
}

// follow waits for the result of an instance that a manifest leads, and shows
// its progress. Until it runs, EC2 alone is asked; then one listing says
// whether there is progress or a result.
func (b *bake) follow(ctx context.Context, sub, instance string, deadline time.Time) (*manifest.Result, error) {
	var (
		r       rhythm
		res     manifest.Result
		last    manifest.Progress
		etag    string
		running = b.resumed // it may be long done, and stopped
		asked   = b.now()
	)
	err := b.pace.await(ctx, !b.resumed, &r, func() (bool, error) {
		if !running || b.now().Sub(asked) >= instanceEvery {
			asked = b.now()
			state, err := b.lives(ctx, instance, deadline)
			if err != nil && !passing(err) {
				// Its last word may be there: it says more than its end.
				if found, _ := b.getJSON(ctx, path.Join(sub, resultName), &res); found {
					return true, nil
				}
			}
			if err != nil {
				return false, err
			}
			if running = running || state == types.InstanceStateNameRunning; !running {
				return false, nil
			}
		}
		tags, err := b.said(ctx, sub)
		if err != nil {
			return false, err
		}
		if tags[resultName] != "" {
			return b.getJSON(ctx, path.Join(sub, resultName), &res)
		}
		if tags[progressName] == etag {
			return false, nil
		}
		progress := manifest.Progress{}
		if found, err := b.getJSON(ctx, path.Join(sub, progressName), &progress); err != nil || !found {
			return false, err
		}
		etag = tags[progressName]
		if progress.Step != last.Step || progress.Phase != last.Phase || progress.Name != last.Name || !slices.Equal(progress.Tail, last.Tail) {
			r.news() // a sign of life is none
		}
		last = progress
		b.emit(Event{Kind: EventStep, Phase: b.phaseName(), Step: progress.Step, Steps: progress.Steps, Text: progress.Phase + ": " + progress.Name, Tail: progress.Tail})
		return false, nil
	})
	return &res, err
}

// said returns the ETags of what an instance has PUT, by name: they come after
// all that it fetches.
func (b *bake) said(ctx context.Context, sub string) (map[string]string, error) {
	prefix := b.store.key(sub) + "/"
	out, err := b.s3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.store.bucket, Prefix: &prefix, StartAfter: aws.String(prefix + "p")})
	if err != nil {
		return nil, err
	}
	tags := map[string]string{}
	for _, o := range out.Contents {
		tags[strings.TrimPrefix(aws.ToString(o.Key), prefix)] = aws.ToString(o.ETag)
	}
	return tags, nil
}

// lives returns the state of an instance, and fails when it can no longer send
// a result.
func (b *bake) lives(ctx context.Context, instance string, deadline time.Time) (types.InstanceStateName, error) {
	i, err := b.describeInstance(ctx, instance)
	if isCode(err, "InvalidInstanceID.NotFound") || err == nil && i == nil {
		if b.now().After(deadline) { // EC2 forgets an instance an hour after its end
			return "", fmt.Errorf("%s is not known to EC2 any more, and its deadline, %s, has passed", instance, deadline.Format(time.RFC3339))
		}
		return "", nil // not visible yet
	}
	if err != nil || i == nil || i.State == nil {
		return "", err
	}
	state := i.State.Name
	b.emit(Event{Kind: EventProgress, Phase: b.phaseName(), Text: instance + " is " + string(state)})
	switch state {
	case types.InstanceStateNamePending, types.InstanceStateNameRunning:
		if b.now().After(deadline.Add(5 * time.Minute)) {
			return "", fmt.Errorf("%s sent no result by its deadline, %s: raise it, or look at it with --keep-builder%s", instance, deadline.Format(time.RFC3339), b.console(ctx, instance))
		}
		return state, nil
	}
	reason := ""
	if i.StateReason != nil {
		reason = ": " + aws.ToString(i.StateReason.Message)
	}
	if b.now().After(deadline) {
		reason += "; its deadline has passed: raise it"
	}
	return "", fmt.Errorf("%s is %s before it sent its result%s%s", instance, state, reason, b.console(ctx, instance))
}

// console returns the builder's last words, where EC2 has them.
func (b *bake) console(ctx context.Context, instance string) string {
	out, err := b.ec2.GetConsoleOutput(ctx, &ec2.GetConsoleOutputInput{InstanceId: &instance})
	if err != nil || aws.ToString(out.Output) == "" {
		return ""
	}
	text, err := decodeBase64(aws.ToString(out.Output))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > 15 {
		lines = lines[len(lines)-15:]
	}
	return "\nthe end of its console:\n  " + report.Redact(strings.Join(lines, "\n  "))
}

// getJSON reads a staging object; false while it is not there.
func (b *bake) getJSON(ctx context.Context, name string, v any) (bool, error) {
	out, err := b.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.store.bucket, Key: aws.String(b.store.key(name))})
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	data, err := io.ReadAll(io.LimitReader(out.Body, 8<<20))
	if err = errors.Join(err, out.Body.Close()); err != nil {
		return false, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	return true, nil
}
