package servicebus

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	metricsNamespace = "statusrelay"
	metricsSubsystem = "servicebus"
)

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help,
	})
}

type receiverMetrics struct {
	received, completed, abandoned, held, left, lockLost, settleFailures, connections prometheus.Counter
	deadLettered                                                                      *prometheus.CounterVec
	inHand                                                                            prometheus.Gauge
	latency                                                                           prometheus.Histogram
}

func newReceiverMetrics(reg prometheus.Registerer) (*receiverMetrics, error) {
	m := &receiverMetrics{
		received:       counter("received_total", "Messages received, redeliveries included."),
		completed:      counter("completed_total", "Messages completed."),
		abandoned:      counter("abandoned_total", "Messages given back after an internal error."),
		held:           counter("held_total", "Times a message was kept and tried again because handling was unavailable."),
		left:           counter("left_total", "Messages in hand at shutdown that could not be finished and are redelivered when their lock ends."),
		lockLost:       counter("lock_lost_total", "Messages whose lock was lost in hand; the broker redelivers them unless they were settled."),
		settleFailures: counter("settle_failures_total", "Messages that could not be settled and are redelivered."),
		connections:    counter("receiver_connections_total", "Connections made; all but the first are reconnects."),
		deadLettered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "dead_lettered_total",
			Help: "Messages dead-lettered, by reason.",
		}, []string{"reason"}),
		inHand: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "in_hand_messages",
			Help: "Messages received and not settled yet.",
		}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "settle_seconds",
			Help:    "Time from a message's arrival at the broker to its settlement.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10), // to 262 s
		}),
	}
	return m, register(reg, m.received, m.completed, m.abandoned, m.held, m.left, m.lockLost, m.settleFailures, m.connections,
		m.deadLettered, m.inHand, m.latency)
}

type publisherMetrics struct {
	published, connections prometheus.Counter
	failed                 *prometheus.CounterVec
	batch                  prometheus.Histogram
}

func newPublisherMetrics(reg prometheus.Registerer) (*publisherMetrics, error) {
	m := &publisherMetrics{
		published:   counter("published_total", "Messages that the broker has accepted."),
		connections: counter("publisher_connections_total", "Connections made; all but the first are reconnects."),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "publish_failures_total",
			Help: "Messages not published, by kind of error: invalid, unavailable, unauthorized (no right to send), other.",
		}, []string{"kind"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "publish_batch_messages",
			Help:    "Messages sent together.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
	}
	return m, register(reg, m.published, m.connections, m.failed, m.batch)
}

func register(reg prometheus.Registerer, cs ...prometheus.Collector) error {
	if reg == nil {
		return nil
	}
	var errs []error
	for _, c := range cs {
		errs = append(errs, reg.Register(c))
	}
	return errors.Join(errs...)
}
