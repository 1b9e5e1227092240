package reader

import (
	"slices"
	"time"

	"statusrelay/internal/hub"
	"statusrelay/internal/status"
)

// A list is a query that a client watches: a watch on each of the instances that it selects, at most limit of them.
type list struct {
	reader *Reader       // set once
	name   string        // set once: the client's
	query  *status.Query // set once
	limit  int           // set once
	terms  Terms         // set once: of its watches
	found  *hub.List     // set once, under editing

	// guarded by reader.mu
	offered      []status.Key // that Next has not seen
	whole, more  bool         // offered are all that there are, and there are more behind the limit
	ready, ended bool         // it is among those that have found something; it is closed

	// written under reader.editing and reader.mu, read under either
	size int  // how many watches it has
	full bool // the query selects more than the limit

	// guarded by reader.editing
	read     bool                    // it has been read as a whole
	awaited  map[status.Key]struct{} // those that the client is to be told of before it is listed; nil afterwards
	listed   bool                    // the client has been told that it was told all,
	toldMore bool                    // and whether that is all that there is
}

// WatchList watches what a query selects: at most limit instances, the newest changes first. One of the same name is
// replaced. The query must be valid and is not modified any more. The client is told of each instance that it has Joined, and
// what its status is; when all that there were have been told, that they are Listed.
func (r *Reader) WatchList(name string, q *status.Query, limit int, minInterval time.Duration) {
	r.editing.Lock()
	defer r.editing.Unlock()
	r.unwatchList(name)
	l := &list{reader: r, name: name, query: q, limit: limit, terms: Terms{MinInterval: minInterval}, awaited: map[status.Key]struct{}{}}
	r.mu.Lock()
	if r.lists == nil {
		r.lists = map[string]*list{}
	}
	r.lists[name] = l
	r.mu.Unlock()
	l.found = r.source.lists.Watch(q, limit, l)
}

// UnwatchList ends a list. What only it has is not watched any more.
func (r *Reader) UnwatchList(name string) {
	r.editing.Lock()
	defer r.editing.Unlock()
	r.unwatchList(name)
}

// ListLimit is the limit of the list of that name; 0: there is none.
func (r *Reader) ListLimit(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.lists[name]; l != nil {
		return l.limit
	}
	return 0
}

func (r *Reader) unwatchList(name string) {
	l := r.lists[name]
	if l == nil {
		return
	}
	l.found.Close()
	var without []status.Key // instances that the list has, or has had
	r.mu.Lock()
	l.ended = true
	delete(r.lists, name)
	r.later = slices.DeleteFunc(r.later, func(e Event) bool {
		if e.List == name && e.Kind == Left {
			without = append(without, e.Key)
		}
		return e.List == name
	})
	r.mu.Unlock()
	for w := range r.watches.all {
		if r.leave(l, w) {
			without = append(without, w.Key())
		}
	}
	without = slices.DeleteFunc(without, func(k status.Key) bool { return r.watches.find(k) != nil })
	r.takeBack(without...)
}

// Wants is asked by the hub: what the list has is told by its watch, and one that is known to be full has no room.
func (l *list) Wants(k status.Key) bool {
	r := l.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.watches.find(k)
	return !(l.full && l.size == l.limit) && (w == nil || !w.isIn(l))
}

// Admits is asked by the hub.
func (l *list) Admits(record *status.Record) bool {
	who := l.reader.principal.Load()
	a := l.reader.source.Audience(who, record)
	// Who does not see a label is not told its values by a list either.
	return a != nil && a.MaySelectByAll(who.Claims, l.query.Labels)
}

// MaySelect is asked by the hub.
func (l *list) MaySelect() bool { return l.reader.source.MaySelect(l.reader.principal.Load(), l.query) }

// Caller is asked by the hub.
func (l *list) Caller() string {
	who := l.reader.principal.Load()
	return who.Issuer + "\x00" + who.Subject
}

// Offer is called by the hub.
func (l *list) Offer(keys []status.Key, whole, more bool) {
	r := l.reader
	r.mu.Lock()
	if r.closed || l.ended {
		r.mu.Unlock()
		return
	}
	if whole {
		l.offered, l.whole, l.more = keys, true, more
	} else if room := l.limit - len(l.offered); len(keys) > room {
		l.offered, l.more = append(l.offered, keys[:max(room, 0)]...), true
	} else {
		l.offered = append(l.offered, keys...)
	}
	if !l.ready {
		l.ready = true
		r.ready = append(r.ready, l)
	}
	r.mu.Unlock()
	r.sink.Wake()
}

// admit takes what a list has found. It is called by Next.
func (r *Reader) admit(l *list) {
	r.editing.Lock()
	defer r.editing.Unlock()
	r.mu.Lock()
	offered, whole, more := l.offered, l.whole, l.more
	l.offered, l.whole, l.more, l.ready = nil, false, false, false
	gone := l.ended || r.closed
	r.mu.Unlock()
	if gone {
		return
	}
	for _, k := range offered {
		w := r.watches.find(k)
		switch {
		case w != nil && w.isIn(l):
			continue
		case l.size == l.limit:
			more = true
			continue
		}
		r.mu.Lock()
		l.size++
		r.mu.Unlock()
		if l.awaited != nil {
			l.awaited[k] = struct{}{}
		}
		if w != nil {
			r.join(l, w)
		} else {
			r.add(k, &watch{reader: r, extra: &extra{members: []membership{{list: l}}}})
		}
	}
	l.read = l.read || whole
	r.mu.Lock()
	l.full = more || l.full && !whole
	r.mu.Unlock()
	r.listing(l)
}

// join makes an instance that is watched already one of a list's, and has it looked at once more: what was seen of it last
// may be newer than what the list has found. It is called by Next, and needs editing.
func (r *Reader) join(l *list, w *watch) {
	r.mu.Lock()
	if w.extra == nil {
		w.extra = &extra{named: true}
	}
	w.extra.last = time.Time{}
	w.extra.members = append(slices.Clone(w.extra.members), membership{list: l})
	r.mu.Unlock()
	w.lookAgain()
}

// leave makes an instance one of a list's no more, and closes its watch if nothing else wants it. It reports whether the list
// had it, and needs editing.
func (r *Reader) leave(l *list, w *watch) bool {
	old := w.memberships()
	members := slices.DeleteFunc(slices.Clone(old), func(m membership) bool { return m.list == l })
	if len(members) == len(old) {
		return false
	}
	r.mu.Lock()
	w.extra.members = members
	l.size--
	r.mu.Unlock()
	switch {
	case l.ended:
	case l.full:
		l.found.Again() // there is room
	default:
		l.found.Look(w.Key()) // it may have come back already: that was not looked at while it was in the list
	}
	if len(members) == 0 && !w.named() {
		r.drop(w)
	}
	return true
}

// arrived says that the client knows what there is to know of an instance of a list. It needs editing.
func (r *Reader) arrived(l *list, k status.Key) {
	delete(l.awaited, k)
	r.listing(l)
}

// listing tells the client that it has been told all, when that is so. It needs editing.
func (r *Reader) listing(l *list) {
	if !l.read || len(l.awaited) > 0 || l.listed && l.toldMore == l.full {
		return
	}
	l.awaited, l.listed, l.toldMore = nil, true, l.full
	r.tell(Event{Kind: Listed, List: l.name, More: l.full})
}
