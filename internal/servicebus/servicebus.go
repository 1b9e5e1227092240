// Package servicebus is the relay's and the notifier's way to Azure Service Bus: a [Receiver] takes the messages of one
// subscription or queue and settles them by what became of them, a [Publisher] sends updates to a topic or queue. An [Inspector]
// looks at both, for an operator.
//
// The receiver promises that
//
//   - a message is completed only after [Handle] has returned nil for it, dead-lettered only for a status.ErrInvalid, and
//     neither by mistake: whatever goes wrong in between ends in its redelivery;
//   - while handling is status.ErrUnavailable, messages keep their locks for as long as it takes and no delivery count is spent;
//   - no condition the broker or the network can be in ends Run, spins it, or needs a restart of the process;
//   - what is in hand is bounded by [Options.MaxInHand].
//
// It delivers at least once: Handle must bear duplicates, also of messages that it saw completed (a confirmation can be
// lost on its way here).
//
// The publisher promises that a nil error means that the broker has stored the message, that updates of one instance are
// stored in the order in which Publish was called, unless they are for a later time, and that an error that is a status.ErrUnavailable
// may be tried again, and one that is a status.ErrMayNotPublish when the right to send has been given. A message whose Publish failed may
// have been stored all the same.
//
// Both keep their own connection and replace it, client and all, at the first sign of trouble. The SDK's own recovery has too
// many ends that lead nowhere; they are listed at [line].
//
//	receiver, err := servicebus.NewReceiver(servicebus.Options{ConnectionString: secret, Topic: "status", Subscription: "relay"})
//	err = receiver.Run(ctx, func(ctx context.Context, batch []servicebus.Message) []error { … })
//
//	publisher, err := servicebus.NewPublisher(servicebus.Options{Namespace: "ns.servicebus.windows.net", Topic: "status"})
//	err = publisher.Connect(ctx) // optional: now, instead of with the first message
//	errs := publisher.Publish(ctx, []servicebus.Outgoing{{Update: update, Body: body}})
//	err = publisher.Close(ctx)
package servicebus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/prometheus/client_golang/prometheus"
)

// Options say where the broker is and how hard to work. ConnectionString or Namespace, and Topic or Queue, are
// required; a Receiver on a topic needs its Subscription.
type Options struct {
	// ConnectionString is a namespace's, with its key: a secret, which appears in no error and no log line.
	ConnectionString string
	// Reread, when set, gives ConnectionString anew for each new connection, so that keys can be rotated. Its error passes:
	// there is no connection until it has none.
	Reread func() (string, error)
	// Namespace is the fully qualified one (NAME.servicebus.windows.net), to which azidentity.DefaultAzureCredential gives access.
	Namespace string

	Topic        string
	Subscription string // of Topic; only a Receiver needs it
	Queue        string // instead of Topic

	// NewConn makes the connection to the broker, for tests in memory. Default: AMQP over TCP with TLS, without TLS when
	// the connection string says UseDevelopmentEmulator=true.
	NewConn func(context.Context) (net.Conn, error)

	// Receiver only.

	MaxBatch     int           // most messages per call of Handle; default 500, at most 5000
	MaxInHand    int           // most messages received and not settled yet; default 4 × MaxBatch
	Settlers     int           // settlements on their way at the same time; default 256
	DrainTimeout time.Duration // for finishing what is in hand when Run's context has ended; default 10 s
	AbandonDelay time.Duration // before a message that failed is given back, since the broker redelivers it at once; default 1 s, ± half of it

	// Publisher only.

	Lanes          int           // sends on their way at the same time; an instance's updates share one; default 4
	SendTimeout    time.Duration // for a batch with all its retries; default 10 s
	MaxQueuedBytes int64         // messages waiting to be sent, 1 KiB each beside their bodies, beyond which Publish is unavailable; default 64 MiB

	// Inspector only.

	// Management is the URL of the administration API. Default: https at the namespace, http at port 5300 of an emulator.
	Management string

	// Logger is told when the connection is lost, could not be made, or stands again. Default: nobody is.
	Logger *slog.Logger
	// Metrics counts what happens; two Receivers or two Publishers need different ones (prometheus.WrapRegistererWith).
	// Default: nowhere.
	Metrics prometheus.Registerer
	// Now is the clock by which locks are renewed and latencies measured. Default time.Now.
	Now func() time.Time
}

// entity names what is received from or sent to.
func (o *Options) entity() string {
	switch {
	case o.Queue != "":
		return "queue " + o.Queue
	case o.Subscription != "":
		return "subscription " + o.Subscription + " of topic " + o.Topic
	default:
		return "topic " + o.Topic
	}
}

// check fills in defaults and reports everything that is wrong.
func (o *Options) check(receiving bool) error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if (o.ConnectionString == "") == (o.Namespace == "") {
		wrong("ConnectionString, Namespace: exactly one is required")
	}
	if (o.Topic == "") == (o.Queue == "") {
		wrong("Topic, Queue: exactly one is required")
	}
	switch {
	case o.Subscription == "" && o.Topic != "" && receiving:
		wrong("Subscription: required with Topic")
	case o.Subscription != "" && o.Topic == "":
		wrong("Subscription: needs Topic")
	}
	if strings.ContainsAny(o.Namespace, "/: ;=") {
		wrong("Namespace: not a host name such as NAME.servicebus.windows.net")
	}

	orDefault(&o.MaxBatch, 500)
	orDefault(&o.MaxInHand, 4*o.MaxBatch)
	orDefault(&o.Settlers, 256)
	orDefault(&o.DrainTimeout, 10*time.Second)
	orDefault(&o.AbandonDelay, time.Second)
	orDefault(&o.Lanes, 4)
	orDefault(&o.SendTimeout, 10*time.Second)
	orDefault(&o.MaxQueuedBytes, 64<<20)
	for _, positive := range []struct {
		name string
		ok   bool
	}{
		{"MaxBatch", o.MaxBatch > 0},
		{"MaxInHand", o.MaxInHand > 0},
		{"Settlers", o.Settlers > 0},
		{"DrainTimeout", o.DrainTimeout > 0},
		{"AbandonDelay", o.AbandonDelay > 0},
		{"Lanes", o.Lanes > 0},
		{"SendTimeout", o.SendTimeout > 0},
		{"MaxQueuedBytes", o.MaxQueuedBytes > 0},
	} {
		if !positive.ok {
			wrong("%s: negative", positive.name)
		}
	}
	if o.MaxBatch > 5000 {
		wrong("MaxBatch: above 5000, which is the SDK's limit")
	}
	if o.MaxInHand < o.MaxBatch {
		wrong("MaxInHand: below MaxBatch")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("servicebus options: %w", err)
	}
	return nil
}

func orDefault[T comparable](value *T, def T) {
	var zero T
	if *value == zero {
		*value = def
	}
}

// dialer gives the function that makes a Client, none of which connects before it is used. Retrying is not left to the SDK,
// except once: without any retry, its goroutine that renews tokens calls a broker that is away in a loop without a pause.
func (o *Options) dialer() (func() (*azservicebus.Client, error), error) {
	opts := &azservicebus.ClientOptions{RetryOptions: azservicebus.RetryOptions{MaxRetries: 1, RetryDelay: 500 * time.Millisecond}}
	if o.NewConn != nil {
		opts.NewWebSocketConn = func(ctx context.Context, _ azservicebus.NewWebSocketConnArgs) (net.Conn, error) {
			return o.NewConn(ctx)
		}
	}
	var credential azcore.TokenCredential
	if o.Namespace != "" {
		c, err := azidentity.NewDefaultAzureCredential(nil)
		if err != nil {
			return nil, fmt.Errorf("servicebus: default Azure credential: %w", err)
		}
		credential = c
	}
	dial := func() (*azservicebus.Client, error) {
		if credential != nil {
			return azservicebus.NewClient(o.Namespace, credential, opts)
		}
		secret := o.ConnectionString
		if o.Reread != nil {
			var err error
			if secret, err = o.Reread(); err != nil {
				return nil, fmt.Errorf("ConnectionString: %w", err)
			}
		}
		client, err := fromConnectionString(secret, opts)
		if err != nil {
			return nil, fmt.Errorf("ConnectionString: %w", err)
		}
		return client, nil
	}
	if _, err := dial(); err != nil {
		if credential != nil {
			return nil, fmt.Errorf("servicebus options: Namespace: %w", err)
		}
		return nil, fmt.Errorf("servicebus options: %w", err)
	}
	return dial, nil
}

// fromConnectionString makes a client, or says what is wrong with the string without quoting it, which the SDK may do.
func fromConnectionString(secret string, o *azservicebus.ClientOptions) (*azservicebus.Client, error) {
	client, err := azservicebus.NewClientFromConnectionString(secret, o)
	if err != nil {
		return nil, errors.New("not of the form Endpoint=sb://HOST;SharedAccessKeyName=NAME;SharedAccessKey=KEY, without spaces")
	}
	return client, nil
}

// CheckConnectionString says what is wrong with a connection string, without quoting it. It connects to nothing.
func CheckConnectionString(secret string) error {
	_, err := fromConnectionString(secret, nil)
	return err
}
