package redisstore

import (
	"container/list"
	"sync"

	"statusrelay/internal/status"
)

// cache remembers what this process wrote last, so that the next update of the
// instance needs no read before its write. Its word is only ever good for a
// write that the compare-and-set guards.
type cache struct {
	limit int // bytes

	mu      sync.Mutex
	size    int        // guarded by mu
	recency *list.List // guarded by mu; of *remembered, newest first
	byKey   map[status.Key]*list.Element
}

type remembered struct {
	key status.Key
	state
	size int
}

// overhead is about what an entry costs besides its encoded record.
const overhead = 768

func newCache(limit int) *cache {
	return &cache{limit: limit, recency: list.New(), byKey: make(map[status.Key]*list.Element)}
}

// recall gives the jobs the states that are remembered.
func (c *cache) recall(jobs []*job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range jobs {
		if e := c.byKey[j.key]; e != nil {
			j.from, j.source = e.Value.(*remembered).state, guessed
		}
	}
}

// keep remembers what the jobs wrote and forgets those of which it is unsure.
func (c *cache) keep(jobs []*job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range jobs {
		if e := c.byKey[j.key]; e != nil {
			c.drop(e)
		}
		if j.err != nil || !j.changed {
			continue
		}
		m := &remembered{j.key, j.from, len(j.stored) + len(j.name) + overhead}
		c.byKey[j.key] = c.recency.PushFront(m)
		c.size += m.size
	}
	for c.size > c.limit && c.recency.Len() > 0 {
		c.drop(c.recency.Back())
	}
}

func (c *cache) drop(e *list.Element) {
	m := c.recency.Remove(e).(*remembered)
	delete(c.byKey, m.key)
	c.size -= m.size
}
