package bake_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
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

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/userdata"
)

// player plays the builder instances of a cloud: it reads their user data as
// EC2 has it, fetches what the manifest names, and PUTs a result.
type player struct {
	api *ec2.Client

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

func play(ctx context.Context, cfg aws.Config, p *player) *player {
	ctx, p.stop = context.WithCancel(ctx)
	p.api, p.played = ec2.NewFromConfig(cfg), map[string]bool{}
	p.wg.Go(func() {
		for ctx.Err() == nil {
			p.look(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return p
}

// done ends the playing and returns what went wrong in it.
func (p *player) done() error {
	p.stop()
	p.wg.Wait()
	return errors.Join(p.errs...)
}

func (p *player) look(ctx context.Context) {
	out, err := p.api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: []types.Filter{
		{Name: aws.String("tag:" + manifest.TagRole), Values: []string{"builder", "canary"}}, {Name: aws.String("instance-state-name"), Values: []string{"running"}},
	}})
	if err != nil {
		return // faults are injected for the bake, and meet the player too
	}
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			id := aws.ToString(i.InstanceId)
			p.mu.Lock()
			known := p.played[id]
			p.played[id] = true
			p.mu.Unlock()
			if known || p.Silent {
				continue
			}
			p.wg.Go(func() {
				if err := p.build(ctx, id); err != nil && ctx.Err() == nil && p.runs(ctx, id) {
					p.mu.Lock()
					defer p.mu.Unlock()
					p.errs = append(p.errs, fmt.Errorf("builder %s: %w", id, err))
				}
			})
		}
	}
}

// runs says whether an instance is there to have trouble.
func (p *player) runs(ctx context.Context, id string) bool {
	out, err := p.api.DescribeInstanceStatus(ctx, &ec2.DescribeInstanceStatusInput{InstanceIds: []string{id}})
	return err != nil || len(out.InstanceStatuses) > 0 // those that run alone are listed
}

var urlLine = regexp.MustCompile(`(?m)^https?://\S+$`)

func (p *player) build(ctx context.Context, id string) error {
	var text string
	for {
		out, err := p.api.DescribeInstanceAttribute(ctx, &ec2.DescribeInstanceAttributeInput{InstanceId: &id, Attribute: types.InstanceAttributeNameUserData})
		if err == nil {
			data, err := base64.StdEncoding.DecodeString(aws.ToString(out.UserData.Value))
			if err != nil {
				return err
			}
			text = string(data)
			break
		}
		if ctx.Err() != nil {
			return err
		}
	}
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
		time.Sleep(20 * time.Millisecond)
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
		time.Sleep(20 * time.Millisecond)
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
