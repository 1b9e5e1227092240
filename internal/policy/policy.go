// Package policy decides what may leave: which audiences there are for the
// instances of a hub and an orchestrator, who belongs to each, and which fields
// each may see. docs/policy.md explains the file it reads.
//
// It promises that everything is denied unless the file grants it. What no
// audience may see is removed by Policy.Filter before it is stored; what one
// audience may not see is not in its Audience.View. A condition that cannot be
// decided (a claim that is missing, a label that publishers disagree about)
// admits nobody.
//
//	p, err := policy.Parse(file)           // every mistake at once, each with its place
//	p.Filter(update)                       // on the way in
//	a := p.Audience(claims, record)        // on the way out: nil is "no such instance"
//	v := a.View(record.Aged(p.StaleAfter(record), now))
//
// A Policy and its audiences are immutable and may be used by many goroutines.
package policy

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"statusrelay/internal/status"
)

// wildcard stands for every hub or orchestrator that is not listed, and in a
// pointer for every member or element.
const wildcard = "*"

//go:embed development.yaml
var development []byte

// Development returns the policy file of development mode, which is commented
// and good to copy as a start.
func Development() []byte { return slices.Clone(development) }

// Policy is a policy file, compiled.
type Policy struct {
	hubs       map[string]map[string]*rule // by hub, then by orchestrator name
	common     *sync.Map                   // [2]*Audience to the *Audience that sees what both do
	publishers []publisher
	projectors *projectors
	log        *slog.Logger
}

// rule is what holds for the instances of one hub and orchestrator.
type rule struct {
	audiences  []*Audience   // in file order: the first that admits decides
	union      sight         // what any of them may see
	staleAfter time.Duration // of silence; 0: never
}

// sight is what may be seen of an instance beyond what every audience sees.
type sight struct {
	customStatus            *fields
	output, failure, labels bool
}

// Audience is a group of callers that see the same. Pointers to it are stable:
// one per audience of the file, and per pair of them that records need, for the life of
// its Policy.
type Audience struct {
	name       string
	when       *condition
	sees       sight
	also       []*fields // what of its custom status others see as well; nil: there are no others
	projectors *projectors
}

// Name returns the audience's name in the policy file.
func (a *Audience) Name() string { return a.name }

// publisher says who may publish to which hubs.
type publisher struct {
	when *condition
	hubs []string
}

// WithLogger returns the same policy, sharing its audiences, that logs at debug
// level which conditions could not be decided. It logs names from the policy
// file and no value of a claim or label. Without it nothing is logged.
func (p *Policy) WithLogger(l *slog.Logger) *Policy {
	q := *p
	q.log = l
	return &q
}

// rule finds what holds for an orchestrator: the hub's own section, or else the
// section of hub "*"; in that section the orchestrator's own entry, or else
// entry "*". A section that lists a hub is all that holds for it: what is
// missing there is not looked up under "*".
func (p *Policy) rule(hub, name string) *rule {
	section, listed := p.hubs[hub]
	if !listed {
		section = p.hubs[wildcard]
	}
	if name == "" {
		name = wildcard
	}
	if r, listed := section[name]; listed {
		return r
	}
	if r, listed := section[wildcard]; listed {
		return r
	}
	return &rule{} // no section speaks of it: nobody sees anything
}

// Filter removes from the update, in place, what no audience of its hub and
// orchestrator may see. It keeps what the update speaks for: a custom status of
// which nothing may be seen becomes {} or null and still replaces an older one.
// Labels stay, since they decide who belongs to an audience. The bytes that
// u.CustomStatus points to are not written to.
//
// The hub must be filled in; an update without a name falls under entry "*".
func (p *Policy) Filter(u *status.Update) {
	union := &p.rule(u.Hub, u.Name).union
	if u.CustomStatus != nil && !union.customStatus.sees() {
		pr := p.projectors.borrow()
		u.CustomStatus = bytes.Clone(pr.project(union.customStatus, u.CustomStatus))
		p.projectors.giveBack(pr)
	}
	if !union.output {
		u.Output = nil
	}
	if !union.failure {
		u.Failure = nil
	}
}

// Audience returns the first audience in file order that admits a caller with
// these claims to the record, or nil when none does; nobody is admitted to a
// tombstone. The caller must answer nil exactly as if there were no record.
//
// An instance to which publishers gave several names is for those who are admitted
// under each, and they see what they would see under all: what was published under
// the one is not for whoever may read the other.
func (p *Policy) Audience(claims map[string]any, r *status.Record) *Audience {
	return p.underEachName(r, func(of *rule) *Audience {
		for _, a := range of.audiences {
			ok, err := a.when.holds(claims, r.Labels, r.Conflicts)
			if err != nil {
				p.undecided(err, slog.String("audience", a.name), slog.String("hub", r.Hub), slog.String("orchestrator", r.Name))
			}
			if ok {
				return a
			}
		}
		return nil
	})
}

// underEachName returns the audience that sees what those do which admit finds in the
// rule of each of the record's names; nil when it finds none in any of them.
func (p *Policy) underEachName(r *status.Record, admit func(*rule) *Audience) *Audience {
	if r.Purged || len(r.OtherNames) == status.MaxOtherNames {
		return nil
	}
	first := p.rule(r.Hub, r.Name)
	a := admit(first)
	for _, name := range r.OtherNames {
		if of := p.rule(r.Hub, name); a != nil && of != first {
			a = p.both(a, admit(of))
		}
	}
	return a
}

// both returns the audience that sees what both see, nil if there is no other.
func (p *Policy) both(a, b *Audience) *Audience {
	if b == nil {
		return nil
	}
	pair := [2]*Audience{a, b}
	if known, ok := p.common.Load(pair); ok {
		return known.(*Audience)
	}
	sees := sight{a.sees.customStatus, a.sees.output && b.sees.output, a.sees.failure && b.sees.failure, a.sees.labels && b.sees.labels}
	also := append(slices.Clip(slices.Clone(a.also)), append([]*fields{b.sees.customStatus}, b.also...)...)
	known, _ := p.common.LoadOrStore(pair, &Audience{name: a.name, sees: sees, also: also, projectors: p.projectors})
	return known.(*Audience)
}

// Named returns the audience of that name among those of the record, whoever
// asks, or nil when there is none; nobody is admitted to a tombstone. It is for
// those to whom an audience was granted itself, by a signed link.
func (p *Policy) Named(r *status.Record, name string) *Audience {
	return p.underEachName(r, func(of *rule) *Audience {
		for _, a := range of.audiences {
			if a.name == name {
				return a
			}
		}
		return nil
	})
}

// StaleAfter returns for how long the record may be silent before it counts as
// stale, as status.Record.Aged takes it; 0 is for ever. A record without a name
// falls under entry "*".
func (p *Policy) StaleAfter(r *status.Record) time.Duration {
	return p.rule(r.Hub, r.Name).staleAfter
}

// MaySelectBy reports whether a caller with these claims, whom the audience
// admits to a record, may select that record by a value of a label, whichever
// label it is. One who does not see labels may do so only by what they know of
// themselves: a value that is a claim of their own or an element of one. Else a
// filter would tell them what a label is, one guess at a time.
func (a *Audience) MaySelectBy(claims map[string]any, _, value string) bool {
	if a.sees.labels {
		return true
	}
	for _, claim := range claims {
		switch claim := claim.(type) {
		case string:
			if claim == value {
				return true
			}
		case []any:
			if slices.Contains(claim, any(value)) {
				return true
			}
		}
	}
	return false
}

// MaySelect reports whether a query may select anything that a caller with these claims is
// admitted to and may select so. Where it may not, nobody need look: how much there is
// that others own, and how long it takes to pass over it, is nothing to tell.
func (p *Policy) MaySelect(claims map[string]any, q *status.Query) bool {
	section, listed := p.hubs[q.Hub]
	if !listed {
		section = p.hubs[wildcard]
	}
	for _, r := range section {
		if q.Name != "" && r != p.rule(q.Hub, q.Name) {
			continue
		}
		for _, a := range r.audiences {
			if a.MaySelectByAll(claims, q.Labels) && a.when.could(claims) {
				return true
			}
		}
	}
	return false
}

// MaySelectByAll is MaySelectBy for every label that a query names.
func (a *Audience) MaySelectByAll(claims map[string]any, labels map[string]string) bool {
	for label, value := range labels {
		if !a.MaySelectBy(claims, label, value) {
			return false
		}
	}
	return true
}

// MayPublish reports whether a caller with these claims may publish an update
// with these labels to the hub: whether any publisher entry that covers the hub
// admits it.
func (p *Policy) MayPublish(claims map[string]any, hub string, labels map[string]string) bool {
	for _, e := range p.publishers {
		if !slices.Contains(e.hubs, hub) && !slices.Contains(e.hubs, wildcard) {
			continue
		}
		ok, err := e.when.holds(claims, labels, nil)
		if err != nil {
			p.undecided(err, slog.String("publisher", e.when.source), slog.String("hub", hub))
		}
		if ok {
			return true
		}
	}
	return false
}

// MayPublishSomewhere reports whether a caller with these claims may publish, to any of
// these hubs or, where none is named, to any at all, an update without labels.
func (p *Policy) MayPublishSomewhere(claims map[string]any, hubs []string) bool {
	if len(hubs) == 0 {
		for _, e := range p.publishers {
			hubs = append(hubs, e.hubs...)
		}
	}
	return slices.ContainsFunc(hubs, func(hub string) bool { return p.MayPublish(claims, hub, nil) })
}

// undecided logs that a condition could not be decided, by names that stand in
// the policy file or are no secret. What the error says may have values in it.
func (p *Policy) undecided(err error, about ...slog.Attr) {
	if p.log == nil {
		return
	}
	why := "claim or label missing, of another type, or too costly"
	if errors.Is(err, errUndecided) {
		why = err.Error()
	}
	p.log.LogAttrs(context.Background(), slog.LevelDebug, "condition could not be decided: not admitted",
		append(about, slog.String("why", why))...)
}

// Scope returns everything of the record that Audience's answer depends on, as
// an opaque text: two records with equal scopes have equal audiences for every
// caller, so that decisions may be kept by policy, caller and scope.
func Scope(r *status.Record) string {
	var names [status.MaxRecordLabels]string
	sorted := slices.AppendSeq(names[:0], maps.Keys(r.Labels))
	slices.Sort(sorted)

	var buf [512]byte
	b := buf[:0]
	if r.Purged {
		b = append(b, '-')
	} else {
		b = append(b, '+')
	}
	b = appendText(b, r.Hub)
	b = appendText(b, r.Name)
	b = binary.AppendUvarint(b, uint64(len(r.OtherNames)))
	for _, name := range r.OtherNames {
		b = appendText(b, name)
	}
	b = binary.AppendUvarint(b, uint64(len(sorted)))
	for _, name := range sorted {
		b = appendText(b, name)
		b = appendText(b, r.Labels[name])
	}
	for _, name := range r.Conflicts {
		b = appendText(b, name)
	}
	return string(b)
}

// appendText appends s so that no two lists of texts look alike.
func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}
