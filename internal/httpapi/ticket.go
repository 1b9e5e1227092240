package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"statusrelay/internal/auth"
)

// ticket issues a ticket to who shows a token or a key. A body, if there is one, is not read.
func (a *API) ticket(w *boundedWriter, r *http.Request) (int, error) {
	who, err := a.authenticatePost(w, r)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	ticket, expires, err := a.o.Tickets.Issue(ctx, who, auth.Origin(r))
	if err != nil {
		return 0, err
	}
	body, err := json.Marshal(struct {
		Ticket  string    `json:"ticket"`
		Expires time.Time `json:"expires"`
	}{ticket, expires.Truncate(time.Millisecond)})
	if err != nil {
		return 0, fmt.Errorf("encode ticket: %w", err)
	}
	w.Header().Set("Cache-Control", "no-store")
	return writeJSON(w, http.StatusCreated, body), nil
}
