package statusrelay

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
	"unicode/utf16"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
)

// ServiceBusOptions say where to send: a Sender, or an Entity with ConnectionString or with Namespace and Credential.
type ServiceBusOptions struct {
	// Sender belongs to who made it: Close leaves it open.
	Sender *azservicebus.Sender

	Entity           string                 // the topic or queue
	ConnectionString string                 // with a key that may send: a secret
	Namespace        string                 // NAME.servicebus.windows.net
	Credential       azcore.TokenCredential // such as one of package azidentity
	Client           *azservicebus.ClientOptions

	Name string           // of this publisher, the last part of the events' source /hubs/{hub}/{name}; default "publisher"
	Now  func() time.Time // default time.Now
}

// ServiceBus publishes to a topic or queue. It can be used concurrently.
type ServiceBus struct {
	sender *azservicebus.Sender
	client *azservicebus.Client // nil when the sender was given
	name   string
	now    func() time.Time
}

// NewServiceBus checks the options; it connects with the first Publish. The SDK connects again when a connection is lost.
func NewServiceBus(o ServiceBusOptions) (*ServiceBus, error) {
	s := &ServiceBus{sender: o.Sender, name: cmp.Or(o.Name, "publisher"), now: o.Now}
	if s.now == nil {
		s.now = time.Now
	}
	if rule := checkHub(s.name); rule != "" {
		return nil, wrongOption("Name", rule)
	}
	if err := s.dial(&o); err != nil {
		return nil, err
	}
	return s, nil
}

func wrongOption(field, rule string) error {
	return fmt.Errorf("service bus options: %s: %s", field, rule)
}

func (s *ServiceBus) dial(o *ServiceBusOptions) (err error) {
	byKey, byToken := o.ConnectionString != "", o.Namespace != "" || o.Credential != nil
	switch {
	case s.sender != nil && (byKey || byToken || o.Entity != ""):
		return wrongOption("Sender", "excludes Entity, ConnectionString, Namespace and Credential")
	case s.sender != nil:
		return nil
	case byKey == byToken:
		return wrongOption("Sender, ConnectionString, Namespace with Credential", "exactly one is required")
	case byToken && (o.Namespace == "" || o.Credential == nil):
		return wrongOption("Namespace, Credential", "they need each other")
	case o.Entity == "":
		return wrongOption("Entity", "required")
	case byKey:
		if s.client, err = azservicebus.NewClientFromConnectionString(o.ConnectionString, o.Client); err != nil { // which may quote it
			return wrongOption("ConnectionString", "not of the form Endpoint=sb://HOST;SharedAccessKeyName=NAME;SharedAccessKey=KEY")
		}
	default:
		if s.client, err = azservicebus.NewClient(o.Namespace, o.Credential, o.Client); err != nil {
			return wrongOption("Namespace", err.Error())
		}
	}
	if s.sender, err = s.client.NewSender(o.Entity, nil); err != nil {
		return wrongOption("Entity", err.Error())
	}
	return nil
}

// Publish sends updates and returns when the broker has stored them all. See the package about its errors; on one that
// may pass, the first of the updates may have been stored.
func (s *ServiceBus) Publish(ctx context.Context, updates ...Update) error {
	all, err := events(updates, s.name, s.now())
	if err != nil {
		return err
	}
	for sent := 0; sent < len(all); {
		n, err := s.send(ctx, all[sent:])
		if err != nil {
			return fmt.Errorf("service bus: sending %d of %d updates: %w", len(all)-sent, len(all), err)
		}
		sent += n
	}
	return nil
}

// send sends as many as fit in one batch, at least one, and says how many that were.
func (s *ServiceBus) send(ctx context.Context, some []event) (n int, err error) {
	if len(some) > 1 {
		batch, err := s.sender.NewMessageBatch(ctx, nil)
		if err != nil {
			return 0, err
		}
		for ; n < len(some); n++ {
			if err := batch.AddMessage(message(&some[n]), nil); errors.Is(err, azservicebus.ErrMessageTooLarge) {
				break
			} else if err != nil {
				return 0, err
			}
		}
		if n > 1 {
			return n, s.sender.SendMessageBatch(ctx, batch, nil)
		}
	}
	// Alone it has no envelope around it and can be larger.
	return 1, s.sender.SendMessage(ctx, message(&some[0]), nil)
}

// Close closes the connection, unless the sender was given.
func (s *ServiceBus) Close(ctx context.Context) error {
	if s.client == nil {
		return nil
	}
	return s.client.Close(ctx)
}

// message puts around an event what duplicate detection, sessions and a subscription's rules go by. None of it is needed by a relay.
func message(e *event) *azservicebus.Message {
	properties := map[string]any{"hub": e.update.Hub}
	for name, value := range map[string]string{
		"name": e.update.Name, "runtimeStatus": string(e.update.RuntimeStatus), "traceparent": e.update.Traceparent, "Diagnostic-Id": e.update.Traceparent,
	} {
		if value != "" {
			properties[name] = value
		}
	}
	subject, contentType := eventType, mediaType
	id, session := short(e.id), short(e.key)
	return &azservicebus.Message{
		MessageID: &id, SessionID: &session, Subject: &subject, ContentType: &contentType,
		ApplicationProperties: properties, Body: e.body,
	}
}

// short gives an id that Service Bus takes, at most 128 UTF-16 code units: the hex SHA-256 of a longer one.
func short(id string) string {
	if len(utf16.Encode([]rune(id))) <= 128 {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:])
}
