package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/auth"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

const (
	// maxInstances is how many instances one request may name or list.
	maxInstances = 100
	defaultLimit = 50
	// maxEntries is how many entries of an index one request looks at. Who asks for what is rare among very many gets a
	// page that is short, or empty, and a cursor.
	maxEntries  = 1000
	pageEntries = 200
	// listName is what a stream calls its list; clients never see it.
	listName = "list"
)

// instances answers with several instances: those that are named, or those that a query selects.
func (a *API) instances(w *boundedWriter, r *http.Request) (int, error) {
	p := parseParams(r)
	hub := a.hub(r, p)
	if p.has("id") {
		return a.batch(w, r, p, hub)
	}
	q := p.query(hub)
	limit := int(p.number("limit", 1, maxInstances, defaultLimit))
	if wantsStream(r) {
		interval := p.interval()
		who, err := a.authenticate(w, r, p, listCost)
		if err != nil {
			return 0, err
		}
		return a.stream(w, r, who, func(rd *reader.Reader) { rd.WatchList(listName, q, limit, interval) })
	}
	after := p.text("cursor")
	who, err := a.authenticate(w, r, p, listCost)
	if err != nil {
		return 0, err
	}
	from, err := parseCursor(after, scopeOf(who, q))
	if err != nil {
		return 0, err
	}
	return a.list(w, r, who, q, limit, from)
}

// batch answers with the instances that are named, in that order, each with what has become of it.
func (a *API) batch(w *boundedWriter, r *http.Request, p *params, hub string) (int, error) {
	ids := p.all("id")
	cost := batchCost(len(ids))
	if len(ids) > maxInstances {
		p.fault("id", "more than "+strconv.Itoa(maxInstances))
		ids = nil
	}
	items, keys := itemsOf(ids, hub)
	if wantsStream(r) {
		for _, i := range items {
			if i.code == http.StatusBadRequest {
				p.fault("id", i.err.Error())
			}
		}
		interval := p.interval()
		who, err := a.authenticate(w, r, p, cost)
		if err != nil {
			return 0, err
		}
		return a.stream(w, r, who, func(rd *reader.Reader) {
			for _, k := range keys {
				rd.Watch(k, reader.Terms{MinInterval: interval})
			}
		})
	}
	who, err := a.authenticate(w, r, p, cost)
	if err != nil {
		return 0, err
	}
	tags, err := parseEntityTags(r.Header)
	if err != nil {
		return 0, err
	}
	reading, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	records, err := a.o.Store.Latest(reading, keys)
	if err != nil {
		return 0, fmt.Errorf("reading %d instances: %w", len(keys), err)
	}
	if records, err = a.firstOf(w, r, who, keys, records); err != nil {
		return 0, err
	}
	b := newBody()
	var soonest time.Duration
	for _, i := range items {
		if i.code == 0 {
			record := a.aged(records[0])
			records = records[1:]
			if s, err := a.see(who, record); err == nil {
				b.add(s)
				soonest = sooner(soonest, a.retryAfter(record, time.Now()))
				continue
			}
			i.code = http.StatusNotFound
		}
		b.refuse(i)
	}
	return b.respond(w, tags, soonest), nil
}

// firstOf has those fetched of which the caller sees nothing, if their hub is bridged, and returns all that there are then. All are
// waited for together.
func (a *API) firstOf(w http.ResponseWriter, r *http.Request, who *auth.Principal, keys []status.Key, records []*status.Record) ([]*status.Record, error) {
	if len(keys) == 0 || !a.bridged(keys[0].Hub) {
		return records, nil
	}
	var unseen []status.Key
	var places []int
	for i, k := range keys {
		if a.audience(who, a.aged(records[i])) != nil {
			a.o.Interest.Want(k, true)
			continue
		}
		unseen, places = append(unseen, k), append(places, i)
	}
	if len(unseen) == 0 {
		return records, nil
	}
	found, err := a.first(w, r, who, unseen)
	if err != nil {
		return nil, err
	}
	records = slices.Clone(records) // the store's
	for i, place := range places {
		records[place] = found[i]
	}
	return records, nil
}

// sooner is the lesser of two times to ask again, of which 0 is never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// An item is an instance that is named.
type item struct {
	id   string
	code int // 0 until it is known what becomes of it
	err  error
}

// itemsOf returns the instances, each once, and the keys of those that can be.
func itemsOf(ids []string, hub string) (items []item, keys []status.Key) {
	known := make(map[string]bool, len(ids))
	for _, id := range ids {
		if known[id] {
			continue
		}
		known[id] = true
		if err := status.ValidInstanceID(id); err != nil {
			items = append(items, item{id: bounded(id), code: http.StatusBadRequest, err: err})
			continue
		}
		items = append(items, item{id: id})
		keys = append(keys, status.Key{Hub: hub, InstanceID: id})
	}
	return items, keys
}

// list answers with what a query selects and the caller may read, newest change first.
func (a *API) list(w http.ResponseWriter, r *http.Request, who *auth.Principal, q *status.Query, limit int, from status.Cursor) (int, error) {
	tags, err := parseEntityTags(r.Header)
	if err != nil {
		return 0, err
	}
	reading, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	b := newBody()
	var soonest time.Duration
	if !a.o.Source.MaySelect(who, q) {
		return b.respond(w, tags, soonest), nil
	}
	for looked := 0; looked < maxEntries; looked += pageEntries {
		page, err := a.o.Store.List(reading, q, from, pageEntries)
		if err != nil {
			return 0, fmt.Errorf("reading a list: %w", err)
		}
		for i, record := range page.Records {
			record = a.aged(record)
			audience := a.o.Source.Audience(who, record)
			if audience == nil || !audience.MaySelectByAll(who.Claims, q.Labels) {
				continue
			}
			b.add(seen{record, audience.View(record)})
			soonest = sooner(soonest, a.retryAfter(record, time.Now()))
			if b.count == limit {
				if i < len(page.Records)-1 || page.Next != (status.Cursor{}) {
					b.cursor = cursorOf(page.After[i], scopeOf(who, q))
				}
				return b.respond(w, tags, soonest), nil
			}
		}
		if from = page.Next; from == (status.Cursor{}) {
			break
		}
	}
	if from != (status.Cursor{}) {
		b.cursor = cursorOf(from, scopeOf(who, q))
	}
	return b.respond(w, tags, soonest), nil
}

// A body is the answer with several instances. Its ETag depends on what the views' do, on their order, and on whether there are
// more; not on the cursor, which changes with what the caller does not see: one that they have is as good.
type body struct {
	json   []byte
	sum    []byte // what the ETag is made of
	count  int
	cursor string // "" if there is no more
}

func newBody() *body { return &body{json: []byte(`{"instances":[`)} }

func (b *body) next() {
	if b.count++; b.count > 1 {
		b.json = append(b.json, ',')
	}
}

func (b *body) add(s seen) {
	b.next()
	b.json = append(b.json, s.view.JSON...)
	b.sum = append(b.sum, s.view.ETag...)
}

// refuse adds an instance that cannot be shown.
func (b *body) refuse(i item) {
	b.next()
	b.json, _ = jsontext.AppendQuote(append(b.json, `{"instanceId":`...), i.id) // it is valid UTF-8, or has been made so
	b.json = strconv.AppendInt(append(b.json, `,"status":`...), int64(i.code), 10)
	b.json = append(b.json, '}')
	b.sum = fmt.Appendf(b.sum, "%q %d", i.id, i.code)
}

func (b *body) respond(w http.ResponseWriter, tags entityTags, retryAfter time.Duration) int {
	sum := sha256.Sum256(strconv.AppendBool(b.sum, b.cursor != ""))
	etag := `W/"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", "private, no-cache")
	if retryAfter > 0 {
		h.Set("Retry-After", seconds(retryAfter))
	}
	if tags.match(etag) {
		w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified
	}
	b.json = append(b.json, ']')
	if b.cursor != "" {
		b.json = append(append(append(b.json, `,"cursor":"`...), b.cursor...), '"') // base64url needs no quoting
	}
	return writeJSON(w, http.StatusOK, append(b.json, '}'))
}

// A cursor is a place in a list, with a sum over it and the list that it is a place in: caller, hub and filters. It names no
// instance, since the last one looked at may be one that the caller may not see. Who forges one sees no more than with an
// honest one: the sum is no secret, it is there so that a mistake is not answered with instances from somewhere else.

// A scope identifies a list.
type scope [sha256.Size]byte

func scopeOf(who *auth.Principal, q *status.Query) scope {
	parts := []string{who.Issuer, who.Subject, q.Hub, q.Name, strconv.Itoa(len(q.RuntimeStatus))}
	for _, s := range q.RuntimeStatus {
		parts = append(parts, string(s))
	}
	for _, label := range slices.Sorted(maps.Keys(q.Labels)) {
		parts = append(parts, label, q.Labels[label])
	}
	var b []byte
	for _, part := range parts {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	return sha256.Sum256(b)
}

// cursorSum is how many bytes of the sum a cursor has.
const cursorSum = 8

func cursorOf(c status.Cursor, list scope) string {
	place := binary.AppendUvarint(nil, uint64(c.Version))
	place = binary.AppendUvarint(place, uint64(c.Ties))
	sum := sha256.Sum256(append(list[:], place...))
	return base64.RawURLEncoding.EncodeToString(append(place, sum[:cursorSum]...))
}

// parseCursor reads what cursorOf has made for the list, and nothing else. "" is the beginning.
func parseCursor(text string, list scope) (c status.Cursor, err error) {
	if text == "" {
		return status.Cursor{}, nil
	}
	b, _ := base64.RawURLEncoding.DecodeString(text) // what is wrong with it shows below
	version, n := binary.Uvarint(b)
	ties, _ := binary.Uvarint(b[max(n, 0):])
	if version <= status.MaxInteger && ties <= maxTies {
		c = status.Cursor{Version: int64(version), Ties: int(ties)}
	}
	if c.Version == 0 || cursorOf(c, list) != text {
		return status.Cursor{}, invalid("cursor", "not one of this list")
	}
	return c, nil
}

// maxTies bounds how many instances of one microsecond a cursor may be behind.
const maxTies = 1 << 20
