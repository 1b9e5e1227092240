package httpapi

import (
	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/limit"
)

type metrics struct {
	requests         *prometheus.HistogramVec
	waiting, streams prometheus.Gauge
	events           prometheus.Counter
	limited, firsts  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	const namespace, subsystem = "statusrelay", "httpapi"
	m := &metrics{
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "request_seconds",
			Help:    "Time to answer, by kind (read; wait: a long-poll; first: a wait for what a bridge fetches; stream: until its end) and status; 499: the caller left.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .1, .5, 2.5, 10, 60},
		}, []string{"kind", "code"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "waiting", Help: "Requests that wait for a change (Prefer: wait), or for what a bridge fetches.",
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "streams", Help: "Open event streams.",
		}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "events_sent_total", Help: "Events written to streams.",
		}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "limited_total",
			Help: "Requests answered 429, by the limit that was reached: caller, tenant, address, failures (too many bad credentials from an address), waiting, streams.",
		}, []string{"limit"}),
	}
	m.firsts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "first_reads_total",
		Help: "Instances of bridged hubs that were asked for and not seen, by what became of it: found, missing, refused (the caller asks for too many, or has no right to any).",
	}, []string{"result"})
	for _, result := range []string{firstFound, firstMissing, firstRefused} {
		m.firsts.WithLabelValues(result)
	}
	for _, name := range []string{limitCaller, limitTenant, limit.OfAddress, limit.OfFailures, limitWaiting, limitStreams} {
		m.limited.WithLabelValues(name) // there from the start: an alert can ask for its rate
	}
	if r != nil {
		r.MustRegister(m.requests, m.waiting, m.streams, m.events, m.limited, m.firsts)
	}
	return m
}
