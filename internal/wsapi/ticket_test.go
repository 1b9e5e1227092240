package wsapi_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/wsapi"
)

// tickets are good once. One is named like the token that it stands for.
type tickets struct {
	mu      sync.Mutex
	used    map[string]bool
	origins []string
}

func (t *tickets) redeem(ctx context.Context, ticket, origin string) (*auth.Principal, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.origins = append(t.origins, origin)
	if ticket == "" || t.used[ticket] {
		return nil, fmt.Errorf("secret cause: %w", auth.ErrUnauthenticated)
	}
	t.used[ticket] = true
	return verify(ctx, ticket)
}

func TestTicketOpensOneSocket(t *testing.T) {
	issued := &tickets{used: map[string]bool{}}
	fake(t, wsapi.Options{Redeem: issued.redeem, Origins: []string{"https://good.test"}}, func(t *testing.T, w *world) {
		w.put(percent("i", "alice", 10, 1))
		none := http.Header{}
		page := http.Header{"Origin": {"https://good.test"}}
		azure := http.Header{"Sec-WebSocket-Protocol": {"json.webpubsub.azure.v1"}}
		// Whatever else is wrong, the ticket is not used up.
		for _, tt := range []struct {
			name, query string
			header      http.Header
			status      int
			field       string
		}{
			{"another site", "?ticket=alice", http.Header{"Origin": {"https://evil.test"}}, 403, ""},
			{"unknown parameter", "?ticket=alice&hub=h", none, 400, "hub"},
			{"token in the URL", "?access_token=alice", none, 400, "access_token"},
			{"misspelt", "?Ticket=alice", none, 400, "Ticket"},
			{"two", "?ticket=alice&ticket=bob", none, 400, "ticket"},
			{"malformed", "?ticket=%zz", none, 400, ""},
			{"beside a header", "?ticket=alice", bearer("alice"), 401, ""},
			{"beside a subprotocol", "?ticket=alice", subprotocol("alice"), 401, ""},
			{"unknown subprotocol", "?ticket=alice", http.Header{"Sec-WebSocket-Protocol": {"soap"}}, 400, "Sec-WebSocket-Protocol"},
			{"empty", "?ticket=", none, 401, ""},
			{"forged", "?ticket=forged", none, 401, ""},
			{"store away", "?ticket=down", none, 503, ""},
			{"good", "?ticket=alice", none, 101, ""},
			{"again", "?ticket=alice", none, 401, ""},
			{"of a page", "?ticket=alice~60", page, 101, ""},
			{"of a client of Azure", "?ticket=alice~61", azure, 101, ""},
			{"that recovers", "?ticket=alice~62&awps_connection_id=x&awps_reconnection_token=y", azure, 101, ""},
		} {
			conn, answer, err := w.handshakeWith(tt.query, websocket.Dialer{}, tt.header)
			if answer == nil || answer.StatusCode != tt.status {
				t.Errorf("%s: got %v, %v, want %d", tt.name, answer, err, tt.status)
				continue
			}
			if err == nil {
				c := w.client(conn, answer)
				if e := c.next(); e != "welcome" && e != "system connected" {
					t.Errorf("%s: got %s", tt.name, e)
				}
				c.close()
				continue
			}
			text := body(answer)
			if strings.Contains(text, "secret") || tt.field != "" && !strings.Contains(text, fmt.Sprintf(`"field":%q`, tt.field)) {
				t.Errorf("%s: got %s, want field %q", tt.name, text, tt.field)
			}
		}
		issued.mu.Lock()
		defer issued.mu.Unlock()
		if got := strings.Join(issued.origins, ","); got != ",,,,,https://good.test,," {
			t.Errorf("origins: %q", got)
		}
	})
}

func TestTicketIsRefusedWhereThereAreNone(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		_, answer, err := w.handshakeWith("?ticket=alice", websocket.Dialer{}, nil)
		if err == nil || answer.StatusCode != 400 || !strings.Contains(body(answer), `"field":"ticket"`) {
			t.Errorf("got %v, %v", answer, err)
		}
	})
}
