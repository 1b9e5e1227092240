package durablehttp

import (
	"context"
	"errors"
	"sync"
	"time"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

const (
	// lookInterval is how often it is asked what is of interest: what an announcement
	// did not tell is heard of then.
	lookInterval = 5 * time.Second
	// loseInterest is how long what is of interest no more is still read.
	loseInterest = 2 * lookInterval
	// growth is by what the interval grows while an instance does not change.
	growth = 1.5
	// An instance is purged when it is absent gone times in a row, over goneFor at
	// least: some backends lose sight of one for a moment.
	gone    = 3
	goneFor = 5 * time.Second
	// reconcileShare is the part of the rate that what is silent may take.
	reconcileShare = 0.25
	// maxPages bounds a round of discovery, and so what is known of what only runs.
	maxPages = 100
)

// A term is one time of leading: everything that is known while it lasts.
type term struct {
	b      *Bridge
	heard  chan string
	wanted chan []string
	silent chan []string
	done   chan result

	// owned by run
	schedule *schedule
	gate     *gate
	busy     int
	refused  bool // the key; it was logged
	list     listing

	mu   sync.Mutex
	said map[string]said // guarded by mu: by instance id
}

// listing is discovery's state.
type listing struct {
	due   time.Time
	next  string // what continues the round; "": a new one begins
	round int
	pages int // of this round
	busy  bool
}

// A result is what came of a request.
type result struct {
	reply
	id       string // "": of a list
	ended    bool   // the instance has
	changed  bool   // something was published
	purged   bool
	existed  bool     // there is a record of it that has not ended
	listed   []string // all that the page has
	failedTo error    // publish
}

func newTerm(b *Bridge) *term {
	t := &term{
		b: b, heard: make(chan string, 1024), wanted: make(chan []string), silent: make(chan []string), done: make(chan result),
		schedule: newSchedule(), gate: newGate(b.o.Rate), said: map[string]said{},
	}
	t.list.due = time.Now()
	return t
}

// follow hears of new interest.
func (t *term) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := t.b.o.Interest.FollowInterest(ctx, t.b.o.Hub, func(id string) {
			select {
			case t.heard <- id:
			case <-ctx.Done():
			}
		})
		if ctx.Err() == nil {
			t.b.o.Logger.Debug("the bridge lost its subscription", "hub", t.b.o.Hub, "error", err)
		}
		pause(ctx, time.Second)
	}
}

// look asks what is of interest.
func (t *term) look(ctx context.Context) {
	for ctx.Err() == nil {
		ids, err := t.b.o.Interest.Interested(ctx, t.b.o.Hub)
		if err == nil {
			give(ctx, t.wanted, ids)
		} else if ctx.Err() == nil {
			t.b.o.Logger.Debug("the bridge does not know what is of interest", "hub", t.b.o.Hub, "error", err)
		}
		pause(ctx, lookInterval)
	}
}

// reconcile finds what has not ended and has been silent for too long: those whose
// publisher has died, or that have ended while nobody was interested. It goes through
// all of them, some at a time.
func (t *term) reconcile(ctx context.Context) {
	o := &t.b.o
	query := &status.Query{Hub: o.Hub, RuntimeStatus: []status.RuntimeStatus{status.Pending, status.Running, status.Suspended, status.ContinuedAsNew}}
	n := max(1, int(o.Rate*o.Reconcile.Seconds()*reconcileShare))
	var from status.Cursor
	for ctx.Err() == nil {
		if from == (status.Cursor{}) { // the list has the newest change first
			from.Version = time.Now().Add(-o.Silence).UnixMicro()
		}
		page, err := o.Records.List(ctx, query, from, min(n, 1000))
		switch {
		case err == nil:
			from = page.Next
		case errors.Is(err, status.ErrInvalid):
			from = status.Cursor{}
		}
		var ids []string
		for _, r := range page.Records {
			ids = append(ids, r.InstanceID)
		}
		if len(ids) > 0 {
			give(ctx, t.silent, ids)
		}
		pause(ctx, o.Reconcile)
	}
}

func give[T any](ctx context.Context, to chan<- T, v T) {
	select {
	case to <- v:
	case <-ctx.Done():
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// run decides what is asked when, and has it asked, until ctx ends and all requests
// have.
func (t *term) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(t.start(ctx, time.Now()))
		select {
		case <-ctx.Done():
			for ; t.busy > 0; t.busy-- {
				<-t.done
			}
			return
		case id := <-t.heard:
			now := time.Now()
			t.want(id, now)
			t.schedule.hurry(id, now)
		case ids := <-t.wanted:
			t.wantOnly(ids, time.Now())
		case ids := <-t.silent:
			for _, id := range ids {
				t.count(!readable(id) || t.schedule.readOnce(id, time.Now()))
			}
		case r := <-t.done:
			t.busy--
			t.take(r, time.Now())
		case <-timer.C:
		}
		t.b.m.instances.Set(float64(len(t.schedule.all)))
	}
}

func (t *term) want(id string, now time.Time) {
	t.count(!readable(id) || t.schedule.want(id, now))
}

func (t *term) count(room bool) {
	if !room {
		t.b.m.full.Inc()
	}
}

// wantOnly takes what is of interest now.
func (t *term) wantOnly(ids []string, now time.Time) {
	for _, id := range ids {
		t.want(id, now)
	}
	for _, i := range t.schedule.all {
		if now.Sub(i.wanted) >= loseInterest {
			i.wanted = time.Time{}
			t.tidy(i)
		}
	}
}

// tidy forgets what is known of an instance that nobody needs.
func (t *term) tidy(i *instance) {
	if i.wanted.IsZero() && !i.once && !i.reading {
		t.schedule.rest(i)
	}
	if t.schedule.tidy(i) {
		t.forget(i.id)
	}
}

func (t *term) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.said, id)
}

// start has asked whatever may be asked now, and says when to come back.
func (t *term) start(ctx context.Context, now time.Time) time.Duration {
	for t.busy < t.b.o.Concurrency && ctx.Err() == nil {
		i, wait := t.schedule.next(now)
		list := t.listDue(now)
		if i == nil && !list {
			if t.b.o.Discover > 0 && !t.list.busy {
				wait = min(wait, t.list.due.Sub(now))
			}
			return max(wait, 0)
		}
		if wait, limited := t.gate.wait(now); wait > 0 {
			if limited {
				t.b.m.waits.Inc()
			}
			return wait
		}
		t.busy++
		if list {
			t.list.busy = true
			next := t.list.next
			go func() { t.done <- t.b.readPage(ctx, t, next) }()
			continue
		}
		t.b.m.lag.Observe(now.Sub(i.due).Seconds())
		t.schedule.take(i)
		job := *i
		go func() { t.done <- t.b.read(ctx, t, job) }()
	}
	return never
}

func (t *term) listDue(now time.Time) bool {
	return t.b.o.Discover > 0 && !t.list.busy && !now.Before(t.list.due)
}

// take learns from what came of a request.
func (t *term) take(r result, now time.Time) {
	o := &t.b.o
	kind := forInstance
	if r.id == "" {
		kind = forList
	}
	t.b.m.requests.WithLabelValues(kind, string(r.outcome)).Inc()
	if turned := t.gate.take(r.reply, now); turned && t.gate.open {
		t.b.m.open.Set(1)
		o.Logger.Warn("the function app fails; it is asked now and then only", "hub", o.Hub, "result", string(r.outcome))
	} else if turned {
		t.b.m.open.Set(0)
		o.Logger.Info("the function app answers again", "hub", o.Hub)
	}
	if r.outcome == refused && !r.newKey && !t.refused {
		o.Logger.Error("the function app refuses bridge.key: nothing can be read from it until there is another", "hub", o.Hub)
	}
	t.refused = r.outcome == refused && !r.newKey || t.refused && r.outcome != answered
	if r.failedTo != nil {
		o.Logger.Debug("the bridge could not publish", "hub", o.Hub, "error", r.failedTo)
	}
	if r.id == "" {
		t.takePage(r, now)
		return
	}
	i := t.schedule.all[r.id]
	i.reading, i.unknown = false, r.outcome == absent && !r.existed
	i.interval = t.interval(i, r, now)
	if i.wanted.IsZero() {
		t.tidy(i)
		return
	}
	t.schedule.put(i, now.Add(jittered(i.interval)))
}

// interval says in what time an instance is read again, after what came of it now.
func (t *term) interval(i *instance, r result, now time.Time) time.Duration {
	o := &t.b.o
	longer := func(by float64, most time.Duration) time.Duration {
		return min(max(time.Duration(float64(i.interval)*by), o.MinInterval), most)
	}
	switch {
	case r.outcome == absent:
		if i.misses == 0 {
			i.missedAt = now
		}
		i.misses++
		if r.purged {
			i.misses, i.seen = 0, false
		}
		if r.existed && !r.purged { // is it gone?
			return max(o.MinInterval, goneFor/(gone-1))
		}
		// It may be about to be started.
		return longer(2, o.AbsentFor)
	case r.outcome != answered:
		if r.newKey || i.interval == 0 {
			return o.MinInterval
		}
		return longer(growth, o.MaxInterval)
	}
	i.seen, i.misses = true, 0
	switch {
	case r.failedTo != nil:
		return longer(growth, o.MaxInterval)
	case r.ended:
		return o.TerminalInterval
	case r.changed || i.interval == 0 || i.interval > o.MaxInterval:
		return o.MinInterval
	}
	return longer(growth, o.MaxInterval)
}

// takePage learns from a page of a list.
func (t *term) takePage(r result, now time.Time) {
	l := &t.list
	l.busy = false
	t.b.m.unread.Add(float64(r.bad))
	if r.outcome != answered { // the round begins anew, the next time
		l.due, l.next, l.pages = now.Add(t.b.o.Discover), "", 0
		return
	}
	if l.next == "" {
		l.round, l.pages = l.round+1, 0
	}
	for _, id := range r.listed {
		if i := t.schedule.add(id); i != nil {
			i.listed, i.seen, i.misses = l.round, true, 0
		} else {
			t.count(false)
			t.forget(id)
		}
	}
	if l.pages++; r.next != "" && r.next != l.next && l.pages < maxPages {
		l.next, l.due = r.next, now
		return
	}
	whole := r.next == ""
	l.next, l.due = "", now.Add(t.b.o.Discover)
	for _, i := range t.schedule.all {
		if i.listed == 0 || i.listed == l.round {
			continue
		}
		i.listed = 0
		if whole { // what is in the list no more has ended, or is gone
			t.schedule.readOnce(i.id, now)
		} else {
			t.tidy(i)
		}
	}
}

// read asks for one instance and publishes what is new. i is a copy.
func (b *Bridge) read(ctx context.Context, t *term, i instance) result {
	key := status.Key{Hub: b.o.Hub, InstanceID: i.id}
	r := result{id: i.id}
	records, err := b.o.Records.Latest(ctx, []status.Key{key})
	if err != nil {
		r.outcome = storeAway
		return r
	}
	f := finding{key: key, record: records[0], started: time.Now()}
	f.update, r.reply = b.client.instance(ctx, i.id, time.Now)
	switch r.outcome {
	case answered:
		_, current := f.execution()
		r.ended = current && f.update.RuntimeStatus.Terminal()
		r.changed, r.failedTo = t.publish(ctx, &f)
	case absent:
		r.existed = f.record != nil && !f.record.Terminal() && (i.seen || bridged(f.record))
		if r.existed && i.misses+1 >= gone && f.started.Sub(i.missedAt) >= goneFor {
			r.failedTo = b.send(ctx, purge(f.record))
			r.purged = r.failedTo == nil
			r.changed = r.purged
		}
	}
	return r
}

// bridged reports whether a bridge has seen that instance at the runtime.
func bridged(r *status.Record) bool {
	return ours(r.Key(), r.Generation, r.Lifecycle.Position, r.Lifecycle.Time) || ours(r.Key(), r.Generation, r.Progress.Position, r.Progress.Time)
}

// readPage asks for a page of a list and publishes what is new in it.
func (b *Bridge) readPage(ctx context.Context, t *term, next string) result {
	var r result
	started := time.Now()
	updates, reply := b.client.page(ctx, next, time.Now)
	r.reply = reply
	if r.outcome != answered || len(updates) == 0 {
		return r
	}
	keys := make([]status.Key, len(updates))
	for i, u := range updates {
		keys[i] = status.Key{Hub: b.o.Hub, InstanceID: u.InstanceID}
	}
	records, err := b.o.Records.Latest(ctx, keys)
	if err != nil {
		r.outcome = storeAway
		return r
	}
	for i, u := range updates {
		f := finding{key: keys[i], record: records[i], update: u, started: started}
		if _, err := t.publish(ctx, &f); err != nil {
			r.failedTo = err
		}
		r.listed = append(r.listed, u.InstanceID)
	}
	return r
}

// publish publishes what is new in a finding, and remembers that.
func (t *term) publish(ctx context.Context, f *finding) (changed bool, err error) {
	o := &t.b.o
	f.update.Hub = o.Hub
	f.update.Labels = o.Labels.of(f.update.CustomStatus)
	t.mu.Lock()
	f.said = t.said[f.key.InstanceID]
	t.mu.Unlock()
	u, next := f.judge(rules{silence: o.Silence, lifecycleOnly: o.LifecycleOnly}, time.Now())
	if u != nil {
		if err := t.b.send(ctx, u); err != nil {
			return false, err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.said[f.key.InstanceID].asked.After(next.asked) { // a request that was made later, for a list or for the instance, may have been faster
		t.said[f.key.InstanceID] = next
	}
	return u != nil, nil
}

func (b *Bridge) send(ctx context.Context, u *status.Update) error {
	err := u.Validate(time.Now())
	if err == nil {
		err = b.o.Publish(ctx, []wire.Message{{Update: *u, Source: "/hubs/" + u.Hub + "/bridge"}})[0]
	}
	if err != nil {
		b.m.published.WithLabelValues(unpublished).Inc()
		return err
	}
	b.m.published.WithLabelValues(published).Inc()
	return nil
}
