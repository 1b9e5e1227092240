package interest

import "github.com/prometheus/client_golang/prometheus"

type metrics struct{ announced, dropped, failures prometheus.Counter }

func newMetrics(r prometheus.Registerer) metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "statusrelay", Subsystem: "interest", Name: name, Help: help})
	}
	m := metrics{
		announced: counter("announced_total", "Instances of bridged hubs announced as wanted, each once in a third of bridge.interest."),
		dropped:   counter("dropped_total", "Wanted instances that were not announced, because there were too many or Redis was away for too long."),
		failures:  counter("failures_total", "Announcements that failed and are tried again."),
	}
	if r != nil {
		r.MustRegister(m.announced, m.dropped, m.failures)
	}
	return m
}
