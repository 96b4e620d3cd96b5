package orders

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/lecafe/lecafe/agent/spool"
)

// Replayed is what a replay has come to.
type Replayed struct {
	Sent   uint64
	Parked []Parked // refused for good
	Left   uint64   // not sent when ctx ended
	Err    string   // the last failure, where orders are left
}

// Replay sends orders under their own IDs, as the forwarder would, until all
// are settled or ctx ends.
func Replay(ctx context.Context, api queueAPI, queue string, list []*Order, log *slog.Logger) (Replayed, error) {
	dir, err := os.MkdirTemp("", "lecafe-replay-*")
	if err != nil {
		return Replayed{}, fmt.Errorf("replay orders: %w", err)
	}
	defer os.RemoveAll(dir)
	var total int64
	for _, o := range list {
		total += o.Size() + 256
	}
	sp, err := spool.Open(spool.Options{Dir: filepath.Join(dir, "spool"), MaxBytes: 4*total + 256<<20, Log: log})
	if err != nil {
		return Replayed{}, fmt.Errorf("replay orders: %w", err)
	}
	defer sp.Close()
	for _, o := range list {
		if _, err := sp.Append(ctx, o.appendRecord(nil)); err != nil {
			return Replayed{}, fmt.Errorf("replay orders: %w", err)
		}
	}
	return ReplaySpool(ctx, sp, api, queue, filepath.Join(dir, "parked"), log)
}

// ReplaySpool sends what an open spool holds, and parks what is refused in a
// directory.
func ReplaySpool(ctx context.Context, sp *spool.Spool, api queueAPI, queue, parked string, log *slog.Logger) (Replayed, error) {
	before, err := Parking{parked}.Names()
	if err != nil {
		return Replayed{}, err
	}
	old := map[string]bool{}
	for _, n := range before {
		old[n] = true
	}
	f := &Forwarder{Spool: sp, Queue: queue, API: api, Parking: Parking{parked}, Log: log}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- f.Run(run) }()
	drainErr := f.Drain(ctx)
	cancel()
	if err := <-done; err != nil {
		return Replayed{}, fmt.Errorf("replay orders: %w", err)
	}
	st := f.State()
	r := Replayed{Sent: st.Sent, Left: sp.Stats().Records}
	if drainErr != nil && r.Left > 0 {
		r.Err = st.LastError
	}
	after, err := f.Parking.Names()
	if err != nil {
		return r, err
	}
	for _, n := range after {
		if old[n] {
			continue
		}
		p, err := f.Parking.Read(n)
		if err != nil {
			return r, err
		}
		r.Parked = append(r.Parked, *p)
	}
	return r, nil
}

// LookUp returns the queue's URL, and fails where it cannot be had within ctx.
func LookUp(ctx context.Context, api queueAPI, queue string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return queueURL(ctx, api, queue)
}

// ReplayParked tries the parked orders once more, and forgets those that the
// queue takes now.
func ReplayParked(ctx context.Context, api queueAPI, queue string, p Parking, log *slog.Logger) (Replayed, error) {
	names, err := p.Names()
	if err != nil {
		return Replayed{}, err
	}
	var list []*Order
	for _, n := range names {
		e, err := p.Read(n)
		if err != nil {
			return Replayed{}, err
		}
		if e.Order != nil {
			list = append(list, e.Order)
		}
	}
	r, err := Replay(ctx, api, queue, list, log)
	if err != nil || r.Left > 0 {
		// Which ones were sent is not known: they keep their IDs and may be
		// sent again.
		return r, err
	}
	refused := map[ID]bool{}
	for _, e := range r.Parked {
		if e.Order != nil {
			refused[e.Order.ID] = true
		}
	}
	for _, o := range list {
		if !refused[o.ID] {
			if err := p.Remove(o.ID.String()); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}
