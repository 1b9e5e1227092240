package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"

	"statusrelay/internal/status"
)

// APIKeyIssuer is the Issuer of the principals of API keys.
const APIKeyIssuer = "api-key"

const (
	apiKeyPrefix = "srk_" // so that scanners for secrets, and people, know one when they see it
	apiKeyBytes  = 32     // of randomness: that is why a plain hash of it is enough
	apiKeySecret = 43     // characters, which are those in base64url
	hashPrefix   = "sha256:"
)

// An APIKey is what is kept of an API key: not the key.
type APIKey struct {
	ID      string
	Hash    [sha256.Size]byte // SHA-256 of the whole key
	Claims  map[string]any    // as of a token: an integer is an int64, any other number a float64. Never modified.
	Rights  []Right
	Hubs    []string  // empty: all
	Expires time.Time // zero: never
}

// ParseAPIKeys reads a file of API keys (docs/api-keys.md). Its error is a *FileError with every mistake.
func ParseAPIKeys(file []byte) ([]APIKey, error) {
	var f listFile
	var keys []APIKey
	ids, hashes := map[string]bool{}, map[[sha256.Size]byte]bool{}
	for _, entry := range f.read(file, "keys") {
		members := f.members(entry, "id", "hash", "claims", "rights", "hubs", "expires")
		var k APIKey
		if n, ok := f.required(entry, members, "id"); ok {
			k.ID = f.id(n, ids)
		}
		if n, ok := f.required(entry, members, "hash"); ok {
			k.Hash = f.hash(n, hashes)
		}
		if n, ok := f.required(entry, members, "rights"); ok {
			k.Rights = f.rights(n)
		}
		if n, ok := members["claims"]; ok {
			if n.Kind != yaml.MappingNode {
				f.complain(n, "%s where a mapping belongs", kindOf(n))
			} else {
				k.Claims, _ = f.claim(n).(map[string]any)
			}
		}
		if n, ok := members["hubs"]; ok {
			k.Hubs = f.hubs(n)
		}
		if n, ok := members["expires"]; ok {
			k.Expires = f.time(n)
		}
		keys = append(keys, k)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return keys, nil
}

func (f *listFile) hash(n *yaml.Node, taken map[[sha256.Size]byte]bool) (hash [sha256.Size]byte) {
	text, ok := f.text(n)
	if !ok {
		return hash
	}
	encoded, ok := strings.CutPrefix(text, hashPrefix)
	sum, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if !ok || err != nil || len(sum) != len(hash) {
		f.complain(n, "not %s and 43 characters of base64url, as `relay key new` prints it; the key itself does not belong here", hashPrefix)
		return hash
	}
	hash = [sha256.Size]byte(sum)
	if taken[hash] {
		f.complain(n, "the hash of another key: a key has its id in it")
	}
	taken[hash] = true
	return hash
}

func (f *listFile) rights(n *yaml.Node) (rights []Right) {
	for _, item := range f.list(n) {
		text, ok := f.text(item)
		switch right := Right(text); {
		case !ok:
		case right != Read && right != Publish:
			f.complain(item, "not a right: %s or %s", Read, Publish)
		case slices.Contains(rights, right):
			f.complain(item, "a second time in this list")
		default:
			rights = append(rights, right)
		}
	}
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		f.complain(n, "no right: %s or %s, or both", Read, Publish)
	}
	return rights
}

func (f *listFile) hubs(n *yaml.Node) (hubs []string) {
	for _, item := range f.list(n) {
		hub, ok := f.text(item)
		if !ok {
			continue
		}
		if err := status.ValidHub(hub); err != nil {
			f.complain(item, "%v", err)
		}
		if slices.Contains(hubs, hub) {
			f.complain(item, "a second time in this list")
		}
		hubs = append(hubs, hub)
	}
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		// Whoever takes the last one out means none, and would get all.
		f.complain(n, "no hub: leave hubs out where all are meant")
	}
	return hubs
}

func (f *listFile) time(n *yaml.Node) time.Time {
	text, ok := f.text(n)
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || t.IsZero() {
		f.complain(n, "not a time such as 2027-01-31T00:00:00Z")
	}
	return t
}

// NewAPIKey makes a key of an id, and what is to be kept of it, which has the other members of the one that it is given. The
// error joins every mistake in those.
func NewAPIKey(k APIKey) (key string, kept APIKey, err error) {
	if err := checkKeyName(k.ID); err != nil {
		return "", k, err
	}
	var random [apiKeyBytes]byte
	rand.Read(random[:]) // never fails
	key = apiKeyPrefix + k.ID + "_" + base64.RawURLEncoding.EncodeToString(random[:])
	k.Hash = sha256.Sum256([]byte(key))
	// Whatever the file would be refused for.
	read, err := ParseAPIKeys([]byte("keys:\n" + k.Entry()))
	if mistakes := (*FileError)(nil); errors.As(err, &mistakes) {
		var wrong []error
		for _, m := range mistakes.Mistakes {
			wrong = append(wrong, errors.New(m.Text))
		}
		return "", k, errors.Join(wrong...)
	}
	if h := hold(read[0]); !h.same(k) {
		return "", k, errors.New("claims, or an expiry with less than seconds, that no file can say")
	}
	return key, k, nil
}

// Entry returns the key as an entry of the file.
func (k APIKey) Entry() string {
	flow := func(value any) string { // JSON is YAML
		b, err := json.Marshal(value, json.WithMarshalers(json.MarshalToFunc(writeFloat)), json.Deterministic(true), jsontext.EscapeForJS(true))
		if err != nil {
			return "null" // of claims that no JSON has, such as NaN
		}
		return string(b)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  - id: %s\n", flow(k.ID))
	fmt.Fprintf(&b, "    hash: %s\n", flow(hashPrefix+base64.RawURLEncoding.EncodeToString(k.Hash[:])))
	fmt.Fprintf(&b, "    rights: %s\n", flow(k.Rights))
	if len(k.Hubs) > 0 {
		fmt.Fprintf(&b, "    hubs: %s\n", flow(k.Hubs))
	}
	if len(k.Claims) > 0 {
		fmt.Fprintf(&b, "    claims: %s\n", flow(k.Claims))
	}
	if !k.Expires.IsZero() {
		fmt.Fprintf(&b, "    expires: %s\n", k.Expires.UTC().Format(time.RFC3339))
	}
	return b.String()
}

// ParseClaims reads claims from JSON, as those of a token are.
func ParseClaims(text []byte) (map[string]any, error) {
	claims, err := decodeClaims(text)
	if err != nil {
		return nil, errors.New("not one JSON object with different names in it, or with numbers that are too large")
	}
	return claims, nil
}

// IsAPIKey reports whether a credential says of itself that it is an API key. No JWT does.
func IsAPIKey(credential string) bool { return strings.HasPrefix(credential, apiKeyPrefix) }

// APIKeys are the keys of services. Its methods may be called by several goroutines at once.
type APIKeys struct {
	now     func() time.Time
	refused *Refusals
	changes sync.Mutex                             // held while keys are replaced
	keys    atomic.Pointer[map[string]*heldAPIKey] // by id
}

// A heldAPIKey is a key in force, and its principal, which all share who present it.
type heldAPIKey struct {
	APIKey
	principal *Principal
}

// APIKeyOptions configure APIKeys.
type APIKeyOptions struct {
	// Now is the clock. Default time.Now.
	Now func() time.Time

	// Refusals counts the keys that are refused. Default: nobody does.
	Refusals *Refusals
}

// NewAPIKeys returns APIKeys without any key.
func NewAPIKeys(o APIKeyOptions) *APIKeys {
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &APIKeys{now: o.Now, refused: o.Refusals}
	a.keys.Store(&map[string]*heldAPIKey{})
	return a
}

// SetKeys replaces the keys, whose ids must differ. The principals of those that are not among them any more, or with
// something else to them, are Expired when it returns.
func (a *APIKeys) SetKeys(keys []APIKey) {
	a.changes.Lock()
	defer a.changes.Unlock()
	old, next := *a.keys.Load(), make(map[string]*heldAPIKey, len(keys))
	for _, k := range keys {
		if held := old[k.ID]; held != nil && held.same(k) {
			next[k.ID] = held
		} else {
			next[k.ID] = hold(k)
		}
	}
	a.keys.Store(&next)
	for id, held := range old {
		if next[id] != held {
			held.principal.withdrawn.Store(true)
		}
	}
}

func (h *heldAPIKey) same(k APIKey) bool {
	return h.Hash == k.Hash && slices.Equal(h.Rights, k.Rights) && slices.Equal(h.Hubs, k.Hubs) &&
		h.Expires.Equal(k.Expires) &&
		(len(h.Claims)+len(k.Claims) == 0 || reflect.DeepEqual(h.Claims, k.Claims))
}

func hold(k APIKey) *heldAPIKey {
	claims := map[string]any{"sub": k.ID}
	maps.Copy(claims, k.Claims)
	return &heldAPIKey{k, &Principal{
		Issuer: APIKeyIssuer, Subject: k.ID, Claims: claims, Expires: k.Expires,
		Grant: &Grant{Rights: k.Rights, Hubs: k.Hubs}, withdrawn: new(atomic.Bool),
	}}
}

// Verify returns the principal of a key: the same for every call, until the key is replaced. An error wraps ErrUnauthenticated, and is
// an ErrExpired when the key is good but for its age. How long it takes does not depend on how much of a key is right, nor
// on whether there is one of that id.
func (a *APIKeys) Verify(key string) (*Principal, error) {
	id, ok := idOfAPIKey(key)
	if !ok {
		return nil, a.refused.refuse(kindAPIKey, reasonMalformed, "not an API key")
	}
	held, known := (*a.keys.Load())[id]
	var want [sha256.Size]byte // of an unknown id: no key has this hash
	if known {
		want = held.Hash
	}
	got := sha256.Sum256([]byte(key))
	if equal := subtle.ConstantTimeCompare(got[:], want[:]); equal != 1 || !known {
		return nil, a.refused.refuse(kindAPIKey, reasonUnknown, "API key unknown, withdrawn or wrong")
	}
	if held.principal.Expired(a.now()) {
		a.refused.count(kindAPIKey, reasonExpired)
		return nil, ErrExpired
	}
	return held.principal, nil
}

// idOfAPIKey takes a key apart. Its secret is found from the end: an id may have the separator in it, too.
func idOfAPIKey(key string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(key, apiKeyPrefix)
	at := len(rest) - apiKeySecret - 1
	if !ok || at < 1 || at > maxKeyName || rest[at] != '_' || !consistsOf(rest[:at], "._-") || !consistsOf(rest[at+1:], "-_") {
		return "", false
	}
	return rest[:at], true
}

// print names the key of a principal in a ticket: "" when that is not in force. It tells the key of today from one that had its
// id before, and is of no use to who reads it.
func (a *APIKeys) print(who *Principal) string {
	held := (*a.keys.Load())[who.Subject]
	if held == nil || held.principal != who {
		return ""
	}
	return held.print()
}

func (h *heldAPIKey) print() string {
	sum := sha256.Sum256(h.Hash[:])
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// printed returns the principal of the key of an id that has a print, or nil. a may be nil.
func (a *APIKeys) printed(id, mark string) *Principal {
	if a == nil {
		return nil
	}
	if held := (*a.keys.Load())[id]; held != nil && held.print() == mark {
		return held.principal
	}
	return nil
}
