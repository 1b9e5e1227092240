package wsapi

import (
	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/limit"
)

type metrics struct {
	sockets                                 prometheus.Gauge
	sent, received, unchanged, held, broken prometheus.Counter
	opened, closed, refused, limited        *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	name := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "statusrelay", Subsystem: "wsapi", Name: name, Help: help}
	}
	counter := func(n, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(name(n, help)))
	}
	m := &metrics{
		sockets:   prometheus.NewGauge(prometheus.GaugeOpts(name("sockets", "Open sockets."))),
		sent:      counter("frames_sent_total", "Data frames written to clients."),
		received:  counter("frames_received_total", "Frames of any kind received from clients."),
		unchanged: counter("unchanged_total", "Versions not sent because the audience's view was the same."),
		held:      counter("held_total", "Statuses that had to wait for the end of their watch's minimum interval."),
		broken:    counter("writes_failed_total", "Sockets cut off because a write failed or took too long."),
		opened: prometheus.NewCounterVec(prometheus.CounterOpts(name("opened_total",
			"Sockets opened, by subprotocol.")), []string{"subprotocol"}),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts(name("closed_total",
			"Closed sockets, by the code that the server closed them with; 0: the client closed, or vanished.")), []string{"code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts(name("refused_total",
			"Handshakes refused, by HTTP status.")), []string{"code"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts(name("limited_total",
			"Handshakes and first tokens refused because of a limit, by which: address, handshakes (in all), failures (too many bad credentials from an address), sockets (of one caller), tenant_sockets, address_sockets.")),
			[]string{"limit"}),
	}
	for _, name := range []string{limit.OfAddress, limitHandshakes, limit.OfFailures, limitSockets, limitTenantSockets, limitAddressSockets} {
		m.limited.WithLabelValues(name) // there from the start: an alert can ask for its rate
	}
	if r != nil {
		r.MustRegister(m.sockets, m.sent, m.received, m.unchanged, m.held, m.broken, m.opened, m.closed, m.refused, m.limited)
	}
	return m
}
