package s3

import (
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"net/http"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/wire"
)

// store holds buckets in memory. Keys stay sorted, new ones are merged in when
// a listing needs them, so that 100,000 objects list in pages at once.
type store struct {
	clock   wire.Clock
	mu      sync.RWMutex
	buckets map[string]*bucket
}

type bucket struct {
	name       string
	region     string
	created    time.Time
	versioning string            // empty, Enabled or Suspended
	config     map[string][]byte // subresource → document, see config.go

	objects map[string][]*version // newest first
	keys    []string              // sorted; may hold keys that are gone
	fresh   []string              // not merged into keys yet
	dead    int                   // keys without a version
	uploads map[string]*upload
}

// version is one version of an object, or a delete marker.
type version struct {
	key      string
	id       string // null where versioning was not enabled
	marker   bool
	body     []byte
	etag     string // without quotes
	modified time.Time
	header   http.Header       // what GET returns beside what follows from the body
	sums     map[string]string // crc32 → base64
	sumType  string            // FULL_OBJECT or COMPOSITE
	parts    []storedPart      // of a multipart upload, in order
}

const nullVersion = "null"

func newStore(clock wire.Clock) *store {
	return &store{clock: clock, buckets: map[string]*bucket{}}
}

func (s *store) bucket(name string) (*bucket, error) {
	b := s.buckets[name]
	if b == nil {
		return nil, errNoSuchBucket.with("BucketName", name)
	}
	return b, nil
}

// current returns the object's newest version, or nil if there is none or it is
// a delete marker.
func (b *bucket) current(key string) *version {
	v := b.objects[key]
	if len(v) == 0 || v[0].marker {
		return nil
	}
	return v[0]
}

// get returns a version by its ID; an empty ID means the current one.
func (b *bucket) get(key, id string) (*version, error) {
	if id == "" {
		v := b.objects[key]
		switch {
		case len(v) == 0:
			return nil, errNoSuchKey.with("Key", key)
		case v[0].marker:
			return v[0], errNoSuchKey.with("Key", key)
		}
		return v[0], nil
	}
	for _, v := range b.objects[key] {
		if v.id == id {
			if v.marker { // https://docs.aws.amazon.com/AmazonS3/latest/userguide/DeleteMarker.html
				return v, errMethodNotAllowed.with("Method", "GET")
			}
			return v, nil
		}
	}
	return nil, errNoSuchVersion.with("VersionId", id)
}

// put makes v the newest version. Without versioning, and while it is
// suspended, v replaces the null version.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/AddingObjectstoVersionSuspendedBuckets.html
func (b *bucket) put(v *version) {
	old, known := b.objects[v.key]
	gone := known && len(old) == 0
	v.id = nullVersion
	if b.versioning == "Enabled" {
		v.id = randomID(16)
	} else {
		old = slices.DeleteFunc(old, func(o *version) bool { return o.id == nullVersion })
	}
	b.objects[v.key] = append([]*version{v}, old...)
	switch {
	case !known:
		b.fresh = append(b.fresh, v.key)
	case gone:
		b.dead--
	}
}

// remove deletes one version for good.
func (b *bucket) remove(key, id string) *version {
	versions := b.objects[key]
	i := slices.IndexFunc(versions, func(v *version) bool { return v.id == id })
	if i < 0 {
		return nil
	}
	v := versions[i]
	b.objects[key] = slices.Delete(slices.Clone(versions), i, i+1)
	if len(b.objects[key]) == 0 {
		b.dead++ // the key stays in keys until the next purge
	}
	return v
}

func (b *bucket) empty() bool { return b.dead == len(b.objects) }

// merge brings keys up to date.
func (b *bucket) merge() {
	if b.dead > 1000 && b.dead > len(b.objects)/2 {
		maps.DeleteFunc(b.objects, func(_ string, v []*version) bool { return len(v) == 0 })
		b.keys, b.fresh, b.dead = slices.Sorted(maps.Keys(b.objects)), nil, 0
	}
	if len(b.fresh) == 0 {
		return
	}
	slices.Sort(b.fresh)
	merged := make([]string, 0, len(b.keys)+len(b.fresh))
	i := 0
	for _, k := range b.fresh {
		for i < len(b.keys) && b.keys[i] < k {
			merged = append(merged, b.keys[i])
			i++
		}
		merged = append(merged, k)
	}
	b.keys, b.fresh = append(merged, b.keys[i:]...), nil
}

// page is one page of a listing.
type page struct {
	versions  []*version // the current ones only, or all of them
	prefixes  []string
	truncated bool
	last      string // last key or common prefix of the page
	lastID    string // of a listing of versions
}

// listing says what to list. After is exclusive; everything under it is left
// out too if it is a common prefix.
type listing struct {
	prefix, delimiter string
	after             string
	afterPrefix       bool
	afterVersion      string // continue within key after
	max               int
	all               bool // every version
}

func (b *bucket) list(l listing) page {
	b.merge()
	var p page
	i := sort.SearchStrings(b.keys, max(l.prefix, l.after))
	if l.afterPrefix {
		i = max(b.skip(l.after), sort.SearchStrings(b.keys, l.prefix))
	}
	count := 0
	full := func() bool {
		if count >= l.max {
			p.truncated = true
			return true
		}
		count++
		return false
	}
	for i < len(b.keys) && strings.HasPrefix(b.keys[i], l.prefix) {
		key := b.keys[i]
		versions := b.objects[key]
		if key == l.after {
			versions = rest(versions, l.afterVersion)
		}
		if !l.all {
			versions = versions[:min(1, len(versions))]
			if len(versions) == 1 && versions[0].marker {
				versions = nil
			}
		}
		if len(versions) == 0 {
			i++
			continue
		}
		if l.delimiter != "" {
			if j := strings.Index(key[len(l.prefix):], l.delimiter); j >= 0 {
				common := key[:len(l.prefix)+j+len(l.delimiter)]
				if full() {
					return p
				}
				p.prefixes, p.last, p.lastID = append(p.prefixes, common), common, ""
				i = b.skip(common)
				continue
			}
		}
		for _, v := range versions {
			if full() {
				return p
			}
			p.versions, p.last, p.lastID = append(p.versions, v), key, v.id
		}
		i++
	}
	return p
}

// rest returns the versions after the one with the ID; without an ID, none.
func rest(versions []*version, id string) []*version {
	if id == "" {
		return nil
	}
	i := slices.IndexFunc(versions, func(v *version) bool { return v.id == id })
	return versions[i+1:]
}

// skip returns the index of the first key after all those with the prefix.
func (b *bucket) skip(prefix string) int {
	return sort.Search(len(b.keys), func(i int) bool {
		return b.keys[i] > prefix && !strings.HasPrefix(b.keys[i], prefix)
	})
}

func etagOf(body []byte) string {
	sum := md5.Sum(body) // an ETag is a name here, not a protection
	return hex.EncodeToString(sum[:])
}

func randomID(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
