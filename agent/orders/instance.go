package orders

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/lecafe/lecafe/agent/identity"
	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

// Instance resolves the target on an EC2 instance: settings baked into the
// image, completed by user data, with the instance role's credentials.
type Instance struct {
	Root     string // of the settings files, "/" on an instance
	Override settings.Settings
	NoIMDS   bool   // the settings files are all there is
	Metadata string // endpoint of IMDS, empty on an instance

	once    sync.Once
	client  *imds.Client
	payload *[]byte // user data, once it was read: it changes only while the instance is off
}

// errNoQueue says what to do where no queue is set.
var errNoQueue = errors.New("no queue is set: set orders.queue in " + settings.Path + " or in the user data")

func (i *Instance) metadata() *imds.Client {
	i.once.Do(func() { i.client = instance.IMDS(i.Metadata) })
	return i.client
}

// Baked returns the settings of the image alone: what is known before IMDS
// answers. What is wrong in them is reported by the boot's judge; here the rest
// is used.
func (i *Instance) Baked() settings.Settings {
	files, err := settings.Files(i.Root)
	if err != nil {
		return i.apply(settings.Settings{})
	}
	s, _ := settings.Decode(files...)
	return i.apply(s)
}

func (i *Instance) apply(s settings.Settings) settings.Settings {
	o := i.Override
	if o.Orders.Queue != "" {
		s.Orders.Queue = o.Orders.Queue
	}
	if o.Orders.SealTo != "" {
		s.Orders.SealTo = o.Orders.SealTo
	}
	if o.Orders.MaxBytes != 0 {
		s.Orders.MaxBytes = o.Orders.MaxBytes
	}
	if o.Orders.Drain != 0 {
		s.Orders.Drain = o.Orders.Drain
	}
	if o.AWS.Region != "" {
		s.AWS.Region = o.AWS.Region
	}
	if o.AWS.EndpointURL != "" {
		s.AWS.EndpointURL = o.AWS.EndpointURL
	}
	return s.WithDefaults()
}

// Resolve is Service.Resolve, for one caller at a time. Where no queue is set it
// is called for ever, and asks IMDS for user data once.
func (i *Instance) Resolve(ctx context.Context) (Target, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	files, ferr := settings.Files(i.Root)
	if ferr != nil && !errors.Is(ferr, fs.ErrPermission) {
		return Target{}, ferr
	}
	// Files that only root may read are as good as none: user data may do.
	if !i.NoIMDS {
		if i.payload == nil {
			data, err := identity.UserData(ctx, i.metadata())
			if err != nil {
				return Target{}, err
			}
			i.payload = &data
		}
		src, ok, err := settings.SourceFromUserData(*i.payload)
		if err == nil && ok {
			files = append(files, src)
		}
		// User data that cannot be read is the boot judge's to report; the
		// image's settings may do.
	}
	s, derr := settings.Decode(files...)
	s = i.apply(s)
	if s.Orders.Queue == "" {
		return Target{}, errors.Join(errNoQueue, ferr, derr)
	}
	region := s.AWS.Region
	if region == "" && !i.NoIMDS {
		doc, err := identity.Instance(ctx, i.metadata())
		if err != nil {
			return Target{}, err
		}
		region = doc.Region
	}
	if region == "" {
		return Target{}, errors.New("no AWS region: set aws.region in " + settings.Path + ", or give --region")
	}
	o := instance.Options{Region: region, Endpoint: s.AWS.EndpointURL, CABundle: s.AWS.CABundle, Proxy: s.AWS.Proxy}
	var cfg aws.Config
	var err error
	if i.NoIMDS {
		cfg, err = environment(o)
	} else {
		cfg, err = instance.Config(o, i.metadata(), nil)
	}
	if err != nil {
		return Target{}, err
	}
	return Target{Queue: s.Orders.Queue, SealTo: s.Orders.SealTo, MaxBytes: s.Orders.MaxBytes, Drain: s.Orders.Drain, AWS: cfg, Sender: i.sender(s.AWS, cfg)}, nil
}

func (i *Instance) sender(a settings.AWS, cfg aws.Config) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if a.RoleID != "" && !i.NoIMDS {
			doc, err := identity.Instance(ctx, i.metadata())
			if err != nil {
				return "", err
			}
			return a.RoleID + ":" + doc.ID, nil
		}
		return identity.Sender(ctx, sts.NewFromConfig(cfg))
	}
}

// environment is the configuration of a service that must not ask IMDS: keys
// from the environment, as tests and containers have them.
func environment(o instance.Options) (aws.Config, error) {
	cfg, err := instance.Config(o, instance.IMDS(""), nil)
	if err != nil {
		return aws.Config{}, err
	}
	cfg.Credentials = aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		c := aws.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: os.Getenv("AWS_SESSION_TOKEN"), Source: "environment"}
		if !c.HasKeys() {
			return c, errors.New("no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or let the service ask IMDS")
		}
		return c, nil
	}))
	return cfg, nil
}

// noticeEvery is how often IMDS is asked: a spot notice comes two minutes ahead.
const noticeEvery = 5 * time.Second

// Notices waits for word that the instance is about to end: a spot interruption
// that terminates it, or scale-in by its Auto Scaling group.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
// https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html
func (i *Instance) Notices(ctx context.Context) string {
	if i.NoIMDS {
		return ""
	}
	t := time.NewTicker(noticeEvery)
	defer t.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		state, err := identity.Metadata(ask, i.metadata(), "autoscaling/target-lifecycle-state")
		if err == nil && state == "Terminated" {
			cancel()
			return "target lifecycle state is Terminated"
		}
		// A notice that hibernates or stops the instance leaves the disk alone.
		action, err := identity.Metadata(ask, i.metadata(), "spot/instance-action")
		cancel()
		if err == nil && spotTerminates(action) {
			return "spot interruption"
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ""
		}
	}
}
