package durablehttp

import (
	"encoding/json"
	"testing"
	"time"

	"statusrelay/internal/status"
)

// What was published stands before what is published next, even if the clock was set
// back and the record does not have it yet.
func TestSequencesGrowWhenTheClockIsSetBack(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	f := finding{
		key: status.Key{Hub: "h", InstanceID: "i"}, started: now,
		update: &status.Update{
			Hub: "h", InstanceID: "i", RuntimeStatus: status.Running, CustomStatus: json.RawMessage("1"), CreatedTime: now.Add(-time.Minute), LastUpdatedTime: now,
		},
	}
	var last int64
	for i := range 20 {
		f.update.CustomStatus = json.RawMessage{byte('0' + i%10)}
		u, next := f.judge(rules{}, now)
		if u == nil || *u.Sequence <= last {
			t.Fatalf("after %d: got %+v", last, u)
		}
		if i%2 == 0 { // it arrives
			f.record, _ = status.Merge(f.record, u)
		}
		if p := (status.Position{Class: status.Declared, N: *u.Sequence}); !ours(f.key, *u.Generation, p, u.LastUpdatedTime) || u.Validate(now) != nil {
			t.Errorf("got %+v, want it to be recognised", u)
		}
		last, f.said = *u.Sequence, next
		f.started = f.started.Add(time.Microsecond)
	}
}

// Positions of others are not taken for the bridge's.
func TestPositionsOfOthersAreNotOurs(t *testing.T) {
	key, second := status.Key{Hub: "h", InstanceID: "i"}, time.Unix(1795324351, 0)
	taken := 0
	for n := int64(1795324351806000); n < 1795324351806000+200_000; n++ {
		if ours(key, 7, status.Position{Class: status.Declared, N: n}, second.Add(time.Millisecond)) || ours(key, 7, status.Position{Class: status.Declared, N: n}, time.Time{}) ||
			ours(key, 7, status.Position{Class: status.Broker, N: n}, second) {
			t.Fatalf("%d is taken for the bridge's", n)
		}
		if ours(key, 7, status.Position{Class: status.Declared, N: n}, second) {
			taken++
		}
	}
	if taken < 3 || taken > 4 { // those that a bridge would use
		t.Errorf("%d of 200000 are taken for the bridge's", taken)
	}
	for n := range int64(100_000) {
		if ours(key, 7, status.Position{Class: status.Declared, N: n}, second) {
			t.Fatalf("the counter %d is taken for the bridge's", n)
		}
	}
}
