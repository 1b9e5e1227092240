// Package e2e holds the promises of the product as tests that look at it from
// outside: the real Azure SDK, a real redis-server, real sockets, and for what
// concerns a process the real binaries. There is nothing to import here.
//
// A test makes a world (newWorld), which has a Service Bus endpoint, a Redis and
// an identity provider, starts replicas of the relay and the notifier in it,
// breaks what it is about, and says what must be true in the end. Worlds share
// nothing, so that tests run in any order and beside each other. Nothing waits
// for a time to pass where it can wait for something to happen; everything ends
// at the deadline of its test.
//
// Clients that others wrote are in clients, a Node.js package of its own, with the
// scripts that the tests drive them by (node_test.go).
//
// What a fault costs is bounded by the broker's locks and the store's probe, so
// that most worlds have short locks.
package e2e
