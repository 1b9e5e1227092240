// Package claim decides which of several attempts to publish the same event may
// do so, and remembers which events were published: an event that is sent again
// is accepted again, and published once.
//
// An event is known by who sends it, its source and its id. It promises that
//
//   - of all who take an event at the same time, on any replica that shares the
//     memory, one is free to publish it;
//   - an event is published only after it was taken, and counts as published only
//     after it was settled so: an attempt that failed leaves it free, and one
//     that was killed leaves it free when its lease has ended;
//   - two different events of one name are told apart by their content;
//   - a memory that is away costs nobody an event: all are free, so that some may
//     be published again, which a merge drops.
//
// Use:
//
//	ledger, err := claim.NewLedger(claim.Options{Memory: store})
//	e := claim.Of(issuer, subject, source, id, content)
//	ledger.Take(ctx, []*claim.Event{e})
//	if e.Verdict == claim.Free {
//		e.Published = publish() == nil
//	}
//	ledger.Settle(ctx, []*claim.Event{e})
package claim

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// memoryTimeout is how long a memory may take. Whoever waits has an answer without it.
	memoryTimeout = time.Second
	// pause is how long a memory is left alone that did not answer: meanwhile nobody waits for it.
	pause = 2 * time.Second
)

// A Verdict says what is to be done with an event.
type Verdict string

const (
	Free      Verdict = "free"      // to be published
	Published Verdict = "published" // it was, by an earlier attempt
	Busy      Verdict = "busy"      // another attempt has begun, and not ended yet
	Other     Verdict = "other"     // another event of this name was published, or is about to be
	Unknown   Verdict = "unknown"   // to be published: there is nobody to ask
)

// A Stamp is a position that an event was given when it was first tried.
type Stamp struct{ Generation, Sequence int64 }

// An Event is one attempt to publish an event.
type Event struct {
	// Name is the event's, the same whoever asks. Content is what it says. Both are hashes.
	Name, Content string

	Verdict   Verdict // set by Take
	Stamp     *Stamp  // set by Take if an earlier attempt failed after it had one, and by whoever gives it one
	Published bool    // set before Settle by whoever has published it

	mine string // what this attempt writes under the name
}

// Of returns an attempt that has not been taken yet, of the caller whom issuer and
// subject name.
func Of(issuer, subject, source, id string, content []byte) *Event {
	name := sha256.New()
	for _, part := range []string{issuer, subject, source, id} {
		name.Write(binary.AppendUvarint(nil, uint64(len(part)))) // so that no two lists are one text
		name.Write([]byte(part))
	}
	e := &Event{Name: short(name.Sum(nil)), Content: short(sum(content))}
	e.mine = "p " + e.Content + " " + rand.Text()
	return e
}

// MessageID names the event and its content.
func (e *Event) MessageID() string { return e.Name + e.Content }

func sum(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

// short has 128 bits of a hash: enough for whom nobody gains from breaking but himself.
func short(hash []byte) string { return base64.RawURLEncoding.EncodeToString(hash[:16]) }

// A Swap is one text to be written into a memory.
type Swap struct {
	Name string        // of the text: letters, digits, - and _
	Text string        // what to write
	Mine string        // what does not keep it from being written
	Life time.Duration // how long it is kept

	Found string // set: what stood there, "" for nothing
	Err   error  // set: nobody knows what stood there, or whether it was written
}

// A Memory keeps short texts. Swap writes each, in one step, unless what stands there
// [Holds] against it, and says what stood there.
type Memory interface {
	Swap(ctx context.Context, swaps []*Swap)
}

// Holds reports whether a text must not be replaced by one who has written mine: it
// says that an event is being published, or was.
func Holds(text, mine string) bool {
	return text != mine && (strings.HasPrefix(text, "p ") || strings.HasPrefix(text, "a "))
}

// Options of a Ledger. Memory is required.
type Options struct {
	Memory Memory
	TTL    time.Duration // how long an event that was published is known; 0: 24 hours
	Lease  time.Duration // how long one that is being published is kept from others; 0: 30 seconds

	Logger  *slog.Logger          // default: discarded
	Metrics prometheus.Registerer // default: counted nowhere visible
	Now     func() time.Time      // nil: time.Now
}

// A Ledger takes and settles events.
type Ledger struct {
	o      Options
	events *prometheus.CounterVec

	mu    sync.Mutex
	alone time.Time // guarded by mu: until when the memory is not to be asked; zero: it has answered
}

// NewLedger returns a Ledger that keeps what it knows in the memory.
func NewLedger(o Options) (*Ledger, error) {
	if o.TTL == 0 {
		o.TTL = 24 * time.Hour
	}
	if o.Lease == 0 {
		o.Lease = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	l := &Ledger{o: o, events: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "statusrelay", Subsystem: "claim", Name: "events_total",
		Help: "Events with a name that came in, by what was known of it: free and unknown ones were published.",
	}, []string{"verdict"})}
	for _, v := range []Verdict{Free, Published, Busy, Other, Unknown} {
		l.events.WithLabelValues(string(v)) // there from the start: an alert can ask for its rate
	}
	if o.Metrics != nil {
		if err := o.Metrics.Register(l.events); err != nil {
			return nil, fmt.Errorf("claim metrics: %w", err)
		}
	}
	return l, nil
}

// Take gives each event its verdict, all of them in one go. Their names must differ.
func (l *Ledger) Take(ctx context.Context, events []*Event) {
	swaps := make([]*Swap, len(events))
	for i, e := range events {
		swaps[i] = &Swap{Name: e.Name, Text: e.mine, Mine: e.mine, Life: l.o.Lease}
	}
	l.swap(ctx, swaps)
	for i, e := range events {
		e.judge(swaps[i])
		l.events.WithLabelValues(string(e.Verdict)).Inc()
	}
}

// judge reads what stood under the event's name.
func (e *Event) judge(s *Swap) {
	words := strings.Fields(s.Found)
	same := len(words) > 1 && words[1] == e.Content
	switch {
	case s.Err != nil:
		e.Verdict = Unknown
	case !Holds(s.Found, e.mine):
		e.Verdict = Free
		if same && len(words) == 4 && words[0] == "f" {
			e.Stamp = stamp(words[2], words[3])
		}
	case !same:
		e.Verdict = Other
	case words[0] == "a":
		e.Verdict = Published
	default:
		e.Verdict = Busy
	}
}

func stamp(generation, sequence string) *Stamp {
	const bits = 54 // and the sign: positions are below 2^53
	g, gErr := strconv.ParseInt(generation, 10, bits)
	s, sErr := strconv.ParseInt(sequence, 10, bits)
	if gErr != nil || sErr != nil || g < 0 || s < 0 {
		return nil
	}
	return &Stamp{g, s}
}

// Settle says what became of events that were free. It does not fail: what a memory
// does not hear counts as failed when the lease has ended.
func (l *Ledger) Settle(ctx context.Context, events []*Event) {
	var swaps []*Swap
	for _, e := range events {
		if e.Verdict != Free {
			continue
		}
		text := "a " + e.Content
		if !e.Published {
			// Its next attempt gets the same position: else it would overtake what was
			// published meanwhile, if the broker has got this one all the same.
			if text = "f " + e.Content; e.Stamp != nil {
				text += fmt.Sprintf(" %d %d", e.Stamp.Generation, e.Stamp.Sequence)
			}
		}
		swaps = append(swaps, &Swap{Name: e.Name, Text: text, Mine: e.mine, Life: l.o.TTL})
	}
	l.swap(ctx, swaps)
}

// errAlone is the error of swaps that were not tried.
var errAlone = errors.New("the memory did not answer a moment ago")

// swap asks the memory, unless it did not answer a moment ago.
func (l *Ledger) swap(ctx context.Context, swaps []*Swap) {
	if len(swaps) == 0 {
		return
	}
	l.mu.Lock()
	alone := l.o.Now().Before(l.alone)
	l.mu.Unlock()
	if alone {
		for _, s := range swaps {
			s.Err = errAlone
		}
		return
	}
	// Whether the caller waits says nothing of the memory.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), memoryTimeout)
	defer cancel()
	l.o.Memory.Swap(ctx, swaps)
	var failure error
	for _, s := range swaps {
		if s.Err != nil {
			failure = s.Err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	failing := !l.alone.IsZero()
	if failure == nil {
		l.alone = time.Time{}
		return
	}
	l.alone = l.o.Now().Add(pause)
	if !failing {
		l.o.Logger.Warn("it is not known which events were published before: some may be published again", "error", failure)
	}
}
