package orders

import (
	"container/list"
	"context"
	"hash/maphash"
	"sync"
)

// keyCache remembers the latest idempotency keys, so that a repeated post is
// not spooled twice. What it has forgotten is spooled again under the same ID.
type keyCache struct {
	mu    sync.Mutex
	seed  maphash.Seed
	max   int
	byID  map[ID]*list.Element
	order *list.List
}

type keyEntry struct {
	id   ID
	sum  uint64        // of the order
	done chan struct{} // closed when the post has ended
	ok   bool
}

func newKeyCache(max int) *keyCache {
	return &keyCache{seed: maphash.MakeSeed(), max: max, byID: map[ID]*list.Element{}, order: list.New()}
}

// claim begins a post. With replay the order is durable already; with conflict
// another order has the key. Otherwise the caller must call end.
func (c *keyCache) claim(ctx context.Context, o *Order) (e *keyEntry, replay, conflict bool, err error) {
	rec := o.appendRecord(nil)
	clear(rec[17:25]) // the time
	sum := maphash.Bytes(c.seed, rec)
	for {
		c.mu.Lock()
		el, found := c.byID[o.ID]
		if !found {
			e := &keyEntry{id: o.ID, sum: sum, done: make(chan struct{})}
			c.byID[o.ID] = c.order.PushBack(e)
			for c.order.Len() > c.max {
				oldest := c.order.Remove(c.order.Front()).(*keyEntry)
				delete(c.byID, oldest.id)
			}
			c.mu.Unlock()
			return e, false, false, nil
		}
		e := el.Value.(*keyEntry)
		c.mu.Unlock()
		if e.sum != sum {
			return nil, false, true, nil
		}
		select {
		case <-e.done:
		case <-ctx.Done():
			return nil, false, false, ctx.Err()
		}
		c.mu.Lock()
		ok := e.ok
		c.mu.Unlock()
		if ok {
			return nil, true, false, nil
		}
	}
}

func (c *keyCache) end(e *keyEntry, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.ok = ok
	if el, found := c.byID[e.id]; !ok && found && el.Value == any(e) {
		c.order.Remove(el)
		delete(c.byID, e.id)
	}
	close(e.done)
}
