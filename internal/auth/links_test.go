package auth_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/status"
	"statusrelay/schemas"
)

var order = status.Key{Hub: "orders", InstanceID: "order-4711"}

// secret returns a key of 32 bytes that are all the same.
func secret(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func newLinks(o auth.LinkOptions, keys ...auth.LinkKey) *auth.Links {
	l := auth.NewLinks(o)
	l.SetKeys(keys)
	return l
}

func sign(t testing.TB, l *auth.Links, k status.Key, audience string, life time.Duration) auth.SignedLink {
	t.Helper()
	s, err := l.Sign(k, audience, time.Now().Add(life))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// vectors are those that docs/links.md speaks of.
type vectors struct {
	Vectors []struct {
		Name, Key, KeyID, Hub, InstanceID, Audience string
		Expires                                     int64
		Canonical, Signature, PathAndQuery          string
	}
}

func readVectors(t testing.TB) (v vectors) {
	t.Helper()
	text, err := schemas.Examples.ReadFile("examples/links.json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil || len(v.Vectors) < 4 {
		t.Fatalf("%d vectors, %v", len(v.Vectors), err)
	}
	return v
}

// TestU1LinksAreSignedAsTheVectorsSay, by Go's own HMAC and by what others made of it.
func TestU1LinksAreSignedAsTheVectorsSay(t *testing.T) {
	for _, v := range readVectors(t).Vectors {
		key, err := base64.StdEncoding.DecodeString(v.Key)
		if err != nil {
			t.Fatal(err)
		}
		k := status.Key{Hub: v.Hub, InstanceID: v.InstanceID}
		l := newLinks(auth.LinkOptions{Now: func() time.Time { return time.Unix(v.Expires-60, 0) }}, auth.LinkKey{ID: v.KeyID, Secret: key})
		got, err := l.Sign(k, v.Audience, time.Unix(v.Expires, 0))
		if err != nil || got.Signature != v.Signature {
			t.Errorf("%s: got %+v, %v; want %s", v.Name, got, err, v.Signature)
		}
		u, err := url.Parse(v.PathAndQuery)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		said := auth.SignedLink{
			Audience: q.Get(auth.LinkAudience), Expires: q.Get(auth.LinkExpires), KeyID: q.Get(auth.LinkKeyID), Signature: q.Get(auth.LinkSignature),
		}
		if said != got || u.Path != "/v1/hubs/"+v.Hub+"/instances/"+v.InstanceID {
			t.Errorf("%s: the URL says %+v of %s, want %+v", v.Name, said, u.Path, got)
		}
		if canonical := strings.Join([]string{"statusrelay-link-v1", v.KeyID, v.Hub, v.InstanceID, v.Audience, strconv.FormatInt(v.Expires, 10)}, "\x00"); canonical != v.Canonical {
			t.Errorf("%s: canonical is %q, want %q", v.Name, v.Canonical, canonical)
		}
		who, err := l.Verify(k, got)
		if err != nil || who.Issuer != "link" || who.Subject != v.KeyID+"/"+v.Hub+"/"+v.InstanceID || who.Expires.Unix() != v.Expires ||
			*who.Grant.Link != (auth.LinkGrant{Key: k, Audience: v.Audience}) || !who.May(auth.Read, v.Hub) || who.May(auth.Publish, v.Hub) || who.May(auth.Read, "another") {
			t.Errorf("%s: got %+v, %v", v.Name, who, err)
		}
	}
}

// TestU1NoOtherLinkHasItsSignature changes each byte of each field, moves bytes from one field to the next, and swaps fields.
func TestU1NoOtherLinkHasItsSignature(t *testing.T) {
	l := newLinks(auth.LinkOptions{}, auth.LinkKey{ID: "k1", Secret: secret(1)}, auth.LinkKey{ID: "k2", Secret: secret(2)})
	s := sign(t, l, order, "customer", time.Hour)
	if _, err := l.Verify(order, s); err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, k status.Key, changed auth.SignedLink) {
		t.Helper()
		if k == order && changed == s {
			return
		}
		who, err := l.Verify(k, changed)
		wantRefused(t, fmt.Sprintf("%s: %v %+v", what, k, changed), who, err, s.Signature)
	}
	fields := func(k *status.Key, s *auth.SignedLink) []*string {
		return []*string{&k.Hub, &k.InstanceID, &s.Audience, &s.Expires, &s.KeyID, &s.Signature}
	}
	count := len(fields(new(status.Key), new(auth.SignedLink)))
	for field := range count {
		alter := func(what string, f func(string) string) {
			k, changed := order, s
			at := fields(&k, &changed)[field]
			*at = f(*at)
			refuse(what, k, changed)
		}
		original := *fields(&status.Key{Hub: order.Hub, InstanceID: order.InstanceID}, &s)[field]
		for i := range original {
			for b := range 256 {
				alter("byte", func(v string) string { return v[:i] + string([]byte{byte(b)}) + v[i+1:] })
			}
			alter("cut", func(v string) string { return v[:i] })
			alter("shifted", func(v string) string { return v[i:] + v[:i] })
		}
		for _, more := range []string{"\x00", "=", "A", " ", "\n", "0"} {
			alter("longer", func(v string) string { return v + more })
			alter("longer", func(v string) string { return more + v })
		}
		alter("much longer", func(v string) string { return strings.Repeat(v, 1000) })
		alter("none", func(string) string { return "" })
	}
	// What one field loses the next one gets: without separators these would be signed alike.
	for from := range count {
		for to := range count {
			k, changed := order, s
			f := fields(&k, &changed)
			if from != to && *f[from] != "" {
				last := (*f[from])[len(*f[from])-1:]
				*f[from] = strings.TrimSuffix(*f[from], last)
				*f[to] = last + *f[to]
				refuse("moved", k, changed)
			}
			k, changed = order, s
			f = fields(&k, &changed)
			*f[from], *f[to] = *f[to], *f[from]
			refuse("swapped", k, changed)
		}
	}
	// Fields with the separator in them.
	refuse("NUL", status.Key{Hub: "orders\x00order-4711", InstanceID: "customer"}, auth.SignedLink{Audience: s.Expires, Expires: s.Expires, KeyID: s.KeyID, Signature: s.Signature})
	if bad, err := l.Sign(order, "customer\x00", time.Now().Add(time.Hour)); err == nil {
		t.Errorf("an audience with a NUL is signed: %+v", bad)
	}
}

// TestU2LinkNeedsAnExpiry that is written in one way, lies ahead, and not too far: what signed it does not matter.
func TestU2LinkNeedsAnExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := auth.LinkKey{ID: "k1", Secret: secret(1)}
		long := newLinks(auth.LinkOptions{MaxLife: 100 * 365 * 24 * time.Hour}, key)
		if long.MaxLife() != 30*24*time.Hour {
			t.Errorf("a link may last %v, want 30 days at most", long.MaxLife())
		}
		hour, day := newLinks(auth.LinkOptions{MaxLife: time.Hour}, key), newLinks(auth.LinkOptions{}, key)
		if day.MaxLife() != 24*time.Hour {
			t.Errorf("a link may last %v, want a day", day.MaxLife())
		}
		for _, life := range []time.Duration{0, -time.Second, -1000 * time.Hour, 30*24*time.Hour + time.Second, 87600 * time.Hour} {
			if s, err := long.Sign(order, "a", time.Now().Add(life)); !errors.Is(err, status.ErrInvalid) {
				t.Errorf("for %v: got %+v, %v", life, s, err)
			}
		}
		s := sign(t, long, order, "a", 2*time.Hour)
		who, err := hour.Verify(order, s)
		wantRefused(t, "longer than this verifier has it", who, err)
		time.Sleep(time.Hour)
		if who, err = hour.Verify(order, s); err != nil || who.Expired(time.Now()) {
			t.Errorf("an hour before: got %v", err)
		}
		time.Sleep(time.Hour - time.Nanosecond)
		if _, err := hour.Verify(order, s); err != nil {
			t.Errorf("just before: got %v", err)
		}
		time.Sleep(time.Nanosecond)
		again, err := hour.Verify(order, s)
		wantRefused(t, "expired", again, err)
		if !who.Expired(time.Now()) {
			t.Error("what it has opened is still good")
		}
		// Signed by who has the key and no such limits.
		now := time.Now().Unix()
		for _, exp := range []string{
			"", "0", "-1", strconv.FormatInt(now-1, 10), strconv.FormatInt(now+10*365*86400, 10), "9999999999999", "99999999999999999999",
			"+" + strconv.FormatInt(now+60, 10), "0" + strconv.FormatInt(now+60, 10), strconv.FormatInt(now+60, 10) + ".0", "1e10", "never", " ",
		} {
			s := auth.SignedLink{Audience: "a", Expires: exp, KeyID: "k1"}
			s.Signature = hmacOf(key.Secret, order, s)
			who, err := day.Verify(order, s)
			wantRefused(t, "exp "+exp, who, err)
		}
		good := auth.SignedLink{Audience: "a", Expires: strconv.FormatInt(now+60, 10), KeyID: "k1"}
		good.Signature = hmacOf(key.Secret, order, good)
		if _, err := day.Verify(order, good); err != nil {
			t.Errorf("this test does not sign as it should: %v", err)
		}
	})
}

// TestU2LinkKeysHave32Bytes at least.
func TestU2LinkKeysHave32Bytes(t *testing.T) {
	encode := func(n int) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, n)) }
	for n, ok := range map[int]bool{0: false, 16: false, 31: false, 32: true, 64: true, 512: true, 513: false} {
		keys, err := auth.ParseLinkKeys([]byte("keys: [{id: a, key: '"+encode(n)+"'}]"), nil)
		if ok != (err == nil) || ok && len(keys[0].Secret) != n {
			t.Errorf("%d bytes: got %v", n, err)
		}
		if n > 15 && strings.Contains(fmt.Sprint(err), encode(n)[:16]) {
			t.Errorf("the error says the key: %v", err)
		}
	}
	for _, text := range []string{encode(32), strings.TrimRight(encode(32), "="), base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xfb}, 32))} {
		if keys, err := auth.ParseLinkKeys([]byte("keys: [{id: a, key: '"+text+"'}]"), nil); err != nil || !bytes.Equal(keys[0].Secret, bytes.Repeat([]byte{0xfb}, 32)) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

// TestU3LinkKeysRotate: the new key signs, the old one verifies until it is taken out, and then ends what it has opened.
func TestU3LinkKeysRotate(t *testing.T) {
	before, after := auth.LinkKey{ID: "2026-01", Secret: secret(1)}, auth.LinkKey{ID: "2026-02", Secret: secret(2)}
	l := newLinks(auth.LinkOptions{}, before)
	old := sign(t, l, order, "a", time.Hour)
	who, err := l.Verify(order, old)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := l.Verify(order, old); err != nil {
					t.Errorf("while keys are replaced: %v", err)
					return
				}
				if s, err := l.Sign(order, "a", time.Now().Add(time.Hour)); err != nil {
					t.Error(err)
					return
				} else if _, err := l.Verify(order, s); err != nil {
					t.Errorf("while keys are replaced: %v", err)
					return
				}
			}
		})
	}
	for range 100 {
		l.SetKeys([]auth.LinkKey{before, after})
		l.SetKeys([]auth.LinkKey{after, before})
	}
	close(stop)
	running.Wait()
	if s := sign(t, l, order, "a", time.Hour); s.KeyID != after.ID {
		t.Errorf("signed by %s, want the first", s.KeyID)
	}
	if who.Expired(time.Now()) {
		t.Error("what the old key opened is closed, though the key is still there")
	}
	l.SetKeys([]auth.LinkKey{after})
	gone, err := l.Verify(order, old)
	wantRefused(t, "a key that was taken out", gone, err, old.Signature)
	if !who.Expired(time.Now()) {
		t.Error("what a key that was taken out has opened is still good")
	}
	l.SetKeys([]auth.LinkKey{{ID: before.ID, Secret: secret(3)}})
	gone, err = l.Verify(order, old)
	wantRefused(t, "another key of that id", gone, err)
	l.SetKeys(nil)
	if _, err := l.Sign(order, "a", time.Now().Add(time.Hour)); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("without keys: got %v", err)
	}
	gone, err = l.Verify(order, old)
	wantRefused(t, "without keys", gone, err)
}

// TestU3FileOfLinkKeysIsReadWithEveryMistake, in the order of which the first signs.
func TestU3FileOfLinkKeysIsReadWithEveryMistake(t *testing.T) {
	text := base64.StdEncoding.EncodeToString(secret(7))
	read := func(path string) ([]byte, error) {
		switch path {
		case "good":
			return []byte(text + "\n"), nil
		case "short":
			return []byte("c2hvcnQ="), nil
		}
		return nil, os.ErrNotExist
	}
	keys, err := auth.ParseLinkKeys([]byte("keys:\n- {id: b, key_file: good}\n- {id: a, key: '"+text+"'}\n"), read)
	if err != nil || len(keys) != 2 || keys[0].ID != "b" || !bytes.Equal(keys[0].Secret, secret(7)) || keys[1].ID != "a" {
		t.Errorf("got %v, %v", keys, err)
	}
	_, err = auth.ParseLinkKeys([]byte(`
keys:
- {id: a b, key: `+text[:20]+`}
- {id: x, key_file: short}
- {id: x, key_file: missing}
- {key: `+text+`, key_file: good}
- {id: y}
- {id: z, secret: `+text+`}
- {id: zz, key: 17}
`), read)
	for _, want := range []string{
		"line 3, column 8: an id is", "line 3, column 18: not base64", "line 4, column 21: what is in this file", "line 5, column 8: the id of another",
		"line 5, column 21: file does not exist", "line 6, column 3: id missing", "line 6, column 3: exactly one", "line 7, column 3: exactly one",
		"line 8, column 11: secret is not known", "line 9, column 17: a number where a text",
	} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("got\n%v\nwant %q", err, want)
		}
	}
	if strings.Contains(fmt.Sprint(err), text[:16]) {
		t.Errorf("the error says a key: %v", err)
	}
}

// TestU4LinkIsForOneInstanceAndAudience, and for nothing else.
func TestU4LinkIsForOneInstanceAndAudience(t *testing.T) {
	l := newLinks(auth.LinkOptions{}, auth.LinkKey{ID: "k1", Secret: secret(1)})
	s := sign(t, l, order, "customer", time.Hour)
	for _, k := range []status.Key{
		{Hub: "orders", InstanceID: "order-4712"},
		{Hub: "payments", InstanceID: "order-4711"},
		{Hub: "Orders", InstanceID: "order-4711"},
		{Hub: "orders", InstanceID: "ORDER-4711"},
		{Hub: "", InstanceID: "order-4711"},
		{Hub: "orders", InstanceID: ""},
	} {
		who, err := l.Verify(k, s)
		wantRefused(t, k.String(), who, err, s.Signature)
	}
	s.Audience = "operator"
	who, err := l.Verify(order, s)
	wantRefused(t, "another audience", who, err)
}

func TestQueryOfALinkSaysItAgain(t *testing.T) {
	l := newLinks(auth.LinkOptions{}, auth.LinkKey{ID: "k1", Secret: secret(1)})
	s := sign(t, l, order, "Größe & ÷ + x=1", time.Hour)
	q, err := url.ParseQuery(s.Query())
	if err != nil || q.Get(auth.LinkAudience) != s.Audience || q.Get(auth.LinkExpires) != s.Expires || q.Get(auth.LinkKeyID) != s.KeyID || q.Get(auth.LinkSignature) != s.Signature || len(q) != 4 {
		t.Errorf("got %v, %v; want %+v", q, err, s)
	}
}

func BenchmarkVerifyLink(b *testing.B) {
	l := newLinks(auth.LinkOptions{}, auth.LinkKey{ID: "k1", Secret: secret(1)})
	s := sign(b, l, order, "customer", time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Verify(order, s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyAPIKey(b *testing.B) {
	text, k := newAPIKey(b, "a")
	keys := held(b, k)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Verify(text); err != nil {
			b.Fatal(err)
		}
	}
}

// hmacOf signs a link by the algorithm of docs/links.md, written once more.
func hmacOf(key []byte, k status.Key, s auth.SignedLink) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "statusrelay-link-v1\x00%s\x00%s\x00%s\x00%s\x00%s", s.KeyID, k.Hub, k.InstanceID, s.Audience, s.Expires)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
