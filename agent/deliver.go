package agent

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/agent/sinks"
	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

// The way of a report out: to which sinks, and when each can be tried.

func (a *Agent) awsSinks(cfg aws.Config, s settings.Settings, meta *imds.Client) []sinks.Sink {
	var out []sinks.Sink
	if b := s.Report.S3.Bucket; b != "" {
		out = append(out, sinks.S3{Put: instance.S3(cfg, s.Report.S3.Region).PutObject, Bucket: b, Prefix: s.Report.S3.Prefix, Arrived: a.arrived, Denied: a.senderDenied})
	}
	if q := s.Report.SQS.Queue; q != "" {
		client := sqs.NewFromConfig(cfg)
		out = append(out, &sinks.SQS{URL: client.GetQueueUrl, Message: client.SendMessage, Queue: q, Prefix: s.Report.S3.Prefix})
	}
	if h := s.Report.LifecycleHook; h.Name != "" {
		client := autoscaling.NewFromConfig(cfg)
		hook := &sinks.Hook{
			Complete: client.CompleteLifecycleAction, Beat: client.RecordLifecycleActionHeartbeat, Hook: h.Name,
			Group:      func() string { return a.group(h.Group, meta) },
			InstanceID: func() string { a.mu.Lock(); defer a.mu.Unlock(); return a.facts.instance.ID },
		}
		a.mu.Lock()
		a.state.hook = hook
		a.mu.Unlock()
		out = append(out, hook)
	}
	return out
}

// heartbeat tells the lifecycle hook that a stage has advanced.
func (a *Agent) heartbeat(ctx context.Context) {
	a.mu.Lock()
	hook, ready := a.state.hook, a.state.credentialsReady
	a.mu.Unlock()
	if hook == nil || !ready {
		return
	}
	go func() {
		c, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := hook.Heartbeat(c); err != nil {
			a.log.Warn("no heartbeat", "error", plain(err))
		}
	}()
}

func webhookClient(s settings.AWS) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: webhookTransport(s)}
}

// enqueue hands a report to every sink the settings name.
func (a *Agent) enqueue(r *report.Report) {
	a.tags()
	a.complete(r)
	a.mu.Lock()
	s, known := a.facts.settings, a.facts.payload.Known
	i := a.facts.instance
	a.mu.Unlock()
	r.Instance.AutoScalingGroup, r.Instance.LaunchTemplateID = i.AutoScalingGroup, i.LaunchTemplateID
	r.Instance.LaunchTemplateVersion, r.Instance.LifecycleState = i.LaunchTemplateVersion, i.LifecycleState
	var names []string
	for _, n := range []struct {
		name string
		on   bool
	}{
		{sinks.NameS3, s.Report.S3.Bucket != ""},
		{sinks.NameSQS, s.Report.SQS.Queue != ""},
		{sinks.NameWebhook, s.Report.Webhook.URL != ""},
		{sinks.NameHook, s.Report.LifecycleHook.Name != "" && slices.Contains([]report.Kind{report.KindBootstrap}, r.Kind)},
	} {
		if n.on {
			names = append(names, n.name)
		}
	}
	if err := a.outbox.Add(r, names, !known); err != nil {
		// It is in memory and will be sent; only a restart now would lose it.
		a.log.Error("the report cannot be kept on disk", "report", r.ID, "error", err)
	}
}

// errNotYet says what a sink waits for.
var (
	errNoCredentials = errors.New("waiting for the role's credentials")
	errNoSender      = errors.New("waiting for the role ID from STS; aws.role_id spares that")
)

func (a *Agent) sinkReady(sink string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case sink == sinks.NameWebhook:
		return nil
	case !a.state.credentialsReady:
		return errNoCredentials
	case a.facts.sender == "" && sink != sinks.NameHook:
		return errNoSender
	}
	return nil
}
