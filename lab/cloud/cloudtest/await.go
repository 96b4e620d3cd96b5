package cloudtest

import (
	"sync"
	"testing"
	"time"

	"github.com/lecafe/lecafe/lab/cloud"
)

// Changes delivers after instances, or members of groups, have changed their
// state. Changes may come together.
func (c *Cloud) Changes() <-chan struct{} {
	changes := make(chan struct{}, 1)
	poke := func() {
		select {
		case changes <- struct{}{}:
		default:
		}
	}
	c.EC2.Watch(func(string, string) { poke() })
	c.Auto.Watch(poke)
	return changes
}

// Until waits for instances and groups to be as ok says. It gives up, failing
// the test, when a minute has passed.
func (c *Cloud) Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	changes, end := c.Changes(), time.After(time.Minute)
	for !ok() {
		select {
		case <-changes:
		case <-t.Context().Done():
			return // the test has ended, and with it the cloud
		case <-end:
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// Called is closed when a call that matches has been answered, from now on.
func (c *Cloud) Called(match func(cloud.Call) bool) <-chan struct{} {
	called, once := make(chan struct{}), sync.Once{}
	c.OnCall(func(call cloud.Call) {
		if match(call) {
			once.Do(func() { close(called) })
		}
	})
	return called
}
