package bake_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/lecafe/lecafe/bake"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/lab/cloud"
)

// Every call may be throttled, answered by a 5xx, or cut off, before or after
// it has done its work: the bake makes one image all the same.
func TestFaultsOfEveryCall(t *testing.T) {
	calls := []string{
		"DescribeImages", "CreateSecurityGroup", "RunInstances", "DescribeInstances", "StopInstances", "CreateImage", "ModifyImageAttribute",
		"CreateTags", "TerminateInstances", "DeleteSecurityGroup", "PutObject", "GetObject", "ListObjectsV2", "DeleteObjects", "DeleteObject", "DescribeSnapshots",
	}
	for _, action := range calls {
		for name, f := range map[string]cloud.Fault{
			"throttled":        {Kind: cloud.Throttle, Times: 2},
			"reset":            {Kind: cloud.Reset, Times: 1},
			"answer lost, 5xx": {Kind: cloud.Error5xx, Times: 1, After: true},
		} {
			t.Run(action+" "+name, func(t *testing.T) {
				t.Parallel()
				faster := 1000.0
				if action == "DescribeSnapshots" {
					faster = 100 // else they are made before they are asked for
				}
				w := newWorldAt(t, faster)
				w.play(&player{})
				f.Action = action
				injected := w.Inject(f)
				opts := w.options(w.recipe())
				opts.Report = nil
				out, err := bake.Run(t.Context(), opts)
				if err != nil {
					t.Fatal(err)
				}
				if injected.Hits() == 0 {
					t.Error("the fault met no call")
				}
				if n := len(w.images()); n != 1 || out.ImageID == "" {
					t.Errorf("%d images", n)
				}
				w.nothingLeaked()
			})
		}
	}
}

// Nothing that was just made can be seen for a while.
func TestEventualConsistency(t *testing.T) {
	w := newWorld(t)
	w.EC2.Invisible(20 * time.Second) // 0.2 s on this clock
	w.play(&player{})
	if _, err := bake.Run(t.Context(), w.options(w.recipe())); err != nil {
		t.Fatal(err)
	}
	if n := len(w.images()); n != 1 {
		t.Errorf("%d images", n)
	}
	w.nothingLeaked()
}

func TestCapacity(t *testing.T) {
	w := newWorld(t)
	subnets, err := w.api.DescribeSubnets(t.Context(), &ec2.DescribeSubnetsInput{})
	if err != nil || len(subnets.Subnets) < 2 {
		t.Fatalf("subnets %+v, %v", subnets, err)
	}
	first, other := *subnets.Subnets[0].SubnetId, *subnets.Subnets[1].SubnetId
	w.EC2.Capacity("c7i.large", "", false)
	w.EC2.Capacity("t3.small", first, false)
	w.play(&player{})
	var tried []string
	opts := w.options(w.recipe("builder.instance_types=[c7i.large, t3.small]", fmt.Sprintf("builder.subnets=[%s, %s]", first, other)))
	inner := opts.Report
	opts.Report = func(e bake.Event) {
		inner(e)
		if e.Kind == bake.EventWarning {
			tried = append(tried, e.Text)
		}
	}
	if _, err := bake.Run(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	want := []string{"c7i.large cannot be launched in " + first, "c7i.large cannot be launched in " + other, "t3.small cannot be launched in " + first}
	if len(tried) != len(want) || !slices.EqualFunc(tried, want, strings.HasPrefix) {
		t.Errorf("tried %q, want %q", tried, want)
	}
	w.nothingLeaked()

	w.EC2.Capacity("t3.small", other, false)
	_, err = bake.Run(t.Context(), withForce(opts))
	if err == nil || !strings.Contains(err.Error(), "no capacity in any of 4 combinations") {
		t.Errorf("Run without capacity: %v", err)
	}
	w.nothingLeaked()
}

func withForce(o bake.Options) bake.Options {
	o.Force = true
	return o
}

func TestImageThatFails(t *testing.T) {
	w := newWorld(t)
	w.play(&player{})
	w.EC2.FailNextImage("the snapshot could not be made")
	_, err := bake.Run(t.Context(), w.options(w.recipe()))
	if err == nil || !strings.Contains(err.Error(), "it is failed: the snapshot could not be made") || exitcode.Of(err) != exitcode.Failed {
		t.Errorf("Run: %v", err)
	}
	w.nothingLeaked()
}

// A missing permission ends the bake with the action's name, and what was made
// before it is undone.
func TestMissingPermission(t *testing.T) {
	for action, call := range map[string]string{
		"ec2:RunInstances": "RunInstances", "ec2:CreateImage": "CreateImage", "ec2:StopInstances": "StopInstances", "ec2:CreateSecurityGroup": "CreateSecurityGroup", "s3:PutObject": "PutObject",
	} {
		w := newWorld(t)
		w.play(&player{})
		w.Deny(action, "*", "*")
		_, err := bake.Run(t.Context(), w.options(w.recipe()))
		if err == nil || exitcode.Of(err) != exitcode.NotReady || !strings.Contains(err.Error(), call) || !strings.Contains(err.Error(), action) || !strings.Contains(err.Error(), `"Effect": "Allow"`) {
			t.Errorf("%s: exit code %d: %v", action, exitcode.Of(err), err)
		}
		w.nothingLeaked()
	}
}

// sessions vends the operator's credentials, each for a while.
type sessions struct {
	w    *world
	life time.Duration
	max  int // how often; 0 for ever

	mu   sync.Mutex
	n    int
	last aws.Credentials
	ends time.Time // of the first, then of one that began after it
	over int       // sessions that have ended, none of them beside another
	two  func()    // when not nil: called when a session is vended after two such
}

func (s *sessions) Retrieve(context.Context) (aws.Credentials, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n++; s.max > 0 && s.n > s.max {
		return s.last, nil // a provider that has nothing new
	}
	c := s.w.Vault.VendOperator(s.life)
	if time.Now().After(s.ends) {
		if !s.ends.IsZero() {
			s.over++
		}
		s.ends = c.Expiration
		if s.over == 2 && s.two != nil {
			s.two()
		}
	}
	s.last = aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken, CanExpire: true, Expires: c.Expiration}
	return s.last, nil
}

// The session that signed the first URLs ends in mid-bake, twice over: the
// manifest is renewed in time, and the builder never notices.
func TestSessionsEndInMidBake(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	p := w.play(&player{Hold: hold})
	s := &sessions{w: w, life: 4 * time.Second, two: func() { close(hold) }}
	opts := w.options(w.recipe())
	opts.Config.Credentials = aws.NewCredentialsCache(s)
	if _, err := bake.Run(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.n < 3 || p.results != 1 {
		t.Errorf("%d sessions, %d results", s.n, p.results)
	}
	w.nothingLeaked()
}

// Credentials that end and are not renewed leave a bake that can be resumed.
func TestExpiredCredentialsAreResumable(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	w.play(&player{Hold: hold})
	opts := w.options(w.recipe())
	s := &sessions{w: w, life: 2 * time.Second, max: 1}
	opts.Config.Credentials = aws.NewCredentialsCache(s)
	opts.ExpiredPatience = 100 * time.Millisecond
	_, err := bake.Run(t.Context(), opts)
	if err == nil || exitcode.Of(err) != exitcode.NotReady || !strings.Contains(err.Error(), "lecafe bake --resume bake-") {
		t.Fatalf("Run: exit code %d: %v", exitcode.Of(err), err)
	}
	_, rest, _ := strings.Cut(err.Error(), "--resume ")
	id, _, _ := strings.Cut(rest, " ")
	// In this process the owner lives: the journal's lease must run out first.
	resume := w.options(w.recipe())
	if _, err := bake.Resume(t.Context(), resume, id, ""); !errors.Is(err, bake.ErrAlive) {
		t.Errorf("Resume of a bake whose process lives: %v", err)
	}
	resume.Now = func() time.Time { return time.Now().Add(2 * time.Minute) }
	found, err := bake.GC(t.Context(), bake.GCOptions{Config: w.Config(), Staging: []string{"s3://" + bucket + "/lecafe-bakes"}})
	if err != nil || len(found) != 1 || found[0].Take {
		t.Errorf("gc: %+v, %v", found, err)
	}
	found, err = bake.GC(t.Context(), bake.GCOptions{Config: w.Config(), Staging: []string{"s3://" + bucket + "/lecafe-bakes"}, Remove: true, Poll: 20 * time.Millisecond, Now: resume.Now})
	if err != nil || len(found) != 1 || !found[0].Removed {
		t.Errorf("gc two minutes later: %+v, %v", found, err)
	}
	close(hold)
	w.nothingLeaked()
}

// Two processes cannot drive one bake: whoever lost the journal stops.
func TestTakenOver(t *testing.T) {
	w := newWorld(t)
	w.play(&player{Silent: true})
	opts := w.options(w.recipe())
	inner := opts.Report
	opts.Report = func(e bake.Event) {
		inner(e)
		if e.Kind == bake.EventPhase && e.Phase == "launch" {
			later := func() time.Time { return time.Now().Add(2 * time.Minute) }
			found, err := bake.GC(t.Context(), bake.GCOptions{Config: w.Config(), Remove: true, Poll: 20 * time.Millisecond, Now: later})
			if err != nil || len(found) != 1 || !found[0].Removed {
				t.Errorf("gc: %+v, %v", found, err)
			}
		}
	}
	if _, err := bake.Run(t.Context(), opts); !errors.Is(err, bake.ErrTakenOver) {
		t.Errorf("Run: %v", err)
	}
	w.nothingLeaked()
}

// What has not changed is found at once, in at most four calls.
func TestUnchanged(t *testing.T) {
	w := newWorld(t)
	w.play(&player{})
	opts := w.options(w.recipe())
	first, err := bake.Run(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	before := len(w.own())
	began := time.Now()
	again, err := bake.Run(t.Context(), opts)
	if err != nil || !again.Unchanged || again.ImageID != first.ImageID || again.BakeID != first.BakeID {
		t.Fatalf("again: %+v, %v", again, err)
	}
	calls := w.own()[before:]
	t.Logf("unchanged: %d calls (%s) in %s", len(calls), strings.Join(calls, " "), time.Since(began))
	if len(calls) > 4 {
		t.Errorf("%d calls", len(calls))
	}
	for name, change := range map[string]func(*bake.Options){
		"another recipe": func(o *bake.Options) { o.Recipe = w.recipe("image.tags.team=bakery") },
		"another script": func(*bake.Options) { w.write("setup.sh", "#!/bin/bash\necho other\n") },
		"another agent":  func(*bake.Options) { w.write("agent", "other agent") },
		"too old":        func(o *bake.Options) { o.Now = func() time.Time { return time.Now().Add(8 * 24 * time.Hour) } },
		"force":          func(o *bake.Options) { o.Force = true },
	} {
		o := opts
		change(&o)
		plan, err := bake.MakePlan(t.Context(), o)
		if err != nil || !plan.Bake {
			t.Errorf("%s: %+v, %v", name, plan, err)
		}
		w.write("setup.sh", "#!/bin/bash\necho hello\n")
		w.write("agent", "agent program")
	}
	if plan, err := bake.MakePlan(t.Context(), opts); err != nil || plan.Bake || plan.ImageID != first.ImageID {
		t.Errorf("plan %+v, %v", plan, err)
	}
	if len(w.images()) != 1 {
		t.Error("a plan changed something")
	}
}

// own lists the calls of the bake, not the player's and the test's, which ask
// EC2 for instances all the time.
func (w *world) own() (names []string) {
	for _, c := range w.Calls() {
		if !c.Presigned && c.Action != "DescribeInstances" && c.Action != "DescribeInstanceAttribute" {
			names = append(names, c.Action)
		}
	}
	return names
}
