package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"statusrelay/internal/auth"
	"statusrelay/internal/status"
)

// linkParameters are those of a signed link.
var linkParameters = [...]string{auth.LinkAudience, auth.LinkExpires, auth.LinkKeyID, auth.LinkSignature}

// isLink reports whether a query has any of them.
func isLink(query url.Values) bool {
	return slices.ContainsFunc(linkParameters[:], query.Has)
}

// link reads a signed link. What is there more than once is as good as not there.
func (p *params) link() auth.SignedLink {
	return auth.SignedLink{
		Audience: p.text(auth.LinkAudience), Expires: p.text(auth.LinkExpires), KeyID: p.text(auth.LinkKeyID), Signature: p.text(auth.LinkSignature),
	}
}

// refuseLink refuses a link to what is not one instance: whoever asks for more with it should not be told that it has
// expired, or get what a token beside it would open.
func refuseLink(query url.Values) error {
	if isLink(query) {
		return invalid(auth.LinkSignature, "a link opens the status of one instance, and nothing else")
	}
	return nil
}

// authenticateTo is authenticate for one instance, which a signed link may open as well.
func (a *API) authenticateTo(w *boundedWriter, r *http.Request, p *params, key status.Key) (*auth.Principal, error) {
	if !isLink(p.values) {
		return a.authenticate(w, r, p, requestCost)
	}
	if p.has("ticket") {
		return nil, invalid("ticket", "not together with a link")
	}
	who, err := a.verifyLink(r, p, key)
	if err == nil {
		err = a.rates.charge(w, who, requestCost)
	}
	if err != nil {
		return nil, err
	}
	return who, p.err()
}

// verifyLink says who asks by a link. Why a link is not good is not told.
func (a *API) verifyLink(r *http.Request, p *params, key status.Key) (*auth.Principal, error) {
	if len(r.Header.Values("Authorization")) > 0 {
		return nil, invalid(auth.LinkSignature, "not together with an Authorization header")
	}
	if a.o.Links == nil {
		return nil, fmt.Errorf("%w: there are no links here", auth.ErrUnauthenticated)
	}
	return a.o.Links.Verify(key, p.link())
}

const (
	maxLinkRequest = 4 << 10 // bytes
	minLinkLife    = time.Minute
)

// A linkRequest asks for a link to an instance.
type linkRequest struct {
	Hub        string `json:"hub"`
	InstanceID string `json:"instanceId"`
	ExpiresIn  string `json:"expiresIn"`
}

// createLink signs a link to an instance as the caller sees it. Whoever has the link sees it so, too, until it expires: also
// when the caller may not any more.
func (a *API) createLink(w *boundedWriter, r *http.Request) (int, error) {
	who, err := a.authenticatePost(w, r)
	if err != nil {
		return 0, err
	}
	asked, err := readLinkRequest(http.MaxBytesReader(w, r.Body, maxLinkRequest))
	if err != nil {
		return 0, err
	}
	life, err := a.linkLife(asked.ExpiresIn)
	if err != nil {
		return 0, err
	}
	key := status.Key{Hub: asked.Hub, InstanceID: asked.InstanceID}
	if key.Hub == "" {
		key.Hub = a.o.DefaultHub
	}
	if err := errors.Join(status.ValidHub(key.Hub), status.ValidInstanceID(key.InstanceID)); err != nil {
		return 0, err
	}
	signed, expires, err := a.sign(r.Context(), who, key, life)
	if err != nil {
		return 0, err
	}
	body, err := json.Marshal(struct {
		URL     string    `json:"url"`
		Expires time.Time `json:"expires"`
	}{a.base(r) + signed.Path(key), expires})
	if err != nil {
		return 0, fmt.Errorf("encode link: %w", err)
	}
	w.Header().Set("Cache-Control", "no-store")
	return writeJSON(w, http.StatusCreated, body), nil
}

// sign signs a link to an instance as somebody sees it, if they do.
func (a *API) sign(ctx context.Context, who *auth.Principal, key status.Key, life time.Duration) (signed auth.SignedLink, expires time.Time, err error) {
	record, err := a.latest(ctx, key)
	if err != nil {
		return signed, expires, err
	}
	audience := a.audience(who, record)
	if audience == nil {
		return signed, expires, status.ErrNotFound
	}
	expires = time.Now().Add(life).UTC().Truncate(time.Second)
	signed, err = a.o.Links.Sign(key, audience.Name(), expires)
	return signed, expires, err
}

func readLinkRequest(body io.Reader) (asked linkRequest, err error) {
	text, err := io.ReadAll(body)
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return asked, &status.InvalidError{Reason: status.ReasonTooLarge, Detail: fmt.Sprintf("the limit is %d bytes", maxLinkRequest)}
		}
		return asked, invalid("", "the body ended early")
	}
	if err := json.Unmarshal(text, &asked, json.RejectUnknownMembers(true)); err != nil {
		field := ""
		if semantic := (*json.SemanticError)(nil); errors.As(err, &semantic) {
			field = bounded(strings.TrimPrefix(string(semantic.JSONPointer), "/"))
		}
		return asked, invalid(field, "the body is not an object of hub, instanceId and expiresIn, which are texts")
	}
	return asked, nil
}

// linkLife reads for how long a link is to be good.
func (a *API) linkLife(text string) (time.Duration, error) {
	most := a.o.Links.MaxLife()
	if text == "" {
		return min(time.Hour, most), nil
	}
	life, err := time.ParseDuration(text)
	if err != nil || life < minLinkLife || life > most {
		return 0, invalid("expiresIn", fmt.Sprintf("not a duration such as 90m, from 1m to %.0fm", most.Minutes()))
	}
	return life, nil
}
