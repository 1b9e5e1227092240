package redisstore

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	conflicts prometheus.Counter
	corrupt   prometheus.Counter
	gaps      prometheus.Counter
	deaf      prometheus.Counter

	corruptIndexes prometheus.Counter
	corrections    prometheus.Counter
	swept          prometheus.Counter
	unshared       prometheus.Counter
	displaced      prometheus.Counter
	sweeps         *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "statusrelay", Subsystem: "redisstore", Name: name, Help: help,
		})
	}
	m := metrics{
		conflicts: counter("put_conflicts_total", "Writes that lost against another writer and were merged again."),
		corrupt:   counter("corrupt_records_total", "Records read from Redis that could not be believed."),
		gaps:      counter("follow_gaps_total", "Times that the subscription was lost and all watched instances were read again."),
		deaf:      counter("follow_deaf_total", "Subscriptions dropped because they delivered nothing although Redis answered."),

		corruptIndexes: counter("corrupt_indexes_total", "Times that an index in Redis, of interest or any other, or a message about one, held what could not be believed."),
		corrections:    counter("list_corrections_total", "Pages for which an index did not say what the records say, and was corrected."),
		swept:          counter("swept_members_total", "Members that a sweep found in an index without a record, and took out."),
		unshared:       counter("sockets_unshared_total", "Sockets let in by the count of this replica alone, because Redis did not answer."),
		displaced:      counter("interest_displaced_total", "Instances that somebody wants and that had to make room in a hub's set of those."),
		sweeps: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "statusrelay", Subsystem: "redisstore", Name: "sweeps_total",
			Help: "Times that this replica's turn to sweep the indexes came, by what became of it: done, failed, or left to another replica.",
		}, []string{"result"}),
	}
	for _, result := range []string{sweepDone, sweepFailed, sweepLeft} {
		m.sweeps.WithLabelValues(result) // there from the start: an alert can ask for its rate
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.conflicts, m.corrupt, m.gaps, m.deaf, m.corruptIndexes, m.corrections, m.swept, m.unshared, m.displaced, m.sweeps} {
		if err := r.Register(c); err != nil {
			return m, err
		}
	}
	return m, nil
}
