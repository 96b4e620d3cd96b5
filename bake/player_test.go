package bake_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	cloudec2 "github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/userdata"
)

// player plays the builder instances of a cloud: it reads their user data,
// fetches what the manifest names, and PUTs a result.
type player struct {
	src source

	// Result changes what a builder says; nil leaves success.
	Result func(*manifest.Result)
	// Canary changes what a canary says.
	Canary func(*manifest.Result)
	// Silent builders never say anything.
	Silent bool
	// Hold, when not nil, is waited for before the result is sent.
	Hold <-chan struct{}

	mu      sync.Mutex
	played  map[string]bool
	plans   []manifest.Plan
	payload []byte // the newest canary's user data
	results int
	errs    []error
	wg      sync.WaitGroup
	stop    context.CancelFunc
}

// source is where a player finds what it plays. It knows the instances
// themselves: what it looks at is no call, and meets no fault.
type source interface {
	// running looks out from now on. What it returns tells f of each builder
	// and canary that runs, until ctx ends; of one perhaps more than once.
	running(ctx context.Context) (tell func(f func(id string)))
	userData(ctx context.Context, id string) ([]byte, error)
	runs(ctx context.Context, id string) bool
}

// fake is a fake cloud, which says when an instance changes.
type fake struct{ server *cloudec2.Server }

func (c fake) running(ctx context.Context) func(func(string)) {
	ids := make(chan string)
	c.server.Watch(func(_, id string) {
		if i, ok := c.server.Instance(id); ok && i.Tags[manifest.TagRole] != "" && i.State == "running" {
			select {
			case ids <- id:
			case <-ctx.Done():
			}
		}
	})
	return func(f func(string)) {
		for {
			select {
			case id := <-ids:
				f(id)
			case <-ctx.Done():
				return
			}
		}
	}
}

func (c fake) userData(_ context.Context, id string) ([]byte, error) {
	i, ok := c.server.Instance(id)
	if !ok {
		return nil, fmt.Errorf("no instance %s", id)
	}
	return i.UserData, nil
}

func (c fake) runs(_ context.Context, id string) bool {
	i, ok := c.server.Instance(id)
	return ok && i.State == "running"
}

// play plays what src has until ctx ends or it is told to stop.
func play(ctx context.Context, src source, p *player) *player {
	ctx, p.stop = context.WithCancel(ctx)
	p.src, p.played = src, map[string]bool{}
	if p.Silent {
		return p
	}
	tell := src.running(ctx)
	start := func(id string) {
		p.mu.Lock()
		known := p.played[id]
		p.played[id] = true
		p.mu.Unlock()
		if known {
			return
		}
		p.wg.Go(func() {
			if err := p.build(ctx, id); err != nil && ctx.Err() == nil && src.runs(ctx, id) {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.errs = append(p.errs, fmt.Errorf("builder %s: %w", id, err))
			}
		})
	}
	p.wg.Go(func() { tell(start) })
	return p
}

// done ends the playing and returns what went wrong in it.
func (p *player) done() error {
	p.stop()
	p.wg.Wait()
	return errors.Join(p.errs...)
}

var urlLine = regexp.MustCompile(`(?m)^https?://\S+$`)

func (p *player) build(ctx context.Context, id string) error {
	data, err := p.src.userData(ctx, id)
	if err != nil {
		return err
	}
	text := string(data)
	payload, err := userdata.Parse([]byte(text))
	if err != nil {
		return err
	}
	canary := payload.Multipart
	if canary {
		p.mu.Lock()
		p.payload = []byte(text)
		p.mu.Unlock()
		for _, part := range payload.Parts {
			if strings.Contains(part.Name, "lecafe-canary.sh") {
				text = string(part.Body)
			}
		}
	}
	self := urlLine.FindString(text)
	m, err := p.manifest(ctx, self)
	if err != nil {
		return err
	}
	for name, f := range map[string]manifest.File{"builder": m.Builder, "agent": m.Agent, "bundle": m.Bundle} {
		data, err := fetch(ctx, f.URL)
		if err != nil {
			return fmt.Errorf("fetch %s: %w", name, err)
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != f.SHA256 || int64(len(data)) != f.Size {
			return fmt.Errorf("%s is not what the manifest says", name)
		}
		if name == "bundle" {
			plan, err := planIn(data)
			if err != nil {
				return err
			}
			p.mu.Lock()
			p.plans = append(p.plans, plan)
			p.mu.Unlock()
		}
	}
	if err := p.put(ctx, m.Progress, manifest.Progress{BakeID: m.BakeID, InstanceID: id, Serial: 1, Step: 1, Steps: 1, Name: "base", Phase: "provision", At: time.Now()}); err != nil {
		return err
	}
	if p.Hold != nil && !canary {
		for held := true; held; {
			select {
			case <-p.Hold:
				held = false
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond): // a builder keeps reading the manifest
			}
			if next, err := p.manifest(ctx, m.Self); err == nil { // else it tries again, as a builder does
				m = next
			}
		}
	}
	res := manifest.Result{BakeID: m.BakeID, Steps: []manifest.Step{{Number: 1, Name: "base", Seconds: 1}}, Used: 1 << 30}
	res.Report = report.Report{Schema: report.Schema, ID: report.NewID(), Kind: report.KindBuild, Verdict: report.Success, Instance: report.Instance{ID: id, BakeID: m.BakeID}}
	if change := p.Result; canary {
		res.Steps = nil
		if p.Canary != nil {
			p.Canary(&res)
		}
	} else if change != nil {
		change(&res)
	}
	if err := p.put(ctx, m.Result, res); err != nil {
		return err
	}
	p.mu.Lock()
	p.results++
	p.mu.Unlock()
	return nil
}

func (p *player) manifest(ctx context.Context, url string) (*manifest.Manifest, error) {
	data, err := fetch(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	var m manifest.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return &m, nil
}

func planIn(bundle []byte) (plan manifest.Plan, err error) {
	z, err := gzip.NewReader(bytes.NewReader(bundle))
	if err != nil {
		return plan, err
	}
	t := tar.NewReader(z)
	for {
		h, err := t.Next()
		if err != nil {
			return plan, fmt.Errorf("no plan in the bundle: %w", err)
		}
		if h.Name == manifest.PlanName {
			return plan, json.NewDecoder(t).Decode(&plan)
		}
	}
}

// fetch and put try again, as a builder does: faults are injected.
func fetch(ctx context.Context, url string) (data []byte, err error) {
	for range 20 {
		var req *http.Request
		if req, err = http.NewRequestWithContext(ctx, http.MethodGet, url, nil); err != nil {
			return nil, err
		}
		if data, err = do(req); err == nil || ctx.Err() != nil {
			return data, err
		}
	}
	return nil, err
}

func (p *player) put(ctx context.Context, url string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	for range 20 {
		var req *http.Request
		if req, err = http.NewRequestWithContext(ctx, http.MethodPut, url, bytes.NewReader(data)); err != nil {
			return err
		}
		if _, err = do(req); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func do(req *http.Request) (data []byte, err error) {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	data, err = io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, data[:min(len(data), 300)])
	}
	return data, err
}
