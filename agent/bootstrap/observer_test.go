package bootstrap_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lecafe/lecafe/agent/bootstrap"
)

// TestObservesWithoutTheKernelsHelp pins that a boot is judged although files
// cannot be watched: other programs may have used up the limit of watches.
func TestObservesWithoutTheKernelsHelp(t *testing.T) {
	root := t.TempDir() // without cloud-init: nothing to wait for but the facts
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var known atomic.Bool
		time.AfterFunc(30*time.Second, func() { known.Store(true) })
		looks := 0
		o := &bootstrap.Observer{
			Root:  root,
			Watch: func(context.Context, string) (<-chan struct{}, error) { return nil, errors.New("too many open files") },
			Facts: func() bootstrap.Facts {
				return bootstrap.Facts{Payload: bootstrap.Payload{Known: known.Load(), Format: "none"}}
			},
			Now:      func() bootstrap.Clock { return bootstrap.Clock{At: time.Now(), Uptime: time.Since(began)} },
			Progress: func(bootstrap.Judgement, bootstrap.Evidence) { looks++ },
		}
		j, _, err := o.Run(t.Context())
		if err != nil || !j.Done {
			t.Fatalf("%v, done %v", err, j.Done)
		}
		if took := time.Since(began); took > 35*time.Second || looks > 100 {
			t.Errorf("judged after %s and %d looks, want soon after 30 s, without spinning", took, looks)
		}
	})
}
