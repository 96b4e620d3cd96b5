package config

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/lecafe/lecafe/agent/settings"
)

// member is one file of a directory.
type member struct {
	Name   string `json:"name"` // slash-separated, below the directory
	ETag   string `json:"etag"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

const (
	// fetchers is how many objects of a directory are fetched at once.
	fetchers = 4
	// relists bounds how often a prefix that changes while it is read is listed
	// again before the next poll.
	relists   = 3
	maxName   = 255 // bytes, of Linux's file systems
	maxLevels = 32
)

// errMoved says that the prefix changed between its listing and a fetch.
var errMoved = errors.New("changed while it was read")

// syncTree is syncObject for all objects below a prefix. A generation is what
// one listing names: every object is fetched on the condition that it is still
// the listed one, and one that is known already is not fetched.
func (c *Object) syncTree(ctx context.Context) (changed bool, etag string, err error) {
	bucket, prefix, err := settings.SplitS3(c.s.Source)
	if err != nil {
		return false, "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	intact := c.store.intact()
	for try := 1; ; try++ {
		files, err := c.listing(ctx, bucket, prefix)
		etag = fingerprint(files)
		if errors.Is(err, ErrInvalid) {
			return false, etag, err
		}
		if err != nil {
			return false, "", c.unreachable(err, intact)
		}
		if intact && etag == c.store.record.ETag && c.meetsPins(c.store.record) {
			return false, etag, nil
		}
		if err := c.triedBefore(etag, "this listing"); err != nil {
			return false, etag, err
		}
		verified, err := c.fetch(ctx, bucket, prefix, files)
		if errors.Is(err, errMoved) && try < relists {
			continue
		}
		if err != nil {
			return false, etag, c.unreachable(err, intact)
		}
		next := record{Generation: c.store.record.Generation + 1, SHA256: treeSum(files), ETag: etag, Files: files, Checksum: verified}
		if c.s.SHA256 != "" && c.s.SHA256 != next.SHA256 {
			return false, etag, fmt.Errorf("%w: %s has SHA-256 %s and not the pinned %s; upload the right objects or correct sha256", ErrInvalid, c.s.Source, next.SHA256, c.s.SHA256)
		}
		if intact && next.SHA256 == c.store.record.SHA256 {
			next.Generation, next.AppliedAt = c.store.record.Generation, c.store.record.AppliedAt
			return false, etag, c.store.commit(next)
		}
		changed, err := c.apply(ctx, treeGeneration{&c.store, files}, next)
		return changed, etag, err
	}
}

// listing names the files below the prefix in order, and refuses what cannot be
// a directory, or is too large for one.
func (c *Object) listing(ctx context.Context, bucket, prefix string) ([]member, error) {
	var files []member
	var size int64
	in := &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &prefix, EncodingType: types.EncodingTypeUrl}
	for pages := 0; ; pages++ {
		out, err := c.list(ctx, in)
		if err != nil {
			return nil, c.classifyList(err, bucket)
		}
		for _, o := range out.Contents {
			key, err := url.QueryUnescape(aws.ToString(o.Key))
			if err != nil {
				return files, fmt.Errorf("%w: %s has a key that cannot be read: %w", ErrInvalid, c.s.Source, err)
			}
			name, ok := strings.CutPrefix(key, prefix)
			if !ok {
				return files, fmt.Errorf("%w: the listing of %s names %q, which is not below it", ErrInvalid, c.s.Source, key)
			}
			if (name == "" || strings.HasSuffix(name, "/")) && aws.ToInt64(o.Size) == 0 {
				continue // what consoles make for an empty folder
			}
			files = append(files, member{Name: name, ETag: aws.ToString(o.ETag), Size: aws.ToInt64(o.Size)})
			size += aws.ToInt64(o.Size)
		}
		switch {
		case len(files) > c.s.MaxFiles || pages > settings.MaxFiles/100:
			return files, fmt.Errorf("%w: %s has more than %d objects; raise max_files if that is right", ErrInvalid, c.s.Source, c.s.MaxFiles)
		case size > c.s.MaxBytes:
			return files, fmt.Errorf("%w: %s has more than %d bytes; raise max_bytes if that is right", ErrInvalid, c.s.Source, c.s.MaxBytes)
		}
		if !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextContinuationToken) == "" {
			break
		}
		in.ContinuationToken = out.NextContinuationToken
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: there is no object below %s; upload them or correct the config's source", ErrMissing, c.s.Source)
	}
	slices.SortFunc(files, func(a, b member) int { return cmp.Compare(a.Name, b.Name) })
	return files, c.checkNames(files)
}

// checkNames refuses names that a directory cannot have or that lead out of it.
func (c *Object) checkNames(files []member) error {
	var errs []error
	dirs := map[string]bool{}
	for _, f := range files {
		if why := badName(f.Name); why != "" {
			errs = append(errs, fmt.Errorf("%w: the key %q below %s %s; remove it", ErrInvalid, f.Name, c.s.Source, why))
			continue
		}
		for i, r := range f.Name {
			if r == '/' {
				dirs[f.Name[:i]] = true
			}
		}
	}
	for _, f := range files {
		if dirs[f.Name] {
			errs = append(errs, fmt.Errorf("%w: the key %q below %s is an object and has objects below it; remove one or the other", ErrInvalid, f.Name, c.s.Source))
		}
	}
	return errors.Join(errs[:min(len(errs), 10)]...)
}

func badName(name string) string {
	levels := strings.Split(name, "/")
	if len(levels) > maxLevels {
		return fmt.Sprintf("is more than %d levels deep", maxLevels)
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) || strings.Contains(name, `\`) {
		return "has a control character or a backslash"
	}
	for _, l := range levels {
		switch {
		case l == "":
			return "has an empty level"
		case l == "." || l == "..":
			return "leads elsewhere"
		case len(l) > maxName:
			return fmt.Sprintf("has a level longer than %d bytes", maxName)
		}
	}
	return ""
}

// fingerprint stands for a listing as an ETag does for an object.
func fingerprint(files []member) string {
	if len(files) == 0 {
		return ""
	}
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%q %q %d\n", f.Name, f.ETag, f.Size)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// treeSum is the SHA-256 that stands for a directory, the same as
//
//	find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum
//
// prints in it. files are in order.
func treeSum(files []member) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%s  %s\n", f.SHA256, f.Name)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// fetch gets the content of the files that are not known into the store and
// sets their SHA-256. It returns what was verified of them.
func (c *Object) fetch(ctx context.Context, bucket, prefix string, files []member) (string, error) {
	known := map[string]member{}
	for _, f := range c.store.record.Files {
		known[f.Name] = f
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		verified = map[string]int{}
		todo     = make(chan int)
	)
	for range min(fetchers, len(files)) {
		wg.Go(func() {
			for i := range todo {
				sum, how, err := c.fetchOne(ctx, bucket, prefix, files[i])
				if err != nil {
					cancel(err)
					continue
				}
				files[i].SHA256 = sum
				mu.Lock()
				verified[how]++
				mu.Unlock()
			}
		})
	}
	for i, f := range files {
		if k := known[f.Name]; k.ETag == f.ETag && k.Size == f.Size && c.store.hasBlob(k.SHA256) {
			files[i].SHA256 = k.SHA256
			mu.Lock()
			verified["as before"]++
			mu.Unlock()
			continue
		}
		select {
		case todo <- i:
		case <-ctx.Done():
		}
	}
	close(todo)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	var parts []string
	for _, how := range slices.Sorted(maps.Keys(verified)) {
		parts = append(parts, fmt.Sprintf("%d %s", verified[how], how))
	}
	return strings.Join(parts, ", "), nil
}

func (c *Object) fetchOne(ctx context.Context, bucket, prefix string, f member) (sum, verified string, err error) {
	key := prefix + f.Name
	source := "s3://" + bucket + "/" + key
	in := &s3.GetObjectInput{Bucket: &bucket, Key: &key, IfMatch: &f.ETag}
	out, err := c.get(ctx, in, askChecksums)
	switch status(err) {
	case http.StatusPreconditionFailed, http.StatusNotFound:
		return "", "", fmt.Errorf("%w: %s %w; the agent tries again", ErrUnreachable, source, errMoved)
	}
	if err != nil {
		return "", "", c.classify(err, bucket, source)
	}
	defer out.Body.Close()
	data, err := c.read(out, source, f.Size)
	if err != nil {
		return "", "", err
	}
	if verified, err = verify(data, held(out), "", partSize(ctx, c.get, in, f.ETag)); err != nil {
		return "", "", c.notVerified(source, err)
	}
	sum, err = c.store.addBlob(data)
	return sum, verified, err
}
