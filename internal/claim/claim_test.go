package claim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/claim"
)

// memory is one of this process that can be away.
type memory struct {
	*claim.Local
	away  bool
	calls int
}

func (m *memory) Swap(ctx context.Context, swaps []*claim.Swap) {
	m.calls++
	if m.away {
		for _, s := range swaps {
			s.Err = errors.New("away")
		}
		return
	}
	m.Local.Swap(ctx, swaps)
}

func ledger(t *testing.T, m claim.Memory, change ...func(*claim.Options)) *claim.Ledger {
	t.Helper()
	o := claim.Options{Memory: m}
	for _, f := range change {
		f(&o)
	}
	l, err := claim.NewLedger(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// take takes one event of the same caller.
func take(t *testing.T, l *claim.Ledger, id, content string, want claim.Verdict) *claim.Event {
	t.Helper()
	e := claim.Of("issuer", "subject", "/source", id, []byte(content))
	l.Take(t.Context(), []*claim.Event{e})
	if e.Verdict != want {
		t.Errorf("%s %q: got %s, want %s", id, content, e.Verdict, want)
	}
	return e
}

func settle(t *testing.T, l *claim.Ledger, e *claim.Event, published bool) {
	t.Helper()
	e.Published = published
	l.Settle(t.Context(), []*claim.Event{e})
}

func TestEventIsPublishedOnce(t *testing.T) {
	l := ledger(t, claim.NewLocal(nil))
	e := take(t, l, "1", "a", claim.Free)
	take(t, l, "1", "a", claim.Busy)
	take(t, l, "1", "b", claim.Other)
	take(t, l, "2", "a", claim.Free)
	settle(t, l, e, true)
	take(t, l, "1", "a", claim.Published)
	take(t, l, "1", "b", claim.Other)
}

// What failed may be tried again, with the position that it had; and by what is
// another event, since this one was never published.
func TestFailedAttemptLeavesTheEventFree(t *testing.T) {
	l := ledger(t, claim.NewLocal(nil))
	e := take(t, l, "1", "a", claim.Free)
	e.Stamp = &claim.Stamp{Generation: 7, Sequence: 1<<53 - 1}
	settle(t, l, e, false)
	e = take(t, l, "1", "a", claim.Free)
	if e.Stamp == nil || *e.Stamp != (claim.Stamp{Generation: 7, Sequence: 1<<53 - 1}) {
		t.Errorf("tried again: got the stamp %v", e.Stamp)
	}
	settle(t, l, e, false)
	if e = take(t, l, "1", "b", claim.Free); e.Stamp != nil {
		t.Errorf("another event has the stamp %v", e.Stamp)
	}
	settle(t, l, e, true)
	take(t, l, "1", "a", claim.Other)
}

// An attempt whose lease has ended can neither take the event from its successor nor
// free it.
func TestLateSettlementHarmsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ledger(t, claim.NewLocal(nil))
		late := take(t, l, "1", "a", claim.Free)
		<-time.After(30 * time.Second)
		e := take(t, l, "1", "a", claim.Free)
		settle(t, l, late, false)
		take(t, l, "1", "a", claim.Busy)
		settle(t, l, e, true)
		settle(t, l, late, false)
		take(t, l, "1", "a", claim.Published)
	})
}

func TestPublishedEventIsForgottenInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ledger(t, claim.NewLocal(nil), func(o *claim.Options) { o.TTL = time.Hour })
		settle(t, l, take(t, l, "1", "a", claim.Free), true)
		<-time.After(time.Hour - 1)
		take(t, l, "1", "a", claim.Published)
		<-time.After(1)
		take(t, l, "1", "a", claim.Free)
	})
}

// Of many who come with the same event at the same time one may publish it.
func TestOneOfManyIsFree(t *testing.T) {
	m := claim.NewLocal(nil)
	var mu sync.Mutex
	got := map[claim.Verdict]int{}
	var coming sync.WaitGroup
	for range 50 {
		coming.Go(func() {
			l := ledger(t, m)
			e := claim.Of("i", "s", "/", "1", []byte("a"))
			l.Take(t.Context(), []*claim.Event{e})
			mu.Lock()
			defer mu.Unlock()
			got[e.Verdict]++
		})
	}
	coming.Wait()
	if got[claim.Free] != 1 || got[claim.Busy] != 49 {
		t.Errorf("got %v", got)
	}
}

// Whatever parts names are made of, two different ones differ.
func TestNamesOfDifferentEventsDiffer(t *testing.T) {
	seen := map[string][]string{}
	for _, parts := range [][]string{
		{"i", "s", "/src", "1"},
		{"is", "", "/src", "1"},
		{"", "is", "/src", "1"},
		{"i", "s", "/src1", ""},
		{"i", "s", "", "/src1"},
		{"i", "s", "/src", "2"},
		{"j", "s", "/src", "1"},
		{"i", "t", "/src", "1"},
		{"i", "s", "/other", "1"},
		{"i", "s\x04/src", "1", ""},
	} {
		name := claim.Of(parts[0], parts[1], parts[2], parts[3], nil).Name
		if seen[name] != nil {
			t.Errorf("%q and %q have one name", parts, seen[name])
		}
		seen[name] = parts
		if len(name) != 22 || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			t.Errorf("%q has the name %q", parts, name)
		}
	}
}

// A memory that is away keeps nobody from publishing; it is asked now and then, and
// said to be away once.
func TestMemoryThatIsAwayCostsNoEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{Local: claim.NewLocal(nil), away: true}
		var log bytes.Buffer
		l := ledger(t, m, func(o *claim.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		for i := range 100 {
			settle(t, l, take(t, l, fmt.Sprint(i), "a", claim.Unknown), true)
			<-time.After(100 * time.Millisecond)
		}
		if m.calls > 6 {
			t.Errorf("asked %d times in 10 s", m.calls)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("logged %d lines: %s", n, log.String())
		}
		m.away = false
		<-time.After(2 * time.Second)
		settle(t, l, take(t, l, "1", "a", claim.Free), true)
		take(t, l, "1", "a", claim.Published)
		m.away = true
		take(t, l, "1", "a", claim.Unknown)
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("logged %d lines of two outages: %s", n, log.String())
		}
	})
}

// A caller who has gone does not make the memory look as if it were away.
func TestCallerWhoHasGoneSaysNothingOfTheMemory(t *testing.T) {
	l := ledger(t, memoryOf(func(ctx context.Context, swaps []*claim.Swap) {
		for _, s := range swaps {
			s.Err = ctx.Err()
		}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e := claim.Of("i", "s", "/", "1", nil)
	if l.Take(ctx, []*claim.Event{e}); e.Verdict != claim.Free {
		t.Errorf("got %s", e.Verdict)
	}
}

type memoryOf func(context.Context, []*claim.Swap)

func (f memoryOf) Swap(ctx context.Context, swaps []*claim.Swap) { f(ctx, swaps) }

// What a memory shared with others may hold does not break anything.
func TestGarbageInAMemoryIsHarmless(t *testing.T) {
	content := claim.Of("i", "s", "/", "1", []byte("a")).Content
	for found, want := range map[string]claim.Verdict{
		"": claim.Free, "x": claim.Free, "a": claim.Free, "p": claim.Free, "\x00\xff": claim.Free, "f": claim.Free,
		"a ": claim.Other, "p  ": claim.Other, "a x": claim.Other, "a " + content: claim.Published, "p " + content: claim.Busy,
		"f " + content: claim.Free, "f " + content + " 1": claim.Free, "f " + content + " -1 2": claim.Free,
		"f " + content + " 1 99999999999999999999": claim.Free, "f " + content + " 9007199254740992 1": claim.Free,
	} {
		l := ledger(t, memoryOf(func(_ context.Context, swaps []*claim.Swap) { swaps[0].Found = found }))
		e := claim.Of("i", "s", "/", "1", []byte("a"))
		l.Take(t.Context(), []*claim.Event{e})
		if e.Verdict != want || e.Stamp != nil {
			t.Errorf("%q: got %s and the stamp %v, want %s", found, e.Verdict, e.Stamp, want)
		}
	}
}

// However many events come, the newest are known and the memory stays as it is.
func TestLocalMemoryIsBounded(t *testing.T) {
	m := claim.NewLocal(nil)
	l := ledger(t, m)
	const many = 1<<16 + 100
	for i := range many {
		settle(t, l, take(t, l, fmt.Sprint(i), "a", claim.Free), true)
	}
	take(t, l, fmt.Sprint(many-1), "a", claim.Published)
	take(t, l, "0", "a", claim.Free)
}
