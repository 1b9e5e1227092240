package durablehttp

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests  *prometheus.CounterVec
	published *prometheus.CounterVec
	lag       prometheus.Histogram
	waits     prometheus.Counter
	unread    prometheus.Counter
	full      prometheus.Counter
	instances prometheus.Gauge
	open      prometheus.Gauge
	leads     prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "statusrelay", Subsystem: "bridge", Name: name, Help: help}
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts(opts("requests_total",
			"Requests to the function app, by what they were for and what came of them; those with result store were not made, since Redis was away.")), []string{"request", "result"}),
		published: prometheus.NewCounterVec(prometheus.CounterOpts(opts("updates_total",
			"Updates of the bridge, by what came of them: published, failed.")), []string{"result"}),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "statusrelay", Subsystem: "bridge", Name: "lag_seconds", Help: "How much later than it was due an instance was read.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 8), // to 164 s
		}),
		waits:     prometheus.NewCounter(prometheus.CounterOpts(opts("rate_waits_total", "Times that a request was due and had to wait because of bridge.rate."))),
		unread:    prometheus.NewCounter(prometheus.CounterOpts(opts("unreadable_items_total", "Instances in lists that could not be read."))),
		full:      prometheus.NewCounter(prometheus.CounterOpts(opts("instances_refused_total", "Times that an instance could not be taken on because there were too many."))),
		instances: prometheus.NewGauge(prometheus.GaugeOpts(opts("instances", "Instances that this replica bridges."))),
		open:      prometheus.NewGauge(prometheus.GaugeOpts(opts("runtime_failing", "1 while the function app fails and is asked now and then only."))),
		leads:     prometheus.NewGauge(prometheus.GaugeOpts(opts("leads", "1 while this replica is the one that bridges its hub."))),
	}
	for _, o := range outcomes() {
		m.requests.WithLabelValues(forInstance, string(o))
		m.requests.WithLabelValues(forList, string(o))
	}
	m.published.WithLabelValues(published)
	m.published.WithLabelValues(unpublished)
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.published, m.lag, m.waits, m.unread, m.full, m.instances, m.open, m.leads} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Labels of the metrics.
const (
	forInstance = "instance"
	forList     = "list"
	published   = "published"
	unpublished = "failed"
)
