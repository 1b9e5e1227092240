package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"statusrelay/internal/status"
)

// LinkIssuer is the Issuer of the principals of signed links.
const LinkIssuer = "link"

// How long a link may be good for: a verifier refuses what is to last longer, whoever signed it.
const (
	DefaultLinkLife = 24 * time.Hour
	MaxLinkLife     = 30 * 24 * time.Hour
)

const (
	linkVersion   = "statusrelay-link-v1"
	minLinkSecret = 32  // bytes, as many as the hash has (RFC 2104, section 3)
	maxLinkSecret = 512 // bytes
	maxAudience   = 256 // bytes: 64 characters, as the policy's schema has it
	maxUnix       = 12  // digits
	linkSignature = 43  // characters: base64url of 32 bytes
)

// The query parameters of a signed link. Each is there once.
const (
	LinkAudience  = "link.aud"
	LinkExpires   = "link.exp"
	LinkKeyID     = "link.kid"
	LinkSignature = "link.sig"
)

// A SignedLink is what the query of a signed link says, as it stands there. docs/links.md has the algorithm.
type SignedLink struct {
	Audience  string
	Expires   string // unix seconds, in decimal
	KeyID     string
	Signature string // base64url without padding
}

// Query returns the link's parameters as a query has them.
func (s SignedLink) Query() string {
	return LinkAudience + "=" + url.QueryEscape(s.Audience) + "&" + LinkExpires + "=" + url.QueryEscape(s.Expires) +
		"&" + LinkKeyID + "=" + url.QueryEscape(s.KeyID) + "&" + LinkSignature + "=" + url.QueryEscape(s.Signature)
}

// Path returns the path of an instance, and the link to it as its query.
func (s SignedLink) Path(k status.Key) string {
	return "/v1/hubs/" + url.PathEscape(k.Hub) + "/instances/" + url.PathEscape(k.InstanceID) + "?" + s.Query()
}

// A LinkKey signs links, and verifies them.
type LinkKey struct {
	ID     string
	Secret []byte
}

// ParseLinkKeys reads a file of link keys (docs/links.md). read reads the files that it names. Its error is a *FileError with
// every mistake; why a file could not be read is in it, the content of no file is, and nor is a path.
func ParseLinkKeys(file []byte, read func(path string) ([]byte, error)) ([]LinkKey, error) {
	var f listFile
	var keys []LinkKey
	ids := map[string]bool{}
	for _, entry := range f.read(file, "keys") {
		members := f.members(entry, "id", "key", "key_file")
		var k LinkKey
		if n, ok := f.required(entry, members, "id"); ok {
			k.ID = f.id(n, ids)
		}
		inFile, isFile := members["key_file"]
		inline, isInline := members["key"]
		switch {
		case members == nil:
		case isFile == isInline:
			f.complain(entry, "exactly one of key and key_file belongs here")
		case isInline:
			if text, ok := f.text(inline); ok {
				k.Secret = decodeLinkSecret(text)
				if k.Secret == nil {
					f.complain(inline, "not base64 of %d to %d bytes", minLinkSecret, maxLinkSecret)
				}
			}
		default:
			path, ok := f.text(inFile)
			if !ok {
				break
			}
			content, err := read(path)
			if e, ok := errors.AsType[*fs.PathError](err); ok {
				err = e.Err // without the path, which is a key where somebody has put one here by mistake
			}
			if err != nil {
				f.complain(inFile, "%v", err)
				break
			}
			if k.Secret = decodeLinkSecret(strings.TrimSpace(string(content))); k.Secret == nil {
				f.complain(inFile, "what is in this file is not base64 of %d to %d bytes", minLinkSecret, maxLinkSecret)
			}
		}
		keys = append(keys, k)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return keys, nil
}

// decodeLinkSecret reads base64 or base64url, padded or not: what tools print. nil is what it does not accept.
func decodeLinkSecret(text string) []byte {
	text = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
	secret, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil || len(secret) < minLinkSecret || len(secret) > maxLinkSecret {
		return nil
	}
	return secret
}

// LinkOptions configure Links.
type LinkOptions struct {
	// MaxLife is the longest that a link may still be good for when it is used. Default DefaultLinkLife, at most MaxLinkLife.
	MaxLife time.Duration

	// Now is the clock. Default time.Now.
	Now func() time.Time

	// Refusals counts the links that are refused. Default: nobody does.
	Refusals *Refusals
}

// Links are signed by one key and verified by several. Its methods may be called by several goroutines at once.
type Links struct {
	maxLife time.Duration
	now     func() time.Time
	refused *Refusals
	dummy   []byte                     // verifies what names no key, in vain
	changes sync.Mutex                 // held while keys are replaced
	keys    atomic.Pointer[[]*linkKey] // the first signs
}

// A linkKey is a key in force.
type linkKey struct {
	LinkKey
	withdrawn *atomic.Bool
}

// NewLinks returns Links without any key: none can be signed, and none is good.
func NewLinks(o LinkOptions) *Links {
	if o.MaxLife <= 0 {
		o.MaxLife = DefaultLinkLife
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	l := &Links{maxLife: min(o.MaxLife, MaxLinkLife), now: o.Now, refused: o.Refusals, dummy: make([]byte, minLinkSecret)}
	rand.Read(l.dummy) // never fails
	l.keys.Store(&[]*linkKey{})
	return l
}

// MaxLife is the longest that a link may be good for.
func (l *Links) MaxLife() time.Duration { return l.maxLife }

// SetKeys replaces the keys, whose ids must differ. The principals of links that one of those has signed that are not among
// them any more are Expired when it returns.
func (l *Links) SetKeys(keys []LinkKey) {
	l.changes.Lock()
	defer l.changes.Unlock()
	old, next := *l.keys.Load(), make([]*linkKey, len(keys))
	kept := map[*linkKey]bool{}
	for i, k := range keys {
		next[i] = &linkKey{LinkKey{k.ID, append([]byte(nil), k.Secret...)}, new(atomic.Bool)}
		for _, held := range old {
			if held.ID == k.ID && hmac.Equal(held.Secret, k.Secret) {
				next[i], kept[held] = held, true
			}
		}
	}
	l.keys.Store(&next)
	for _, held := range old {
		if !kept[held] {
			held.withdrawn.Store(true)
		}
	}
}

// Sign returns a link to an instance as an audience sees it, good until a time, of which only whole seconds count. Errors wrap
// status.ErrInvalid when a link cannot say this or no verifier would accept it, and status.ErrUnavailable when there is no key.
func (l *Links) Sign(k status.Key, audience string, expires time.Time) (SignedLink, error) {
	keys := *l.keys.Load()
	if len(keys) == 0 {
		return SignedLink{}, fmt.Errorf("%w: there is no key to sign links with", status.ErrUnavailable)
	}
	if err := checkLink(k, audience); err != nil {
		return SignedLink{}, err
	}
	expires = expires.Truncate(time.Second)
	if now := l.now(); !expires.After(now) || expires.Sub(now) > l.maxLife {
		return SignedLink{}, fmt.Errorf("%w: a link is good for more than nothing and at most %v", status.ErrInvalid, l.maxLife)
	}
	s := SignedLink{Audience: audience, Expires: strconv.FormatInt(expires.Unix(), 10), KeyID: keys[0].ID}
	s.Signature = s.sign(keys[0].Secret, k)
	return s, nil
}

// checkLink reports what cannot stand in a canonical string.
func checkLink(k status.Key, audience string) error {
	if err := status.ValidHub(k.Hub); err != nil {
		return err
	}
	if err := status.ValidInstanceID(k.InstanceID); err != nil {
		return err
	}
	if audience == "" || len(audience) > maxAudience || !utf8.ValidString(audience) || strings.ContainsFunc(audience, unicode.IsControl) {
		return fmt.Errorf("%w: an audience of a link is 1 to %d bytes of text", status.ErrInvalid, maxAudience)
	}
	return nil
}

// sign returns the signature of the canonical string: its fields, none of which has a NUL in it, joined by NUL, so that no two
// links have the same.
func (s SignedLink) sign(secret []byte, k status.Key) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(strings.Join([]string{linkVersion, s.KeyID, k.Hub, k.InstanceID, s.Audience, s.Expires}, "\x00")))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Verify returns the principal of a link to an instance. Its error wraps ErrUnauthenticated, whatever is wrong with the link.
// A key that is not there costs what a wrong signature does.
func (l *Links) Verify(k status.Key, s SignedLink) (*Principal, error) {
	if len(s.Expires) > maxUnix || len(s.KeyID) > maxKeyName || len(s.Signature) != linkSignature || checkLink(k, s.Audience) != nil {
		return nil, l.refused.refuse(kindLink, reasonMalformed, "not a signed link to an instance")
	}
	seconds, err := strconv.ParseInt(s.Expires, 10, 64)
	if err != nil || strconv.FormatInt(seconds, 10) != s.Expires {
		return nil, l.refused.refuse(kindLink, reasonMalformed, "the link has no expiry, or not in decimal")
	}
	signer := &linkKey{LinkKey: LinkKey{Secret: l.dummy}}
	known := false
	for _, held := range *l.keys.Load() {
		if held.ID == s.KeyID {
			signer, known = held, true
		}
	}
	// The texts are compared, and not what they decode to: base64 may write the same bytes in several ways.
	if equal := hmac.Equal([]byte(s.sign(signer.Secret, k)), []byte(s.Signature)); !equal || !known {
		return nil, l.refused.refuse(kindLink, reasonSignature, "the link is not signed by a key that we have")
	}
	now, expires := l.now(), time.Unix(seconds, 0).UTC()
	switch {
	case !now.Before(expires):
		return nil, l.refused.refuse(kindLink, reasonExpired, "the link has expired")
	case expires.Sub(now) > l.maxLife:
		return nil, l.refused.refuse(kindLink, reasonTooLong, "the link lasts for longer than any may")
	}
	return &Principal{
		Issuer: LinkIssuer, Subject: s.KeyID + "/" + k.Hub + "/" + k.InstanceID, Expires: expires,
		Grant:     &Grant{Rights: []Right{Read}, Hubs: []string{k.Hub}, Link: &LinkGrant{Key: k, Audience: s.Audience}},
		withdrawn: signer.withdrawn,
	}, nil
}
