package notifier_test

import (
	"strings"
	"testing"
	"time"

	"statusrelay/internal/notifier"
)

// Every mistake about Event Grid is said at once, by its key, and a notifier does not start with one.
func TestMistakesAboutEventGridAreSaid(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*notifier.EventGrid)
		want   []string
	}{
		"Defaults": {func(*notifier.EventGrid) {}, nil},
		"Mapped":   {func(e *notifier.EventGrid) { e.Hubs, e.Hold = []string{"TheTaskHub=orders", "Other=orders"}, 0 }, nil},
		"Hubs": {
			func(e *notifier.EventGrid) {
				e.Hubs = []string{"orders", "=orders", "A=", "B=no hub", "C=orders", "C=other"}
			},
			[]string{`"orders" is not TASKHUB=hub`, `"=orders" is not TASKHUB=hub`, `"A=": hub: `, `"B=no hub": hub: `, `"C" is there twice`},
		},
		"Sizes": {
			func(e *notifier.EventGrid) { e.Hold, e.MaxBodyBytes, e.MaxEvents = -time.Second, 0, -1 },
			[]string{"eventgrid.hold: ", "eventgrid.max_body_bytes: ", "eventgrid.max_events: "},
		},
	} {
		config := notifier.Defaults()
		c.change(&config.EventGrid)
		said := config.Validate().Error() // a default configuration lacks a policy and more
		for _, want := range c.want {
			if !strings.Contains(said, want) {
				t.Errorf("%s: %q is not said in\n%s", name, want, said)
			}
		}
		if got := strings.Count(said, "eventgrid."); got != len(c.want) {
			t.Errorf("%s: %d mistakes are said, want %d:\n%s", name, got, len(c.want), said)
		}
	}
}
