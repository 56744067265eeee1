package relay

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are those of the process beside an engine.
type metrics struct {
	held        *prometheus.GaugeVec
	subscribers prometheus.Gauge
	deltas      prometheus.Counter
	added       prometheus.Counter
	evicted     prometheus.Counter
	snapshots   prometheus.Counter
	lost        prometheus.Counter
	reports     [3]prometheus.Counter
	refused     prometheus.Counter
}

// The indices of metrics.reports.
const (
	reportApplied = iota
	reportResync
	reportFailed
)

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "warmpath_relay_" + name, Help: help})
	}
	blocks := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_relay_blocks_total", Help: "Blocks told of as added and as evicted, one for each tier and cache group.",
	}, []string{"change"})
	m := &metrics{
		held:        f.NewGaugeVec(prometheus.GaugeOpts{Name: "warmpath_relay_held_blocks", Help: "Blocks that the engine holds."}, []string{"rank"}),
		subscribers: f.NewGauge(prometheus.GaugeOpts{Name: "warmpath_relay_subscribers", Help: "Routers that follow this relay."}),
		deltas:      counter("deltas_total", "Changes written to the log, from which all routers are served."),
		added:       blocks.WithLabelValues("added"),
		evicted:     blocks.WithLabelValues("evicted"),
		snapshots:   counter("snapshots_total", "Snapshots made, for routers that are new, or that have fallen behind."),
		lost:        counter("unplaced_total", "Blocks that could not be told of because the block before them is not known; the state is incomplete until the next clear."),
		refused:     counter("refused_total", "Calls refused: another seed, another endpoint, no right to call."),
	}
	reports := f.NewCounterVec(prometheus.CounterOpts{Name: "warmpath_relay_reports_total", Help: "Reports to routers by what became of them."}, []string{"result"})
	for i, l := range [...]string{"applied", "resync", "failed"} {
		m.reports[i] = reports.WithLabelValues(l)
	}
	return m
}

// routerMetrics are those of a router that is fed by relays.
type routerMetrics struct {
	deltas     [3]prometheus.Counter
	snapshots  prometheus.Counter
	mismatches prometheus.Counter
	denied     prometheus.Counter
	connects   prometheus.Counter
	skipped    prometheus.Counter
	peers      [4]prometheus.Counter
	known      [3]prometheus.Counter
	told       [3]prometheus.Counter
}

// The indices of routerMetrics.peers.
const (
	peerAnswered = iota
	peerRefused
	peerDenied
	peerFailed
)

// The indices of routerMetrics.known.
const (
	knownTaken = iota
	knownNothing
	knownDamaged
)

// The indices of routerMetrics.told.
const (
	toldAll = iota
	toldNothing
	toldBroken
)

// The indices of routerMetrics.deltas.
const (
	deltaApplied = iota
	deltaDuplicate
	deltaGap
)

func newRouterMetrics(reg prometheus.Registerer) *routerMetrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "warmpath_relay_received_" + name, Help: help})
	}
	m := &routerMetrics{
		snapshots:  counter("snapshots_total", "Snapshots applied."),
		mismatches: counter("mismatches_total", "Streams refused because seed, scheme, endpoint or model are not those of the endpoint."),
		denied:     counter("denied_total", "Calls refused for want of the right to make them."),
		connects:   counter("connects_total", "Streams begun with relays."),
		skipped:    counter("skipped_blocks_total", "Blocks not indexed: their block size is one too many for the endpoint."),
	}
	vec := func(into []prometheus.Counter, name, help string, results ...string) {
		v := f.NewCounterVec(prometheus.CounterOpts{Name: "warmpath_relay_" + name, Help: help}, []string{"result"})
		for i, l := range results {
			into[i] = v.WithLabelValues(l)
		}
	}
	vec(m.peers[:], "peers_total", "Routers asked at the start: answered, refused for another seed or scheme, denied for want of the right, failed because they are not reached, break off or are too slow.", "answered", "refused", "denied", "failed")
	vec(m.known[:], "peer_publishers_total", "Publishers that other routers were asked for at the start: taken, unknown to the one that was asked, damaged on the way.", "taken", "unknown", "damaged")
	vec(m.told[:], "told_publishers_total", "Publishers that a starting router asked this one for: told, unknown because nothing can be told of them, broken because it did not take them.", "told", "unknown", "broken")
	deltas := f.NewCounterVec(prometheus.CounterOpts{Name: "warmpath_relay_received_deltas_total", Help: "Changes received by what became of them."}, []string{"result"})
	for i, l := range [...]string{"applied", "duplicate", "gap"} {
		m.deltas[i] = deltas.WithLabelValues(l)
	}
	return m
}
