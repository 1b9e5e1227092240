// Package devbus is Azure Service Bus within this process: an AMQP 1.0 endpoint that the
// unmodified azservicebus client talks to over a loopback port or any net.Conn. Development,
// tests and demonstrations then need neither a cloud nor a container, and run the code that
// production runs.
//
//	bus := devbus.New(devbus.Options{
//		Topics: []devbus.Topic{{Name: "status", Subscriptions: []devbus.Subscription{{Name: "relay"}}}},
//	})
//	go bus.Serve(ctx, listener)
//	client, err := azservicebus.NewClientFromConnectionString(
//		devbus.ConnectionString(listener.Addr().String()), nil)
//
// Without a port, give the client one end of a net.Pipe as ClientOptions.NewWebSocketConn and the
// other end to ServeConn. That works in a testing/synctest bubble too, on its clock.
//
// # What is imitated
//
//   - SASL, token negotiation ($cbs) and, with Options.Rules, shared access signatures (who signed,
//     for what, until when), the rights Listen and Send of the rule that signed, and what the lack
//     of a token means; a missing entity is a 404 there. Operations says what clients asked for.
//   - Queues, and topics with subscriptions. Messages sent one by one or in batches, whole or in
//     several frames, up to a size; a message without an id gets one. An entity that is full
//     refuses messages.
//   - Peek-lock and receive-and-delete. Complete, abandon (counted, with changed properties),
//     defer, dead-letter (with reason and description) and release (not counted), over the link
//     or by lock token over $management. Locks belong to messages: they outlive links and
//     connections.
//   - Locks that expire, and are renewed. Delivery counts, and MaxDeliveryCount, beyond which a
//     message moves to /$DeadLetterQueue. There, nothing counts.
//   - Peeking, and receiving deferred messages by sequence number.
//   - Messages come in order of sequence number; abandoned ones return to their place.
//   - Scheduled messages, sent with the time at which they are to be enqueued: until then they wait
//     where they were sent to, counted and taking up room, and get their sequence number then.
//   - The administration API, as far as its client reads a topic, a subscription and its rules:
//     Management is its handler.
//
// # What is not
//
//   - Sessions, rules and filters, duplicate detection, expiry (a message's time to live is passed
//     on and nothing else), forwarding, transactions; scheduling by management request, and so
//     taking back what was scheduled, or peeking at it. Sessions and that request are refused in a
//     way that the client takes as final.
//   - What the administration API changes and lists. TLS and WebSockets: a net.Conn that does
//     these can be served.
//   - Detaching idle links, expiring tokens, throttling: Faults can do these at the moment that
//     a test wants it.
//   - Keeping anything: messages live in memory and end with the process.
//
// # What is promised
//
// A peer that breaks the protocol loses its connection, and nobody else notices. Everything is
// bounded: frames, nesting and counts within them, sessions, links and unfinished messages in a
// connection, connections, and the bytes that an entity holds. What one client sends, every other
// can decode: values that would make azservicebus panic or drop its connection are refused or left
// out, save the AMQP types (char, decimals) that it does not have. When Close returns, no
// goroutine is left.
package devbus
