// Package devbus is Azure Service Bus within this process: an AMQP 1.0 endpoint that the
// unmodified azservicebus client talks to over a loopback port or any net.Conn, for development,
// tests and demonstrations that need neither a cloud nor a container.
package devbus
