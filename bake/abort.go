package bake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ErrAborted says that an undo was stopped at once.
var ErrAborted = errors.New("stopped at once")

// cleaning is the context of what a bake still does when its own has ended:
// bounded, and over when Options.Abort says so.
func (b *bake) cleaning(ctx context.Context) (context.Context, func()) {
	bounded, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), undoTimeout, errUndoTime)
	clean, abort := context.WithCancelCause(bounded)
	done := make(chan struct{})
	if b.opts.Abort != nil {
		go func() {
			select {
			case <-b.opts.Abort:
				abort(ErrAborted)
			case <-done:
			}
		}()
	}
	return clean, func() { close(done); abort(nil); cancel() }
}

// aborted is the error of an undo that was stopped: it names what the journal
// knows, without asking the cloud.
func (b *bake) aborted(cause error) error {
	known := b.store.known()
	var left []string
	add := func(kind, id string) {
		if id != "" {
			left = append(left, kind+" "+id)
		}
	}
	add("instance", known.Instance)
	add("instance", known.Canary)
	add("security group", known.Group)
	add("launch template", known.Template)
	if !known.Given { // others made them
		add("image", known.Image)
		for _, region := range slices.Sorted(maps.Keys(known.Copies)) {
			add("image", known.Copies[region]+" in "+region)
		}
	}
	add("staging", "s3://"+b.store.bucket+"/"+b.store.key("")+"/")
	return fmt.Errorf("%w\n%w; what is left of it lecafe gc --yes removes: %s", cause, ErrAborted, strings.Join(left, ", "))
}
