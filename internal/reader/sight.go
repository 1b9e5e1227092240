package reader

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
)

// A Form is a way of sending a sight. Each belongs to one transport, which makes it once for all of its clients.
type Form int

// The forms that there are.
const (
	StatusFrame     Form = iota // a frame of the WebSocket protocol status.v1.json
	WebPubSubFrame              // a frame of the WebSocket protocol json.webpubsub.azure.v1
	ServerSentEvent             // an event of a text/event-stream
	formCount
)

// A Sight is one version of an instance as one audience sees it, shared by all who see the same. It is immutable, but for
// the forms that transports keep with it.
type Sight struct {
	policy.View
	digest uint64 // of the view without its version
	forms  [formCount]made
}

// made is a form, once it is made.
type made struct {
	once  sync.Once
	done  atomic.Bool
	value any // set before done
}

// Form returns what Make has made, if it has.
func (s *Sight) Form(f Form) (value any, ok bool) {
	if m := &s.forms[f]; m.done.Load() {
		return m.value, true
	}
	return nil, false
}

// Make returns what is sent of this sight in a form, and calls create for it once, however many ask at the same time.
func (s *Sight) Make(f Form, create func() any) any {
	m := &s.forms[f]
	m.once.Do(func() {
		m.value = create()
		m.done.Store(true)
	})
	return m.value
}

// Sight returns what an audience sees of a snapshot that is not gone. The audience is its key in the snapshot's memo.
func (s *Source) Sight(snapshot *hub.Snapshot, a *policy.Audience) *Sight {
	v, ok := snapshot.Load(a)
	if !ok {
		v = snapshot.Make(a, func() any {
			view := a.View(snapshot.Record)
			return &Sight{View: view, digest: maphash.String(s.seed, view.ETag)}
		})
	}
	return v.(*Sight)
}

// sightAt is one client's own sight of a snapshot, with another version. It is not inlined: a record is larger than all that is on
// the stack of a socket that writes, which would be grown for it with every frame.
//
//go:noinline
func sightAt(version int64, snapshot *hub.Snapshot, a *policy.Audience) *Sight {
	r := *snapshot.Record
	r.Version = version
	return &Sight{View: a.View(&r)}
}

// scopeKey is the key of a snapshot's memo for its scope.
type scopeKey struct{}

// scope returns a hash of all that the snapshot has to do with rights, keyed with a secret of this process: a watch
// keeps eight bytes instead of the labels.
func (s *Source) scope(snapshot *hub.Snapshot) uint64 {
	v, ok := snapshot.Load(scopeKey{})
	if !ok {
		v = snapshot.Make(scopeKey{}, func() any { return maphash.String(s.seed, policy.Scope(snapshot.Record)) })
	}
	return v.(uint64)
}
