package builder

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
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/internal/atomicfile"
)

func trimLine(b []byte) string { return strings.TrimSpace(string(b)) }

// maxManifest bounds what is read as a manifest.
const maxManifest = 1 << 20

// persist calls f until it succeeds, ctx ends or f says that it never will.
// The builder has nothing better to do: the deadline ends it.
func (b *Builder) persist(ctx context.Context, what string, f func() error) error {
	wait := 500 * time.Millisecond
	for {
		err := f()
		if err == nil {
			return nil
		}
		b.Log.Warn(what, "err", redactErr(err))
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; last: %w", what, context.Cause(ctx), redactErr(err))
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, 15*time.Second)
	}
}

// redactErr takes signed URLs out of net/http's errors.
func redactErr(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return fmt.Errorf("%s %s: %w", strings.ToUpper(ue.Op), plainURL(ue.URL), ue.Err)
	}
	return err
}

func plainURL(s string) string {
	base, _, _ := strings.Cut(s, "?")
	return base
}

func (b *Builder) get(ctx context.Context, u string, limit int64) ([]byte, error) {
	// A server that goes silent in the middle of a body is given up.
	timeout := time.Minute
	if limit > maxManifest {
		timeout = 20 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no whole answer within %s", timeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	resp, err := b.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("GET %s: %w", plainURL(u), err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("GET %s: %s: %s", plainURL(u), resp.Status, report.Redact(string(data[:min(len(data), 200)])))
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("GET %s: more than %d bytes", plainURL(u), limit)
	}
	return data, nil
}

// manifest reads the manifest anew and remembers where its next version is.
func (b *Builder) manifest(ctx context.Context) (*manifest.Manifest, error) {
	var m *manifest.Manifest
	err := b.persist(ctx, "read manifest", func() (err error) {
		m, err = b.manifestOnce(ctx)
		return err
	})
	return m, err
}

func (b *Builder) manifestOnce(ctx context.Context) (*manifest.Manifest, error) {
	b.selfMu.Lock()
	self := b.state.Self
	b.selfMu.Unlock()
	data, err := b.get(ctx, self, maxManifest)
	if err != nil {
		return nil, err
	}
	var m manifest.Manifest
	if err := json.Unmarshal(data, &m); err != nil || m.Schema != manifest.Schema || m.Self == "" {
		return nil, fmt.Errorf("not a manifest of %s: %w", manifest.Schema, errors.Join(err))
	}
	b.selfMu.Lock()
	b.state.Self = m.Self
	b.renew = time.Duration(m.RenewSeconds) * time.Second
	b.selfMu.Unlock()
	return &m, nil
}

// keepRenewed reads the manifest again and again, so that its URLs never get
// old in a long step.
func (b *Builder) keepRenewed(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(b.renewEvery()):
			}
			if _, err := b.manifestOnce(ctx); err != nil && ctx.Err() == nil {
				b.Log.Warn("renew manifest", "err", redactErr(err))
			} else if err := atomicfile.WriteFile(filepath.Join(b.Dir, "url"), []byte(b.self()+"\n"), 0o600); err != nil {
				b.Log.Warn("renew manifest", "err", err)
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

func (b *Builder) renewEvery() time.Duration {
	b.selfMu.Lock()
	defer b.selfMu.Unlock()
	if b.renew <= 0 {
		return manifest.RenewEvery
	}
	return min(b.renew, manifest.RenewEvery)
}

func (b *Builder) self() string {
	b.selfMu.Lock()
	defer b.selfMu.Unlock()
	return b.state.Self
}

// put sends v as JSON to the URL that pick takes from a fresh manifest.
func (b *Builder) put(ctx context.Context, pick func(*manifest.Manifest) string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.persist(ctx, "send", func() error { return b.putOnce(ctx, pick, data) })
}

func (b *Builder) putOnce(ctx context.Context, pick func(*manifest.Manifest) string, data []byte) error {
	m, err := b.manifestOnce(ctx)
	if err != nil {
		return err
	}
	u := pick(m)
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("no answer within 1m"))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, u, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := b.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 500)) // for the message only
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("PUT %s: %s: %s", plainURL(u), resp.Status, report.Redact(string(body)))
	}
	return nil
}

// fetch brings a file of the manifest to path, whole and with the right sum.
func (b *Builder) fetch(ctx context.Context, what string, pick func(*manifest.Manifest) manifest.File, path string, mode os.FileMode) error {
	return b.persist(ctx, "fetch "+what, func() error {
		m, err := b.manifestOnce(ctx)
		if err != nil {
			return err
		}
		f := pick(m)
		if old, err := os.ReadFile(path); err == nil && sum(old) == f.SHA256 {
			return nil
		}
		data, err := b.get(ctx, f.URL, max(f.Size, 1))
		if err != nil {
			return err
		}
		if got := sum(data); got != f.SHA256 {
			return fmt.Errorf("SHA-256 is %s, the manifest says %s", got, f.SHA256)
		}
		return atomicfile.WriteFile(path, data, mode)
	})
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// fetchPlan fetches and unpacks the bundle.
func (b *Builder) fetchPlan(ctx context.Context) error {
	archive := filepath.Join(b.Dir, "bundle.tar.gz")
	if err := b.fetch(ctx, "bundle", func(m *manifest.Manifest) manifest.File { return m.Bundle }, archive, 0o600); err != nil {
		return err
	}
	if err := unpack(archive, filepath.Join(b.Dir, "bundle")); err != nil {
		return fmt.Errorf("unpack bundle: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(b.Dir, "bundle", manifest.PlanName))
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	b.plan = &manifest.Plan{}
	if err := json.Unmarshal(data, b.plan); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	if b.plan.BakeID != b.state.BakeID {
		return fmt.Errorf("the bundle is of bake %s, the manifest of %s", b.plan.BakeID, b.state.BakeID)
	}
	return nil
}

// unpack writes an archive's regular files below dir and refuses anything
// that would land elsewhere.
func unpack(archive, dir string) (err error) {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) {
			return fmt.Errorf("unexpected entry %q", h.Name)
		}
		if err := root.MkdirAll(filepath.Dir(h.Name), 0o700); err != nil {
			return err
		}
		out, err := root.OpenFile(h.Name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, t)
		if err = errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}
