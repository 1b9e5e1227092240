package hub

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	watches, instances                       prometheus.Gauge
	offers, conflated, gaps, reads, failures prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "statusrelay", Subsystem: "hub", Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "statusrelay", Subsystem: "hub", Name: name, Help: help})
	}
	m := &metrics{
		watches:   gauge("watches", "Open watches of all transports."),
		instances: gauge("instances", "Instances that are watched here."),
		offers:    counter("offers_total", "Records offered to the watches of an instance, by a push or a read."),
		conflated: counter("conflated_total", "Snapshots that a newer one replaced before their reader took them."),
		gaps:      counter("gaps_total", "Times that pushes may have been missed, so that everything watched is read again."),
		reads:     counter("reads_total", "Watched instances read from the store."),
		failures:  counter("failures_total", "Calls to the feed or the store that failed and are tried again."),
	}
	if r != nil {
		r.MustRegister(m.watches, m.instances, m.offers, m.conflated, m.gaps, m.reads, m.failures)
	}
	return m
}
