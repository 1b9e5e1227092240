package devbus

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Rights are what a rule allows.
type Rights uint8

const (
	Listen Rights = 1                 // receive, settle, renew locks, peek
	Send   Rights = 2                 // send
	Manage Rights = 4 | Listen | Send // and to ask Management
)

func (r Rights) String() string {
	switch r {
	case Listen:
		return "Listen"
	case Send:
		return "Send"
	case Manage:
		return "Manage"
	}
	return "Rights(" + strconv.Itoa(int(r)) + ")"
}

// Rule is a shared access policy: whoever has its key may do this at its entity and
// at what is below that.
type Rule struct {
	Name, Key string
	Entity    string // a queue or a topic; "": the namespace
	Rights    Rights
}

// ConnectionString is what a client on this machine that knows the rule's key needs to
// reach a bus that serves addr.
func (r Rule) ConnectionString(addr string) string {
	s := "Endpoint=sb://" + addr + ";SharedAccessKeyName=" + r.Name + ";SharedAccessKey=" + r.Key + ";UseDevelopmentEmulator=true"
	if r.Entity != "" {
		s += ";EntityPath=" + r.Entity
	}
	return s
}

func (r *Rule) covers(n *node) bool {
	return r.Entity == "" || strings.HasPrefix(withoutScheme(n.name), withoutScheme(r.Entity))
}

// grant is what a token that was put for an entity allows there.
type grant struct {
	rule   string
	rights Rights
	until  time.Time
}

// open reports that nobody is asked who they are.
func (b *Bus) open() bool { return len(b.rules) == 0 }

// grant gives what the connection may do at an entity. Where nobody is asked, that is
// everything.
func (c *conn) grant(n *node) grant {
	if c.bus.open() {
		return grant{rights: Manage}
	}
	if g := c.granted[n]; time.Now().Before(g.until) {
		return g
	}
	return grant{}
}

// may says why the connection may not do what takes a right.
func (c *conn) may(n *node, want Rights) *problem {
	if c.grant(n).rights&want == want {
		return nil
	}
	return problemf("amqp:unauthorized-access",
		"Unauthorized access. '%s' claim(s) are required to perform this operation. Resource: '%s'.", want, n.name)
}

// authorize checks a shared access signature: that the key of a rule signed it, one that holds
// for the entity; that it has not expired; and that it is for the audience or something above it.
func (b *Bus) authorize(token, audience string, n *node, now time.Time) (grant, error) {
	fields, ok := strings.CutPrefix(token, "SharedAccessSignature ")
	if !ok {
		return grant{}, errors.New("InvalidSignature: not a shared access signature")
	}
	part := make(map[string]string)
	for f := range strings.SplitSeq(fields, "&") {
		name, value, _ := strings.Cut(f, "=")
		part[name] = value
	}
	signature, err := url.QueryUnescape(part["sig"])
	name, nameErr := url.QueryUnescape(part["skn"])
	if err := cmp.Or(err, nameErr); err != nil {
		return grant{}, errors.New("InvalidSignature: The token has an invalid signature.")
	}
	var by *Rule
	for i := range b.rules {
		r := &b.rules[i]
		mac := hmac.New(sha256.New, []byte(r.Key))
		mac.Write([]byte(part["sr"] + "\n" + part["se"]))
		if r.Name == name && r.covers(n) && hmac.Equal([]byte(signature), []byte(base64.StdEncoding.EncodeToString(mac.Sum(nil)))) {
			by = r
		}
	}
	if by == nil {
		return grant{}, errors.New("InvalidSignature: The token has an invalid signature.")
	}
	until, err := strconv.ParseInt(part["se"], 10, 64)
	if err != nil || now.Unix() >= until {
		return grant{}, errors.New("ExpiredToken: The token is expired.")
	}
	resource, err := url.QueryUnescape(part["sr"])
	if err != nil || !strings.HasPrefix(withoutScheme(audience), withoutScheme(resource)) {
		return grant{}, errors.New("InvalidAudience: The token is for something else.")
	}
	return grant{by.Name, by.Rights, time.Unix(until, 0)}, nil
}

// withoutScheme ends in a slash, so that one path is a prefix of another only where it is above.
func withoutScheme(u string) string {
	if _, rest, ok := strings.Cut(u, "://"); ok {
		u = rest
	}
	return strings.ToLower(strings.Trim(u, "/")) + "/"
}

// Operation is something that a client asked for.
type Operation struct {
	Rule   string // whose key signed its token; "" without rules
	Entity string
	// Name is put-token, attach-sender, attach-receiver, or what was asked of $management, such as
	// com.microsoft:renew-lock.
	Name    string
	Refused bool
}

// maxOperations bounds how many are told apart: their names are the clients'.
const maxOperations = 1000

// operations counts what clients asked for.
type operations struct {
	mu  sync.Mutex
	all map[Operation]int
}

func (o *operations) note(op Operation) {
	if len(op.Name) > 100 {
		op.Name = op.Name[:100]
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil {
		o.all = make(map[Operation]int)
	}
	if _, known := o.all[op]; known || len(o.all) < maxOperations {
		o.all[op]++
	}
}

// Operations counts what clients have asked for since the bus was made; of a thousand different
// operations at most.
func (b *Bus) Operations() map[Operation]int {
	b.operations.mu.Lock()
	defer b.operations.mu.Unlock()
	return maps.Clone(b.operations.all)
}
