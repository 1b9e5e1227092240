package hub

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/status"
)

// A ListFeed tells, to [Lists.Touch], which instances of the indexes that it is asked for have changed. Its methods are
// called by [Lists.Run] only, never concurrently, and are idempotent.
type ListFeed interface {
	// SubscribeLists returns when a read that starts now misses no change in these indexes.
	SubscribeLists(ctx context.Context, indexes []status.Index) error
	UnsubscribeLists(indexes []status.Index)
}

// A ListStore has the records and their indexes.
type ListStore interface {
	Store
	// List looks at n entries of the query's index behind a place, and returns those that the query selects.
	List(ctx context.Context, q *status.Query, from status.Cursor, n int) (status.Page, error)
}

// A ListSink is what a [List] finds instances for. Its methods must not block and must not use the hub. A call that is under way
// while the list is closed may still arrive.
type ListSink interface {
	// Wants reports whether it would make a difference to be offered an instance that has changed: it is asked before
	// anything else is, since most that change are in the list already.
	Wants(k status.Key) bool
	// Admits reports whether the reader may be shown a record that the query selects.
	Admits(r *status.Record) bool
	// MaySelect reports whether the reader may be shown anything that the query selects: else the store is not asked.
	MaySelect() bool
	// Caller names whose list it is. Callers take turns: whoever has many lists read waits for their own, and others do not.
	Caller() string
	// Offer names instances that were admitted. whole: they are all that the query selects at the moment, newest change
	// first, but for more of them behind the limit; otherwise they are some that have changed.
	Offer(keys []status.Key, whole, more bool)
}

// ListOptions of Lists. The zero value is ready for use.
type ListOptions struct {
	// Labels are those by which the store keeps indexes, in the order in which they are preferred.
	Labels []string
	// Pace is the pause between two looks at what has changed: however often an index changes, it is looked at
	// that often, in one read for all lists. Default 50 ms.
	Pace time.Duration
	// Refresh is the period in which every list is read as a whole although nobody missed anything. Default 5 minutes.
	Refresh time.Duration
	// Timeout of one call to the feed or the store. Default 5 seconds.
	Timeout time.Duration

	Logger  *slog.Logger          // default: none
	Metrics prometheus.Registerer // default: counted nowhere visible
}

const (
	// pageEntries is how many entries of an index are looked at in one call, and maxEntries in all for one list: who asks
	// for what is rare among very many is told that there is more.
	pageEntries = 200
	maxEntries  = 2000
	// maxTouched bounds the instances of an index that have changed and were not looked at; when there are more, its lists are
	// read as a whole.
	maxTouched = 2000
	// maxReading is for how long lists are read as a whole in one go: then it is looked at who else has come meanwhile.
	maxReading = 100 * time.Millisecond
)

// Lists knows which queries are watched in this process, and finds the instances that they select: those that there
// are, and others as they appear. What becomes of an instance that was found is told by a [Watch] on it.
//
// Its promises are the hub's: nothing that happens between the first reading and the first push is missed, and after
// a [Lists.Gap] every list is read again.
type Lists struct {
	options ListOptions
	log     *slog.Logger
	lists   prometheus.Gauge
	reads   prometheus.Counter
	kick    chan struct{} // wakes Run; holds at most one token

	mu      sync.Mutex
	indexes map[status.Index]*index // guarded by mu
	queue   []*index                // guarded by mu: those that Run has to look at, each at most once
}

// An index is what Lists keeps of an index that is watched here.
type index struct {
	name status.Index

	// owned by Run
	live bool // the feed has confirmed it

	// guarded by Lists.mu
	queued  bool
	lists   map[*List]struct{}
	touched map[status.Key]struct{}
}

// A List is one reader's interest in what a query selects.
type List struct {
	lists *Lists
	query *status.Query
	limit int
	sink  ListSink
	index *index
	due   bool // guarded by Lists.mu: to be read as a whole
}

// NewLists returns Lists that watch nothing.
func NewLists(o ListOptions) *Lists {
	if o.Pace <= 0 {
		o.Pace = 50 * time.Millisecond
	}
	if o.Refresh <= 0 {
		o.Refresh = 5 * time.Minute
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	l := &Lists{
		options: o,
		log:     o.Logger,
		kick:    make(chan struct{}, 1),
		indexes: map[status.Index]*index{},
		lists: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "statusrelay", Subsystem: "hub", Name: "lists", Help: "Queries that are watched, by all transports.",
		}),
		reads: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "statusrelay", Subsystem: "hub", Name: "list_reads_total", Help: "Instances read to see whether a list has them.",
		}),
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(l.lists, l.reads)
	}
	return l
}

// Watch has the sink told of what a query selects: soon of all that there is, at most limit, and then of what appears,
// until the list is closed. The query must be valid and is not modified any more.
func (l *Lists) Watch(q *status.Query, limit int, sink ListSink) *List {
	name := q.Index(l.options.Labels)
	li := &List{lists: l, query: q, limit: limit, sink: sink, due: true}
	l.mu.Lock()
	in := l.indexes[name]
	if in == nil {
		in = &index{name: name, lists: map[*List]struct{}{}, touched: map[status.Key]struct{}{}}
		l.indexes[name] = in
	}
	li.index = in
	in.lists[li] = struct{}{}
	l.look(in)
	l.mu.Unlock()
	l.lists.Inc()
	l.wake()
	return li
}

// Again has the list read as a whole once more: there is room, or the reader's rights have changed.
func (li *List) Again() {
	l := li.lists
	l.mu.Lock()
	li.due = true
	l.look(li.index)
	l.mu.Unlock()
	l.wake()
}

// Look has an instance looked at as if it had changed.
func (li *List) Look(k status.Key) {
	l := li.lists
	l.mu.Lock()
	li.index.touched[k] = struct{}{}
	l.look(li.index)
	l.mu.Unlock()
	l.wake()
}

// Close ends the list.
func (li *List) Close() {
	l := li.lists
	l.mu.Lock()
	delete(li.index.lists, li)
	if len(li.index.lists) == 0 {
		l.look(li.index) // to be forgotten
	}
	l.mu.Unlock()
	l.lists.Dec()
	l.wake()
}

// Touch says that instances of an index have changed.
func (l *Lists) Touch(name status.Index, keys []status.Key) {
	l.mu.Lock()
	in := l.indexes[name]
	if in == nil {
		l.mu.Unlock()
		return
	}
	for _, k := range keys {
		in.touched[k] = struct{}{}
	}
	if len(in.touched) > maxTouched {
		clear(in.touched)
		in.makeDue()
	}
	l.look(in)
	l.mu.Unlock()
	l.wake()
}

// Gap says that changes may have been missed: every list is read again.
func (l *Lists) Gap() {
	l.mu.Lock()
	for _, in := range l.indexes {
		in.makeDue()
		l.look(in)
	}
	l.mu.Unlock()
	l.wake()
}

// makeDue needs Lists.mu.
func (in *index) makeDue() {
	for li := range in.lists {
		li.due = true
	}
}

// look makes Run look at an index. It needs mu.
func (l *Lists) look(in *index) {
	if !in.queued {
		in.queued = true
		l.queue = append(l.queue, in)
	}
}

func (l *Lists) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Run finds instances until ctx is done; then it returns nil. It is the only caller of feed and store. When they fail it
// pauses and tries again, for as long as it takes.
func (l *Lists) Run(ctx context.Context, feed ListFeed, store ListStore) error {
	r := &lister{Lists: l, feed: feed, store: store}
	refresh := time.NewTimer(jitter(l.options.Refresh))
	defer refresh.Stop()
	pace := time.NewTimer(0)
	defer pace.Stop()
	for {
		select {
		case <-l.kick:
		case <-refresh.C:
			refresh.Reset(jitter(l.options.Refresh))
			l.Gap()
		case <-ctx.Done():
			return nil
		}
		if err := r.round(ctx); err != nil && ctx.Err() == nil {
			l.log.WarnContext(ctx, "reading lists", "error", err)
			r.pause(ctx)
		}
		pace.Reset(l.options.Pace)
		select {
		case <-pace.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// lister is the state of one Run.
type lister struct {
	*Lists
	feed  ListFeed
	store ListStore
	pauses
}

// An errand is what one round has to do for an index.
type errand struct {
	index   *index
	touched []status.Key
	lists   []*List // all of the index
}

// round looks at every index that is in the queue, and reads lists that are due. What it could not finish is in the queue again.
func (r *lister) round(ctx context.Context) error {
	errands, due := r.collect()
	err := r.subscribe(ctx, errands)
	for len(errands) > 0 && err == nil {
		if err = r.changes(ctx, &errands[0]); err == nil {
			errands = errands[1:]
		}
	}
	if err == nil {
		due, err = r.read(ctx, due)
	}
	if r.postpone(errands, due); err != nil {
		return err
	}
	r.wait = 0
	return nil
}

// collect empties the queue, and forgets the indexes that nobody watches any more.
func (r *lister) collect() (errands []errand, due []*List) {
	var forgotten []status.Index
	r.mu.Lock()
	queue := r.queue
	r.queue = nil
	errands = make([]errand, 0, len(queue))
	for _, in := range queue {
		in.queued = false
		if len(in.lists) == 0 {
			if r.indexes[in.name] == in {
				delete(r.indexes, in.name)
				forgotten = append(forgotten, in.name)
			}
			continue
		}
		e := errand{index: in}
		for li := range in.lists {
			e.lists = append(e.lists, li)
			if li.due {
				li.due = false
				due = append(due, li)
			}
		}
		for k := range in.touched {
			e.touched = append(e.touched, k)
		}
		clear(in.touched)
		errands = append(errands, e)
	}
	r.mu.Unlock()
	if len(forgotten) > 0 {
		r.feed.UnsubscribeLists(forgotten)
	}
	return errands, due
}

// postpone puts what is left of a round into the queue again.
func (r *lister) postpone(errands []errand, due []*List) {
	if len(errands)+len(due) == 0 {
		return
	}
	r.mu.Lock()
	for _, li := range due {
		li.due = true
		r.look(li.index)
	}
	for _, e := range errands {
		for _, k := range e.touched {
			e.index.touched[k] = struct{}{}
		}
		r.look(e.index)
	}
	r.mu.Unlock()
	r.wake()
}

func (r *lister) subscribe(ctx context.Context, errands []errand) error {
	var names []status.Index
	for _, e := range errands {
		if !e.index.live {
			names = append(names, e.index.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	if err := r.feed.SubscribeLists(ctx, names); err != nil {
		return fmt.Errorf("subscribe to %d lists: %w", len(names), err)
	}
	for _, e := range errands {
		e.index.live = true
	}
	return nil
}

// read reads lists as a whole, one at least, and returns those that there was no time for.
func (r *lister) read(ctx context.Context, due []*List) (left []*List, err error) {
	takeTurns(due)
	for begin := time.Now(); len(due) > 0; due = due[1:] {
		if err := r.whole(ctx, due[0]); err != nil {
			return due, err
		}
		if time.Since(begin) > maxReading {
			return due[1:], nil
		}
	}
	return nil, nil
}

// takeTurns orders lists: one of each caller, then another one of each who has more, and so on. Not always the same first: one
// that fails must not keep the others waiting for ever.
func takeTurns(lists []*List) {
	rand.Shuffle(len(lists), func(i, j int) { lists[i], lists[j] = lists[j], lists[i] })
	turns, next := make(map[*List]int, len(lists)), map[string]int{}
	for _, li := range lists {
		caller := li.sink.Caller()
		turns[li] = next[caller]
		next[caller]++
	}
	slices.SortStableFunc(lists, func(a, b *List) int { return cmp.Compare(turns[a], turns[b]) })
}

// changes reads what has changed and makes a difference to some list, once for all of them.
func (r *lister) changes(ctx context.Context, e *errand) error {
	wanted := make([][]*List, 0, len(e.touched)) // by whom
	keys := e.touched[:0]
	for _, k := range e.touched {
		var by []*List
		for _, li := range e.lists {
			if li.sink.Wants(k) {
				by = append(by, li)
			}
		}
		if len(by) > 0 {
			keys, wanted = append(keys, k), append(wanted, by)
		}
	}
	e.touched = keys
	if len(keys) == 0 {
		return nil
	}
	records, err := r.latest(ctx, keys)
	if err != nil {
		return err
	}
	e.touched = nil
	offers := map[*List][]status.Key{}
	for i, record := range records {
		if record == nil {
			continue
		}
		for _, li := range wanted[i] {
			if li.query.Match(record) && li.sink.Admits(record) {
				offers[li] = append(offers[li], record.Key())
			}
		}
	}
	for li, keys := range offers {
		li.sink.Offer(keys, false, false)
	}
	return nil
}

func (r *lister) latest(ctx context.Context, keys []status.Key) ([]*status.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	records, err := r.store.Latest(ctx, keys)
	if err == nil && len(records) != len(keys) {
		err = errShort
	}
	if err != nil {
		return nil, fmt.Errorf("read %d instances: %w", len(keys), err)
	}
	r.reads.Add(float64(len(keys)))
	return records, nil
}

// whole reads a list from its beginning to its limit.
func (r *lister) whole(ctx context.Context, li *List) error {
	if !li.sink.MaySelect() {
		li.sink.Offer(nil, true, false)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	var keys []status.Key
	var from status.Cursor
	for looked := 0; ; looked += pageEntries {
		if looked >= maxEntries {
			li.sink.Offer(keys, true, true)
			return nil
		}
		page, err := r.store.List(ctx, li.query, from, pageEntries)
		if err != nil {
			return fmt.Errorf("read a list: %w", err)
		}
		r.reads.Add(float64(len(page.Records)))
		for _, record := range page.Records {
			if !li.sink.Admits(record) {
				continue
			}
			if len(keys) == li.limit {
				li.sink.Offer(keys, true, true)
				return nil
			}
			keys = append(keys, record.Key())
		}
		if from = page.Next; from == (status.Cursor{}) {
			li.sink.Offer(keys, true, false)
			return nil
		}
	}
}
