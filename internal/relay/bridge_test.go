package relay_test

import (
	"strings"
	"testing"
	"time"

	"statusrelay/internal/relay"
)

func TestBridgeIsChecked(t *testing.T) {
	for _, c := range []struct {
		key    string // "": there is no mistake
		change func(*relay.Bridge)
	}{
		{"", func(*relay.Bridge) {}},
		{"", func(b *relay.Bridge) { b.Hubs, b.FirstWait, b.Interest = []string{"a", "b"}, 0, time.Hour }},
		{"hubs", func(b *relay.Bridge) { b.Hubs = []string{"a b"} }},
		{"hubs", func(b *relay.Bridge) { b.Hubs = []string{"a", ""} }},
		{"hubs", func(b *relay.Bridge) { b.Hubs = []string{"a", "b", "a"} }},
		{"first_wait", func(b *relay.Bridge) { b.FirstWait = -1 }},
		{"first_wait", func(b *relay.Bridge) { b.FirstWait = time.Minute }},
		{"interest", func(b *relay.Bridge) { b.Interest = 0 }},
		{"interest", func(b *relay.Bridge) { b.Interest = 2 * time.Hour }},
	} {
		config := relay.Defaults()
		c.change(&config.Bridge)
		said, wrong := config.Validate().Error(), 1
		if c.key == "" {
			wrong = 0
		}
		if strings.Count(said, "bridge.") != wrong || !strings.Contains(said, "bridge."+c.key+": ") && wrong > 0 {
			t.Errorf("%+v: got %s", config.Bridge, said)
		}
	}
}
