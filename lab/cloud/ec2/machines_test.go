package ec2_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/lab/cloud/ec2"
)

// driver is a Machines that notes what it is asked, in order, and refuses
// calls for one machine that overlap.
type driver struct {
	mu       sync.Mutex
	log      []string
	busy     map[string]bool
	off      func(string)
	launched map[string]ec2.Machine
	broken   bool
}

func newDriver() *driver { return &driver{busy: map[string]bool{}, launched: map[string]ec2.Machine{}} }

func (d *driver) do(id, format string, args ...any) error {
	d.mu.Lock()
	d.log = append(d.log, fmt.Sprintf(format, args...))
	if d.busy[id] {
		d.log = append(d.log, "OVERLAP "+id)
	}
	d.busy[id] = true
	d.mu.Unlock()
	d.mu.Lock()
	d.busy[id] = false
	d.mu.Unlock()
	return nil
}

func (d *driver) Launch(_ context.Context, m ec2.Machine) error {
	d.mu.Lock()
	d.launched[m.InstanceID] = m
	broken := d.broken
	d.mu.Unlock()
	if broken {
		return errors.New("no such layer")
	}
	return d.do(m.InstanceID, "launch %s", m.ImageID)
}
func (d *driver) Start(_ context.Context, id string) error { return d.do(id, "start") }
func (d *driver) Stop(_ context.Context, id string, force bool) error {
	return d.do(id, "stop force=%v", force)
}
func (d *driver) Reboot(_ context.Context, id string) error    { return d.do(id, "reboot") }
func (d *driver) Terminate(_ context.Context, id string) error { return d.do(id, "terminate") }
func (d *driver) Console(string) ([]byte, error)               { return []byte("Welcome\n"), nil }
func (d *driver) Capture(_ context.Context, id, image string) (int64, error) {
	return 4711, d.do(id, "capture %s", image)
}
func (d *driver) DeleteImage(image string) error { return d.do(image, "delete %s", image) }
func (d *driver) PoweredOff(f func(string))      { d.off = f }

func (d *driver) calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

// becomes waits for an instance's state. Machines are real work on other
// goroutines, so there is a deadline instead of the clock.
func (l *lab) becomes(id string, want types.InstanceStateName) {
	l.Helper()
	l.eventually("instance "+id+" "+string(want), func() bool { return l.instance(id).State.Name == want })
}

func (l *lab) eventually(what string, ok func() bool) {
	l.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			l.Fatalf("not within 30 s: %s", what)
		}
		select {
		case <-l.Context().Done():
			l.Fatal(l.Context().Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func TestMachines(t *testing.T) {
	d := newDriver()
	l := newLab(t, func(o *ec2.Options) {
		o.Machines, o.Ports = d, []int{4566}
		o.IMDS = func(id string, info func() ec2.InstanceInfo) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, "%s %s %s", id, info().State, info().UserData)
			})
		}
	})
	id := l.run(func(in *sdk.RunInstancesInput) { in.UserData = encoded("hello") })
	l.becomes(id, types.InstanceStateNameRunning) // the clock stands still
	m := d.launched[id]
	if m.ImageID != l.base || m.PrivateIP != *l.instance(id).PrivateIpAddress || m.Gateway != "172.31.0.1" || !slices.Equal(m.Ports, []int{4566}) {
		t.Fatalf("machine %+v", m)
	}
	rec := httptest.NewRecorder()
	m.IMDS.ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if got := rec.Body.String(); got != id+" running hello" {
		t.Fatalf("IMDS says %q", got)
	}
	con := must(l.api.GetConsoleOutput(t.Context(), &sdk.GetConsoleOutputInput{InstanceId: &id}))(l)
	if *con.Output != "V2VsY29tZQo=" {
		t.Fatalf("console %q", *con.Output)
	}
	must(l.api.RebootInstances(t.Context(), &sdk.RebootInstancesInput{InstanceIds: []string{id}}))(l)

	// An image of a running instance: it is shut down for it and still shown as running.
	out := must(l.api.CreateImage(t.Context(), &sdk.CreateImageInput{InstanceId: &id, Name: aws.String("cafe")}))(l)
	img := *out.ImageId
	l.eventually("disk captured", func() bool { return slices.Contains(d.calls(), "start") })
	l.state(id, types.InstanceStateNameRunning)
	l.eventually("image", func() bool { l.clock.Advance(time.Second); return l.image(img).State == types.ImageStateAvailable })
	if snap := l.snapshot(*l.image(img).BlockDeviceMappings[0].Ebs.SnapshotId); *snap.FullSnapshotSizeInBytes != 4711 {
		t.Fatalf("snapshot of %d bytes", *snap.FullSnapshotSizeInBytes)
	}
	must(l.api.StopInstances(t.Context(), &sdk.StopInstancesInput{InstanceIds: []string{id}, Force: aws.Bool(true)}))(l)
	l.becomes(id, types.InstanceStateNameStopped)
	must(l.api.StartInstances(t.Context(), &sdk.StartInstancesInput{InstanceIds: []string{id}}))(l)
	l.becomes(id, types.InstanceStateNameRunning)
	d.off(id)
	l.becomes(id, types.InstanceStateNameStopped)
	must(l.api.TerminateInstances(t.Context(), &sdk.TerminateInstancesInput{InstanceIds: []string{id}}))(l)
	l.becomes(id, types.InstanceStateNameTerminated)
	want := []string{"launch " + l.base, "reboot", "stop force=false", "capture " + img, "start", "stop force=true", "start", "terminate"}
	if got := d.calls(); !slices.Equal(got, want) {
		t.Fatalf("machines were asked\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	// A copy boots the same layer, which goes with the last that refers to it.
	next := must(l.api.CopyImage(t.Context(), &sdk.CopyImageInput{Name: aws.String("copy"), SourceImageId: &img, SourceRegion: aws.String("eu-central-1")}))(l)
	l.clock.Advance(time.Minute)
	must(l.api.DeregisterImage(t.Context(), &sdk.DeregisterImageInput{ImageId: &img, DeleteAssociatedSnapshots: aws.Bool(true)}))(l)
	copied := l.run(func(in *sdk.RunInstancesInput) { in.ImageId = next.ImageId })
	l.becomes(copied, types.InstanceStateNameRunning)
	if d.launched[copied].ImageID != img {
		t.Fatalf("the copy boots %s", d.launched[copied].ImageID)
	}
	must(l.api.DeregisterImage(t.Context(), &sdk.DeregisterImageInput{ImageId: next.ImageId, DeleteAssociatedSnapshots: aws.Bool(true)}))(l)
	l.eventually("layer deleted", func() bool { return slices.Contains(d.calls(), "delete "+img) })
}

func TestMachineThatDoesNotStart(t *testing.T) {
	d := newDriver()
	d.broken = true
	l := newLab(t, func(o *ec2.Options) { o.Machines = d })
	id := l.run()
	l.becomes(id, types.InstanceStateNameTerminated)
	if r := l.instance(id).StateReason; *r.Code != "Server.InternalError" {
		t.Fatalf("state reason %s", *r.Code)
	}
}

func TestMachineThatEndsItself(t *testing.T) {
	d := newDriver()
	l := newLab(t, func(o *ec2.Options) { o.Machines = d })
	id := l.run(func(in *sdk.RunInstancesInput) {
		in.InstanceInitiatedShutdownBehavior = types.ShutdownBehaviorTerminate
	})
	l.becomes(id, types.InstanceStateNameRunning)
	d.off(id)
	l.becomes(id, types.InstanceStateNameTerminated)
	if got := d.calls(); !slices.Contains(got, "terminate") {
		t.Fatalf("machines were asked %v", got)
	}
}

// Held states last as long as AWS's, and no machine is waited for in vain.
func TestHeldStates(t *testing.T) {
	d := newDriver()
	l := newLab(t, func(o *ec2.Options) { o.Machines, o.Hold = d, true })
	id := l.run()
	l.clock.Advance(14 * time.Second)
	l.state(id, types.InstanceStateNamePending)
	if len(d.calls()) > 0 {
		t.Fatalf("the machine was launched while pending: %v", d.calls())
	}
	l.clock.Advance(time.Second)
	l.becomes(id, types.InstanceStateNameRunning)

	must(l.api.StopInstances(t.Context(), &sdk.StopInstancesInput{InstanceIds: []string{id}}))(l)
	l.eventually("machine off", func() bool { return slices.Contains(d.calls(), "stop force=false") })
	l.clock.Advance(29 * time.Second)
	l.state(id, types.InstanceStateNameStopping)
	l.clock.Advance(time.Second)
	l.becomes(id, types.InstanceStateNameStopped)

	img := *must(l.api.CreateImage(t.Context(), &sdk.CreateImageInput{InstanceId: &id, Name: aws.String("cafe")}))(l).ImageId
	l.eventually("disk captured", func() bool { return slices.Contains(d.calls(), "capture "+img) })
	must(l.api.TerminateInstances(t.Context(), &sdk.TerminateInstancesInput{InstanceIds: []string{id}}))(l)
	l.eventually("machine gone", func() bool { return slices.Contains(d.calls(), "terminate") }) // the capture's timers are set
	l.state(id, types.InstanceStateNameShuttingDown)
	l.clock.Advance(44 * time.Second)
	if s := l.image(img).State; s != types.ImageStatePending {
		t.Errorf("the image is %s before its time", s)
	}
	l.becomes(id, types.InstanceStateNameTerminated)
	l.clock.Advance(time.Second)
	if s := l.image(img).State; s != types.ImageStateAvailable {
		t.Errorf("the image is %s", s)
	}
}
