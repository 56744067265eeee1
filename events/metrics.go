package events

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/warmpath/warmpath/kvindex"
)

// metrics holds every series that does not belong to one publisher, resolved
// once.
type metrics struct {
	frames    [4]prometheus.Counter
	bytes     prometheus.Counter
	events    [numEventTypes]prometheus.Counter
	skipped   [numCauses]prometheus.Counter
	stored    prometheus.Counter
	removed   prometheus.Counter
	unplaced  prometheus.Counter
	unknown   prometheus.Counter
	missed    prometheus.Counter
	resets    prometheus.Counter
	connects  prometheus.Counter
	switches  prometheus.Counter
	warm      [3]prometheus.Counter
	unasked   prometheus.Counter
	replays   [4]prometheus.Counter
	lag       prometheus.Histogram
	trust     *prometheus.GaugeVec
	sequence  *prometheus.GaugeVec
	lastEvent *prometheus.GaugeVec
}

// What became of a message; the order of metrics.frames.
const (
	frameApplied = iota
	frameDuplicate
	frameMalformed
	frameDropped
)

// How a replay ended; the order of metrics.replays.
const (
	replayMarked = iota
	replayQuiet
	replayFailed
	replayGivenUp
)

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "warmpath_events_" + name, Help: help})
	}
	vec := func(name, label, help string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: "warmpath_events_" + name, Help: help}, []string{label})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: "warmpath_events_" + name, Help: help}, []string{"endpoint", "rank"})
	}
	m := &metrics{
		bytes:    counter("payload_bytes_total", "Bytes of applied event batches."),
		stored:   counter("blocks_stored_total", "Blocks placed in the index."),
		removed:  counter("blocks_removed_total", "Blocks that an engine held and removed."),
		unplaced: counter("blocks_unplaced_total", "Stored blocks whose parent or name was unknown."),
		unknown:  counter("blocks_unknown_total", "Removed blocks that were not known to be held."),
		missed:   counter("missed_total", "Batches missing in live streams, replayed later or not."),
		resets:   counter("resets_total", "Times a publisher's state was dropped: restarts, and losses that no replay mends."),
		connects: counter("connects_total", "Live connections made."),
		switches: counter("source_switches_total", "Times a publisher went from its relay to the engine's own stream or back."),
		unasked:  counter("warm_unasked_total", "Publishers that other routers were not asked for because the time for that was over: engines that came later, or were listed later."),
		lag: f.NewHistogram(prometheus.HistogramOpts{
			Name: "warmpath_events_lag_seconds", Help: "Age of live batches when applied, by the engine's clock.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}),
		trust:     gauge("publisher_trust", "How far a publisher's state can be believed: 0 silent, 1 recovering, 2 incomplete, 3 exact."),
		sequence:  gauge("publisher_sequence", "Sequence of the last batch applied."),
		lastEvent: gauge("publisher_last_event_timestamp_seconds", "Unix time of the last message of a publisher."),
	}
	warm := vec("warm_publishers_total", "result", "Publishers taken over from the process before: restored, and of these resumed, or reset because the engine is another process or its last batch is gone.")
	for i, l := range [...]string{"restored", "resumed", "reset"} {
		m.warm[i] = warm.WithLabelValues(l)
	}
	frames := vec("frames_total", "result", "Messages by what became of them.")
	for i, l := range [...]string{"applied", "duplicate", "malformed", "dropped"} {
		m.frames[i] = frames.WithLabelValues(l)
	}
	replays := vec("replays_total", "result", "Replays by how they ended.")
	for i, l := range [...]string{"marked", "quiet", "failed", "given_up"} {
		m.replays[i] = replays.WithLabelValues(l)
	}
	events := vec("events_total", "type", "Events by type.")
	for i := range m.events {
		m.events[i] = events.WithLabelValues(EventType(i).String())
	}
	skipped := vec("skipped_total", "cause", "Events not applied, by cause.")
	for i := Applied + 1; i < numCauses; i++ {
		if i != causeFaults {
			m.skipped[i] = skipped.WithLabelValues(i.String())
		}
	}
	return m
}

// count adds what became of a batch.
func (m *metrics) count(n *tally) {
	m.frames[frameApplied].Add(float64(n.frames))
	m.bytes.Add(float64(n.bytes))
	for i, v := range n.events {
		if v > 0 {
			m.events[i].Add(float64(v))
		}
	}
	for i, v := range n.skipped {
		if v > 0 {
			m.skipped[i].Add(float64(v))
		}
	}
	m.stored.Add(float64(n.stored))
	m.removed.Add(float64(n.removed))
	m.unplaced.Add(float64(n.unplaced))
	m.unknown.Add(float64(n.unknown))
}

// series are the gauges of one publisher.
type series struct {
	m                          *metrics
	labels                     []string
	trust, sequence, lastEvent prometheus.Gauge
}

func (m *metrics) series(endpoint string, rank int) series {
	l := []string{endpoint, strconv.Itoa(rank)}
	s := series{
		m: m, labels: l, trust: m.trust.WithLabelValues(l...),
		sequence: m.sequence.WithLabelValues(l...), lastEvent: m.lastEvent.WithLabelValues(l...),
	}
	s.trust.Set(float64(kvindex.TrustSilent))
	return s
}

// remove deletes the series.
func (s series) remove() {
	for _, v := range [...]*prometheus.GaugeVec{s.m.trust, s.m.sequence, s.m.lastEvent} {
		v.DeleteLabelValues(s.labels...)
	}
}
