package ec2

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// meta is what every resource has.
type meta struct {
	id      string
	seq     uint64 // order of creation within the region
	created time.Time
	tags    []tag // replaced, never written to
	hidden  bool  // created, but not yet visible: eventual consistency
	removed bool
}

func (m *meta) base() *meta { return m }

type resource interface{ base() *meta }

// table holds one kind of resource in order of creation. A lookup is a map's,
// a page starts by binary search, so listing n of them costs n in all however
// many pages that takes.
type table[T resource] struct {
	byID    map[string]T
	rows    []T
	removed int
}

func (t *table[T]) add(v T) {
	if t.byID == nil {
		t.byID = map[string]T{}
	}
	t.byID[v.base().id] = v
	t.rows = append(t.rows, v)
}

// get finds what a caller of the API can see.
func (t *table[T]) get(id string) (T, bool) {
	v, ok := t.byID[id]
	if ok && v.base().hidden {
		var none T
		return none, false
	}
	return v, ok
}

func (t *table[T]) remove(v T) {
	m := v.base()
	if m.removed {
		return
	}
	m.removed = true
	delete(t.byID, m.id)
	if t.removed++; t.removed > 64 && t.removed > len(t.rows)/2 {
		t.rows = slices.DeleteFunc(t.rows, func(v T) bool { return v.base().removed })
		t.removed = 0
	}
}

// after yields the visible resources created after seq.
func (t *table[T]) after(seq uint64) iter.Seq[T] {
	return func(yield func(T) bool) {
		i, _ := slices.BinarySearchFunc(t.rows, seq+1, func(v T, seq uint64) int {
			switch at := v.base().seq; {
			case at < seq:
				return -1
			case at > seq:
				return 1
			}
			return 0
		})
		for ; i < len(t.rows); i++ {
			if m := t.rows[i].base(); m.removed || m.hidden {
				continue
			}
			if !yield(t.rows[i]) {
				return
			}
		}
	}
}

func (t *table[T]) all() iter.Seq[T] { return t.after(0) }

// every yields hidden resources too: names are taken before they are visible.
func (t *table[T]) every() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, v := range t.rows {
			if !v.base().removed && !yield(v) {
				return
			}
		}
	}
}

// paging is embedded in the requests of paginated actions.
type paging struct {
	MaxResults *int
	NextToken  string
}

// list describes resources: those with the IDs given, or all, that match, one
// page of them. least is the smallest MaxResults the action takes.
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Query-Requests.html#api-pagination
func list[T resource](t *table[T], ids []string, p paging, least int, notFound func(id string) error, match func(T) bool) (page []T, next string, err error) {
	if p.MaxResults != nil {
		if len(ids) > 0 {
			return nil, "", query.Errorf("InvalidParameterCombination", "The parameter MaxResults cannot be used with a list of IDs")
		}
		if n := *p.MaxResults; n < least || n > 1000 {
			return nil, "", query.Errorf("InvalidParameterValue", "Value ( %d ) for parameter maxResults is invalid. Expecting a value between %d and 1000.", n, least)
		}
	}
	if len(ids) > 0 {
		for _, id := range ids {
			v, ok := t.get(id)
			if !ok {
				return nil, "", notFound(id)
			}
			if match(v) && !slices.ContainsFunc(page, func(o T) bool { return len(ids) <= 64 && o.base() == v.base() }) {
				page = append(page, v)
			}
		}
		return page, "", nil
	}
	from, err := readToken(p.NextToken)
	if err != nil {
		return nil, "", err
	}
	for v := range t.after(from) {
		if !match(v) {
			continue
		}
		if p.MaxResults != nil && len(page) == *p.MaxResults {
			return page, writeToken(page[len(page)-1].base().seq), nil
		}
		page = append(page, v)
	}
	return page, "", nil
}

func writeToken(seq uint64) string {
	return base64.RawURLEncoding.EncodeToString([]byte("after:" + strconv.FormatUint(seq, 36)))
}

func readToken(token string) (uint64, error) {
	if token == "" {
		return 0, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		if rest, ok := strings.CutPrefix(string(b), "after:"); ok {
			if seq, err := strconv.ParseUint(rest, 36, 62); err == nil {
				return seq, nil
			}
		}
	}
	return 0, query.Errorf("InvalidNextToken", "The token '%s' is invalid", token)
}

// newID returns prefix-0123456789abcdef0.
func newID(prefix string) string {
	var b [9]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + "-" + hex.EncodeToString(b[:])[:17]
}

// checkID refuses what does not look like an ID of that kind:
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
func checkID(prefix, code, id string) error {
	rest, ok := strings.CutPrefix(id, prefix+"-")
	if ok && (len(rest) == 8 || len(rest) == 17) && strings.Trim(rest, "0123456789abcdef") == "" {
		return nil
	}
	return query.Errorf(code, "Invalid id: %q (expecting \"%s-...\")", id, prefix)
}

func notFoundf(code, format string) func(id string) error {
	return func(id string) error { return query.Errorf(code, format, id) }
}

// stamp makes the meta of a new resource, hidden for a while where the fault
// is set.
func (s *Server) stamp(r *region, id string, tags []tag) meta {
	r.seq++
	return meta{id: id, seq: r.seq, created: s.opts.Clock.Now().Truncate(time.Millisecond), tags: tags}
}

// reveal hides a new resource for the time that Invisible has set.
func (s *Server) reveal(v resource) {
	if s.faults.invisible <= 0 {
		return
	}
	m := v.base()
	m.hidden = true
	s.later(s.faults.invisible, func() { m.hidden = false })
}

func arn(region, kind, id string) string {
	return fmt.Sprintf("arn:aws:ec2:%s:%s:%s/%s", region, account, kind, id)
}
