// Package lab puts a local AWS together: the fakes of lab/cloud, instances
// that really boot (lab/machine) from base images (lab/image), and the
// metadata service of each (lab/imds). It owns the wiring and what a new lab
// has in it, and that nothing of a lab stays when it is closed.
package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/lecafe/lecafe/lab/cloud"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/image"
	"github.com/lecafe/lecafe/lab/imds"
	"github.com/lecafe/lecafe/lab/machine"
)

// Drivers that run a lab's instances.
const (
	DriverNspawn = "nspawn" // they really boot, as root
	DriverNone   = "none"   // they are records of the EC2 API alone
)

// DefaultStateDir is where labs keep what lives as long as they do.
const DefaultStateDir = "/var/lib/lecafe-lab"

// Region is the region of a lab's seed and environment.
const Region = "us-east-1"

// debian is the account that publishes Debian's images,
// https://wiki.debian.org/Cloud/AmazonEC2Image
const debian = "136693071363"

// Options select what a lab is made of. The zero value boots no instances.
type Options struct {
	Listen    string // address of the one endpoint; default 127.0.0.1:0
	Driver    string // DriverNspawn or DriverNone (default)
	StateDir  string // of the machines; default DefaultStateDir
	Images    []*image.Image
	TimeScale float64 // the cloud's own delays are divided by it; default 1
	AWSTimes  bool    // instances that boot are pending, stopping and imaged for as long as on AWS, TimeScale applied
	Clock     wire.Clock
	ClockSkew time.Duration // AWS's clock is ahead of the instances' by so much: theirs is wrong
	Seed      *Seed         // nil for none
	Log       *slog.Logger

	// Faults, if set, is asked at each boot of a new instance what is broken
	// around it from the first moment on.
	Faults func(ec2.Machine) machine.Faults
	// IMDS, if set, is told of each instance's metadata service before the
	// instance is up.
	IMDS func(instanceID string, s *imds.Server)
}

// Lab is a running local AWS.
type Lab struct {
	*cloud.Cloud
	URL      string
	Port     int
	Machines *machine.Driver   // nil without a driver
	AMIs     map[string]string // of the base images: debian-12 → ami-...
	Stack    string            // the stack that was made in it, for Env; empty for none

	endpoint *cloud.Endpoint
	opts     Options

	mu   sync.Mutex
	imds map[string]*imds.Server
}

// Start makes a lab. It lives until Close, which must be called; a ctx that
// ends closes its endpoint only.
func Start(ctx context.Context, o Options) (_ *Lab, err error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.TimeScale == 0 {
		o.TimeScale = 1
	}
	if o.Clock == nil {
		o.Clock = wire.Scaled(o.TimeScale)
	}
	if o.ClockSkew != 0 {
		o.Clock = skewed{o.Clock, o.ClockSkew}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Lab{AMIs: map[string]string{}, opts: o, imds: map[string]*imds.Server{}}
	// The machines must know the port before anything can be launched.
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("start lab: %w", err)
	}
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok || !addr.IP.IsLoopback() || addr.Port == machine.AptPort {
		return nil, errors.Join(fmt.Errorf("start lab: listen on a loopback address, and not on port %d, instead of %s", machine.AptPort, o.Listen), ln.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ln.Close(), l.Close())
		}
	}()
	co := cloud.Options{Clock: o.Clock, Region: Region, Log: o.Log, Ports: []int{addr.Port}, IMDS: l.newIMDS, Hold: o.AWSTimes}
	switch o.Driver {
	case DriverNspawn:
		abs, err := filepath.Abs(o.StateDir)
		if err != nil {
			return nil, fmt.Errorf("start lab: %w", err)
		}
		if l.Machines, err = machine.Open(ctx, machine.Options{Dir: abs, Log: o.Log, Faults: o.Faults}); err != nil {
			return nil, fmt.Errorf("start lab: %w", err)
		}
		co.Machines = l.Machines
	case DriverNone, "":
	default:
		return nil, fmt.Errorf("start lab: no driver %q: choose %s or %s", o.Driver, DriverNspawn, DriverNone)
	}
	l.Cloud = cloud.New(co)
	if err := l.publish(); err != nil {
		return nil, fmt.Errorf("start lab: %w", err)
	}
	if o.Seed != nil {
		if err := o.Seed.plant(l.Cloud); err != nil {
			return nil, fmt.Errorf("start lab: %w", err)
		}
	}
	// The endpoint outlives ctx, so that what a command does when it is
	// interrupted still finds the cloud there.
	l.endpoint = l.Serve(context.WithoutCancel(ctx), ln)
	l.URL, l.Port = l.endpoint.URL, l.endpoint.Port
	return l, nil
}

// Close ends the instances and removes all that the lab made on this host.
func (l *Lab) Close() error {
	if l.endpoint != nil {
		l.endpoint.Close()
	}
	if l.Cloud != nil {
		l.Cloud.Close()
	}
	if l.Machines != nil {
		return l.Machines.Close()
	}
	return nil
}

// Env is the environment, as NAME=value, in which the AWS SDKs, the AWS CLI
// and lecafe use the lab and nothing else. The keys are nobody's.
func (l *Lab) Env() []string {
	env := []string{
		"AWS_ENDPOINT_URL=" + l.URL,
		"AWS_ACCESS_KEY_ID=test",
		"AWS_SECRET_ACCESS_KEY=test",
		"AWS_REGION=" + Region,
		"AWS_DEFAULT_REGION=" + Region,
	}
	if l.opts.TimeScale > 1 {
		// How long lecafe leaves the cloud in peace is measured by AWS's clock.
		env = append(env, fmt.Sprintf("LECAFE_POLL=%s", max(time.Duration(float64(2*time.Second)/l.opts.TimeScale), 100*time.Millisecond)))
	}
	if l.Stack != "" {
		env = append(env, "LECAFE_STACK="+l.Stack)
	}
	return env
}

// publish registers the base images with Debian's own account, names and SSM
// parameters, https://wiki.debian.org/Cloud/AmazonEC2Image
func (l *Lab) publish() error {
	for _, img := range l.opts.Images {
		sum := sha256.Sum256([]byte(filepath.Base(img.Dir)))
		id := fmt.Sprintf("ami-0%x", sum[:8])
		name := fmt.Sprintf("%s-amd64-%s-lab", img.Release.Name, img.Built.Format("20060102"))
		if l.Machines != nil {
			if err := l.Machines.AddImage(id, machine.Base{Root: img.Root(), Apt: img.ArchiveHandler()}); err != nil {
				return err
			}
		}
		if err := l.addImage(ec2.ImageSeed{ID: id, Name: name, Description: "Debian " + img.Release.Version + " as lecafe's lab boots it", Owner: debian, Created: img.Built}); err != nil {
			return err
		}
		l.AMIs[img.Release.Name] = id
		l.SSM.Put(Region, "/aws/service/debian/release/"+img.Release.Version+"/latest/amd64", id)
	}
	if l.Machines != nil {
		return nil
	}
	// Nothing boots: any image will do, and Amazon's is what people ask for.
	const al2023 = "ami-0a1b2c3d4e5f60718"
	err := l.addImage(ec2.ImageSeed{
		ID: al2023, Name: "al2023-ami-2023.9.20251117.1-kernel-6.1-x86_64", Owner: "137112412989", OwnerAlias: "amazon", IMDSSupport: "v2.0",
		Description: "Amazon Linux 2023, in name only: it does not boot here",
	})
	for _, kernel := range []string{"default", "6.1"} {
		l.SSM.Put(Region, "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-"+kernel+"-x86_64", al2023)
	}
	if len(l.opts.Images) == 0 {
		for _, r := range image.Releases() {
			sum := sha256.Sum256([]byte(r.Name))
			id := fmt.Sprintf("ami-0%x", sum[:8])
			err = errors.Join(err, l.addImage(ec2.ImageSeed{ID: id, Name: r.Name + "-amd64-20251117-2299", Owner: debian, Description: "Debian " + r.Version + ", in name only: it does not boot here"}))
			l.SSM.Put(Region, "/aws/service/debian/release/"+r.Version+"/latest/amd64", id)
			l.AMIs[r.Name] = id
		}
	}
	return err
}

func (l *Lab) addImage(s ec2.ImageSeed) error {
	_, err := l.EC2.AddImage(Region, s)
	return err
}

// newIMDS makes the metadata service of one machine.
func (l *Lab) newIMDS(instanceID string, info func() ec2.InstanceInfo) http.Handler {
	l.mu.Lock()
	s := l.imds[instanceID]
	if s == nil {
		s = imds.Follow(func() imds.Instance { return l.metadata(info()) })
		l.imds[instanceID] = s
	}
	l.mu.Unlock()
	if l.opts.IMDS != nil {
		l.opts.IMDS(instanceID, s)
	}
	return s
}

// IMDS returns the metadata service of an instance, nil if it has none: to
// announce an interruption, or to break it.
func (l *Lab) IMDS(instanceID string) *imds.Server {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.imds[instanceID]
}

// metadata is an instance as its metadata service tells it.
func (l *Lab) metadata(i ec2.InstanceInfo) imds.Instance {
	m := imds.Instance{
		InstanceID: i.InstanceID, ImageID: i.ImageID, InstanceType: i.InstanceType, Architecture: i.Architecture, MAC: i.MAC,
		PrivateIP: i.PrivateIP, Hostname: i.PrivateDNS, SubnetID: i.SubnetID, SubnetCIDR: i.SubnetCIDR, VPCID: i.VPCID, VPCCIDR: i.VPCCIDR,
		SecurityGroups: i.SecurityGroups, SecurityGroupIDs: i.SecurityGroupIDs, ReservationID: i.ReservationID, Region: i.Region,
		AvailabilityZone: i.AvailabilityZone, Account: i.AccountID, PendingTime: i.LaunchTime, AMILaunchIndex: i.LaunchIndex,
		RootDevice: i.RootDevice, UserData: i.UserData, KeyName: i.KeyName, PublicKey: i.PublicKey, Tags: i.Tags, TagsInMetadata: i.MetadataTags,
		HTTPTokens: i.HTTPTokens, EndpointDisabled: i.HTTPEndpoint == "disabled", HopLimit: i.HopLimit,
		TargetLifecycleState: i.TargetLifecycleState, Role: i.RoleName, ProfileARN: i.ProfileARN, ProfileID: i.ProfileID, Clock: l.opts.Clock,
	}
	if i.Spot {
		m.LifeCycle = "spot"
	}
	if i.RoleName != "" {
		m.Credentials = func(d time.Duration) wire.Credentials {
			if d < 0 {
				return l.Vault.Vend(i.RoleName, i.InstanceID, d)
			}
			return i.Credentials
		}
	}
	return m
}

// Unset names the variables that would lead an AWS client, or lecafe, elsewhere
// in spite of Env.
func Unset() []string {
	return []string{"LECAFE_STACK", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_AUTO_SCALING",
		"AWS_ENDPOINT_URL_IAM", "AWS_ENDPOINT_URL_CLOUDFORMATION"}
}

// skewed is a clock that is ahead.
type skewed struct {
	wire.Clock
	by time.Duration
}

func (s skewed) Now() time.Time { return s.Clock.Now().Add(s.by) }
