package bake

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/goccy/go-yaml"
	"golang.org/x/sync/errgroup"

	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/bake/recipe"
)

// Names of the staging objects, below PREFIX/BAKE-ID/.
const (
	manifestName = "manifest.json"
	progressName = "progress.json"
	resultName   = "result.json"
	recipeName   = "recipe.json"
	builderName  = "lecafe-builder"
	agentName    = "lecafe-agent"
	bundleName   = "bundle.tar.gz"
)

func presigner(c *s3.Client) *s3.PresignClient {
	return s3.NewPresignClient(c, func(o *s3.PresignOptions) {
		o.ClientOptions = append(o.ClientOptions, func(o *s3.Options) {
			// A presigned PUT must not promise the checksum of a body that
			// is not known yet.
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		})
	})
}

// planOf names the recipe's files anew, as they stand in the bundle. It
// returns them by that name.
func planOf(r *recipe.Recipe, bakeID string) (*manifest.Plan, map[string]string, error) {
	settings, err := yaml.Marshal(r.Agent)
	if err != nil {
		return nil, nil, fmt.Errorf("encode agent settings: %w", err)
	}
	p := &manifest.Plan{BakeID: bakeID, Recipe: r.Name, Names: map[string]string{}, Settings: string(settings), Clean: r.Clean}
	files := map[string]string{}
	bundled := func(name string) string {
		in := fmt.Sprintf("files/%d", len(files)+1)
		files[in], p.Names[in] = r.Resolve(name), name
		return in
	}
	for _, s := range r.Provision {
		if s.Script != "" {
			s.Script = bundled(s.Script)
		}
		s.Files = slices.Clone(s.Files)
		for i, f := range s.Files {
			if f.Source != "" {
				s.Files[i].Source = bundled(f.Source)
			}
		}
		if s.Packages != nil && len(s.Packages.Files) > 0 {
			pk := *s.Packages
			pk.Files = slices.Clone(pk.Files)
			for i, f := range pk.Files {
				pk.Files[i] = bundled(f)
			}
			s.Packages = &pk
		}
		p.Steps = append(p.Steps, s)
	}
	return p, files, nil
}

// bundle writes the plan and the files as tar.gz. The same input gives the
// same bytes.
func bundle(w io.Writer, p *manifest.Plan, files map[string]string) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	plan, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode plan: %w", err)
	}
	add := func(name string, size int64, r io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: size, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := io.Copy(t, r)
		return err
	}
	if err := add(manifest.PlanName, int64(len(plan)), bytes.NewReader(plan)); err != nil {
		return err
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		err := func() (err error) {
			f, err := os.Open(files[name])
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			info, err := f.Stat()
			if err != nil {
				return err
			}
			return add(name, info.Size(), f)
		}()
		if err != nil {
			return fmt.Errorf("bundle %s: %w", p.Names[name], err)
		}
	}
	return errors.Join(t.Close(), z.Close())
}

// stage uploads what the builder fetches, and the recipe for whoever resumes.
func (b *bake) stage(ctx context.Context) error {
	if f := b.store.known(); f.Staged {
		return nil
	}
	if b.recipe.Dir == "" {
		return fmt.Errorf("the bake died before its files were staged: give the recipe too, or remove it with lecafe gc")
	}
	ca := ""
	if p := b.recipe.Builder.CABundle; p != "" {
		data, err := os.ReadFile(b.recipe.Resolve(p))
		if err != nil {
			return fmt.Errorf("read builder.ca_bundle: %w", err)
		}
		ca = string(data)
	}
	plan, files, err := planOf(b.recipe, b.id)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp("", "lecafe-bundle-*")
	if err != nil {
		return fmt.Errorf("stage bundle: %w", err)
	}
	// Without a name from here on: a killed bake leaves no file behind.
	defer func() { _ = tmp.Close() }()
	if err := os.Remove(tmp.Name()); err != nil {
		return fmt.Errorf("stage bundle: %w", err)
	}
	if err := bundle(tmp, plan, files); err != nil {
		return err
	}
	sources := map[string]*os.File{bundleName: tmp}
	for name, p := range map[string]string{builderName: b.opts.Programs.Builder, agentName: b.opts.Programs.Agent} {
		if p == "" {
			continue // an image that is proved has its agent
		}
		f, err := os.Open(p)
		if err != nil {
			return fmt.Errorf("stage %s: %w", name, err)
		}
		defer func() { _ = f.Close() }()
		sources[name] = f
	}
	sums := map[string]file{}
	for name, f := range sources {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			sums[name], err = sumReader(f)
		}
		if err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err != nil {
			return fmt.Errorf("stage %s: %w", name, err)
		}
	}
	portable, err := json.Marshal(b.recipe)
	if err != nil {
		return fmt.Errorf("encode recipe: %w", err)
	}
	b.store.learn(func(f *facts) { f.Files, f.CA = sums, ca })
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.putObject(gctx, recipeName, bytes.NewReader(portable)) })
	for name, f := range sources {
		g.Go(func() error { return b.putObject(gctx, name, f) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if b.recipe.Canary != nil {
		if err := b.stageCanary(ctx); err != nil {
			return err
		}
	}
	b.store.learn(func(f *facts) { f.Staged = true })
	return nil
}

func (b *bake) putObject(ctx context.Context, name string, body io.ReadSeeker) error {
	_, err := b.s3.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.store.bucket, Key: aws.String(b.store.key(name)), Body: body})
	if err != nil {
		return fmt.Errorf("stage s3://%s/%s: %w", b.store.bucket, b.store.key(name), err)
	}
	return nil
}

func sumFile(path string) (_ file, err error) {
	f, err := os.Open(path)
	if err != nil {
		return file{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return sumReader(f)
}

func sumReader(r io.Reader) (file, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return file{SHA256: hex.EncodeToString(h.Sum(nil)), Size: n}, err
}

func (b *bake) deleteObject(ctx context.Context, name string) error {
	_, err := b.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.store.bucket, Key: aws.String(b.store.key(name))})
	if err := ignore(err, "NoSuchKey"); err != nil {
		return fmt.Errorf("delete s3://%s/%s: %w", b.store.bucket, b.store.key(name), err)
	}
	return nil
}

// longestURL is how long presigned URLs are valid at most; they die earlier
// with the credentials that signed them.
const longestURL = time.Hour

// shortestLife is taken where credentials seem to have less left, or nothing:
// the SDK counts a window of up to five minutes before their end as expired,
// and goes on with old ones when no new ones can be had.
const shortestLife = 16 * time.Second

// urlLife says how long URLs signed now will work at least.
func (b *bake) urlLife(ctx context.Context) (time.Duration, error) {
	creds, err := b.cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return 0, fmt.Errorf("sign URLs: %w", err)
	}
	if !creds.CanExpire {
		return longestURL, nil
	}
	left := creds.Expires.Sub(b.now())
	b.mu.Lock()
	if creds.AccessKeyID != b.signedBy {
		b.signedBy, b.signedLife = creds.AccessKeyID, left
	}
	half := b.signedLife / 2
	b.mu.Unlock()
	if left > half && left > shortestLife {
		return min(left, longestURL), nil
	}
	// Half of the session is over: ask for a new one while the builder can
	// still read the manifest that it signed.
	if cache, ok := b.cfg.Credentials.(*aws.CredentialsCache); ok {
		cache.Invalidate()
		if creds, err = b.cfg.Credentials.Retrieve(ctx); err != nil {
			return 0, fmt.Errorf("renew credentials: %w", err)
		}
		if creds.CanExpire {
			left = creds.Expires.Sub(b.now())
		} else {
			left = longestURL
		}
	}
	return max(min(left, longestURL), shortestLife), nil
}

// writeManifest signs everything anew, for the instance whose objects stand
// below sub: empty for the builder. It returns the URL of the manifest.
func (b *bake) writeManifest(ctx context.Context, sub string) (self string, life time.Duration, err error) {
	life, err = b.urlLife(ctx)
	if err != nil {
		return "", 0, err
	}
	// The session may live on beyond what is known of it now.
	valid := s3.WithPresignExpires(longestURL)
	key := func(name string) *string { return aws.String(b.store.key(path.Join(sub, name))) }
	get := func(key *string) string {
		var req *v4.PresignedHTTPRequest
		if err == nil {
			req, err = b.signer.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &b.store.bucket, Key: key}, valid)
		}
		if err != nil {
			return ""
		}
		return req.URL
	}
	put := func(key *string) string {
		var req *v4.PresignedHTTPRequest
		if err == nil {
			req, err = b.signer.PresignPutObject(ctx, &s3.PutObjectInput{Bucket: &b.store.bucket, Key: key}, valid)
		}
		if err != nil {
			return ""
		}
		return req.URL
	}
	known := b.store.known()
	entry := func(name string) manifest.File {
		f := known.Files[name]
		return manifest.File{URL: get(aws.String(b.store.key(name))), SHA256: f.SHA256, Size: f.Size}
	}
	deadline := known.Deadline
	if sub != "" {
		deadline = known.CanaryDeadline
	}
	b.mu.Lock()
	b.manifests++
	serial := b.manifests
	b.mu.Unlock()
	m := manifest.Manifest{
		Schema: manifest.Schema, BakeID: b.id, Serial: serial, Deadline: deadline, Self: get(key(manifestName)),
		RenewSeconds: int(max(min(life/8, manifest.RenewEvery), time.Second) / time.Second),
		Builder:      entry(builderName), Agent: entry(agentName), Bundle: entry(path.Join(sub, bundleName)), Progress: put(key(progressName)), Result: put(key(resultName)),
	}
	if err != nil {
		return "", 0, fmt.Errorf("sign URLs: %w", err)
	}
	data, err := m.Encode()
	if err != nil {
		return "", 0, err
	}
	return m.Self, life, b.putObject(ctx, path.Join(sub, manifestName), bytes.NewReader(data))
}

// beat says in the journal that this process lives, until stopped.
func (b *bake) beat(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// What is written for another reason is a beat too.
		for b.pace.sleep(ctx, b.store.quiet(leaseTime/3)) == nil {
			if b.store.quiet(leaseTime/3) > 0 {
				continue
			}
			if err := b.store.update(ctx, func(*journal) {}); errors.Is(err, ErrTakenOver) {
				b.fail(err)
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// renew rewrites a manifest until stopped. A renewal that fails is tried again
// soon: the URLs out there live on for a while.
func (b *bake) renew(ctx context.Context, sub string, life time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait := min(life/8, 5*time.Minute)
		for b.pace.sleep(ctx, max(wait, 100*time.Millisecond)) == nil {
			_, l, err := b.writeManifest(ctx, sub)
			if err != nil {
				if ctx.Err() == nil {
					b.warn("the URLs of the %s could not be renewed: %v", cmp.Or(sub, "builder"), err)
				}
				wait = min(life/16, 15*time.Second)
				continue
			}
			life, wait = l, min(l/8, 5*time.Minute)
		}
	}()
	return func() { cancel(); <-done }
}

// unstage deletes the staging objects but the journal.
func (b *bake) unstage(ctx context.Context) error {
	objects, err := listObjects(ctx, b.s3, b.store.bucket, b.store.key("")+"/")
	if err != nil {
		return err
	}
	var ids []types.ObjectIdentifier
	for _, key := range objects {
		if key != b.store.key(journalName) {
			ids = append(ids, types.ObjectIdentifier{Key: aws.String(key)})
		}
	}
	if len(ids) == 0 {
		return nil
	}
	out, err := b.s3.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &b.store.bucket, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)}})
	if err != nil {
		return fmt.Errorf("delete staging objects s3://%s/%s: %w", b.store.bucket, b.store.key(""), err)
	}
	for _, e := range out.Errors {
		return fmt.Errorf("delete s3://%s/%s: %s: %s", b.store.bucket, aws.ToString(e.Key), aws.ToString(e.Code), aws.ToString(e.Message))
	}
	return nil
}

func listObjects(ctx context.Context, api s3API, bucket, prefix string) ([]string, error) {
	var keys []string
	in := &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &prefix}
	for {
		out, err := api.ListObjectsV2(ctx, in)
		if err != nil {
			return nil, fmt.Errorf("list s3://%s/%s: %w", bucket, prefix, err)
		}
		for _, o := range out.Contents {
			keys = append(keys, filepath.ToSlash(aws.ToString(o.Key)))
		}
		if !aws.ToBool(out.IsTruncated) {
			return keys, nil
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}
