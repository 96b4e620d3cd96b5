package agent

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/lecafe/lecafe/agent/bootstrap"
	"github.com/lecafe/lecafe/agent/config"
	"github.com/lecafe/lecafe/agent/identity"
	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/agent/sinks"
	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

const (
	// roleGrace is how long an instance without a role is believed to have
	// only got it late: at launch the association takes a moment.
	roleGrace = 45 * time.Second
	// rejectGrace is the same for credentials that AWS does not know yet.
	rejectGrace = 15 * time.Second
	// skewLimit is where AWS begins to refuse signatures.
	skewLimit = 5 * time.Minute
)

// backoff waits longer and longer between tries, with jitter.
type backoff struct{ wait time.Duration }

func (b *backoff) next(ctx context.Context, limit time.Duration) bool {
	if b.wait == 0 {
		b.wait = 100 * time.Millisecond
	}
	d := b.wait/2 + rand.N(b.wait/2+1)
	b.wait = min(2*b.wait, limit)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// identify finds out who the instance is, then serves everything that needs
// that. Each step is tried until it works.
func (a *Agent) identify(ctx context.Context) {
	meta := instance.IMDS(a.o.IMDSEndpoint)
	inst, ok := a.imds(ctx, meta)
	if !ok {
		return
	}
	a.mu.Lock()
	s := a.facts.settings
	a.mu.Unlock()
	go a.ordersGroup(ctx, s.Orders.Group)
	var pumps []sinks.Sink
	if s.Report.Webhook.URL != "" {
		pumps = append(pumps, sinks.Webhook{Client: webhookClient(s.AWS), URL: s.Report.Webhook.URL})
	}
	skew := &instance.Skew{}
	region := s.AWS.Region
	if region == "" {
		region = inst.Region
	}
	cfg, err := instance.Config(instance.Options{Region: region, Endpoint: s.AWS.EndpointURL, CABundle: s.AWS.CABundle, Proxy: s.AWS.Proxy}, meta, skew)
	if err != nil {
		a.trouble("settings", &report.Cause{Stage: report.StageIdentity, Code: report.CodeSettings, Severity: report.SeverityFailure, Message: "AWS cannot be reached with these settings: " + plain(err) + "."}, true)
	}
	a.mu.Lock()
	needs := a.needsAWS() && err == nil
	a.mu.Unlock()
	if needs {
		pumps = append(pumps, a.awsSinks(cfg, s, meta)...)
	}
	go (&sinks.Pump{Outbox: a.outbox, Sinks: pumps, Log: a.log, Ready: a.sinkReady, Fill: a.complete}).Run(ctx)
	if !needs {
		<-ctx.Done()
		return
	}
	go a.watchSkew(ctx, skew)
	if !a.credentials(ctx, cfg) {
		return
	}
	go a.queue(ctx, cfg, s.Orders.Queue)
	go a.configs(ctx, cfg, s)
	a.sender(ctx, cfg, inst.ID)
	a.marks(ctx, cfg, s)
	<-ctx.Done()
}

func (a *Agent) imdsCause(err error) *report.Cause {
	if a.o.IMDSEndpoint == "" && noRoute() {
		return &report.Cause{
			Stage: report.StageIdentity, Code: report.CodeNetworkUnreachable,
			Message: "The instance has no network: " + plain(err) + ".",
			Fix:     "Look at the subnet's network interface and at what DHCP gave: the console has the units that bring the network up.",
		}
	}
	return &report.Cause{
		Stage: report.StageIdentity, Code: report.CodeIMDSUnreachable,
		Message: "The instance metadata service does not answer: " + plain(err) + ".",
		Fix:     "Look at the metadata options of the instance (enabled, IMDSv2) and at routes or firewalls for 169.254.169.254.",
	}
}

// noRoute says that this machine has no way to the metadata service's address:
// it has no network. Connecting a datagram socket asks for the route and sends
// nothing. The SDK's own error does not unwrap to the kernel's.
func noRoute() bool {
	c, err := net.Dial("udp4", "169.254.169.254:80")
	if err != nil {
		return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH)
	}
	_ = c.Close()
	return false
}

// imds reads identity and user data: two calls and one for the token.
func (a *Agent) imds(ctx context.Context, meta *imds.Client) (report.Instance, bool) {
	var b backoff
	var inst report.Instance
	for {
		var err error
		if inst, err = identity.Instance(ctx, meta); err == nil {
			break
		}
		a.trouble("imds", a.imdsCause(err), false)
		if !b.next(ctx, 5*time.Second) {
			return inst, false
		}
	}
	a.mu.Lock()
	a.facts.instance = inst
	a.mu.Unlock()
	a.say("identity", sinks.Line{Message: inst.Type + " from " + inst.ImageID + " in " + inst.AvailabilityZone})
	b = backoff{}
	var data []byte
	for {
		var err error
		if data, err = identity.UserData(ctx, meta); err == nil {
			break
		}
		a.trouble("imds", a.imdsCause(err), false)
		if !b.next(ctx, 5*time.Second) {
			return inst, false
		}
	}
	a.userData(data)
	a.mu.Lock()
	env := a.facts.settings.Env
	a.mu.Unlock()
	a.envFiles(ctx, meta, inst, env)
	a.trouble("imds", nil, false)
	return inst, true
}

// userData takes the payload in: its description, its lint, its settings.
func (a *Agent) userData(data []byte) {
	payload := bootstrap.ReadPayload(data)
	files, err := settings.Files(a.o.Root)
	src, ok, uerr := settings.SourceFromUserData(data)
	if ok {
		files = append(files, src)
	}
	s, derr := settings.Decode(files...)
	a.mu.Lock()
	a.facts.payload = payload
	a.facts.settings = s.WithDefaults()
	a.facts.problems = derr
	if derr == nil {
		a.facts.problems = errors.Join(err, uerr)
	}
	a.checksFromSettings()
	needs := a.needsAWS()
	undecided := a.outbox.Undecided()
	a.mu.Unlock()
	if needs {
		// Before anything else may be judged: until they are there, these are open.
		a.openAll()
	}
	for _, id := range undecided {
		if r, err := a.outbox.Report(id, a.complete); err == nil {
			a.enqueue(r)
		}
	}
	a.wake()
}

// openAll opens every question that the settings raise, before one of them can
// be answered: else the boot could be judged between two.
func (a *Agent) openAll() {
	a.mu.Lock()
	s := a.facts.settings
	a.mu.Unlock()
	a.open("credentials", report.Cause{Stage: report.StageIdentity, Code: report.CodeCredentialsMissing, Message: "The role's credentials were not asked for yet."})
	if s.AWS.RoleID == "" && (s.Report.S3.Bucket != "" || s.Report.SQS.Queue != "") {
		a.open("sender", report.Cause{Stage: report.StageIdentity, Code: report.CodeNetworkUnreachable, Message: "AWS STS was not asked for the role ID yet."})
	}
	for _, o := range s.Config {
		c := report.Cause{Stage: report.StageConfig, Code: report.CodeConfigUnreachable, File: o.Path, Message: "The config " + o.Source + " was not asked for yet."}
		if o.Optional {
			c.Severity = report.SeverityDegraded
		}
		a.open("config "+o.Path, c)
	}
	if s.Orders.Queue != "" {
		a.open("queue", report.Cause{Stage: report.StageOrders, Code: report.CodeQueueUnreachable, Message: "The orders' queue was not asked for yet."})
	}
}

// needsAWS says whether the settings ask for anything that takes credentials.
// Called with mu held.
func (a *Agent) needsAWS() bool {
	s := &a.facts.settings
	return s.Report.S3.Bucket != "" || s.Report.SQS.Queue != "" || s.Report.LifecycleHook.Name != "" || len(s.Config) > 0 || s.Orders.Queue != ""
}

func (a *Agent) credentials(ctx context.Context, cfg aws.Config) bool {
	var b backoff
	for {
		_, err := cfg.Credentials.Retrieve(ctx)
		if err == nil {
			a.trouble("credentials", nil, false)
			a.mu.Lock()
			a.state.credentialsReady = true
			a.mu.Unlock()
			a.outbox.Wake()
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		cause := &report.Cause{
			Stage: report.StageIdentity, Code: report.CodeCredentialsMissing,
			Message: "The instance has a role, but IMDS gives no credentials for it: " + plain(err) + ".",
			Fix:     "Look at the instance profile's role and its trust policy for ec2.amazonaws.com.",
		}
		settled := false
		if identity.NoRole(err) {
			cause.Code = report.CodeRoleMissing
			cause.Message = "The instance has no role: it can neither read its config nor report."
			cause.Fix = "Set an instance profile in the launch template."
			settled = time.Since(a.facts.started) > roleGrace
		}
		a.trouble("credentials", cause, settled)
		if !b.next(ctx, 5*time.Second) {
			return false
		}
	}
}

// sender learns ROLEID:instance-id, under which reports are kept.
func (a *Agent) sender(ctx context.Context, cfg aws.Config, instanceID string) {
	a.mu.Lock()
	role := a.facts.settings.AWS.RoleID
	needed := a.facts.settings.Report.S3.Bucket != "" || a.facts.settings.Report.SQS.Queue != ""
	a.mu.Unlock()
	set := func(sender string) {
		a.mu.Lock()
		a.facts.sender = sender
		a.mu.Unlock()
		a.trouble("sender", nil, false)
		a.outbox.Wake()
	}
	if role != "" {
		set(role + ":" + instanceID)
		return
	}
	if !needed {
		return
	}
	client := sts.NewFromConfig(cfg)
	var b backoff
	for {
		c, cancel := context.WithTimeout(ctx, 20*time.Second)
		sender, err := identity.Sender(c, client)
		cancel()
		if err == nil {
			a.answered()
			set(sender)
			go a.senderAgain(ctx, client, set)
			return
		}
		if ctx.Err() != nil {
			return
		}
		cause, settled := a.senderCause(err)
		a.trouble("sender", cause, settled)
		if !b.next(ctx, 10*time.Second) {
			return
		}
	}
}

// senderDenied lets the sender be asked for again.
func (a *Agent) senderDenied() {
	select {
	case a.denied <- struct{}{}:
	default:
	}
}

// senderAgain asks STS once more when S3 has refused a report: the instance's
// role may have been replaced, or IMDS have begun with another.
func (a *Agent) senderAgain(ctx context.Context, client *sts.Client, set func(string)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.denied:
		}
		c, cancel := context.WithTimeout(ctx, 20*time.Second)
		sender, err := identity.Sender(c, client)
		cancel()
		a.mu.Lock()
		other := err == nil && sender != a.facts.sender
		a.mu.Unlock()
		if other {
			a.log.Info("the instance has another role", "sender", sender)
			set(sender)
		}
		// A role that is only not allowed to is no reason to ask all the time.
		t := time.NewTimer(time.Minute)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

func (a *Agent) senderCause(err error) (*report.Cause, bool) {
	cause := &report.Cause{
		Stage: report.StageIdentity, Code: report.CodeNetworkUnreachable,
		Message: "AWS STS cannot be reached: " + plain(err) + ".",
		Fix:     "Look at routes, security groups, VPC endpoints and aws.proxy. Where there is no endpoint for STS, set aws.role_id.",
	}
	var ae smithy.APIError
	if errors.As(err, &ae) && !networkError(err) {
		a.answered()
		cause.Code = report.CodeCredentialsRejected
		cause.Message = "AWS rejects the role's credentials: " + plain(err) + "."
		cause.Fix = "Look at the role, and at the instance's clock."
		return cause, time.Since(a.facts.started) > rejectGrace
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.facts.awsWorks {
		// The network is up; only this endpoint is not. That only delays
		// reports, and does not hold the verdict up for long.
		cause.Severity = report.SeverityDegraded
		return cause, time.Since(a.facts.started) > rejectGrace
	}
	return cause, false
}

func (a *Agent) answered() {
	a.mu.Lock()
	a.facts.awsWorks = true
	a.mu.Unlock()
}

func networkError(err error) bool {
	var ne net.Error
	return errors.As(err, &ne)
}

// watchSkew compares clocks whenever AWS has answered.
func (a *Agent) watchSkew(ctx context.Context, skew *instance.Skew) {
	said := false
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for range 240 { // two minutes: the boot's first answers decide
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		d := skew.Get()
		if off := d.Abs() > skewLimit; off != said {
			said = off
			if !off {
				a.trouble("clock", nil, false)
				continue
			}
			a.trouble("clock", &report.Cause{
				Stage: report.StageIdentity, Code: report.CodeClockSkew,
				Message: "The instance's clock is off by " + d.Abs().Round(time.Second).String() + "; AWS refuses signatures from more than 5 minutes off.",
				Fix:     "Run chrony against 169.254.169.123, and look at why the clock was not set.",
			}, true)
		}
	}
}

// queue asks once whether the orders' queue is there.
func (a *Agent) queue(ctx context.Context, cfg aws.Config, queue string) {
	if queue == "" {
		return
	}
	client := sqs.NewFromConfig(cfg)
	var b backoff
	for {
		c, cancel := context.WithTimeout(ctx, 20*time.Second)
		err := askQueue(c, client, queue)
		cancel()
		if err == nil {
			a.answered()
			a.trouble("queue", nil, false)
			return
		}
		if ctx.Err() != nil {
			return
		}
		cause, settled := queueCause(queue, err)
		a.trouble("queue", &cause, settled)
		if !b.next(ctx, 30*time.Second) {
			return
		}
	}
}

// configs keeps every config object.
func (a *Agent) configs(ctx context.Context, cfg aws.Config, s settings.Settings) {
	client := instance.S3(cfg, "")
	for _, o := range s.Config {
		c, err := config.New(o, config.Options{Get: client.GetObject, List: client.ListObjectsV2, Units: a.configUnits(), Ready: a.ready, Dir: filepath.Join(a.stateDir(), "config"), Root: a.o.Root, Log: a.log})
		if err != nil {
			a.trouble("config "+o.Path, &report.Cause{Stage: report.StageConfig, Code: report.CodeConfigInvalid, File: o.Path, Message: "The config's store cannot be opened: " + plain(err) + "."}, true)
			continue
		}
		a.mu.Lock()
		a.state.objects = append(a.state.objects, c)
		a.mu.Unlock()
		go a.keep(ctx, c, o)
	}
}

// group is the Auto Scaling group's name: the settings', cloud-init's copy of
// the tags, or IMDS's tags where they are on.
func (a *Agent) group(fixed string, meta *imds.Client) string {
	if fixed != "" {
		return fixed
	}
	a.tags()
	a.mu.Lock()
	name := a.facts.instance.AutoScalingGroup
	a.mu.Unlock()
	if name != "" {
		return name
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	name, err := identity.Metadata(ctx, meta, "tags/instance/aws:autoscaling:groupName")
	if err != nil {
		return ""
	}
	a.mu.Lock()
	a.facts.instance.AutoScalingGroup = name
	a.mu.Unlock()
	return name
}

// tags takes the instance's tags from cloud-init's copy of the metadata: it has
// read all of it, so IMDS need not be asked again.
func (a *Agent) tags() {
	b, err := os.ReadFile(filepath.Join(a.o.Root, "run/cloud-init/instance-data-sensitive.json"))
	if err != nil {
		b, err = os.ReadFile(filepath.Join(a.o.Root, "run/cloud-init/instance-data.json"))
	}
	if err != nil {
		return
	}
	type metadata struct {
		Tags struct {
			Instance map[string]string `json:"instance"`
		} `json:"tags"`
		AutoScaling struct {
			State string `json:"target-lifecycle-state"`
		} `json:"autoscaling"`
	}
	var doc struct {
		DS struct {
			// The first is what cloud-init 22.4 to 25.1 write, the second what
			// their documents say.
			Meta       metadata `json:"meta-data"`
			Documented metadata `json:"meta_data"`
		} `json:"ds"`
	}
	if json.Unmarshal(b, &doc) != nil {
		return
	}
	if doc.DS.Meta.Tags.Instance == nil && doc.DS.Meta.AutoScaling.State == "" {
		doc.DS.Meta = doc.DS.Documented
	}
	t := doc.DS.Meta.Tags.Instance
	a.mu.Lock()
	defer a.mu.Unlock()
	set := func(to *string, v string) {
		if *to == "" {
			*to = v
		}
	}
	set(&a.facts.instance.AutoScalingGroup, t["aws:autoscaling:groupName"])
	set(&a.facts.instance.LaunchTemplateID, t["aws:ec2launchtemplate:id"])
	set(&a.facts.instance.LaunchTemplateVersion, t["aws:ec2launchtemplate:version"])
	set(&a.facts.instance.LifecycleState, doc.DS.Meta.AutoScaling.State)
}
