package agent

import (
	"context"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lecafe/lecafe/agent/bootstrap"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/agent/sinks"
	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

// markAfter is how long a stage lasts before it is told in S3: a boot that goes
// quickly costs no call.
const markAfter = 5 * time.Second

// stageNow is the stage that holds the verdict up: cloud-init's, or what the
// settings wait for; "" between two.
func stageNow(j bootstrap.Judgement, ev bootstrap.Evidence) report.StageName {
	for _, s := range j.Stages {
		if s.Status == "running" {
			return s.Name
		}
	}
	if !ev.CloudInit.Ended() && j.Status != "disabled" {
		return ""
	}
	open := slices.DeleteFunc(slices.Clone(ev.Troubles), func(t bootstrap.Trouble) bool { return t.Settled })
	for _, stage := range report.StageNames() {
		if slices.ContainsFunc(open, func(t bootstrap.Trouble) bool { return t.Cause.Stage == stage }) {
			return stage
		}
	}
	return report.StageApplication
}

// moved tells the marks that the stage is another, or that the boot is judged.
func (a *Agent) moved(stage report.StageName) {
	a.mu.Lock()
	same := stage == "" || stage == a.facts.stage
	if !same {
		a.facts.stage = stage
	}
	judged := a.state.Judged
	a.mu.Unlock()
	if same && !judged {
		return
	}
	select {
	case a.advanced <- struct{}{}:
	default:
	}
}

// marks tells in S3 how far the boot is, until its report has arrived there.
func (a *Agent) marks(ctx context.Context, cfg aws.Config, s settings.Settings) {
	a.mu.Lock()
	sender, id, before, unsent := a.facts.sender, a.facts.instance.ID, a.facts.before, a.facts.unsent
	a.mu.Unlock()
	if s.Report.S3.Bucket == "" || sender == "" || before.Done(id) && !unsent {
		return
	}
	client := instance.S3(cfg, s.Report.S3.Region)
	m := &sinks.Marks{Put: client.PutObject, Delete: client.DeleteObject, Bucket: s.Report.S3.Bucket, Prefix: s.Report.S3.Prefix, Sender: sender}
	if before.InstanceID == id {
		m.Before = report.StageNames() // which of them nobody remembers
	}
	after := a.o.MarkAfter
	if after == 0 {
		after = markAfter
	}
	call := func(f func(context.Context) error) error {
		c, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		err := f(c)
		if err != nil && ctx.Err() == nil {
			a.log.Info("progress is not told", "error", plain(err))
		}
		return err
	}
	timer := time.NewTimer(after)
	defer timer.Stop()
	var current, told report.StageName
	for tries := 0; !before.Done(id); {
		select {
		case <-ctx.Done():
			return
		case <-a.advanced:
		case <-timer.C:
			if current == told {
				continue
			}
			err := call(func(c context.Context) error { return m.Say(c, current) })
			switch {
			case m.Said == current: // also where the one before stays
				told = current
			case err != nil && tries < 5:
				tries++
				timer.Reset(30 * time.Second)
			}
			continue
		}
		a.mu.Lock()
		stage, judged := a.facts.stage, a.state.Judged
		a.mu.Unlock()
		if judged {
			break
		}
		if stage != current {
			current, tries = stage, 0
			timer.Reset(after)
		}
	}
	select {
	case <-ctx.Done():
	case <-a.reported:
		_ = call(m.Clear)
	}
}

// arrived is told of every report that S3 has got.
func (a *Agent) arrived(r *report.Report) {
	if r.Kind == report.KindBootstrap {
		select {
		case a.reported <- struct{}{}:
		default:
		}
	}
}
