package wire_test

import (
	"reflect"
	"strings"
	"testing"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

func TestEncodeFillsInIdAndSource(t *testing.T) {
	generation, sequence := int64(5), int64(7)
	u := status.Update{Hub: "h", InstanceID: `i"é`, Generation: &generation, Sequence: &sequence, Kind: status.KindProgress}
	m, err := wire.Decode(wire.Encode(wire.Message{Update: u}, now), now)
	if err != nil {
		t.Fatal(err)
	}
	if m.ID != `h/i"é/5/progress/7` || m.Source != "/hubs/h/notifier" {
		t.Errorf("got id %q, source %q", m.ID, m.Source)
	}
	if !reflect.DeepEqual(m.Update, u) {
		t.Errorf("got %+v, want %+v", m.Update, u)
	}
}

func TestUpdatesWithoutPositionGetDifferentIds(t *testing.T) {
	n := int64(5)
	for _, u := range []status.Update{
		{Hub: "h", InstanceID: "i", Kind: status.KindProgress},
		{Hub: "h", InstanceID: "i", Kind: status.KindProgress, Generation: &n},
		{Hub: "h", InstanceID: "i", Kind: status.KindProgress, Sequence: &n},
	} {
		var ids []string
		for range 2 {
			m, err := wire.Decode(wire.Encode(wire.Message{Update: u}, now), now)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, m.ID)
		}
		if ids[0] == ids[1] || !strings.HasPrefix(ids[0], "h/i/") {
			t.Errorf("got ids %q", ids)
		}
	}
}

func TestEncodeKeepsWhatTheEnvelopeSaid(t *testing.T) {
	want := wire.Message{
		Update:      status.Update{InstanceID: "i", Kind: status.KindSnapshot},
		ID:          "an id",
		Source:      "urn:x",
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	}
	got, err := wire.Decode(wire.Encode(want, now), now)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
