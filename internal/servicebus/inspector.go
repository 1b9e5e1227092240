package servicebus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus/admin"
	"github.com/Azure/go-amqp"
)

// The kinds of trouble that an Inspector tells apart. What is none of them is as the SDK says.
var (
	ErrCredential = errors.New("the credential is not accepted")
	ErrRight      = errors.New("the credential lacks the right")
	ErrNoEntity   = errors.New("does not exist")
	ErrDisabled   = errors.New("is disabled")
	ErrSessions   = errors.New("requires sessions")
	ErrNoAnswer   = errors.New("no answer in time")
)

// An Endpoint is where a namespace is.
type Endpoint struct {
	Host, Port string
	TLS        bool   // false: an emulator
	Entity     string // that the connection string's key is for; "": the namespace's
}

// Endpoint says where the namespace of the options is.
func (o *Options) Endpoint() (Endpoint, error) {
	if _, err := o.dialer(); err != nil {
		return Endpoint{}, err
	}
	e := Endpoint{Host: o.Namespace, TLS: true}
	for part := range strings.SplitSeq(o.ConnectionString, ";") {
		name, value, _ := strings.Cut(part, "=")
		switch strings.ToLower(name) {
		case "endpoint":
			if u, err := url.Parse(value); err == nil { // it is, or the SDK would not have taken it
				e.Host, e.Port = u.Hostname(), u.Port()
			}
		case "entitypath":
			e.Entity = value
		case "usedevelopmentemulator":
			emulator, _ := strconv.ParseBool(value)
			e.TLS = !emulator
		}
	}
	if e.Host == "" {
		return Endpoint{}, errors.New("servicebus options: ConnectionString: its Endpoint names no host")
	}
	port := "5671"
	if !e.TLS {
		port = "5672"
	}
	e.Port = cmp.Or(e.Port, port)
	return e, nil
}

// An Inspector looks at a topic and its subscription and changes nothing: whether they are there, what the credential may do there,
// and, where it may manage, how they are set up. It makes a connection for each question.
type Inspector struct {
	o       Options
	dial    func() (*azservicebus.Client, error)
	admin   *admin.Client
	manager *manager
}

// NewInspector checks the options, whose Topic is required, and connects to nothing.
func NewInspector(o Options) (*Inspector, error) {
	if err := o.check(false); err != nil {
		return nil, err
	}
	at, err := o.Endpoint()
	if err != nil {
		return nil, err
	}
	i := &Inspector{o: o}
	if i.dial, err = o.dialer(); err != nil {
		return nil, err
	}
	base := "https://" + at.Host
	if !at.TLS {
		base = "http://" + net.JoinHostPort(at.Host, "5300")
	}
	if i.manager, err = newManager(cmp.Or(o.Management, base)); err != nil {
		return nil, fmt.Errorf("servicebus options: Management: %w", err)
	}
	opts := &admin.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: i.manager, Retry: policy.RetryOptions{MaxRetries: -1}}}
	if o.Namespace == "" {
		i.admin, err = admin.NewClientFromConnectionString(o.ConnectionString, opts)
	} else if credential, failed := azidentity.NewDefaultAzureCredential(nil); failed == nil {
		i.admin, err = admin.NewClient(o.Namespace, credential, opts)
	}
	if i.admin == nil || err != nil {
		return nil, errors.New("servicebus options: no client for the administration API") // the SDK may quote the string
	}
	return i, nil
}

// MaySend opens a link to the topic, as a publisher does, and sends nothing.
func (i *Inspector) MaySend(ctx context.Context) error {
	return i.with(ctx, func(c *azservicebus.Client) error {
		sender, err := c.NewSender(i.o.Topic, nil)
		if err == nil {
			_, err = sender.NewMessageBatch(ctx, nil) // makes the link
		}
		return err
	})
}

// A Peeked is a message that stays where it is, be it locked or not.
type Peeked struct {
	ID           string
	EnqueuedTime time.Time
	// Reason and Description say why it is a dead letter.
	Reason, Description string
}

// Peek opens a link to the subscription, as a receiver does, and looks at its oldest messages, or at its dead letters.
func (i *Inspector) Peek(ctx context.Context, deadLetters bool, most int) (found []Peeked, err error) {
	const page = 250
	err = i.with(ctx, func(c *azservicebus.Client) error {
		o := &azservicebus.ReceiverOptions{}
		if deadLetters {
			o.SubQueue = azservicebus.SubQueueDeadLetter
		}
		receiver, err := c.NewReceiverForSubscription(i.o.Topic, i.o.Subscription, o)
		if err != nil {
			return err
		}
		for len(found) < most {
			messages, err := receiver.PeekMessages(ctx, min(page, most-len(found)), nil)
			if err != nil || len(messages) == 0 {
				return err
			}
			for _, m := range messages {
				found = append(found, peeked(m))
			}
		}
		return nil
	})
	return found, err
}

func peeked(m *azservicebus.ReceivedMessage) Peeked {
	p := Peeked{ID: m.MessageID}
	if m.EnqueuedTime != nil {
		p.EnqueuedTime = *m.EnqueuedTime
	}
	if m.DeadLetterReason != nil {
		p.Reason = *m.DeadLetterReason
	}
	if m.DeadLetterErrorDescription != nil {
		p.Description = *m.DeadLetterErrorDescription
	}
	return p
}

// with does something with a connection of its own.
func (i *Inspector) with(ctx context.Context, do func(*azservicebus.Client) error) error {
	c, err := i.dial()
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = c.Close(closing) // errors of links already gone mean nothing
	}()
	return diagnose(do(c))
}

// diagnose gives an error of the SDK its kind. It says the same of a credential that proves nothing and of one that lacks a right,
// but for the broker's words.
func diagnose(err error) error {
	var kind error
	switch {
	case err == nil:
		return nil
	case hasCode(err, azservicebus.CodeUnauthorizedAccess), condition(err) == amqp.ErrCondUnauthorizedAccess:
		if kind = ErrCredential; strings.Contains(err.Error(), "claim(s) are required") {
			kind = ErrRight
		}
	case hasCode(err, azservicebus.CodeNotFound), condition(err) == amqp.ErrCondNotFound:
		kind = ErrNoEntity
	case condition(err) == "com.microsoft:entity-disabled":
		kind = ErrDisabled
	case condition(err) == amqp.ErrCondNotAllowed && strings.Contains(err.Error(), "requires sessions"):
		kind = ErrSessions
	case noIdentity(err):
		kind = ErrCredential
	case errors.Is(err, context.DeadlineExceeded):
		kind = ErrNoAnswer
	default:
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// noIdentity reports that the default Azure credential has no token to give.
func noIdentity(err error) bool {
	var unavailable interface {
		error
		NonRetriable()
	}
	return errors.As(err, &unavailable)
}

// TopicProperties are how a topic is set up.
type TopicProperties struct {
	Status             string
	DuplicateDetection time.Duration // its window; 0: none
	TimeToLive         time.Duration // of messages that say nothing else
}

// SubscriptionProperties are how a subscription is set up, and how much is in it.
type SubscriptionProperties struct {
	Status            string
	LockDuration      time.Duration
	MaxDeliveryCount  int
	Sessions          bool
	TimeToLive        time.Duration // of messages that say nothing else
	ForwardTo         string
	Active            int
	DeadLetters       int
	Filters           []string // each as text
	EverythingMatches bool     // one of them lets everything pass
}

// Topic reads how the topic is set up, which takes the right to manage.
func (i *Inspector) Topic(ctx context.Context) (p TopicProperties, err error) {
	t, err := i.admin.GetTopic(ctx, i.o.Topic, nil)
	if err = i.manager.diagnose(err, t == nil); err != nil {
		return p, err
	}
	p.Status, p.TimeToLive = string(value(t.Status)), isoDuration(value(t.DefaultMessageTimeToLive))
	if value(t.RequiresDuplicateDetection) {
		p.DuplicateDetection = isoDuration(value(t.DuplicateDetectionHistoryTimeWindow))
	}
	return p, nil
}

// Subscription reads how the subscription is set up, which takes the right to manage.
func (i *Inspector) Subscription(ctx context.Context) (p SubscriptionProperties, err error) {
	topic, name := i.o.Topic, i.o.Subscription
	s, err := i.admin.GetSubscription(ctx, topic, name, nil)
	if err = i.manager.diagnose(err, s == nil); err != nil {
		return p, err
	}
	p = SubscriptionProperties{
		Status: string(value(s.Status)), LockDuration: isoDuration(value(s.LockDuration)), MaxDeliveryCount: int(value(s.MaxDeliveryCount)),
		Sessions: value(s.RequiresSession), TimeToLive: isoDuration(value(s.DefaultMessageTimeToLive)), ForwardTo: value(s.ForwardTo),
	}
	counts, err := i.admin.GetSubscriptionRuntimeProperties(ctx, topic, name, nil)
	if err = i.manager.diagnose(err, counts == nil); err != nil {
		return p, err
	}
	p.Active, p.DeadLetters = int(counts.ActiveMessageCount), int(counts.DeadLetterMessageCount)
	for pager := i.admin.NewListRulesPager(topic, name, &admin.ListRulesOptions{MaxPageSize: 100}); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err = i.manager.diagnose(err, false); err != nil {
			return p, err
		}
		for _, r := range page.Rules {
			text, everything := filterText(r.Filter)
			p.Filters = append(p.Filters, text)
			p.EverythingMatches = p.EverythingMatches || everything
		}
	}
	return p, nil
}

// filterText says what a rule lets pass, without the values, which are an operator's own.
func filterText(f admin.RuleFilter) (text string, everything bool) {
	switch f := f.(type) {
	case *admin.TrueFilter:
		return "everything", true
	case *admin.FalseFilter:
		return "nothing", false
	case *admin.SQLFilter:
		return "SQL", strings.ReplaceAll(f.Expression, " ", "") == "1=1"
	case *admin.CorrelationFilter:
		return "correlation", false
	}
	return "unknown", false
}

// Clock is how far the clock of the administration API is ahead of ours, to a second or so. It is known once that has answered,
// whatever it said.
func (i *Inspector) Clock() (ahead time.Duration, known bool) {
	i.manager.mu.Lock()
	defer i.manager.mu.Unlock()
	return i.manager.ahead, i.manager.known
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// manager sends requests of the administration client, which knows no address but https://NAMESPACE/, to where the API is. They are
// signed for the namespace.
type manager struct {
	base   *url.URL
	client *http.Client

	mu    sync.Mutex
	ahead time.Duration
	known bool
}

func newManager(base string) (*manager, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("not a URL such as http://localhost:5300")
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &manager{base: u, client: &http.Client{Timeout: 10 * time.Second, CheckRedirect: stay}}, nil
}

// Do is called by the administration client.
func (m *manager) Do(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Host = r.URL.Host
	r.URL.Scheme, r.URL.Host = m.base.Scheme, m.base.Host
	sent := time.Now()
	answer, err := m.client.Do(r) //nolint:gosec // G704: the address is an operator's own
	if err != nil {
		return nil, err
	}
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		now := time.Now()
		m.mu.Lock()
		// The header has whole seconds, and was written some time between the two readings of our clock.
		m.ahead, m.known = date.Add(time.Second/2).Sub(sent.Add(now.Sub(sent)/2)), true
		m.mu.Unlock()
	}
	return answer, nil
}

// diagnose gives an error of the administration client its kind, and one to the absence of an entity, which is none to that client.
func (m *manager) diagnose(err error, absent bool) error {
	var refused *azcore.ResponseError
	switch {
	case err == nil && !absent:
		return nil
	case err == nil:
		return ErrNoEntity
	case noIdentity(err):
		return fmt.Errorf("%w: %w", ErrCredential, err)
	case !errors.As(err, &refused):
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return fmt.Errorf("the administration API at %s: %w", m.base.Host, err)
	}
	// The whole error has the request and the answer in it, over many lines.
	if refused.StatusCode == http.StatusUnauthorized || refused.StatusCode == http.StatusForbidden {
		if strings.Contains(err.Error(), "claims required") || refused.StatusCode == http.StatusForbidden {
			return fmt.Errorf("%w to manage", ErrRight)
		}
		return ErrCredential
	}
	return fmt.Errorf("the administration API at %s answers %d", m.base.Host, refused.StatusCode)
}

var isoParts = regexp.MustCompile(`^P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?$`)

// isoDuration reads a time span of XML. What is longer than a Duration, as .NET's greatest one, is the longest that there is; what
// is none is 0.
func isoDuration(text string) time.Duration {
	parts := isoParts.FindStringSubmatch(text)
	if parts == nil {
		return 0
	}
	var seconds float64
	for i, unit := range []float64{24 * 3600, 3600, 60, 1} {
		n, _ := strconv.ParseFloat(parts[i+1], 64) // of nothing: 0
		seconds += n * unit
	}
	const longest = 1<<63 - 1
	if seconds >= longest/1e9 {
		return longest
	}
	return time.Duration(seconds * 1e9)
}
